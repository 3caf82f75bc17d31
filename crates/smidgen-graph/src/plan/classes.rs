//! Classes of layers that share their programs, and what a layer of a class can keep.

use std::collections::BTreeMap;

use super::search::{Tiling, WIDEST_MLP};
use super::{Architecture, Backward, LayerPrograms, Request, padded, stem};
use crate::autodiff::{Differentiated, differentiate};
use crate::block::{Block, ValueId};
use crate::cost::Rates;
use crate::layout::{Pins, Place, Program, Rows, lay_out};
use crate::schedule::{self, Kept, Recount};
use crate::step::{Source, Step};
use crate::table;

/// Layers that share a differentiated block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    pub kind: usize,
    pub trained: bool,
    pub input_wanted: bool,
}

/// Values that are kept together: all tiles of a wide value, or one value.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    /// The values' name, without a tile.
    stem: String,
    /// Numbers a token.
    pub cols: usize,
    /// What keeping it saves, given that the choices before it are kept.
    pub seconds_saved: f64,
}

/// FLOPs that keeping a number must save: below this, making it again is as fast as writing it
/// and reading it back.
const LEAST_SAVED: f64 = 64.0;

impl Class {
    pub fn of(model: &dyn Architecture, request: &Request, layer: usize) -> Self {
        Self {
            kind: model.layer_kind(layer),
            trained: layer >= request.first_trained,
            input_wanted: layer > request.first_trained,
        }
    }

    fn block(self, model: &dyn Architecture, request: &Request, tile: usize) -> Block {
        let lora = self.trained.then_some(&request.lora);
        model.layer_block(self.kind, lora, tile)
    }

    /// Whether there is a backward through it.
    pub fn walks_back(self, request: &Request) -> bool {
        self.trained && request.backward == Backward::Layers
    }

    /// Columns of the widest head of attention.
    pub fn widest_head(self, model: &dyn Architecture, request: &Request) -> usize {
        let block = self.block(model, request, WIDEST_MLP);
        let graph = differentiate(&block, self.input_wanted);
        let heads = graph.forward.iter().map(|step| match step {
            Step::Attention { shape, .. } => shape.head_dim,
            _ => 0,
        });
        heads.max().unwrap_or(0)
    }

    /// What a layer could keep beside what it always keeps, the best first: most seconds saved a
    /// byte, given those before it.
    pub fn choices(self, model: &dyn Architecture, request: &Request, tile: usize) -> Vec<Choice> {
        let mut chosen: Vec<Choice> = Vec::new();
        if !self.walks_back(request) {
            return chosen;
        }
        let block = differentiate(&self.block(model, request, tile), self.input_wanted);
        let (tokens, rates) = (request.tokens, &request.rates);
        let cols = |v: ValueId| block.values[v.0 as usize].cols;
        let cost: Vec<f64> = block.forward.iter().map(|s| rates.step(s, tokens, cols)).collect();
        let recount = Recount::new(&block);
        let mut kept = schedule::always_kept(&block);
        let mut base = recount.cost(&kept, &cost);
        loop {
            let mut groups: BTreeMap<&str, Kept> = BTreeMap::new();
            for v in schedule::keepable(&block, &kept) {
                groups.entry(stem(&block.values[v.0 as usize].name)).or_default().insert(v);
            }
            let best = groups
                .into_iter()
                .map(|(name, values)| {
                    let with: Kept = kept.union(&values).copied().collect();
                    let left = recount.cost(&with, &cost);
                    let cols = values.iter().map(|v| cols(*v)).sum();
                    let seconds_saved = base - left;
                    (Choice { stem: name.to_owned(), cols, seconds_saved }, with, left)
                })
                .filter(|(c, ..)| {
                    c.seconds_saved * rates.products >= LEAST_SAVED * (c.cols * tokens) as f64
                })
                .max_by(|(a, ..), (b, ..)| {
                    a.worth().total_cmp(&b.worth()).then(b.stem.cmp(&a.stem))
                });
            let Some((choice, with, left)) = best else { return chosen };
            chosen.push(choice);
            (kept, base) = (with, left);
        }
    }
}

impl Choice {
    /// Seconds saved for a number a token.
    pub fn worth(&self) -> f64 {
        self.seconds_saved / self.cols as f64
    }
}

/// A class at one width of the MLP's tiles, with what its layers can keep.
#[derive(Debug)]
pub(super) struct Variant<'a> {
    class: Class,
    request: &'a Request,
    tiling: Tiling,
    block: Block,
    graph: Differentiated,
    choices: &'a [Choice],
}

/// What the programs of a layer take: numbers of scratch, numbers of kept values, bytes of lists,
/// seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measure {
    pub scratch: usize,
    pub kept: usize,
    /// The same without rounding up.
    pub kept_exact: usize,
    pub lists: usize,
    pub params: usize,
    pub forward: f64,
    pub backward: f64,
    pub infer: f64,
}

impl<'a> Variant<'a> {
    pub fn new(
        class: Class,
        model: &dyn Architecture,
        request: &'a Request,
        tiling: Tiling,
        choices: &'a [Choice],
    ) -> Self {
        let block = class.block(model, request, tiling.mlp);
        let graph = differentiate(&block, class.input_wanted);
        Self { class, request, tiling, block, graph, choices }
    }

    /// What a layer keeps that takes the first `depth` choices.
    fn kept(&self, depth: usize) -> Kept {
        let mut kept = schedule::always_kept(&self.graph);
        let chosen = |name: &str| self.choices[..depth].iter().any(|c| c.stem == stem(name));
        // Gradients have names of their own; only what the forward makes can be kept.
        let forward = self.block.values.iter().enumerate();
        kept.extend(forward.filter(|(_, v)| chosen(&v.name)).map(|(i, _)| ValueId(i as u32)));
        kept
    }

