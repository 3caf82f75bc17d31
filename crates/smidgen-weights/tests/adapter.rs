//! Adapter folders: what is written reads back, here and with the safetensors crate; the others
//! give an error that says what is wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use smidgen_weights::{
    Adapter, AdapterConfig, AdapterWriter, BaseModel, Error, Factor, LoraShape, TargetModules,
};

const Q: &str = "model.layers.0.self_attn.q_proj";
const DOWN: &str = "model.layers.11.mlp.down_proj";

fn config() -> AdapterConfig {
    AdapterConfig {
        base_model_name_or_path: Some("org/base".into()),
        revision: None,
        r: 2,
        lora_alpha: 4.5,
        lora_dropout: 0.0,
        target_modules: TargetModules::Names(vec!["q_proj".into(), "down_proj".into()]),
        use_rslora: false,
    }
}

fn base() -> BaseModel {
    BaseModel {
        architecture: "toy".into(),
        file_name: "toy.gguf".into(),
        fingerprint: "5f".repeat(32).parse().unwrap(),
    }
}

fn modules() -> BTreeMap<String, LoraShape> {
    BTreeMap::from([
        (Q.to_owned(), LoraShape { rank: 2, inputs: 5000, outputs: 3 }),
        (DOWN.to_owned(), LoraShape { rank: 2, inputs: 7, outputs: 5000 }),
    ])
}

/// Numbers that differ between matrices.
fn numbers(module: &str, factor: Factor, shape: LoraShape) -> Vec<f32> {
    let [rows, cols] = shape.dims(factor);
    let seed = module.len() * 10 + factor as usize;
    (0..rows * cols).map(|i| (i as f32 - 700.5) * 0.125 + seed as f32).collect()
}

fn write(folder: &Path) {
    let mut writer = AdapterWriter::create(folder, &config(), &base(), &modules()).unwrap();
    // In another order than the file's.
    for factor in [Factor::B, Factor::A] {
        for (module, shape) in modules() {
            writer.write(&module, factor, &numbers(&module, factor, shape)).unwrap();
        }
    }
    writer.finish().unwrap();
}

fn file_names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string();
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| name(e).unwrap()).collect();
    names.sort();
    names
}

#[test]
fn round_trips() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("new/adapter");
    write(&folder);
    write(&folder); // Over the first.
    assert_eq!(
        file_names(&folder),
        ["adapter_config.json", "adapter_model.safetensors", "smidgen"]
    );
    let adapter = Adapter::open(&folder).unwrap();
    let names = TargetModules::Names(vec!["down_proj".into(), "q_proj".into()]);
    assert_eq!(adapter.config(), &AdapterConfig { target_modules: names, ..config() });
    let found: BTreeMap<_, _> = adapter.modules().map(|(p, s)| (p.to_owned(), s)).collect();
    assert_eq!(found, modules());
    for (module, shape) in modules() {
        for factor in [Factor::A, Factor::B] {
            let expected = numbers(&module, factor, shape);
            let mut read = vec![0.0; expected.len()];
            adapter.read(&module, factor, &mut read).unwrap();
            assert_eq!(read, expected, "{module} {factor:?}");
        }
    }
    assert_eq!(BaseModel::read(&folder).unwrap(), Some(base()));
    assert_eq!(BaseModel::read(parent.path()).unwrap(), None);
}

#[test]
fn the_safetensors_crate_reads_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let bytes = fs::read(folder.path().join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), 4);
    let key = format!("base_model.model.{DOWN}.lora_B.weight");
    let tensor = tensors.tensor(&key).unwrap();
    assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &[5000, 2][..]));
    let expected = numbers(DOWN, Factor::B, modules()[DOWN]);
    let bytes: Vec<u8> = expected.iter().flat_map(|number| number.to_le_bytes()).collect();
    assert_eq!(tensor.data(), bytes);
}

#[test]
fn an_unfinished_writer_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let weights = folder.path().join("adapter_model.safetensors");
    let before = fs::read(&weights).unwrap();
    let mut writer = AdapterWriter::create(folder.path(), &config(), &base(), &modules()).unwrap();
    writer.write(Q, Factor::A, &[0.0; 10_000]).unwrap();
    drop(writer);
    assert_eq!(fs::read(&weights).unwrap(), before);
    assert_eq!(file_names(folder.path()).len(), 3);
}

/// A tensor: key, type, shape, bytes.
type Stored = (String, Dtype, Vec<usize>, Vec<u8>);

fn stored(suffix: &str, dtype: Dtype, shape: &[usize], numbers: usize) -> Stored {
    let width = dtype.bitsize() / 8;
    (format!("base_model.model.{Q}.{suffix}"), dtype, shape.to_vec(), vec![0; numbers * width])
}

fn pair() -> Vec<Stored> {
    vec![
        stored("lora_A.weight", Dtype::F32, &[2, 3], 6),
        stored("lora_B.weight", Dtype::F32, &[4, 2], 8),
    ]
}

