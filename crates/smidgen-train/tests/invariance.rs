//! What must not change a number does not change a bit, and gradients are those of the loss.
//!
//! Threads, memory budgets, widths of MLP tiles, sequences a pass and the way gradients are held
//! are choices of speed and memory alone. Gradients are held against differences of the loss,
//! and against each other where two adapters are the same function.

mod common;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

use common::{
    FAMILIES, Model, Run, SMOOTH, all_numbers, bits, golden_model, gradient, loss, norm, numbers,
    repository, sequences, worst_difference,
};
use smidgen_graph::plan::{FORWARD_ROW_TILE, ROW_TILE};
use smidgen_graph::{Backward, Budget, Factor, Gradients, Paged};
use smidgen_kernels::{Kernels, MatRef};
use smidgen_runtime::{Dropout, KvCache, Numbers, Pass};
use smidgen_train::step::{StepSettings, step};
use smidgen_train::{Adapter, LoraConfig, Optimizer, OptimizerConfig, Sequence, TargetModules};

/// Every model with lengths of sequences that cross the blocks of attention (all), and those of
/// the gradient's sums over tokens (the demo model).
fn models() -> Vec<(Model, Vec<usize>)> {
    let tiny = FAMILIES.map(|family| (golden_model(family), vec![40, 3, 70]));
    let demo = Model::open(&repository("assets/demo/demo.gguf"));
    tiny.into_iter().chain([(demo, vec![70, 290, 33])]).collect()
}

fn lora(dropout: f64) -> LoraConfig {
    LoraConfig { rank: 4, alpha: 8.0, dropout, ..LoraConfig::default() }
}

/// Losses and factors, as bits, after three steps of AdamW on `batches` in turn.
fn train(
    model: &Model,
    adapter: &Adapter,
    run: &Run,
    batches: &[Vec<Sequence>],
    clip: Option<f64>,
) -> (Vec<u64>, Vec<u32>) {
    let mut engine = model.engine(run);
    let (mut adapter, mut optimizer) = run.trainee(adapter, &engine);
    let mut pass = Pass::default();
    let mut losses = Vec::new();
    for number in 1..=3 {
        let settings = StepSettings { number, rate: 2e-3, clip, seed: 5 };
        let sequences = &batches[(number - 1) as usize % batches.len()];
        let (adapter, never) = (&mut adapter, AtomicBool::new(false));
        let out =
            step(&mut engine, adapter, &mut optimizer, sequences, &settings, &mut pass, &never);
        losses.push(out.expect("a step").loss.to_bits());
    }
    (losses, bits(&all_numbers(&mut adapter, &engine)))
}

/// Runs every model with and without dropout through `check(model, adapter, run, batches)`, where
/// the run has room for a whole batch in a pass.
fn each_model(check: impl Fn(&Model, &Adapter, &Run, &[Vec<Sequence>])) {
    for (model, lengths) in models() {
        for dropout in [0.0, 0.1] {
            let adapter = model.adapter(&lora(dropout));
            let batch = sequences(model.info.vocabulary, &lengths);
            let run = model.run(&adapter, lengths.iter().sum());
            check(&model, &adapter, &run, &[batch]);
        }
    }
}

#[test]
fn threads_change_nothing() {
    each_model(|model, adapter, run, batches| {
        let one = train(model, adapter, run, batches, None);
        for threads in [2, 3, 4] {
            let run = Run { threads, ..run.clone() };
            assert!(train(model, adapter, &run, batches, None) == one, "{threads} threads");
        }
    });
}

#[test]
fn budgets_change_nothing() {
    each_model(|model, adapter, run, batches| {
        let all = train(model, adapter, run, batches, None);
        let mut plans = BTreeSet::new();
        for budget in run.budgets(model.blocks.as_ref(), 8) {
            let run = Run { budget, threads: 2, ..run.clone() };
            let plan = model.plan(&run).expect("a plan");
            plans.insert((plan.peak_bytes, plan.flops, plan.segments.len()));
            let found = train(model, adapter, &run, batches, None);
            assert!(found == all, "{} under {budget:?}", model.info.family);
        }
        assert!(plans.iter().any(|p| p.2 > 1) || run.first_trained > 0, "no run of layers");
        assert!(plans.len() >= 4, "{} plans of {}", plans.len(), model.info.family);
    });
}

