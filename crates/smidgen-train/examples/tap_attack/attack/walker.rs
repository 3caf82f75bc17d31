//! The public model, run forward up to some layer.

use smidgen_graph::{Architecture, Backward, Block, Gradients, LoraSpec};
use smidgen_kernels::{Kernels, MatMut, MatRef};
use smidgen_runtime::{Engine, KvCache, Numbers, Pass, Pool, Taps};

use crate::common::{Model, Run};

/// Rows of a pass.
pub const ROWS: usize = 256;

/// The first layers of a model, and the keys and values of a text so far.
#[derive(Debug)]
pub struct Walker {
    engine: Engine,
    cache: KvCache,
    factors: Numbers,
    pass: Pass,
}

impl Walker {
    /// The first `layers` layers; texts are up to [`ROWS`] tokens long.
    pub fn new(model: &Model, layers: usize, threads: usize) -> Self {
        let blocks = FirstLayers { blocks: model.blocks.as_ref(), layers };
        let cache = KvCache::new(layers, model.info.key_cols, ROWS).expect("memory");
        let engine = run(layers, threads).engine(&blocks, &model.weights);
        Self { engine, cache, factors: Vec::new().into(), pass: Pass::default() }
    }

    pub fn kernels(&self) -> Kernels {
        self.engine.kernels()
    }

    /// What stands behind each of `layers`, rows x hidden, each row over its root mean square.
    pub fn states(&mut self, ids: &[u32], layers: &[usize]) -> Vec<Vec<f32>> {
        self.pass.clear();
        self.pass.push(ids, &vec![false; ids.len()], 0);
        let mut seen = Seen::new(layers);
        self.engine.forward(&self.pass, &mut self.factors, &mut seen).expect("a forward");
        seen.states
    }

    /// The same of each of `tokens`, at most [`ROWS`], where it stands at `position` behind the text
    /// so far. The text does not grow.
    pub fn branch(&mut self, tokens: &[u32], position: usize, layers: &[usize]) -> Vec<Vec<f32>> {
        self.pass.clear();
        for &token in tokens {
            self.pass.push(&[token], &[false], 0);
        }
        self.pass.segments.iter_mut().for_each(|segment| segment.first_position = position);
        let mut seen = Seen::new(layers);
        let Self { engine, cache, factors, pass } = self;
        engine.forward_cached(pass, factors, &mut seen, cache).expect("a forward");
        seen.states
    }

    /// Has `token` stand at `position`, the text's next.
    pub fn extend(&mut self, token: u32, position: usize) {
        self.branch(&[token], position, &[]);
    }

    /// The same; returns the logarithm of what the whole model takes each next token's probability for.
    pub fn extend_and_predict(&mut self, token: u32, position: usize) -> Vec<f32> {
        self.pass.clear();
        self.pass.push(&[token], &[false], 0);
        self.pass.segments[0].first_position = position;
        let mut logits = Vec::new();
        let Self { engine, cache, factors, pass } = self;
        let mut take = |_: usize, tile: MatRef<'_>| logits.extend_from_slice(tile.row(0));
        engine.logits(pass, factors, None, Some(cache), 0, &mut take).expect("logits");
        let largest = logits.iter().fold(f32::MIN, |m, l| m.max(*l));
        let sum: f64 = logits.iter().map(|l| f64::from(l - largest).exp()).sum();
        let log_sum = largest + sum.ln() as f32;
        logits.iter_mut().for_each(|l| *l -= log_sum);
        logits
    }
}

/// How the first layers are run: forward, and back through the head.
pub fn run(layers: usize, threads: usize) -> Run {
    let none = LoraSpec { rank: 0, scale: 0.0, dropout: 0.0, modules: Vec::new() };
    let (gradients, backward) = (Gradients::Block, Backward::Head);
    Run { threads, gradients, backward, ..Run::new(none, layers, ROWS) }
}

/// Normalised rows behind some layers.
#[derive(Debug)]
struct Seen<'a> {
    layers: &'a [usize],
    states: Vec<Vec<f32>>,
}

impl<'a> Seen<'a> {
    fn new(layers: &'a [usize]) -> Self {
        Self { layers, states: vec![Vec::new(); layers.len()] }
    }
}

impl Taps for Seen<'_> {
    fn tap(&mut self, layer: usize, stream: MatRef<'_>, _: Kernels, _: &mut Pool) {
        let Some(at) = self.layers.iter().position(|&wanted| wanted == layer) else { return };
        for row in 0..stream.rows() {
            let row = stream.row(row);
            let inverse = 1.0 / rms(row).max(f32::MIN_POSITIVE);
            self.states[at].extend(row.iter().map(|x| x * inverse));
        }
    }

    fn join(&mut self, _: MatMut<'_>, _: Kernels, _: &mut Pool) {}
}

/// Root mean square.
pub fn rms(row: &[f32]) -> f32 {
    let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    (squares / row.len() as f64).sqrt() as f32
}

/// A model that ends after some of its layers.
#[derive(Debug)]
struct FirstLayers<'a> {
    blocks: &'a dyn Architecture,
    layers: usize,
}

impl Architecture for FirstLayers<'_> {
    fn layers(&self) -> usize {
        self.layers
    }

    fn layer_kind(&self, layer: usize) -> usize {
        self.blocks.layer_kind(layer)
    }

    fn layer_block(&self, kind: usize, lora: Option<&LoraSpec>, mlp_tile: usize) -> Block {
        self.blocks.layer_block(kind, lora, mlp_tile)
    }

    fn embedding_block(&self) -> Block {
        self.blocks.embedding_block()
    }

    fn head_block(&self) -> Block {
        self.blocks.head_block()
    }

    fn hidden(&self) -> usize {
        self.blocks.hidden()
    }

    fn layer_prefix(&self, layer: usize) -> String {
        self.blocks.layer_prefix(layer)
    }

    fn other_tensors(&self) -> &[&str] {
        self.blocks.other_tensors()
    }

    fn rope_frequencies(&self) -> Vec<Vec<f32>> {
        self.blocks.rope_frequencies()
    }
}
