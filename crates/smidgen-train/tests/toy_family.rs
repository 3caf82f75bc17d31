//! Families made here, of ops alone: what an op and its rule promise holds in blocks of shapes
//! that no known family has, with nothing else told of them.

mod common;

use std::io::Write;
use std::sync::Arc;

use common::{Run, bits, gradient, loss, random, sequences, worst_difference};
use smidgen_graph::ops::Mlp;
use smidgen_graph::{
    Activation, Architecture, AttentionShape, Block, BlockBuilder, Budget, LoraSpec, RopeShape,
    RopeStyle, Site, ValueId,
};
use smidgen_runtime::{Dropout, ModelWeights};
use smidgen_weights::Gguf;

const VOCABULARY: usize = 90;
const HIDDEN: usize = 64;
const HEAD_DIM: usize = 16;
/// Four tiles of the MLP, the last one narrower.
const FFN: usize = 832;
const EPS: f32 = 1e-5;
const POSITIONS: usize = 120;

/// What a layer does with its input.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// Attention and MLP read the same norm, and both are added to the residual.
    Parallel,
    /// The same, with queries normalised over heads and then scaled, and the MLP's output halved.
    ScaledParallel,
    /// Norms with a mean, places of its own, biases everywhere, and an MLP of two projections.
    Placed,
    /// No norm before the projections: the residual's gradient and the projections' meet in one
    /// sum, and the residual is added twice.
    Bare,
}

const SHAPES: [Shape; 4] = [Shape::Parallel, Shape::ScaledParallel, Shape::Placed, Shape::Bare];

#[derive(Debug)]
struct Toy(Shape);

const SITES: [Site; 7] = [
    Site { module: "mix.q", tensor: "mix_q" },
    Site { module: "mix.k", tensor: "mix_k" },
    Site { module: "mix.v", tensor: "mix_v" },
    Site { module: "mix.out", tensor: "mix_out" },
    Site { module: "wide.gate", tensor: "wide_gate" },
    Site { module: "wide.up", tensor: "wide_up" },
    Site { module: "wide.down", tensor: "wide_down" },
];

impl Toy {
    fn mix(&self, b: &mut BlockBuilder, x: ValueId) -> ValueId {
        let (heads, kv_heads) = (4, 2);
        let [q_site, k_site, v_site, out_site, ..] = SITES;
        let (query_cols, key_cols) = (heads * HEAD_DIM, kv_heads * HEAD_DIM);
        let q_proj = b.projection(q_site, HIDDEN, query_cols, false);
        let k_proj = b.projection(k_site, HIDDEN, key_cols, true);
        let v_proj = b.projection(v_site, HIDDEN, key_cols, false);
        let out_proj = b.projection(out_site, query_cols, HIDDEN, true);
        let mut q = b.linear("q", x, q_proj);
        let k = b.linear("k", x, k_proj);
        let v = b.linear("v", x, v_proj);
        let mut scale = 1.0 / (HEAD_DIM as f32).sqrt();
        if self.0 == Shape::ScaledParallel {
            q = b.rms_norm("q norm", q, "q_norm.weight", HEAD_DIM, EPS);
            q = b.scale("scaled q", q, scale);
            scale = 1.0;
        }
        let rope = RopeShape { table: 0, head_dim: HEAD_DIM, style: RopeStyle::Halves };
        let q = b.rope("turned q", q, rope);
        let k = b.rope("turned k", k, rope);
        let shape = AttentionShape { heads, kv_heads, head_dim: HEAD_DIM, window: Some(11), scale };
        let o = b.attention("mix", q, k, v, shape);
        b.linear("mixed", o, out_proj)
    }

    fn wide(&self, b: &mut BlockBuilder, x: ValueId) -> ValueId {
        let [.., gate, up, down] = SITES;
        if self.0 == Shape::Placed {
            let enter = b.projection(up, HIDDEN, FFN, true);
            let leave = b.projection(down, FFN, HIDDEN, true);
            return b.plain_mlp("wide", x, enter, leave);
        }
        let mlp = Mlp {
            gate: b.projection(gate, HIDDEN, FFN, false),
            up: b.projection(up, HIDDEN, FFN, false),
            down: b.projection(down, FFN, HIDDEN, false),
            activation: Activation::Silu,
        };
        b.gated_mlp("wide", x, mlp)
    }
}