#[test]
fn a_scratch_file_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let most = std::cell::Cell::new(0);
    let ways = std::cell::RefCell::new(BTreeSet::new());
    each_model(|model, adapter, run, batches| {
        let all = train(model, adapter, run, batches, None);
        let spooling = Run { spool: Some(folder.path().to_owned()), ..run.clone() };
        for budget in spooling.budgets(model.blocks.as_ref(), 12) {
            let run = Run { budget, threads: 2, ..spooling.clone() };
            let plan = model.plan(&run).expect("a plan");
            most.set(most.get().max(plan.layers.iter().filter(|l| l.spooled.is_some()).count()));
            ways.borrow_mut().insert((plan.paged, plan.spool_len > 0));
            let found = train(model, adapter, &run, batches, None);
            assert!(found == all, "{} under {budget:?}", model.info.family);
        }
        let peak = |run: &Run| model.plan(run).expect("a plan").peak_bytes;
        let least = |run: &Run| Run { budget: Budget::Least, ..run.clone() };
        assert!(peak(&least(&spooling)) <= peak(&least(run)), "{}", model.info.family);
    });
    assert!(most.get() >= 2, "values of at most {} layers went to the file", most.get());
    let paged: BTreeSet<_> = ways.borrow().iter().map(|way| way.0).collect();
    assert!(paged.contains(&Paged::All) && paged.contains(&Paged::Nothing), "{ways:?}");
    assert_eq!(folder.path().read_dir().expect("a folder").count(), 0, "something is left");
}

/// Sequences of several bands of rows, and some that share one.
#[test]
fn bands_of_rows_change_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    for family in FAMILIES {
        let model = golden_model(family);
        let lengths = [30, 20, 600, 256, 270];
        for dropout in [0.0, 0.1] {
            let adapter = model.adapter(&lora(dropout));
            let batch = [sequences(model.info.vocabulary, &lengths)];
            let run = model.run(&adapter, lengths.iter().sum());
            let whole = train(&model, &adapter, &run, &batch, None);
            let mut found = BTreeSet::new();
            let spooling = Run { spool: Some(folder.path().to_owned()), ..run.clone() };
            for (threads, run) in [(1, &run), (2, &spooling), (4, &spooling)] {
                let run = Run { threads, ..run.clone() };
                for budget in run.budgets(model.blocks.as_ref(), 2) {
                    let run = Run { budget, ..run.clone() };
                    let plan = model.plan(&run).expect("a plan");
                    found.insert((plan.row_tile, plan.mlp_tile));
                    let banded = train(&model, &adapter, &run, &batch, None);
                    assert!(banded == whole, "{family}, {threads} threads, {:?}", plan.row_tile);
                }
            }
            assert!(found.iter().any(|way| way.0.is_some()), "{family}: {found:?}");
            assert!(found.iter().any(|way| way.0.is_none()), "{family}: {found:?}");
        }
    }
}

