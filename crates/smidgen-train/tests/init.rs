//! What the numbers of a new adapter are: gaussian ones, and those that correct what quantisation
//! took (LoftQ), against singular values that are computed here.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use common::{bits, numbers, repository, sequences};
use smidgen_graph::{Budget, Factor};
use smidgen_runtime::Numbers;
use smidgen_train::{
    Adapter, AdapterStart, Base, Convert, Dataset, Error, Evaluator, Format, InitLoraWeights, Kind,
    Length, LoftqReport, LoraConfig, MemoryBudget, Planned, PrepareOptions, TokenFile, TrainConfig,
    WindowSpec, prepare,
};
use smidgen_weights::Gguf;

static NEVER: AtomicBool = AtomicBool::new(false);

/// The demo's model, whose matrices are Q8_0.
fn demo() -> PathBuf {
    repository("assets/demo/demo.gguf")
}

/// The same in `to`.
fn quantised(folder: &Path, to: Format) -> PathBuf {
    let path = folder.join("small.gguf");
    let mut convert = Convert { threads: 2, cancel: &NEVER, progress: &mut |_, _| {} };
    convert.quantize(&Base::open(demo()).expect("a model"), to, &path).expect("a file");
    path
}

fn config(source: PathBuf, rank: usize) -> TrainConfig {
    TrainConfig {
        lora: LoraConfig { rank, alpha: 6.0, ..LoraConfig::default() },
        init_lora_weights: InitLoraWeights::Loftq { source },
        length: Length::Iters(1),
        memory: MemoryBudget::Unlimited,
        threads: 1,
        ..TrainConfig::default()
    }
}

fn planned(folder: &Path, model: &Path, config: TrainConfig) -> Result<Planned, Error> {
    let base = Base::open(model).expect("a model");
    let (tokens, text) = (folder.join("train.tokens"), repository("assets/demo/train.jsonl"));
    let options = PrepareOptions::default();
    prepare(&base, &text, &options, MemoryBudget::Unlimited, &tokens, &NEVER, &mut |_| {})
        .expect("tokens");
    let window =
        WindowSpec { max_seq_length: 32, chunks: Some(1), bos: false, single_token: false };
    let data = Dataset::open(TokenFile::open(&tokens).expect("tokens"), &window).expect("data");
    Planned::new(base, data, 0, config)
}

/// An adapter before its first step, and what LoftQ did.
fn start(folder: &Path, model: &Path, config: TrainConfig) -> (Base, Adapter, LoftqReport) {
    let session = planned(folder, model, config).expect("a plan").start().expect("a session");
    let report = session.loftq().expect("LoftQ").clone();
    let (base, adapter) = session.finish();
    (base, adapter.expect("an adapter"), report)
}

fn matrix(gguf: &Gguf, name: &str) -> Vec<f64> {
    let matrix = gguf.matrix(name).expect("a matrix");
    let mut row = vec![0.0; matrix.cols()];
    let mut all = Vec::new();
    for r in 0..matrix.rows() {
        matrix.format().decode(matrix.row_blocks(r), &mut row);
        all.extend(row.iter().map(|&x| f64::from(x)));
    }
    all
}

/// W - Q of a tensor, by rows.
fn residual(source: &Path, small: &Path, name: &str) -> Vec<f64> {
    let [w, q] = [source, small].map(|path| matrix(&Gguf::open(path).expect("a file"), name));
    w.iter().zip(&q).map(|(w, q)| w - q).collect()
}

