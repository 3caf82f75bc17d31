//! Rewriting a model takes a few megabytes, whatever its size: a counting allocator watches, and the
//! map's resident pages are looked at.

#[path = "common/heap.rs"]
mod heap;

use std::sync::atomic::AtomicBool;

use heap::Watch;
use smidgen_models::synth::{Preset, Shape};
use smidgen_train::{Base, Convert, Format};

/// The most that may live beside what lived before, in bytes.
const MOST: isize = 8 << 20;

#[test]
fn a_models_size_takes_no_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let [small, out] = ["model.gguf", "out.gguf"].map(|name| folder.path().join(name));
    let never = AtomicBool::new(false);
    // 40 MB: matrices of 22 MB, and an embedding of 18.
    let shape = Preset::Qwen25B1_5.shape();
    let shape = Shape { layers: 2, ffn: 6144, vocabulary: 20_000, ..shape };
    shape.write(&small, 1, &never, &mut |_, _| {}).expect("a model");
    let base = Base::open(&small).expect("a model");
    for to in [Format::Q8_0, Format::F16] {
        let watch = Watch::begin();
        let mut convert = Convert { threads: 2, cancel: &never, progress: &mut |_, _| {} };
        let written = convert.quantize(&base, to, &out).expect("a file");
        let (grown, _) = watch.most();
        println!("{to:?}: {} bytes written, {grown} in memory", written.file_bytes);
        assert!(written.file_bytes > 60_000_000, "{} bytes", written.file_bytes);
        assert!(grown < MOST, "{to:?}: {grown} bytes");
        let map = base.weights().gguf().map();
        if let Some(resident) = map.resident_bytes(0..map.bytes().len()) {
            assert!(resident < 4 << 20, "{resident} bytes of the map are resident");
        }
    }
}