/// Losses and, from a cache that goes on, logits.
#[test]
fn bands_of_rows_change_nothing_where_nothing_is_trained() {
    for family in FAMILIES {
        let model = golden_model(family);
        let adapter = model.adapter(&lora(0.0));
        let batch = sequences(model.info.vocabulary, &[600, 50, 301]);
        let ways = [
            (Budget::Unlimited, Backward::Layers, None),
            (Budget::Least, Backward::Layers, Some(ROW_TILE)),
            (Budget::Least, Backward::Nothing, Some(FORWARD_ROW_TILE)),
        ];
        let found = ways.map(|(budget, backward, tile)| {
            let run = Run { budget, backward, threads: 2, ..model.run(&adapter, 951) };
            let mut engine = model.engine(&run);
            assert_eq!(engine.plan().row_tile, tile, "{family}");
            let loss = loss(&mut engine, numbers(&adapter), &batch, None).to_bits();
            let mut params = Numbers::from(numbers(&adapter).to_vec());
            let (layers, cols) = (model.info.layers, model.info.key_cols);
            let mut cache = KvCache::new(layers, cols, 600).expect("memory");
            let mut logits = Vec::new();
            for (rows, first_row) in [(0..590, 250), (590..600, 9)] {
                let mut pass = Pass::default();
                pass.push(&batch[0].ids[rows.clone()], &batch[0].targets[rows.clone()], 0);
                pass.segments[0].first_position = rows.start;
                let visit = &mut |_, tile: MatRef<'_>| {
                    (0..tile.rows()).for_each(|row| logits.extend(bits(tile.row(row))));
                };
                engine
                    .logits(&pass, &mut params, None, Some(&mut cache), first_row, visit)
                    .expect("logits");
            }
            (loss, logits)
        });
        assert_eq!(found[0].1.len(), 341 * model.info.vocabulary);
        assert!(found[0] == found[1] && found[0] == found[2], "{family}");
    }
}

#[test]
fn an_eight_bit_state_is_the_same_everywhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let ways = std::cell::RefCell::new(BTreeSet::new());
    each_model(|model, adapter, run, batches| {
        let single: Vec<Vec<Sequence>> = batches[0].iter().map(|s| vec![s.clone()]).collect();
        let optimizer = OptimizerConfig::adamw_8bit(0.01);
        let run = Run { optimizer, ..run.clone() };
        let f32_state = Run { optimizer: OptimizerConfig::adamw(0.01), ..run.clone() };
        let all = train(model, adapter, &run, &single, None);
        let family = &model.info.family;
        assert!(all != train(model, adapter, &f32_state, &single, None), "{family}");
        let scalar = Run { kernels: Kernels::scalar(), threads: 3, ..run.clone() };
        assert!(train(model, adapter, &scalar, &single, None) == all, "{family}: scalar");
        for gradients in [Gradients::Whole, Gradients::Block] {
            let run = Run { gradients, spool: Some(folder.path().to_owned()), ..run.clone() };
            for budget in [Budget::Least, Budget::Unlimited] {
                let run = Run { budget, threads: 2, ..run.clone() };
                ways.borrow_mut().insert((
                    gradients == Gradients::Whole,
                    model.plan(&run).expect("a plan").paged,
                ));
                let found = train(model, adapter, &run, &single, None);
                assert!(found == all, "{family} under {budget:?}");
            }
        }
    });
    let ways = ways.into_inner();
    for whole in [false, true] {
        for paged in [Paged::Nothing, Paged::All] {
            assert!(ways.contains(&(whole, paged)), "{ways:?}");
        }
    }
}

#[test]
fn widths_of_mlp_tiles_change_nothing() {
    each_model(|model, adapter, run, batches| {
        let planned = train(model, adapter, run, batches, None);
        for tile in [256, 512, 1024] {
            for budget in [Budget::Least, Budget::Unlimited] {
                let run = Run { mlp_tile: Some(tile), budget, ..run.clone() };
                let found = train(model, adapter, &run, batches, None);
                assert!(found == planned, "{} in tiles of {tile}", model.info.family);
            }
        }
    });
}

#[test]
fn sequences_a_pass_change_nothing() {
    each_model(|model, adapter, run, batches| {
        let together = train(model, adapter, run, batches, None);
        let longest = batches[0].iter().map(|s| s.ids.len()).max().expect("sequences");
        for tokens in [longest, longest + 5, longest + 45] {
            let run = Run { tokens, ..run.clone() };
            let found = train(model, adapter, &run, batches, None);
            assert!(found == together, "{} in passes of {tokens}", model.info.family);
        }
    });
}

