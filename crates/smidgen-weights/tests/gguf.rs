//! GGUF files made here: sound ones give their content, the others an error that says what is wrong.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::{GgufBytes, array, file, string};
use smidgen_kernels::Format;
use smidgen_weights::{Error, Gguf, Optional};

/// The largest single allocation of this process, in bytes.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Watching;

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

fn open(bytes: &[u8]) -> Result<Gguf, Error> {
    Gguf::open(file(bytes).path())
}

/// Opens a file, then asks for all it has.
fn read_all(bytes: &[u8]) -> Result<(), Error> {
    let gguf = open(bytes)?;
    let keys: Vec<_> = gguf.keys().map(str::to_owned).collect();
    for key in &keys {
        let _ = (gguf.u32(key), gguf.u64(key), gguf.f32(key), gguf.bool(key), gguf.str(key));
        let _ = (gguf.i32s(key).map(Iterator::count), gguf.f32s(key).map(Iterator::count));
        let _ = gguf.strings(key).map(|strings| strings.collect::<Vec<_>>());
    }
    for name in gguf.tensor_names() {
        let _ = (gguf.matrix(name), gguf.vector_f32(name));
    }
    let _ = (gguf.check_readable(), gguf.fingerprint());
    Ok(())
}

#[track_caller]
fn refused(bytes: &[u8], because: &str) {
    let error = open(bytes).expect_err(because).to_string();
    assert!(error.contains(because), "{error:?} does not say {because:?}");
    assert!(LARGEST.load(Relaxed) < 1 << 20, "an allocation of {} bytes", LARGEST.load(Relaxed));
}

#[track_caller]
fn refused_with(change: impl FnOnce(&mut GgufBytes), because: &str) {
    let mut parts = GgufBytes::sample();
    change(&mut parts);
    refused(&parts.bytes(), because);
}

#[test]
fn gives_values_of_every_type() {
    for version in [2, 3] {
        let gguf = open(&GgufBytes { version, ..GgufBytes::sample() }.bytes()).unwrap();
        assert_eq!(gguf.str("general.architecture").unwrap(), "toy");
        assert_eq!(gguf.u32("toy.block_count").unwrap(), 2);
        assert_eq!(gguf.u64("toy.block_count").unwrap(), 2);
        assert_eq!(gguf.u32("toy.context_length").unwrap(), 4096);
        assert_eq!(gguf.f32("toy.rope.freq_base").unwrap(), 1e6);
        assert!(gguf.bool("toy.causal").unwrap());
        let tokens: Vec<_> = gguf.strings("tokens").unwrap().map(Result::unwrap).collect();
        assert_eq!(tokens, ["a", "", "zwölf"]);
        assert_eq!(gguf.strings("tokens").unwrap().len(), 3);
        let packed = gguf.strings("tokens").unwrap().packed();
        assert_eq!(packed.len(), tokens.iter().map(|token| 8 + token.len()).sum::<usize>());
        assert_eq!(gguf.i32_words("token_type").unwrap(), [1i32, -1].map(i32::to_le_bytes));
        assert_eq!(gguf.f32_words("scores").unwrap(), [0.5f32.to_le_bytes()]);
        assert_eq!(gguf.i32s("token_type").unwrap().collect::<Vec<_>>(), [1, -1]);
        assert_eq!(gguf.f32s("scores").unwrap().collect::<Vec<_>>(), [0.5]);
        assert_eq!(gguf.keys().count(), 9);
    }
}

#[test]
fn says_what_it_found_instead() {
    let gguf = open(&GgufBytes::sample().bytes()).unwrap();
    let error = |error: Error| error.to_string();
    let found = error(gguf.u32("general.architecture").unwrap_err());
    assert!(found.contains("metadata general.architecture should be u32, not string"), "{found}");
    let found = error(gguf.u32("toy.shift").unwrap_err());
    assert!(found.contains("metadata toy.shift should be u32, not -3"), "{found}");
    let found = error(gguf.f32s("tokens").err().unwrap());
    assert!(found.contains("should be array of f32, not array of 3 string"), "{found}");
    assert!(matches!(gguf.f32("none"), Err(Error::MissingKey { .. })));
    assert!(matches!(gguf.u32("none").optional(), Ok(None)));
    assert!(matches!(gguf.tensor("none").optional(), Ok(None)));
    assert!(gguf.u32("toy.shift").optional().is_err());
}