/// Squares of the singular values of a matrix with rows of `cols`, the largest first: Hestenes'
/// one-sided rotations of its columns.
fn squared_singular_values(matrix: &[f64], cols: usize) -> Vec<f64> {
    let mut columns: Vec<Vec<f64>> =
        (0..cols).map(|c| matrix.iter().skip(c).step_by(cols).copied().collect()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for _ in 0..12 {
        for p in 0..cols {
            for q in p + 1..cols {
                let (left, right) = columns.split_at_mut(q);
                let (a, b) = (&mut left[p], &mut right[0]);
                let off = dot(a, b);
                if off.abs() < 1e-14 {
                    continue;
                }
                let theta = (dot(b, b) - dot(a, a)) / (2.0 * off);
                let tan = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let cos = 1.0 / tan.hypot(1.0);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (cos * (*a - tan * *b), cos * (*b + tan * *a));
                }
            }
        }
    }
    let mut squares: Vec<f64> = columns.iter().map(|column| dot(column, column)).collect();
    squares.sort_by(|a, b| b.total_cmp(a));
    squares
}

/// The norm of E - scale B A.
fn norm_after(e: &[f64], a: &[f32], b: &[f32], rank: usize, scale: f64) -> f64 {
    let (cols, rows) = (a.len() / rank, b.len() / rank);
    let term = |r: usize, c: usize| -> f64 {
        (0..rank).map(|k| f64::from(b[k * rows + r]) * f64::from(a[k * cols + c])).sum()
    };
    let left = |i: usize| e[i] - scale * term(i / cols, i % cols);
    (0..e.len()).map(|i| left(i).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn loftq_is_as_near_as_its_rank_allows() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = quantised(folder.path(), Format::Q4_0);
    let rank = 4;
    let (base, adapter, report) = start(folder.path(), &small, config(demo(), rank));
    let scale = f64::from(adapter.shape().spec().scale);
    let factors: Vec<_> = adapter.shape().factors().collect();
    assert_eq!(report.tensors.len() * 2, factors.len());
    let mut checked = 0;
    for (tensor, pair) in report.tensors.iter().zip(factors.chunks(2)).take(7) {
        let e = residual(&demo(), &small, &tensor.name);
        let [a, b] = [&pair[0], &pair[1]].map(|factor| &numbers(&adapter)[factor.3.clone()]);
        let squares = squared_singular_values(&e, a.len() / rank);
        let before = squares.iter().sum::<f64>().sqrt();
        let best = squares[rank..].iter().sum::<f64>().sqrt();
        let after = norm_after(&e, a, b, rank, scale);
        let name = &tensor.name;
        assert!((tensor.error_before / before - 1.0).abs() < 1e-5, "{name}: before");
        assert!((tensor.error_after / after - 1.0).abs() < 1e-4, "{name}: after");
        println!("{name}: {before:.4}, {after:.4}, at best {best:.4}");
        assert!(after < 0.99 * before && after < 1.01 * best, "{name}: {after}, best {best}");
        checked += 1;
    }
    assert_eq!(checked, 7);
    let [before, after] = report.relative_errors();
    assert!(0.05 < before && before < 0.12 && after < 0.98 * before, "{before}, {after}");
    assert!(base.path() == small);
}

#[test]
fn loftq_of_full_rank_gives_the_weights_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = quantised(folder.path(), Format::Q4_0);
    let (base, adapter, report) = start(folder.path(), &small, config(demo(), 200));
    let [before, after] = report.relative_errors();
    assert!(after < 1e-3 * before, "{before}, {after}");
    let logits = |base: &Base, adapter: Adapter| {
        let ids = &sequences(base.info().vocabulary, &[24])[0].ids;
        let len = ids.len();
        let mut evaluator =
            Evaluator::new(base, adapter, len, len, 1, Budget::Unlimited).expect("a plan");
        let mut all = Vec::new();
        evaluator
            .logits(ids, &mut |_, tile| {
                (0..len).for_each(|position| all.extend_from_slice(tile.row(position)));
            })
            .expect("logits");
        all
    };
    let source = Base::open(demo()).expect("a model");
    let expected = logits(&source, Adapter::none(&source));
    let [corrected, plain] =
        [logits(&base, adapter), logits(&base, Adapter::none(&base))].map(|found| {
            found.iter().zip(&expected).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()))
        });
    println!("logits off by {plain} in Q4_0, {corrected} with the adapter");
    // The embedding is in Q4_0 as well, and stays so.
    assert!(corrected < plain, "{corrected}, {plain}");
}