#[test]
fn updates_in_the_walk_and_a_clip_that_never_bites_change_nothing() {
    each_model(|model, adapter, run, batches| {
        let single: Vec<Vec<Sequence>> = batches[0].iter().map(|s| vec![s.clone()]).collect();
        let whole = train(model, adapter, run, &single, None);
        let clipped = train(model, adapter, run, &single, Some(1e9));
        assert!(clipped == whole, "{}: a huge clip", model.info.family);
        for budget in [Budget::Least, Budget::Unlimited] {
            let run = Run { gradients: Gradients::Block, budget, ..run.clone() };
            let walked = train(model, adapter, &run, &single, None);
            assert!(walked == whole, "{}: {budget:?}", model.info.family);
        }
    });
}

#[test]
fn masks_depend_on_seed_step_and_sample() {
    let model = golden_model("llama");
    let adapter = model.adapter(&lora(0.1));
    let batch = sequences(model.info.vocabulary, &[20]);
    let twice = [batch[0].clone(), batch[0].clone()];
    let mut engine = model.engine(&model.run(&adapter, 40));
    let mut found = |sequences: &[Sequence], seed, step| {
        loss(&mut engine, numbers(&adapter), sequences, Some(Dropout { seed, step })).to_bits()
    };
    let losses =
        [found(&batch, 1, 1), found(&batch, 2, 1), found(&batch, 1, 2), found(&twice, 1, 1)];
    assert_eq!(found(&batch, 1, 1), losses[0]);
    assert_eq!(BTreeSet::from(losses).len(), 4, "{losses:?}");
}

#[test]
fn clipping_scales_all_gradients_to_the_norm() {
    for family in FAMILIES {
        let model = golden_model(family);
        let mut adapter = model.adapter(&lora(0.0));
        let batch = sequences(model.info.vocabulary, &[30, 12]);
        let mut engine = model.engine(&model.run(&adapter, 42));
        let start = numbers(&adapter).to_vec();
        let (_, gradients) = gradient(&mut engine, &start, &batch, None);
        let limit = norm(&gradients) / 3.0;
        let mut optimizer = Optimizer::new(OptimizerConfig::sgd(0.0), &[]).expect("memory");
        let settings = StepSettings { number: 1, rate: 1.0, clip: Some(limit), seed: 0 };
        let (mut pass, never) = (Pass::default(), AtomicBool::new(false));
        step(&mut engine, &mut adapter, &mut optimizer, &batch, &settings, &mut pass, &never)
            .expect("a step");
        let factor = limit / norm(&gradients);
        for ((after, before), g) in numbers(&adapter).iter().zip(&start).zip(&gradients) {
            let expected = f64::from(*before) - factor * f64::from(*g);
            assert!((f64::from(*after) - expected).abs() < 1e-6, "{after} against {expected}");
        }
    }
}

fn ranges(adapter: &Adapter) -> Vec<Range<usize>> {
    adapter.shape().factors().map(|(_, _, _, range)| range).collect()
}

/// Holds the gradient of `config`'s adapter against differences of the loss.
fn check_differences(model: &Model, config: &LoraConfig) -> f64 {
    let adapter = model.adapter(config);
    let batch = sequences(model.info.vocabulary, &[24, 9]);
    let dropout = (config.dropout > 0.0).then_some(Dropout { seed: 8, step: 3 });
    let run = Run { budget: Budget::Least, ..model.run(&adapter, 33) };
    let mut engine = model.engine(&run);
    let (_, gradients) = gradient(&mut engine, numbers(&adapter), &batch, dropout);
    let moved = |params: &[f32]| loss(&mut engine, params, &batch, dropout);
    let worst = worst_difference(numbers(&adapter), &gradients, &ranges(&adapter), 2, 0.012, moved);
    println!("{} {config:?}: worst {worst:.1e}", model.info.family);
    worst
}

const DIFFERENCES: f64 = 3e-3;

