//! What the GGUF writer writes is what the reader reads.

use std::path::{Path, PathBuf};

use smidgen_weights::{Error, Format, Gguf, GgufWriter, NewTensor};

fn tensor(name: &str, format: Format, shape: &[u64]) -> NewTensor {
    NewTensor { name: name.into(), format, shape: shape.into() }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("model.gguf")
    }

    fn names(&self) -> Vec<String> {
        let name = |e: std::io::Result<std::fs::DirEntry>| e.unwrap().file_name();
        let names = std::fs::read_dir(self.0.path()).unwrap().map(name);
        names.map(|n| n.into_string().unwrap()).collect()
    }
}

fn written(path: &Path) -> u64 {
    let mut writer = GgufWriter::create(path).unwrap();
    writer.str("general.architecture", "toy").unwrap();
    writer.u32("toy.block_count", 2).unwrap();
    writer.f32("toy.eps", 1e-6).unwrap();
    writer.bool("toy.causal", true).unwrap();
    // More than a block of the writer's.
    writer.strings("tokens", (0..20_000).map(|i| format!("zwölf {i}"))).unwrap();
    writer.strings("none", [""; 0]).unwrap();
    writer.i32s("types", [1, -1]).unwrap();
    writer.f32s("scores", [0.5]).unwrap();
    let mut tensors = writer
        .tensors(&[
            tensor("norm.weight", Format::F32, &[3]),
            tensor("up.weight", Format::Q4_0, &[64, 2_000]),
            tensor("cube", Format::F16, &[2, 3, 4]),
        ])
        .unwrap();
    for number in [1.0f32, 2.0, 3.0] {
        tensors.write(&number.to_le_bytes()).unwrap();
    }
    tensors.write(&vec![7; 36 * 1_999]).unwrap();
    tensors.write(&[8; 36]).unwrap();
    tensors.write(&[9; 48]).unwrap();
    tensors.finish().unwrap()
}

#[test]
fn what_is_written_is_read() {
    let place = Place::new();
    let bytes = written(&place.path());
    assert_eq!(place.names(), ["model.gguf"]);
    assert_eq!(std::fs::metadata(place.path()).unwrap().len(), bytes);
    let gguf = Gguf::open(place.path()).unwrap();
    assert_eq!(gguf.str("general.architecture").unwrap(), "toy");
    assert_eq!(gguf.u32("toy.block_count").unwrap(), 2);
    assert_eq!(gguf.f32("toy.eps").unwrap(), 1e-6);
    assert!(gguf.bool("toy.causal").unwrap());
    let tokens: Vec<&str> = gguf.strings("tokens").unwrap().map(Result::unwrap).collect();
    assert_eq!((tokens.len(), tokens[19_999]), (20_000, "zwölf 19999"));
    assert_eq!(gguf.strings("none").unwrap().len(), 0);
    assert_eq!(gguf.i32s("types").unwrap().collect::<Vec<_>>(), [1, -1]);
    assert_eq!(gguf.f32s("scores").unwrap().collect::<Vec<_>>(), [0.5]);
    assert_eq!(gguf.vector_f32("norm.weight").unwrap(), [1.0, 2.0, 3.0]);
    let up = gguf.matrix("up.weight").unwrap();
    assert_eq!((up.format(), up.rows(), up.cols()), (Format::Q4_0, 2_000, 64));
    assert_eq!((up.row_blocks(1_998), up.row_blocks(1_999)), (&[7; 36][..], &[8; 36][..]));
    let cube = gguf.tensor("cube").unwrap();
    assert_eq!((cube.format, cube.rows, cube.cols), (Format::F16, 12, 2));
    assert!(cube.range.start.is_multiple_of(32));
}

#[test]
fn a_name_without_a_folder_is_enough() {
    let name = format!("smidgen-writer-{}.gguf", std::process::id());
    written(Path::new(&name));
    std::fs::remove_file(&name).unwrap();
}