/// A folder with these settings and tensors, as other programs write them.
fn folder_of(settings: Value, tensors: &[Stored]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("adapter_config.json"), settings.to_string()).unwrap();
    let views = tensors.iter().map(|(key, dtype, shape, bytes)| {
        (key.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let bytes = serialize(views, None).unwrap();
    fs::write(folder.path().join("adapter_model.safetensors"), bytes).unwrap();
    folder
}

fn settings() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": "all-linear"})
}

#[track_caller]
fn refused(folder: &Path, because: &str) {
    let error = Adapter::open(folder).expect_err(because).to_string();
    assert!(error.contains(because), "{error:?} does not say {because:?}");
}

#[test]
fn widens_half_precision() {
    let mut tensors = pair();
    let a = [1.5f32, -2.0, 0.25, 3.0, -0.5, 8.0];
    tensors[0].1 = Dtype::F16;
    tensors[0].3 = a.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    let b = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0];
    tensors[1].1 = Dtype::BF16;
    tensors[1].3 = b.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    let folder = folder_of(settings(), &tensors);
    let adapter = Adapter::open(folder.path()).unwrap();
    let (mut read_a, mut read_b) = ([0.0; 6], [0.0; 8]);
    adapter.read(Q, Factor::A, &mut read_a).unwrap();
    adapter.read(Q, Factor::B, &mut read_b).unwrap();
    assert_eq!((read_a, read_b), (a, b));
}

#[test]
fn refuses_numbers_that_are_not_finite() {
    let mut tensors = pair();
    tensors[1].3[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    let folder = folder_of(settings(), &tensors);
    let adapter = Adapter::open(folder.path()).unwrap();
    let error = adapter.read(Q, Factor::B, &mut [0.0; 8]).unwrap_err().to_string();
    assert!(error.contains("lora_B.weight holds a number that is not finite"), "{error}");
}

#[test]
fn refuses_what_is_no_plain_lora() {
    let with = |stored: Stored| [pair(), vec![stored]].concat();
    let folder = |tensors: &[Stored]| folder_of(settings(), tensors);
    refused(folder(&[]).path(), "has no module");
    refused(folder(&pair()[..1]).path(), "lacks its lora_A or lora_B");
    let extra = stored("lora_magnitude_vector", Dtype::F32, &[4, 1], 4);
    refused(folder(&with(extra)).path(), "unexpected tensor");
    let extra = stored("lora_B.bias", Dtype::F32, &[4], 4);
    refused(folder(&with(extra)).path(), "has 1 dimensions, not 2");
    let mut tensors = pair();
    tensors[0].0 = "lora_A.weight".into();
    refused(folder(&tensors).path(), "unexpected tensor");
    let mut tensors = pair();
    tensors[0] = stored("lora_A.weight", Dtype::I64, &[2, 3], 6);
    refused(folder(&tensors).path(), "of type \"I64\"");
    let mut tensors = pair();
    tensors[0].2 = vec![3, 2];
    refused(folder(&tensors).path(), "rank 2 wants");
    let mut dora = settings();
    dora["use_dora"] = json!(true);
    refused(folder_of(dora, &pair()).path(), "use_dora is true");
}

#[test]
fn refuses_folders_it_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), "adapter_config.json");
    fs::write(folder.path().join("adapter_config.json"), "{\"r\": 2,").unwrap();
    refused(folder.path(), "EOF");
    fs::write(folder.path().join("adapter_config.json"), settings().to_string()).unwrap();
    refused(folder.path(), "adapter_model.safetensors");
    fs::write(folder.path().join("adapter_model.bin"), "").unwrap();
    refused(folder.path(), "safe_serialization=True");
}

#[test]
fn refuses_unsound_weights() {
    let folder = folder_of(settings(), &pair());
    let path = folder.path().join("adapter_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let try_bytes = |bytes: &[u8]| {
        // A new file: some file systems flush one that is written over.
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        Adapter::open(folder.path())
    };
    for len in 0..bytes.len() {
        assert!(try_bytes(&bytes[..len]).is_err(), "{len} bytes");
    }
    assert!(try_bytes(&[&bytes[..], &[0]].concat()).is_err(), "a byte too many");
    for at in 0..bytes.len() - 56 {
        for value in [0, b'0', b'9', b'"', 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            let _ = try_bytes(&bytes);
        }
    }
    let with_header = |json: &str| [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
    for (json, because) in [
        (r#"{"x":{"dtype":"F32","shape":[0,2],"data_offsets":[0,0]},"x":null}"#, ""),
        (
            r#"{"x":{"dtype":"F32","shape":[0,2],"data_offsets":[0,0]},
            "x":{"dtype":"F32","shape":[0,2],"data_offsets":[0,0]}}"#,
            "occurs twice",
        ),
        (r#"{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, "can't"),
        (r#"{"x":{"dtype":"F32","shape":[1,1],"data_offsets":[4,0]}}"#, "can't"),
        (r#"{"x":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}"#, "can't"),
        ("[]", "an object of tensors"),
    ] {
        let error = try_bytes(&with_header(json)).expect_err(json);
        assert!(error.to_string().contains(because), "{error}");
        assert!(matches!(error, Error::Json { .. } | Error::Malformed { .. }));
    }
    assert!(try_bytes(&[0xff; 64]).is_err());
}