#[test]
fn gradients_are_those_of_the_loss() {
    for family in SMOOTH {
        let model = golden_model(family);
        for dropout in [0.0, 0.1] {
            for num_layers in [None, Some(1)] {
                let config = LoraConfig { num_layers, ..lora(dropout) };
                assert!(check_differences(&model, &config) < DIFFERENCES, "{family} {config:?}");
            }
        }
    }
}

/// The numbers of `all` that `part` has too, in the order of `part`.
fn common_numbers(all: &Adapter, numbers: &[f32], part: &Adapter) -> Vec<f32> {
    let mut found = Vec::new();
    for (layer, module, factor, _) in part.shape().factors() {
        let same = all.shape().factors().find(|f| (f.0, f.1, f.2) == (layer, module, factor));
        found.extend_from_slice(&numbers[same.expect("a factor of both").3]);
    }
    found
}

/// An adapter on fewer projections or layers is the whole one with B zero elsewhere, and has the
/// same gradients.
fn check_part(model: &Model, config: &LoraConfig) {
    let mut all = model.adapter(&lora(config.dropout));
    let mut part = model.adapter(config);
    let shared: BTreeSet<(usize, String)> =
        part.shape().factors().map(|(layer, module, _, _)| (layer, module.to_owned())).collect();
    let others: Vec<Range<usize>> = all
        .shape()
        .factors()
        .filter(|(l, m, f, _)| *f == Factor::B && !shared.contains(&(*l, (*m).to_owned())))
        .map(|f| f.3)
        .collect();
    others
        .into_iter()
        .for_each(|range| all.values().held_mut().expect("in memory")[range].fill(0.0));
    let shared_numbers = common_numbers(&all, numbers(&all), &part);
    part.values().held_mut().expect("in memory").copy_from_slice(&shared_numbers);
    let batch = sequences(model.info.vocabulary, &[24, 9]);
    let dropout = (config.dropout > 0.0).then_some(Dropout { seed: 8, step: 3 });
    let of = |adapter: &Adapter, budget| {
        let run = Run { budget, ..model.run(adapter, 33) };
        gradient(&mut model.engine(&run), numbers(adapter), &batch, dropout)
    };
    let whole = of(&all, Budget::Unlimited);
    for budget in [Budget::Least, Budget::Unlimited] {
        let found = of(&part, budget);
        assert_eq!(found.0.to_bits(), whole.0.to_bits(), "loss of {config:?}");
        assert!(norm(&found.1) > 0.0, "{config:?} has a gradient");
        // Not the bits: a zero may have the other sign.
        assert!(found.1 == common_numbers(&all, &whole.1, &part), "gradients of {config:?}");
    }
}

/// Each projection alone, and each pair.
fn choices(model: &Model) -> Vec<Vec<String>> {
    let names: Vec<String> = model.info.sites.iter().map(|s| s.module.to_owned()).collect();
    let pair = |i: usize, j: usize| BTreeSet::from([names[i].clone(), names[j].clone()]);
    let count = names.len();
    let all = (0..count).flat_map(|i| (i..count).map(move |j| (i, j)));
    all.map(|(i, j)| pair(i, j).into_iter().collect()).collect()
}

#[test]
fn a_part_of_the_projections_has_the_gradients_of_the_whole() {
    for family in FAMILIES {
        let model = golden_model(family);
        for (i, names) in choices(&model).into_iter().enumerate() {
            let dropout = if i % 2 == 0 { 0.0 } else { 0.1 };
            let targets = TargetModules::Names(names);
            check_part(&model, &LoraConfig { targets, ..lora(dropout) });
        }
    }
}

#[test]
fn a_part_of_the_layers_has_the_gradients_of_the_whole() {
    for family in FAMILIES {
        let model = golden_model(family);
        for dropout in [0.0, 0.1] {
            for num_layers in [Some(1), Some(2)] {
                check_part(&model, &LoraConfig { num_layers, ..lora(dropout) });
                let targets = TargetModules::Names(vec!["attn_output".into(), "ffn_up".into()]);
                check_part(&model, &LoraConfig { num_layers, targets, ..lora(dropout) });
            }
        }
    }
}