#[test]
fn gives_tensors_as_they_lie() {
    let parts = GgufBytes::sample();
    let gguf = open(&parts.bytes()).unwrap();
    let up = gguf.tensor("up.weight").unwrap();
    assert_eq!((up.format, up.rows, up.cols), (Format::Q4_1, 3, 32));
    assert_eq!(&gguf.map().bytes()[up.range.clone()], &parts.data[32..92]);
    assert_eq!(gguf.matrix("up.weight").unwrap().row_blocks(2), &parts.data[72..92]);
    let norm = gguf.vector_f32("norm.weight").unwrap();
    assert_eq!(norm[1].to_le_bytes(), parts.data[4..8]);
    let bias = gguf.vector_f32("bias").unwrap();
    assert_eq!(half::f16::from_f32(bias[1]).to_le_bytes(), parts.data[98..100]);
    let error = gguf.vector_f32("up.weight").unwrap_err().to_string();
    assert!(error.contains("tensor up.weight is a matrix of 3 x 32, not a vector"), "{error}");
    let error = gguf.check_readable().unwrap_err().to_string();
    assert!(error.contains("tensor odd.weight is IQ1_S, not F32, F16"), "{error}");
}

#[test]
fn honours_the_alignment_of_the_file() {
    let mut parts = GgufBytes::sample();
    parts.alignment = 64;
    parts.entries.push((b"general.alignment".into(), 4, 64u32.to_le_bytes().into()));
    parts.tensors.truncate(2);
    parts.tensors[1].3 = 64;
    let gguf = open(&parts.bytes()).unwrap();
    assert_eq!(gguf.matrix("up.weight").unwrap().row_blocks(0), &parts.data[64..84]);
    assert_eq!(gguf.tensor("norm.weight").unwrap().range.start % 64, 0);
}

#[test]
fn fingerprint_is_of_the_weights_and_the_architecture() {
    let sound = || {
        let mut parts = GgufBytes::sample();
        parts.tensors.pop();
        parts
    };
    let fingerprint = |parts: &GgufBytes| open(&parts.bytes()).unwrap().fingerprint().unwrap();
    let original = fingerprint(&sound());
    let with = |change: &dyn Fn(&mut GgufBytes)| {
        let mut parts = sound();
        change(&mut parts);
        fingerprint(&parts)
    };
    // Names, tokens, the version and the order in the file do not count.
    let name = (b"general.name".to_vec(), 8, string("Toy"));
    assert_eq!(original, with(&|parts| parts.entries.push(name.clone())));
    assert_eq!(original, with(&|parts| parts.entries.reverse()));
    assert_eq!(original, with(&|parts| parts.tensors.reverse()));
    assert_eq!(original, with(&|parts| parts.version = 2));
    // A setting, a number, a shape, a name do.
    assert_ne!(original, with(&|parts| parts.entries[1].2[0] = 3));
    assert_ne!(original, with(&|parts| parts.data[91] ^= 1));
    assert_ne!(original, with(&|parts| parts.tensors[1].1 = vec![96]));
    assert_ne!(original, with(&|parts| parts.tensors[1].0 = b"down.weight".into()));
    let anonymous = open(&with_entries(Vec::new()).bytes()).unwrap();
    assert!(matches!(anonymous.fingerprint(), Err(Error::MissingKey { .. })));
}

fn with_entries(entries: Vec<(Vec<u8>, u32, Vec<u8>)>) -> GgufBytes {
    GgufBytes { entries, ..GgufBytes::default() }
}

#[test]
fn refuses_a_file_cut_anywhere() {
    let bytes = GgufBytes::sample().bytes();
    // The last tensor's size is not known to us, so only its first byte is missed.
    let needed = bytes.len() - 31;
    for len in 1..needed {
        assert!(matches!(open(&bytes[..len]), Err(Error::Malformed { .. })), "{len} bytes");
    }
    read_all(&bytes[..needed]).unwrap();
}

#[test]
fn survives_every_changed_byte_of_the_header() {
    let parts = GgufBytes::sample();
    let (bytes, header) = (parts.bytes(), parts.header().len());
    for at in 0..header {
        for value in [0, 1, 9, 0x7f, 0x80, 0xff, bytes[at] ^ 0x20, bytes[at].wrapping_add(1)] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            let _ = read_all(&bytes);
        }
    }
    assert!(LARGEST.load(Relaxed) < 1 << 20, "an allocation of {} bytes", LARGEST.load(Relaxed));
}

#[test]
fn refuses_what_is_no_readable_gguf() {
    refused(b"PK\x03\x04 a zip file", "no GGUF file");
    refused_with(|parts| parts.version = 1, "version 1");
    refused_with(|parts| parts.version = 4, "only 2 and 3");
    refused_with(|parts| parts.version = 3u32.swap_bytes(), "big-endian");
}

