//! Models and adapters as other files, on the tiny models: an adapter as a GGUF LoRA, models merged
//! and quantised.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use common::{FAMILIES, golden_model, numbers, random, repository, sequences};
use smidgen_graph::{Budget, Factor};
use smidgen_train::{
    Adapter, Base, Convert, Converted, Error, Evaluator, Format, GgufKind, Kind, LoraConfig,
    TargetModules, export_gguf,
};
use smidgen_weights::Gguf;

static NEVER: AtomicBool = AtomicBool::new(false);

fn convert<R>(threads: usize, work: impl FnOnce(&mut Convert<'_>) -> R) -> R {
    let mut last = (0, 1);
    let mut progress = |done, total| last = (done, total);
    let result = work(&mut Convert { threads, cancel: &NEVER, progress: &mut progress });
    assert!(last.0 <= last.1, "{} of {} bytes", last.0, last.1);
    result
}

/// Logits of a fixed sequence, all positions.
fn logits(base: &Base, adapter: Adapter) -> Vec<f32> {
    let ids = &sequences(base.info().vocabulary, &[24])[0].ids;
    let mut evaluator =
        Evaluator::new(base, adapter, ids.len(), ids.len(), 1, Budget::Unlimited).expect("a plan");
    let vocabulary = base.info().vocabulary;
    let mut all = vec![f32::NAN; ids.len() * vocabulary];
    evaluator
        .logits(ids, &mut |first, tile| {
            for position in 0..ids.len() {
                let row = tile.row(position);
                all[position * vocabulary + first..][..row.len()].copy_from_slice(row);
            }
        })
        .expect("logits");
    all
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |largest, (a, b)| largest.max((a - b).abs()))
}

/// The adapter again, which a run takes.
fn copy(adapter: &Adapter) -> Adapter {
    adapter.shape().clone().adapter(numbers(adapter).to_vec().into())
}

#[test]
fn a_gguf_lora_holds_the_adapters_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    for family in FAMILIES {
        let model = golden_model(family);
        let config =
            LoraConfig { rank: 3, alpha: 5.0, num_layers: Some(2), ..LoraConfig::default() };
        let mut adapter = model.adapter(&config);
        let bytes = export_gguf(&model.base, &mut adapter, &path).expect("a file");
        assert_eq!(std::fs::metadata(&path).expect("the file").len(), bytes);
        assert_eq!(GgufKind::of(&path), Some(GgufKind::Adapter));
        let gguf = Gguf::open(&path).expect("a GGUF file");
        assert_eq!(gguf.str("general.type").expect("a type"), "adapter");
        assert_eq!(gguf.str("general.architecture").expect("an architecture"), family);
        assert_eq!(gguf.str("adapter.type").expect("a type"), "lora");
        assert_eq!(gguf.f32("adapter.lora.alpha").expect("alpha"), 5.0);
        let fingerprint = model.weights.gguf().fingerprint().expect("a fingerprint").to_string();
        assert_eq!(gguf.str("smidgen.base.fingerprint").expect("a fingerprint"), fingerprint);
        let factors: Vec<_> = adapter
            .shape()
            .factors()
            .map(|(layer, module, factor, range)| (layer, module.to_owned(), factor, range))
            .collect();
        assert_eq!(gguf.tensor_names().len(), factors.len());
        for (layer, module, factor, range) in factors {
            let sites = model.info.sites;
            let site = sites.iter().find(|s| s.module == module).expect("a site");
            let name = format!("blk.{layer}.{}.weight", site.tensor);
            let target = model.weights.gguf().tensor(&name).expect("what it changes");
            let held = &numbers(&adapter)[range];
            let suffix = if factor == Factor::A { "lora_a" } else { "lora_b" };
            let stored = gguf.matrix(&format!("{name}.{suffix}")).expect("a factor");
            let mut row = vec![0.0; stored.cols()];
            let dims = match factor {
                Factor::A => (3, target.cols),
                Factor::B => (target.rows, 3),
            };
            assert_eq!((stored.rows(), stored.cols()), dims, "{name} {factor:?}");
            for r in 0..stored.rows() {
                Format::F32.decode(stored.row_blocks(r), &mut row);
                let expected = |c: usize| match factor {
                    Factor::A => held[r * target.cols + c],
                    Factor::B => held[c * target.rows + r],
                };
                assert!((0..row.len()).all(|c| row[c] == expected(c)), "{name} {factor:?} row {r}");
            }
        }
    }
}