impl Architecture for Toy {
    fn layers(&self) -> usize {
        3
    }

    fn layer_kind(&self, _: usize) -> usize {
        0
    }

    fn layer_block(&self, _: usize, lora: Option<&LoraSpec>, mlp_tile: usize) -> Block {
        let mut b = BlockBuilder::new("layer", lora, mlp_tile);
        let x = b.input(HIDDEN);
        let n = match self.0 {
            Shape::Bare => x,
            Shape::Placed => {
                let placed = b.positions("placed", x, "places", 3, POSITIONS);
                b.layer_norm("norm", placed, "norm", EPS)
            }
            _ => b.rms_norm("norm", x, "norm.weight", HIDDEN, EPS),
        };
        let mixed = self.mix(&mut b, n);
        let mut wide = self.wide(&mut b, n);
        if self.0 == Shape::ScaledParallel {
            wide = b.scale("half", wide, 0.5);
        }
        let sum = b.add("sum", mixed, wide);
        let mut y = b.add("residual", x, sum);
        if self.0 == Shape::Bare {
            y = b.add("twice", x, y);
            y = b.rms_norm("after", y, "norm.weight", HIDDEN, EPS);
        }
        b.finish(Some(y))
    }

    fn embedding_block(&self) -> Block {
        let mut b = BlockBuilder::new("embedding", None, smidgen_graph::GRAIN);
        let x = b.embedding("words", VOCABULARY, HIDDEN);
        let x = b.scale("scaled words", x, (HIDDEN as f32).sqrt());
        b.finish(Some(x))
    }

    fn head_block(&self) -> Block {
        let mut b = BlockBuilder::new("head", None, smidgen_graph::GRAIN);
        let x = b.input(HIDDEN);
        let x = b.rms_norm("last norm", x, "last_norm", HIDDEN, EPS);
        b.head(x, "words", VOCABULARY);
        b.finish(None)
    }

    fn hidden(&self) -> usize {
        HIDDEN
    }

    fn layer_prefix(&self, layer: usize) -> String {
        format!("toy{layer}.")
    }

    fn rope_frequencies(&self) -> Vec<Vec<f32>> {
        vec![(0..HEAD_DIM / 2).map(|i| 0.5f32.powi(i as i32)).collect()]
    }
}

/// A GGUF file with random f32 numbers for every tensor that `model` names, and no metadata.
fn random_file(model: &dyn Architecture) -> tempfile::NamedTempFile {
    let mut tensors: Vec<(String, usize, usize)> = Vec::new();
    let mut add = |block: Block, prefix: &str| {
        for slot in block.weights {
            let tensor = (format!("{prefix}{}", slot.tensor), slot.rows, slot.cols);
            if !tensors.contains(&tensor) {
                tensors.push(tensor);
            }
        }
    };
    add(model.embedding_block(), "");
    add(model.head_block(), "");
    for layer in 0..model.layers() {
        let block = model.layer_block(model.layer_kind(layer), None, smidgen_graph::GRAIN);
        add(block, &model.layer_prefix(layer));
    }
    // No unit comes near a rectifier's kink, where no difference tells the gradient: small weights
    // beside large biases hold half of them on and half of them off.
    let kinked = tensors.iter().any(|(name, ..)| name.ends_with("wide_up.bias"));
    let bound_of = |cols: usize| (3.0 / cols as f32).sqrt();
    const ALIGNMENT: usize = 32;
    let mut header = b"GGUF".to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(0u64.to_le_bytes());
    let mut data: Vec<u8> = Vec::new();
    for (i, (name, rows, cols)) in tensors.iter().enumerate() {
        let sizes = if *rows == 1 { vec![*cols] } else { vec![*cols, *rows] };
        header.extend((name.len() as u64).to_le_bytes());
        header.extend(name.as_bytes());
        header.extend((sizes.len() as u32).to_le_bytes());
        sizes.iter().for_each(|n| header.extend((*n as u64).to_le_bytes()));
        header.extend(0u32.to_le_bytes());
        header.extend((data.len() as u64).to_le_bytes());
        let mut numbers = vec![0.0; rows * cols];
        let (centre, bound) = match *rows {
            1 => (1.0, 0.3),
            _ if kinked && name.ends_with("wide_up.weight") => (0.0, 0.25 * bound_of(*cols)),
            _ => (0.0, bound_of(*cols)),
        };
        random(i as u64, bound, &mut numbers);
        if name.ends_with("wide_up.bias") {
            numbers.iter_mut().for_each(|x| *x = 2.0 * x.signum() - centre);
        }
        data.extend(numbers.iter().flat_map(|x| (centre + x).to_le_bytes()));
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&[header, data].concat()).expect("a written file");
    file
}

