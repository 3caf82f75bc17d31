//! Small models of every preset's family, opened as any file.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use smidgen_weights::Gguf;

use super::*;

/// A model of a preset's kind, small.
fn small(preset: Preset, vocabulary: usize) -> Shape {
    let shape = preset.shape();
    Shape { layers: 7, hidden: 64, ffn: 96, head_dim: 32, vocabulary, ..shape }
}

fn write(shape: &Shape, path: &Path, seed: u64) -> Result<u64> {
    shape.write(path, seed, &AtomicBool::new(false), &mut |_, _| {})
}

#[test]
fn the_family_opens_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    for preset in Preset::ALL {
        let shape = small(preset, 1024);
        let path = folder.path().join(preset.name());
        let mut told = Vec::new();
        let mut progress = |done, total| told.push((done, total));
        let bytes = shape.write(&path, 1, &AtomicBool::new(false), &mut progress).unwrap();
        let (done, total) = *told.last().unwrap();
        assert!(done == total && total < bytes && told.is_sorted(), "{done} of {total}");
        let gguf = Gguf::open(&path).unwrap();
        let model = crate::open(&gguf).unwrap();
        assert_eq!(model.info.name, format!("{} (random weights)", preset.name()));
        assert_eq!(model.info.vocabulary, 1024);
        assert_eq!(model.info.key_cols, shape.kv_heads * 32);
        assert_eq!(model.info.context_length, shape.context_length);
        let written = shape.blocks();
        let wanted = written.architecture();
        assert_eq!(format!("{:?}", model.blocks), format!("{wanted:?}"));
        for tensor in tensors(wanted) {
            let found = gguf.tensor(&tensor.name).unwrap();
            assert_eq!(found.format, tensor.format);
            assert_eq!((found.rows * found.cols) as u64, tensor.shape.iter().product::<u64>());
        }
    }
}

#[test]
fn a_seed_gives_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = |seed| {
        let path = folder.path().join("model.gguf");
        write(&small(Preset::Gemma3B1, 512), &path, seed).unwrap();
        std::fs::read(path).unwrap()
    };
    assert!(bytes(1) == bytes(1));
    assert!(bytes(1) != bytes(2));
}

#[test]
fn vocabularies_have_their_size_and_no_token_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for (preset, vocabulary) in [
        (Preset::Qwen25B3, 550),
        (Preset::Qwen25B3, 66_085),
        (Preset::Qwen25B3, 66_086),
        (Preset::Qwen25B3, 151_936),
        (Preset::Gemma3B1, 359),
        (Preset::Gemma3B1, 262_144),
        (Preset::Gemma3B4, 262_208),
    ] {
        write(&Shape { layers: 1, ..small(preset, vocabulary) }, &path, 0).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap();
        let different: BTreeSet<&str> = tokens.map(std::result::Result::unwrap).collect();
        assert_eq!(different.len(), vocabulary);
        assert_eq!(gguf.i32s("tokenizer.ggml.token_type").unwrap().len(), vocabulary);
    }
}

#[test]
#[should_panic(expected = "too few")]
fn a_vocabulary_must_hold_the_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let _ = write(&small(Preset::Qwen25B1_5, 549), &folder.path().join("m"), 0);
}

#[test]
fn failures_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let shape = small(Preset::Qwen25B1_5, 1024);
    let stopped = shape.write(&path, 0, &AtomicBool::new(true), &mut |_, _| {});
    assert!(matches!(stopped, Err(Error::Cancelled)));
    let ragged = write(&Shape { hidden: 40, ..shape }, &path, 0).unwrap_err();
    assert!(ragged.to_string().contains("no multiple of 32"), "{ragged}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