#[test]
fn refuses_lying_counts_and_lengths() {
    for count in [17, 1 << 20, 1 << 40, u64::MAX] {
        refused_with(|parts| parts.tensor_count = Some(count), "");
        refused_with(|parts| parts.entry_count = Some(count), "");
    }
    refused_with(|parts| parts.tensor_count = Some(u64::MAX), "can't hold");
    let entry = |value: Vec<u8>, kind| {
        move |parts: &mut GgufBytes| parts.entries[0] = (b"k".into(), kind, value)
    };
    let long = |len: u64| [&len.to_le_bytes()[..], b"abc"].concat();
    refused_with(entry(long(u64::MAX), 8), "\"k\": a string of 18446744073709551615 bytes");
    refused_with(entry(long(1 << 40), 8), "doesn't fit");
    refused_with(entry(array(4, u64::MAX / 2, &[]), 9), "elements don't fit");
    refused_with(entry(array(10, 1 << 61, &[]), 9), "elements don't fit");
    refused_with(entry(array(8, 1 << 33, &[]), 9), "elements don't fit");
    refused_with(entry(array(8, 1, &long(1 << 50)), 9), "\"k\", element 0: a string");
    refused_with(entry(array(9, 1, &array(4, 0, &[])), 9), "array of arrays");
    refused_with(entry(array(13, 1, &[0; 8]), 9), "unknown type 13");
    refused_with(entry(vec![0; 8], 77), "unknown type 77");
    for (value, kind) in [(0u64, 4), (24, 4), (1 << 31, 4), (32, 10)] {
        let bytes = value.to_le_bytes()[..if kind == 4 { 4 } else { 8 }].to_vec();
        let entry = (b"general.alignment".to_vec(), kind, bytes);
        refused_with(|parts| parts.entries.push(entry), "general.alignment");
    }
}

#[test]
fn refuses_unsound_names() {
    refused_with(|parts| parts.entries[0].0 = b"\xff".into(), "metadata key is no UTF-8");
    refused_with(|parts| parts.tensors[0].0 = b"\xc3".into(), "tensor name is no UTF-8");
    refused_with(|parts| parts.tensors[0].0.clear(), "tensor name has 0 bytes");
    refused_with(|parts| parts.entries[0].0 = vec![b'k'; 2000], "metadata key has 2000 bytes");
    refused_with(|parts| parts.entries[1].0 = parts.entries[0].0.clone(), "occurs twice");
    refused_with(|parts| parts.tensors[1].0 = parts.tensors[0].0.clone(), "occurs twice");
}

#[test]
fn refuses_unsound_tensors() {
    let shape = |shape: &[u64]| {
        let shape = shape.to_vec();
        move |parts: &mut GgufBytes| parts.tensors[1].1 = shape
    };
    refused_with(shape(&[]), "0 dimensions");
    refused_with(shape(&[32, 1, 1, 1, 1]), "5 dimensions");
    refused_with(shape(&[32, 0]), "is empty");
    refused_with(shape(&[33, 3]), "no multiple of 32");
    refused_with(shape(&[1 << 32, 1 << 31]), "beyond the end of the file");
    refused_with(shape(&[1 << 32, 1 << 32]), "too large");
    refused_with(shape(&[!31u64, 1]), "");
    refused_with(shape(&[!31u64, u64::MAX]), "too large");
    refused_with(shape(&[32, 400]), "beyond the end of the file");
    let offset = |offset: u64| move |parts: &mut GgufBytes| parts.tensors[1].3 = offset;
    refused_with(offset(33), "multiple of the alignment");
    refused_with(offset(0), "overlap");
    refused_with(offset(64), "overlap");
    refused_with(offset(128), "beyond the end of the file");
    refused_with(offset(1 << 40), "beyond the end of the file");
    refused_with(offset(u64::MAX - 31), "beyond the end of the file");
    refused_with(|parts| parts.tensors[3].3 = 160, "beyond the end of the file");
    // A type that nobody knows is refused only when its tensor is asked for.
    let mut parts = GgufBytes::sample();
    parts.tensors[3].2 = 4_000_000;
    let error = open(&parts.bytes()).unwrap().matrix("odd.weight").unwrap_err().to_string();
    assert!(error.contains("odd.weight is of unknown type 4000000"), "{error}");
}

#[test]
fn refuses_text_that_is_no_utf8_when_asked_for_it() {
    let mut parts = GgufBytes::sample();
    parts.entries[0].2 = string(b"\xff\xfe");
    parts.entries[6].2 = array(8, 2, &[string("a"), string(b"\x80")].concat());
    parts.entries[4].2 = vec![2];
    let gguf = open(&parts.bytes()).unwrap();
    assert!(matches!(gguf.str("general.architecture"), Err(Error::Malformed { .. })));
    assert!(matches!(gguf.bool("toy.causal"), Err(Error::Malformed { .. })));
    let tokens: Vec<_> = gguf.strings("tokens").unwrap().collect();
    assert_eq!(tokens[0].as_ref().unwrap(), &"a");
    let Err(Error::Malformed { offset, what, .. }) = &tokens[1] else { panic!("{tokens:?}") };
    assert!(what.contains("\"tokens\", element 1"), "{what}");
    let bytes = parts.bytes();
    assert_eq!(bytes[*offset as usize + 8], 0x80);
}