fn bind(toy: &Toy) -> Arc<ModelWeights> {
    let file = random_file(toy);
    let gguf = Gguf::open(file.path()).expect("a sound file");
    Arc::new(ModelWeights::bind(gguf, toy).expect("its tensors"))
}

fn run(dropout: f32, first_trained: usize, tokens: usize) -> Run {
    let modules = SITES.iter().map(|s| s.module.to_owned()).collect();
    Run::new(LoraSpec { rank: 3, scale: 1.5, dropout, modules }, first_trained, tokens)
}

/// Trainable numbers with something in A and in B, and where each factor lies.
fn params(toy: &Toy, run: &Run) -> (Vec<f32>, Vec<std::ops::Range<usize>>) {
    let mut ranges = Vec::new();
    let mut at = 0;
    for _ in run.first_trained..toy.layers() {
        for param in toy.layer_block(0, Some(&run.lora), 256).params {
            ranges.push(at..at + param.len());
            at += param.len();
        }
    }
    let mut params = vec![0.0; at];
    random(11, 0.1, &mut params);
    (params, ranges)
}

#[test]
fn gradients_are_those_of_the_loss() {
    for toy in SHAPES.map(Toy) {
        let weights = bind(&toy);
        let batch = sequences(VOCABULARY, &[23, 8]);
        for (dropout, first) in [(0.0, 0), (0.2, 0), (0.0, 2)] {
            for budget in [Budget::Least, Budget::Unlimited] {
                let run = Run { budget, ..run(dropout, first, 31) };
                let (params, ranges) = params(&toy, &run);
                let mut engine = run.engine(&toy, &weights);
                let masks = (dropout > 0.0).then_some(Dropout { seed: 4, step: 2 });
                let (_, gradients) = gradient(&mut engine, &params, &batch, masks);
                let moved = |p: &[f32]| loss(&mut engine, p, &batch, masks);
                let worst = worst_difference(&params, &gradients, &ranges, 2, 0.012, moved);
                println!("{toy:?} dropout {dropout} from layer {first}: worst {worst:.1e}");
                assert!(worst < 3e-3, "{toy:?} {dropout} {first} {budget:?}: {worst:.1e}");
            }
        }
    }
}

#[test]
fn budgets_threads_tiles_and_passes_change_nothing() {
    for toy in SHAPES.map(Toy) {
        let weights = bind(&toy);
        let batch = sequences(VOCABULARY, &[40, 9, 70]);
        for dropout in [0.0, 0.2] {
            let run = run(dropout, 0, 119);
            let (params, _) = params(&toy, &run);
            let masks = (dropout > 0.0).then_some(Dropout { seed: 4, step: 2 });
            let of = |run: &Run| {
                let mut engine = run.engine(&toy, &weights);
                let (loss, gradients) = gradient(&mut engine, &params, &batch, masks);
                (loss.to_bits(), bits(&gradients))
            };
            let first = of(&run);
            for budget in run.budgets(&toy, 6) {
                assert!(of(&Run { budget, ..run.clone() }) == first, "{toy:?} {budget:?}");
            }
            for tile in [256, 512, 768, 1024] {
                let run = Run { mlp_tile: Some(tile), threads: 2, ..run.clone() };
                assert!(of(&run) == first, "{toy:?} in tiles of {tile}");
            }
            assert!(of(&Run { tokens: 70, ..run.clone() }) == first, "{toy:?} in two passes");
        }
    }
}