/// llama.cpp scales a LoRA by alpha / rank, so a rank-stabilised one has a larger alpha there.
#[test]
fn a_rank_stabilised_adapter_keeps_its_scale() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    let model = golden_model("llama");
    let config = LoraConfig { rank: 4, alpha: 6.0, use_rslora: true, ..LoraConfig::default() };
    let mut adapter = model.adapter(&config);
    assert_eq!(adapter.shape().spec().scale, 3.0);
    export_gguf(&model.base, &mut adapter, &path).expect("a file");
    let gguf = Gguf::open(&path).expect("a GGUF file");
    assert_eq!(gguf.f32("adapter.lora.alpha").expect("alpha"), 12.0);
    adapter.save(&model.base, folder.path()).expect("a saved adapter");
    let settings = std::fs::read_to_string(folder.path().join("adapter_config.json"));
    let settings = settings.expect("settings");
    assert!(settings.contains("\"use_rslora\": true") && settings.contains("\"lora_alpha\": 6"));
    let (again, _) = Adapter::load(&model.base, folder.path()).expect("an adapter");
    assert!(again.config().use_rslora && again.config().alpha == 6.0);
    assert_eq!(again.shape().spec(), adapter.shape().spec());
    // As it is trained, so it is merged.
    let merged = folder.path().join("merged.gguf");
    let trained = logits(&model.base, copy(&adapter));
    convert(1, |c| c.fuse(&model.base, &mut adapter, Some(Format::F32), &merged)).expect("a file");
    let base = Base::open(&merged).expect("a model");
    let off = largest_difference(&logits(&base, Adapter::none(&base)), &trained);
    assert!(off < 1e-4, "logits off by {off}");
}

#[test]
fn rank_stabilised_adapters_get_the_alpha_of_the_same_scale() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = golden_model("qwen2");
    let config = LoraConfig { rank: 4, alpha: 6.0, ..LoraConfig::default() };
    let peft = folder.path().join("peft");
    model.adapter(&config).save(&model.base, &peft).expect("a folder");
    let settings = peft.join("adapter_config.json");
    let json = std::fs::read_to_string(&settings).expect("settings");
    let json = json.replace("\"use_rslora\": false", "\"use_rslora\": true");
    std::fs::write(&settings, json).expect("settings");
    let (mut adapter, _) = Adapter::load(&model.base, &peft).expect("an adapter");
    let path = folder.path().join("adapter.gguf");
    export_gguf(&model.base, &mut adapter, &path).expect("a file");
    let alpha = Gguf::open(&path).expect("a GGUF file").f32("adapter.lora.alpha").expect("alpha");
    // 6 / sqrt(4) is 12 / 4.
    assert_eq!(alpha, 12.0);
}

#[test]
fn what_cannot_be_exported_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    let model = golden_model("llama");
    let error = export_gguf(&model.base, &mut Adapter::none(&model.base), &path).expect_err("none");
    assert_eq!(error.kind(), Kind::Usage);
    let mut adapter = model.adapter(&LoraConfig::default());
    adapter.values().held_mut().expect("in memory")[100] = f32::NAN;
    let error = export_gguf(&model.base, &mut adapter, &path).expect_err("no number");
    assert!(matches!(error, Error::Adapter { .. }), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
}

#[test]
fn a_merged_model_is_the_base_with_its_adapter() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fused.gguf");
    for family in FAMILIES {
        let model = golden_model(family);
        let config = LoraConfig { rank: 5, alpha: 20.0, ..LoraConfig::default() };
        let mut adapter = model.adapter(&config);
        random(2, 0.1, adapter.values().held_mut().expect("in memory"));
        let expected = logits(&model.base, copy(&adapter));
        let plain = logits(&model.base, Adapter::none(&model.base));
        let written = convert(2, |c| c.fuse(&model.base, &mut adapter, Some(Format::F32), &path))
            .expect("a file");
        assert!(written.tensors.iter().all(|t| t.to == Format::F32 && t.relative_error == 0.0));
        let fused = Base::open(&path).expect("a model");
        let found = logits(&fused, Adapter::none(&fused));
        let (off, moved) =
            (largest_difference(&found, &expected), largest_difference(&plain, &expected));
        println!("{family}: off by {off:e}, the adapter moves by {moved}");
        assert!(
            off < 1e-4 && moved > 0.1,
            "{family}: off by {off:e}, the adapter moves by {moved}"
        );
    }
}

#[test]
fn merging_as_before_changes_only_what_the_adapter_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fused.gguf");
    let model = golden_model("llama");
    let targets = TargetModules::Names(vec!["q_proj".into(), "down_proj".into()]);
    let config = LoraConfig { targets, num_layers: Some(1), ..LoraConfig::default() };
    let mut adapter = model.adapter(&config);
    let written = convert(1, |c| c.fuse(&model.base, &mut adapter, None, &path)).expect("a file");
    let (before, after) = (model.weights.gguf(), Gguf::open(&path).expect("a GGUF file"));
    for key in before.keys().filter(|key| *key != "general.alignment") {
        assert!(after.keys().any(|k| k == key), "{key}");
    }
    let last = model.info.layers - 1;
    let mut notes = 0;
    for t in &written.tensors {
        let changed = ["attn_q", "ffn_down"].map(|part| format!("blk.{last}.{part}.weight"));
        let bytes = |gguf: &Gguf| {
            let range = gguf.tensor(&t.name).expect("a tensor").range;
            gguf.map().bytes()[range].to_vec()
        };
        if changed.contains(&t.name) {
            let to = if t.from.has_encoder() { t.from } else { Format::Q8_0 };
            assert_eq!(t.to, to, "{}", t.name);
            assert!(bytes(before) != bytes(&after), "{}", t.name);
            notes += usize::from(t.from != t.to);
        } else {
            assert_eq!((t.to, t.relative_error), (t.from, 0.0), "{}", t.name);
            assert!(bytes(before) == bytes(&after), "{}", t.name);
        }
    }
    assert_eq!(written.notes.is_empty(), notes == 0, "{:?}", written.notes);
}

