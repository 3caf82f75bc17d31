//! `export`, `fuse` and `quantize` on the real binary and the demo's model.

mod common;

use common::Place;

/// A folder with a text, and with an adapter of the demo's model in `run`.
fn trained() -> Place {
    let place = Place::empty();
    place.write(
        "text.txt",
        &"The miller mends his wheel, and the village has bread again. ".repeat(12),
    );
    place.report("train -m MODEL --data text.txt --max-seq-length 32 --iters 4 --lr 5e-3 -o run");
    place
}

fn refused(place: &Place, line: &str, because: &str) {
    let said = place.failure(line, 2);
    assert!(said.contains(because), "{line}: {said}");
}

fn loss(place: &Place, what: &str) -> f64 {
    let line = format!("eval {what} --data text.txt --max-seq-length 32 --chunks 4");
    place.report(&line)["loss"].as_f64().unwrap()
}

#[test]
fn an_adapter_is_exported_merged_and_the_model_quantised() {
    let place = trained();
    let exported = place.report("export -m MODEL --adapter run --format gguf -o lora.gguf");
    let bytes = std::fs::metadata(place.path("lora.gguf")).unwrap().len();
    assert_eq!(exported["bytes"], bytes);

    let tuned = loss(&place, "-m MODEL --adapter run");
    let fused = place.report("fuse -m MODEL --adapter run -o fused.gguf --type f32 --threads 1");
    assert_eq!(fused["adapter_path"], "run");
    assert!((loss(&place, "-m fused.gguf") - tuned).abs() < 1e-5);
    place.report("fuse -m MODEL --adapter run -o fused.gguf");
    assert!((loss(&place, "-m fused.gguf") - tuned).abs() < 0.1);

    let base = loss(&place, "-m MODEL");
    for (name, most) in [("f16", 1e-3), ("q8_0", 0.02), ("q4_0", 0.5)] {
        let told = place.report(&format!("quantize MODEL -o small.gguf --type {name}"));
        assert_eq!(told["tensors"][0]["shape"].as_array().unwrap().len(), 2);
        assert!(told["tensor_bytes"].as_u64().unwrap() < told["bytes"].as_u64().unwrap());
        let loss = loss(&place, "-m small.gguf");
        assert!((loss - base).abs() < most, "{name}: {loss} and {base}");
    }
    let text = place.run("quantize MODEL -o small.gguf --type q4_0");
    let text = String::from_utf8(text.stdout).unwrap();
    for part in ["token_embd.weight", "Q4_0", "error", "MB/s", "written"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn files_of_other_kinds_are_not_replaced() {
    let place = trained();
    place.report("export -m MODEL --adapter run -o lora.gguf");
    place.report("quantize MODEL -o small.gguf");
    // Files of the same kind are.
    place.report("export -m MODEL --adapter run -o lora.gguf");
    place.report("quantize MODEL -o small.gguf");
    refused(&place, "export -m MODEL --adapter run -o text.txt", "no GGUF adapter");
    refused(&place, "export -m MODEL --adapter run -o small.gguf", "no GGUF adapter");
    refused(&place, "quantize MODEL -o lora.gguf", "no GGUF model");
    refused(&place, "quantize small.gguf -o ./small.gguf", "the file that is read");
    refused(&place, "fuse -m small.gguf --adapter run -o small.gguf", "the file that is read");
    refused(&place, "quantize MODEL -o run", "not a file's name");
    refused(&place, "fuse -m run --adapter run -o x.gguf", "smidgen quantize run");
    assert!(!place.path("x.gguf").exists());
}

#[test]
fn a_merged_checkpoint_is_written_once() {
    let place = trained();
    let told = place.report("fuse -m MODEL --adapter run -o model.safetensors");
    assert_eq!(told["tensors"][0]["to"], "F16");
    let bytes = std::fs::metadata(place.path("model.safetensors")).unwrap().len();
    assert_eq!(told["bytes"], bytes);
    refused(&place, "fuse -m MODEL --adapter run -o model.safetensors", "something already");
    refused(&place, "fuse -m MODEL --adapter run -o x.safetensors --type q4_0", "f16 or f32");
}