#[test]
fn loftq_has_the_same_bits_for_any_threads_and_budget() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = quantised(folder.path(), Format::Q4_0);
    let first = start(folder.path(), &small, config(demo(), 3));
    for (threads, memory) in [(3, MemoryBudget::Unlimited), (2, MemoryBudget::Min)] {
        let spool = Some(folder.path().to_owned());
        let config = TrainConfig { threads, memory, spool, ..config(demo(), 3) };
        let (_, mut adapter, report) = start(folder.path(), &small, config);
        let ranges: Vec<_> = adapter.shape().factors().map(|(.., range)| range).collect();
        for range in ranges {
            let found = adapter.values().piece(range.clone()).expect("numbers");
            assert_eq!(bits(found), bits(&numbers(&first.1)[range]), "{threads} threads");
        }
        assert_eq!(report.tensors, first.2.tensors);
    }
}

/// The base as its own source: there is nothing to correct, and the adapter can still be trained.
#[test]
fn loftq_leaves_what_is_right() {
    let folder = tempfile::tempdir().expect("a folder");
    let (base, adapter, report) = start(folder.path(), &demo(), config(demo(), 4));
    assert_eq!(report.relative_errors(), [0.0, 0.0]);
    let plain = Adapter::new(&base, adapter.config(), 0).expect("an adapter");
    assert_eq!(bits(numbers(&adapter)), bits(numbers(&plain)));
}

#[test]
fn loftq_refuses_what_can_not_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = quantised(folder.path(), Format::Q4_0);
    let refused = |config: TrainConfig| {
        planned(folder.path(), &small, config).and_then(Planned::start).map(|_| ()).unwrap_err()
    };
    for (source, said) in [
        (repository("tests/golden/gemma3.gguf"), "its family is gemma3"),
        (repository("tests/golden/llama.gguf"), "give the model that the base was made from"),
        (folder.path().join("nowhere.gguf"), "nowhere.gguf"),
        (folder.path().to_owned(), "config.json"),
    ] {
        let error = refused(config(source, 4)).to_string();
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(refused(config(demo(), 257)).kind(), Kind::Usage);
    let rank = TrainConfig { init_adapter: Some("adapter".into()), ..config(demo(), 4) };
    assert_eq!(refused(rank).kind(), Kind::Usage);
    // The same shapes, other weights.
    let other = folder.path().join("other.gguf");
    let mut bytes = std::fs::read(demo()).expect("the demo's model");
    let data = Gguf::open(demo()).expect("a model").tensor("blk.0.attn_q.weight").expect("one");
    bytes[data.range].reverse();
    std::fs::write(&other, bytes).expect("a file");
    let error = refused(config(other, 4)).to_string();
    assert!(error.contains("blk.0.attn_q.weight"), "{error}");
}

#[test]
fn a_gaussian_start_has_its_deviation() {
    let base = Base::open(demo()).expect("a model");
    let lora = LoraConfig { rank: 8, ..LoraConfig::default() };
    let of = |seed| {
        let start = AdapterStart::gaussian(&base, &lora, seed).expect("a start");
        let values = Numbers::in_memory(start.shape().len()).expect("memory");
        start.make(&base, values).expect("an adapter")
    };
    let (adapter, other) = (of(3), of(4));
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for (_, _, factor, range) in adapter.shape().factors() {
        let x = &numbers(&adapter)[range.clone()];
        if factor == Factor::B {
            assert!(x.iter().all(|x| *x == 0.0));
            continue;
        }
        assert_ne!(x, &numbers(&other)[range.clone()]);
        count += x.len() as f64;
        sum += x.iter().map(|x| f64::from(*x)).sum::<f64>();
        squares += x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    }
    let deviation = (squares / count).sqrt();
    assert!((deviation * 8.0 - 1.0).abs() < 0.02 && (sum / count).abs() < 0.005, "{deviation}");
    assert_eq!(bits(numbers(&of(3))), bits(numbers(&adapter)));
}