    /// The programs of a layer that takes the first `depth` choices; its output goes where its input
    /// is if `in_place`.
    pub fn programs(self, depth: usize, in_place: bool) -> LayerPrograms {
        let kept = self.kept(depth);
        let back = self.class.walks_back(self.request);
        let (forward, backward) = match back {
            true => (Some(self.forward(&kept, in_place)), Some(self.backward(&kept))),
            false => (None, None),
        };
        let cols = |v: &ValueId| (*v, self.graph.values[v.0 as usize].cols);
        let kept = kept.iter().filter(|_| back).map(cols).collect();
        LayerPrograms { infer: self.infer(), block: self.block, forward, backward, kept }
    }

    /// What those programs take, without and with the output in place.
    pub fn measures(&self, depth: usize, infer: &Program) -> [Measure; 2] {
        if !self.class.walks_back(self.request) {
            return [self.measure(&Kept::new(), None, None, infer); 2];
        }
        let kept = self.kept(depth);
        let backward = self.backward(&kept);
        let of = |in_place| {
            let forward = self.forward(&kept, in_place);
            self.measure(&kept, Some(&forward), Some(&backward), infer)
        };
        let apart = of(false);
        [apart, if self.may_be_in_place() { of(true) } else { apart }]
    }

    /// Outputs take the place of inputs that are in the scratch file where little memory is used.
    fn may_be_in_place(&self) -> bool {
        self.request.spool && self.tiling.may_be_in_place()
    }

    fn measure(
        &self,
        kept: &Kept,
        forward: Option<&Program>,
        backward: Option<&Program>,
        infer: &Program,
    ) -> Measure {
        let tokens = self.request.tokens;
        let all = || [forward, backward, Some(infer)].into_iter().flatten();
        let seconds = |p: Option<&Program>| p.map_or(0.0, |p| program_seconds(p, self.request));
        let numbers = || kept.iter().map(|v| self.graph.values[v.0 as usize].cols * tokens);
        Measure {
            scratch: all().map(|p| p.scratch_len).max().unwrap_or(0),
            kept: numbers().map(padded).sum(),
            kept_exact: numbers().sum(),
            lists: table::layer_lists(&self.block, all()),
            params: self.block.param_len(),
            forward: seconds(forward),
            backward: seconds(backward),
            infer: seconds(Some(infer)),
        }
    }

    fn rows(&self) -> Rows {
        Rows { all: self.request.tokens, tile: self.tiling.rows }
    }

    fn ends(&self) -> (ValueId, ValueId) {
        let input = self.graph.input.expect("a layer has an input");
        (input, self.graph.output.expect("a layer has an output"))
    }

    /// Forward in place, keeping nothing.
    pub fn infer(&self) -> Program {
        self.forward(&Kept::new(), true)
    }

    fn forward(&self, kept: &Kept, in_place: bool) -> Program {
        let (input, output) = self.ends();
        let mut pins = vec![(input, Place::Input, in_place)];
        let result = in_place.then_some((output, Place::Input));
        pins.extend((!in_place).then_some((output, Place::Output, false)));
        let pins = Pins { pins: with_kept(pins, kept), result };
        let rows = self.rows();
        let whole = lay_out(schedule::forward(&self.graph), &pins, rows);
        if rows.tile.is_none() {
            return whole;
        }
        // What passes from stage to stage holds all rows: worth it where that is the stream itself.
        let staged = lay_out(schedule::forward_in_stages(&self.graph), &pins, rows);
        if staged.scratch_len < whole.scratch_len { staged } else { whole }
    }

    fn backward(&self, kept: &Kept) -> Program {
        let (input, _) = self.ends();
        let cotangent = self.graph.d_output.expect("a trained layer has a gradient");
        let pins = vec![(input, Place::Input, false), (cotangent, Place::Scratch(0), true)];
        let result = self.graph.d_input.map(|d| (d, Place::Scratch(0)));
        let pins = Pins { pins: with_kept(pins, kept), result };
        let rows = self.rows();
        lay_out(schedule::backward(&self.graph, kept, rows.tile.is_some()), &pins, rows)
    }
}

/// Places of kept values beside others.
fn with_kept(mut pins: Vec<(ValueId, Place, bool)>, kept: &Kept) -> Vec<(ValueId, Place, bool)> {
    pins.extend(kept.iter().enumerate().map(|(i, v)| (*v, Place::Kept(i), false)));
    pins
}

/// Seconds of a program's steps.
pub(super) fn program_seconds(program: &Program, request: &Request) -> f64 {
    let cols = |v: ValueId| program.values[v.0 as usize].cols;
    let rows = Rows { all: request.tokens, tile: program.row_tile };
    let again = (rows.bands() - 1) as f64;
    let step = |s: &Step| request.rates.step(s, request.tokens, cols);
    program.steps.iter().map(|s| step(s) + again * band_seconds(s, &request.rates)).sum()
}

/// FLOPs that unpacking a weight takes as long as.
const UNPACKING: f64 = 18.0;

/// Seconds that a step takes longer for another band of the same rows.
fn band_seconds(step: &Step, rates: &Rates) -> f64 {
    let Step::Gemm { terms, .. } = step else { return rates.call };
    let weights = terms.iter().filter(|t| matches!(t.b, Source::Weight(_)));
    let unpacked: usize = weights.map(|t| t.depth() * t.width()).sum();
    rates.call + unpacking_seconds(unpacked, rates)
}

/// Seconds of unpacking so many weights.
pub(super) fn unpacking_seconds(weights: usize, rates: &Rates) -> f64 {
    UNPACKING * weights as f64 / rates.products
}