/// The tiny model of `family` quantised, and what was told.
fn quantised(family: &str, to: Format, threads: usize, path: &Path) -> Converted {
    let base = Base::open(repository(&format!("tests/golden/{family}.gguf"))).expect("a model");
    convert(threads, |c| c.quantize(&base, to, path)).expect("a file")
}

#[test]
fn quantised_models_open_and_their_errors_are_those_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("small.gguf");
    for family in FAMILIES {
        let model = golden_model(family);
        let expected = logits(&model.base, Adapter::none(&model.base));
        for (to, most, file_type) in
            [(Format::F16, 0.001, 1), (Format::Q8_0, 0.01, 7), (Format::Q4_0, 0.12, 2)]
        {
            let written = quantised(family, to, 2, &path);
            let base = Base::open(&path).expect("a model");
            let gguf = base.weights().gguf();
            assert_eq!(gguf.u32("general.file_type").expect("a type"), file_type);
            for t in &written.tensors {
                let matrix = t.shape.len() > 1;
                assert_eq!(t.to, if matrix { to } else { Format::F32 }, "{}", t.name);
                let [x, y] = [model.weights.gguf(), gguf].map(|gguf| numbers_of(gguf, &t.name));
                let errors: f64 = x.iter().zip(&y).map(|(x, y)| f64::from(x - y).powi(2)).sum();
                let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
                let error = (errors / squares).sqrt();
                assert!((error - t.relative_error).abs() <= 1e-6 * error, "{}: {error}", t.name);
                assert!(error < most, "{family} {to:?} {}: {error}", t.name);
            }
            let off = largest_difference(&logits(&base, Adapter::none(&base)), &expected);
            println!("{family} {to:?}: logits off by {off}");
            assert_eq!(std::fs::metadata(&path).expect("the file").len(), written.file_bytes);
        }
    }
}

fn numbers_of(gguf: &Gguf, name: &str) -> Vec<f32> {
    let matrix = gguf.matrix(name).expect("a tensor");
    let mut numbers = vec![0.0; matrix.rows() * matrix.cols()];
    for (r, row) in numbers.chunks_exact_mut(matrix.cols()).enumerate() {
        matrix.format().decode(matrix.row_blocks(r), row);
    }
    numbers
}

#[test]
fn threads_do_not_change_a_file_and_a_second_time_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let bytes = |name: &str| std::fs::read(at(name)).expect("a file");
    let one = quantised("gemma3", Format::Q4_0, 1, &at("one"));
    let three = quantised("gemma3", Format::Q4_0, 3, &at("three"));
    assert_eq!(one, three);
    assert!(bytes("one") == bytes("three"));
    let base = Base::open(at("one")).expect("a model");
    convert(2, |c| c.quantize(&base, Format::Q4_0, &at("again"))).expect("a file");
    assert!(bytes("one") == bytes("again"));
}

#[test]
fn a_number_that_is_none_is_named_and_nothing_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let (damaged, out) = (folder.path().join("damaged.gguf"), folder.path().join("out.gguf"));
    let found = FAMILIES.iter().find_map(|family| {
        let gguf = Gguf::open(repository(&format!("tests/golden/{family}.gguf"))).expect("a model");
        let is_half = |name: &&str| gguf.tensor(name).is_ok_and(|t| t.format == Format::F16);
        let name = gguf.tensor_names().find(is_half)?.to_owned();
        Some((gguf, name))
    });
    let (gguf, name) = found.expect("a matrix of halves");
    let (source, tensor) = (gguf.map().path(), gguf.tensor(&name).expect("the matrix"));
    let mut bytes = std::fs::read(source).expect("the model");
    let at = tensor.range.start + 2 * (3 * tensor.cols + 7);
    bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    std::fs::write(&damaged, bytes).expect("a file");
    let base = Base::open(&damaged).expect("a model");
    let error = convert(2, |c| c.quantize(&base, Format::Q4_0, &out)).expect_err("no number");
    let said = error.to_string();
    assert!(said.contains(&name) && said.contains("row 3, column 7 is NaN"), "{said}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1);
}

#[test]
fn a_cancelled_conversion_leaves_what_was_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.gguf");
    std::fs::write(&path, "before").expect("a file");
    let base = golden_model("llama").base;
    let cancel = AtomicBool::new(true);
    let mut convert = Convert { threads: 1, cancel: &cancel, progress: &mut |_, _| {} };
    let error = convert.quantize(&base, Format::Q8_0, &path).expect_err("cancelled");
    assert_eq!(error.kind(), Kind::Cancelled);
    assert_eq!(std::fs::read(&path).expect("the file"), b"before");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1);
}