#[test]
fn what_no_reader_takes_is_refused() {
    let refused = |tensors: &[NewTensor], wanted: &str| {
        let place = Place::new();
        let error = GgufWriter::create(place.path()).unwrap().tensors(tensors).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        assert!(error.to_string().contains(wanted), "{error}");
        assert_eq!(place.names(), [""; 0], "nothing is left behind");
    };
    let one = |format, shape: &[u64]| [tensor("t", format, shape)];
    refused(&one(Format::Q4_0, &[48, 2]), "no multiple of 32");
    refused(&one(Format::F32, &[]), "0 dimensions");
    refused(&one(Format::F32, &[1; 5]), "5 dimensions");
    refused(&one(Format::F32, &[4, 0]), "is empty");
    refused(&one(Format::F32, &[1 << 40, 1 << 40]), "too large");
    refused(&[tensor("t", Format::F32, &[1 << 60]), tensor("u", Format::F32, &[3 << 60])], "large");
    refused(&[tensor("t", Format::F32, &[1]), tensor("t", Format::F16, &[1])], "occurs twice");
    refused(&[tensor("", Format::F32, &[1])], "0 bytes");
    refused(&[tensor(&"t".repeat(1025), Format::F32, &[1])], "1025 bytes");
}

#[test]
fn keys_occur_once() {
    let place = Place::new();
    let mut writer = GgufWriter::create(place.path()).unwrap();
    writer.u32("a", 1).unwrap();
    assert!(writer.str("a", "b").unwrap_err().to_string().contains("occurs twice"));
}

#[test]
fn what_was_there_stays_until_the_file_is_complete() {
    let place = Place::new();
    std::fs::write(place.path(), "before").unwrap();
    let writer = GgufWriter::create(place.path()).unwrap();
    let mut tensors = writer.tensors(&[tensor("t", Format::F32, &[2])]).unwrap();
    tensors.write(&[0; 4]).unwrap();
    drop(tensors);
    assert_eq!(std::fs::read(place.path()).unwrap(), b"before");
    assert_eq!(place.names(), ["model.gguf"]);
}

#[test]
#[should_panic(expected = "lacks 4")]
fn a_tensor_takes_no_more_than_its_bytes() {
    let place = Place::new();
    let writer = GgufWriter::create(place.path()).unwrap();
    let _ = writer.tensors(&[tensor("t", Format::F32, &[1])]).unwrap().write(&[0; 8]);
}

#[test]
#[should_panic(expected = "4 bytes of a tensor")]
fn a_file_is_finished_when_its_tensors_are() {
    let place = Place::new();
    let tensors = [tensor("t", Format::F32, &[1]), tensor("u", Format::F32, &[1])];
    let mut writer = GgufWriter::create(place.path()).unwrap().tensors(&tensors).unwrap();
    writer.write(&[0; 4]).unwrap();
    let _ = writer.finish();
}

#[test]
fn entries_are_copied_as_they_stand() {
    let (one, two) = (Place::new(), Place::new());
    written(&one.path());
    let from = Gguf::open(one.path()).unwrap();
    let mut writer = GgufWriter::create(two.path()).unwrap();
    from.keys().for_each(|key| writer.copy(&from, key).unwrap());
    assert!(matches!(writer.copy(&from, "nowhere"), Err(Error::MissingKey { .. })));
    writer.tensors(&[]).unwrap().finish().unwrap();
    let copy = Gguf::open(two.path()).unwrap();
    assert!(copy.keys().eq(from.keys()));
    let strings = |gguf: &Gguf, key: &str| gguf.strings(key).unwrap().packed().to_vec();
    for key in ["tokens", "none"] {
        assert_eq!(strings(&copy, key), strings(&from, key));
    }
    assert_eq!(copy.str("general.architecture").unwrap(), "toy");
    assert_eq!(copy.u32("toy.block_count").unwrap(), 2);
    assert_eq!(copy.f32("toy.eps").unwrap(), 1e-6);
    assert!(copy.bool("toy.causal").unwrap());
    assert_eq!(copy.i32s("types").unwrap().collect::<Vec<_>>(), [1, -1]);
}

#[test]
fn tensors_come_in_the_order_of_their_bytes() {
    let place = Place::new();
    written(&place.path());
    let gguf = Gguf::open(place.path()).unwrap();
    assert_eq!(gguf.tensors_in_order(), ["norm.weight", "up.weight", "cube"]);
    assert_eq!(gguf.shape("cube").unwrap(), [2, 3, 4]);
    assert!(matches!(gguf.shape("nowhere"), Err(Error::MissingTensor { .. })));
}
