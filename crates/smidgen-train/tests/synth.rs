//! Models with random weights behave as models: a text makes the way through their tokenizer and
//! back, and their loss is that of a model that knows nothing.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use common::{Model, Run, gradient, sequences};
use smidgen_graph::LoraSpec;
use smidgen_models::synth::{Preset, Shape};
use smidgen_train::Base;

/// A model of the preset's kind, small enough for a test.
fn write(preset: Preset, vocabulary: usize, path: &Path) {
    let shape = preset.shape();
    let shape = Shape { layers: 7, hidden: 128, ffn: 320, head_dim: 32, vocabulary, ..shape };
    shape.write(path, 5, &AtomicBool::new(false), &mut |_, _| {}).expect("a model");
}

#[test]
fn texts_go_through_the_tokenizer_and_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    // Nothing that Unicode composes, as Qwen2's normal form C would put it together.
    let letters: String = (1..0x300).filter_map(char::from_u32).collect();
    let english = "The thaw comes, the wheel turns again;\n\n\tthe village has  bread (1, 2, 3).";
    for preset in [Preset::Qwen25B3, Preset::Gemma3B4] {
        let vocabulary = preset.shape().vocabulary;
        write(preset, vocabulary, &path);
        let tokenizer = Base::open(&path).expect("a model").tokenizer().expect("its tokenizer");
        assert_eq!(tokenizer.vocab_size(), vocabulary);
        for text in [english, "", "日本語 🦀 <|im_end> <eos >\r\n\0", &letters] {
            let ids = tokenizer.encode(text).expect("ids");
            assert_eq!(tokenizer.decode(&ids), text, "{preset:?}");
        }
        let ids = tokenizer.encode(english).expect("ids");
        assert!(ids.len() <= english.len() * 3 / 5, "{} tokens", ids.len());
    }
}

#[test]
fn losses_are_those_of_guessing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    for preset in Preset::ALL {
        let vocabulary = 2048;
        write(preset, vocabulary, &path);
        let model = Model::open(&path);
        let modules = model.info.sites.iter().map(|site| site.module.to_owned()).collect();
        let lora = LoraSpec { rank: 2, scale: 1.0, dropout: 0.0, modules };
        let run = Run::new(lora.clone(), 0, 48);
        let mut engine = run.engine(model.blocks.as_ref(), &model.weights);
        let layer = |l| model.blocks.layer_block(model.blocks.layer_kind(l), Some(&lora), 256);
        let params = (0..model.blocks.layers()).flat_map(|l| layer(l).params);
        let params = vec![0.01; params.map(|param| param.len()).sum()];
        let batch = sequences(vocabulary, &[30, 18]);
        let (loss, gradients) = gradient(&mut engine, &params, &batch, None);
        let guessing = (vocabulary as f64).ln();
        println!("{preset:?}: {loss:.4}, of guessing {guessing:.4}");
        assert!((loss - guessing).abs() < 0.1, "{preset:?}: {loss}");
        assert!(gradients.iter().all(|g| g.is_finite()), "{preset:?}");
        assert!(gradients.iter().any(|g| *g != 0.0), "{preset:?}");
    }
}
