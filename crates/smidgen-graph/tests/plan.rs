//! Plans: that they add up, that their programs never lose a number, that they fit the budget,
//! and that nothing is computed that nobody reads.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use smidgen_graph::layout::{ALIGN, Pins, Place, Placed, Program, Rows, lay_out};
use smidgen_graph::ops::Mlp;
use smidgen_graph::plan::{LayerPlan, LayerPrograms, ROW_TILE, Traffic, WeightPages, curve, plan};
use smidgen_graph::schedule::Order;
use smidgen_graph::{
    Access, Activation, Architecture, AttentionShape, Backward, Block, BlockBuilder, Budget,
    Gradients, LoraSpec, OptimizerState, OverBudget, Paged, Plan, Rates, Request, RopeShape,
    RopeStyle, Row, Site, Source, Step, Term, ValueId, differentiate, schedule,
};

const HIDDEN: usize = 64;
const HEAD_DIM: usize = 16;
const FFN: usize = 800;
const LAYERS: usize = 4;
const VOCABULARY: usize = 500;

/// What stands around attention and MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Norms {
    /// A norm before each, as in llama and qwen2.
    Before,
    /// A norm before and after each, as in gemma3.
    Around,
    /// One norm before both, which run side by side.
    Shared,
    /// A norm with a mean before each, and an MLP of two projections, as in opt.
    Centred,
}

const ALL: [Norms; 4] = [Norms::Before, Norms::Around, Norms::Shared, Norms::Centred];

#[derive(Debug)]
struct Model(Norms);

const SITES: [Site; 7] = [
    Site { module: "q", tensor: "q" },
    Site { module: "k", tensor: "k" },
    Site { module: "v", tensor: "v" },
    Site { module: "o", tensor: "o" },
    Site { module: "gate", tensor: "gate" },
    Site { module: "up", tensor: "up" },
    Site { module: "down", tensor: "down" },
];

fn norm(b: &mut BlockBuilder, name: &str, x: ValueId) -> ValueId {
    b.rms_norm(name, x, &format!("{name}.weight"), HIDDEN, 1e-6)
}

fn attention(b: &mut BlockBuilder, x: ValueId) -> ValueId {
    let [q, k, v, o, ..] = SITES;
    let shape =
        AttentionShape { heads: 4, kv_heads: 2, head_dim: HEAD_DIM, window: None, scale: 0.25 };
    let (query_cols, key_cols) = (shape.query_cols(), shape.key_cols());
    let (q_proj, k_proj) =
        (b.projection(q, HIDDEN, query_cols, false), b.projection(k, HIDDEN, key_cols, false));
    let v_proj = b.projection(v, HIDDEN, key_cols, false);
    let o_proj = b.projection(o, query_cols, HIDDEN, false);
    let rope = RopeShape { table: 0, head_dim: HEAD_DIM, style: RopeStyle::Halves };
    let (q, k) = (b.linear("q", x, q_proj), b.linear("k", x, k_proj));
    let v = b.linear("v", x, v_proj);
    let (q, k) = (b.rope("turned q", q, rope), b.rope("turned k", k, rope));
    let o = b.attention("attention", q, k, v, shape);
    b.linear("o", o, o_proj)
}

fn mlp(b: &mut BlockBuilder, x: ValueId) -> ValueId {
    let [.., gate, up, down] = SITES;
    let mlp = Mlp {
        gate: b.projection(gate, HIDDEN, FFN, false),
        up: b.projection(up, HIDDEN, FFN, false),
        down: b.projection(down, FFN, HIDDEN, false),
        activation: Activation::Silu,
    };
    b.gated_mlp("mlp", x, mlp)
}

impl Model {
    /// A layer as opt has it.
    fn centred(mut b: BlockBuilder) -> Block {
        let x = b.input(HIDDEN);
        let n = b.layer_norm("first norm", x, "first norm", 1e-5);
        let o = attention(&mut b, n);
        let x = b.add("residual", x, o);
        let n = b.layer_norm("second norm", x, "second norm", 1e-5);
        let [.., gate, _, down] = SITES;
        let (enter, leave) =
            (b.projection(gate, HIDDEN, FFN, true), b.projection(down, FFN, HIDDEN, true));
        let m = b.plain_mlp("mlp", n, enter, leave);
        let y = b.add("output", x, m);
        b.finish(Some(y))
    }
}

impl Architecture for Model {
    fn layers(&self) -> usize {
        LAYERS
    }

    fn layer_kind(&self, _: usize) -> usize {
        0
    }

    fn layer_block(&self, _: usize, lora: Option<&LoraSpec>, mlp_tile: usize) -> Block {
        let mut b = BlockBuilder::new("layer", lora, mlp_tile);
        if self.0 == Norms::Centred {
            return Self::centred(b);
        }
        let x = b.input(HIDDEN);
        let n = norm(&mut b, "first norm", x);
        let mut o = attention(&mut b, n);
        if self.0 == Norms::Shared {
            let m = mlp(&mut b, n);
            let sum = b.add("sum", o, m);
            let y = b.add("output", x, sum);
            return b.finish(Some(y));
        }
        if self.0 == Norms::Around {
            o = norm(&mut b, "after attention", o);
        }
        let x = b.add("residual", x, o);
        let n = norm(&mut b, "second norm", x);
        let mut m = mlp(&mut b, n);
        if self.0 == Norms::Around {
            m = norm(&mut b, "after mlp", m);
        }
        let y = b.add("output", x, m);
        b.finish(Some(y))
    }

    fn embedding_block(&self) -> Block {
        let mut b = BlockBuilder::new("embedding", None, smidgen_graph::GRAIN);
        let x = b.embedding("words", VOCABULARY, HIDDEN);
        let x = b.scale("scaled", x, 8.0);
        let x = match self.0 {
            Norms::Centred => b.positions("placed", x, "places", 2, 4096),
            _ => x,
        };
        b.finish(Some(x))
    }

    fn head_block(&self) -> Block {
        let mut b = BlockBuilder::new("head", None, smidgen_graph::GRAIN);
        let x = b.input(HIDDEN);
        let x = norm(&mut b, "last norm", x);
        b.head(x, "words", VOCABULARY);
        b.finish(None)
    }

    fn hidden(&self) -> usize {
        HIDDEN
    }

    fn layer_prefix(&self, layer: usize) -> String {
        format!("layer{layer}.")
    }

    fn rope_frequencies(&self) -> Vec<Vec<f32>> {
        vec![vec![1.0; HEAD_DIM / 2]]
    }
}

fn lora(dropout: f32, modules: &[&str]) -> LoraSpec {
    let modules = modules.iter().map(|m| (*m).to_owned()).collect();
    LoraSpec { rank: 4, scale: 2.0, dropout, modules }
}

/// A state in 8 bits a number with a scale for each 256.
const EIGHT_BIT: [OptimizerState; 1] =
    [OptimizerState { name: "8-bit", words: |len| len.div_ceil(4) + len.div_ceil(256) }];

fn request(budget: Budget) -> Request {
    Request {
        tokens: 37,
        lora: lora(0.0, &SITES.map(|s| s.module)),
        first_trained: 0,
        gradients: Gradients::Block,
        optimizer_state: ["mean", "mean square"].map(OptimizerState::f32).into(),
        backward: Backward::Layers,
        walked_back: 1.0,
        budget,
        spool: false,
        spool_limit: None,
        spool_number: 4,
        own_traffic: Traffic::default(),
        passes: 1,
        rates: Rates::REFERENCE,
        fixed: vec![Row::new("known", "bytes".into(), 12_345, "whole run", "a caller's")],
        weights: WeightPages::default(),
    }
}

fn make(model: &Model, request: &Request) -> Plan {
    plan(model, request).expect("a plan")
}

/// Requests of all kinds: who is trained, with what, how gradients are held, and the budget's end.
fn requests() -> Vec<Request> {
    let mut requests = Vec::new();
    let targets: [&[&str]; 5] =
        [&SITES.map(|s| s.module), &["q"], &["v", "down"], &["gate"], &["k", "up"]];
    for modules in targets {
        for dropout in [0.0, 0.1] {
            for first_trained in [0, 2] {
                for gradients in [Gradients::Block, Gradients::Whole] {
                    for budget in [Budget::Least, Budget::Unlimited] {
                        let lora = lora(dropout, modules);
                        let base = request(budget);
                        requests.push(Request { lora, first_trained, gradients, ..base });
                    }
                }
            }
        }
    }
    for budget in [Budget::Least, Budget::AtMost(900_000), Budget::AtMost(1_500_000)] {
        for gradients in [Gradients::Block, Gradients::Whole] {
            let base = request(budget);
            requests.push(Request { spool: true, gradients, ..base });
        }
        requests.push(Request { spool: true, first_trained: 1, ..request(budget) });
    }
    for mut request in [0, 3, 4, 7, 80, 81, 83].map(|i: usize| requests[i].clone()) {
        request.optimizer_state = EIGHT_BIT.into();
        requests.push(request);
    }
    for backward in [Backward::Nothing, Backward::Head] {
        requests.push(Request { backward, ..request(Budget::Unlimited) });
    }
    // More rows than a band's: a plan of the least memory has them in bands.
    let tokens = 2 * ROW_TILE + 77;
    for budget in [Budget::Least, Budget::AtMost(4_500_000)] {
        for dropout in [0.0, 0.1] {
            let lora = lora(dropout, &SITES.map(|s| s.module));
            requests.push(Request { tokens, lora, ..request(budget) });
        }
        let lora = lora(0.0, &["o", "down"]);
        requests.push(Request { tokens, lora, spool: true, ..request(budget) });
    }
    for backward in [Backward::Nothing, Backward::Head] {
        requests.push(Request { tokens, backward, ..request(Budget::Least) });
    }
    requests
}

#[test]
fn rows_add_up_to_the_arena_and_to_the_peak() {
    for model in ALL.map(Model) {
        for request in requests() {
            let plan = make(&model, &request);
            let sum: u64 = plan.rows.iter().map(|r| r.bytes).sum();
            assert_eq!(plan.peak_bytes, sum);
            let largest = plan.programs.iter().map(|p| p.block.param_len()).max();
            let largest = largest.expect("programs");
            let words = |len| request.optimizer_state.iter().map(|s| (s.words)(len)).sum::<usize>();
            let all: usize = plan.param_ranges().iter().map(|run| words(run.len())).sum();
            let [factors, states] = match plan.paged {
                Paged::Nothing => [plan.param_len, all],
                Paged::State => [plan.param_len, words(largest)],
                Paged::All => [largest, words(largest)],
            };
            let adapter = plan.gradient_len + factors + states;
            let beside = 12_345 + 4 * adapter as u64;
            let lists = plan.rows.iter().find(|r| r.name == "programs").expect("a line").bytes;
            let arena = 4 * plan.arena_len as u64;
            assert_eq!(sum, beside + lists + arena, "{model:?} {request:?}");
        }
    }
}

#[test]
fn an_eight_bit_state_is_planned_at_its_size() {
    for model in ALL.map(Model) {
        for spool in [false, true] {
            let budget = if spool { Budget::Least } else { Budget::Unlimited };
            let request = |optimizer_state| Request { optimizer_state, spool, ..request(budget) };
            let [wide, small] = [vec![OptimizerState::f32("f32")], EIGHT_BIT.into()]
                .map(|state| make(&model, &request(state)));
            let bytes = |plan: &Plan, name| {
                plan.rows.iter().find(|r| r.name == name).expect("a line").bytes as f64
            };
            let ratio = bytes(&small, "8-bit") / bytes(&wide, "f32");
            assert!((0.2539..0.256).contains(&ratio), "{model:?}: {ratio}");
            if spool {
                assert_eq!((wide.paged, small.paged), (Paged::All, Paged::All));
                // What is read and written beside the state is the same.
                let states = |plan: &Plan, words: fn(usize) -> usize| -> u64 {
                    plan.param_ranges().iter().map(|run| 4 * words(run.len()) as u64).sum()
                };
                let less = states(&wide, |len| len) - states(&small, EIGHT_BIT[0].words);
                let [wide, small] = [&wide, &small].map(|plan| plan.scratch_traffic);
                let off = (wide.read - small.read, wide.written - small.written);
                assert_eq!(off, (less, less), "{model:?}");
            }
        }
    }
}

/// Every program of a layer with its name.
fn programs(layer: &LayerPrograms) -> Vec<(&'static str, &Program)> {
    let forward = layer.forward.iter().map(|p| ("forward", p));
    let backward = layer.backward.iter().map(|p| ("backward", p));
    forward.chain(backward).chain([("infer", &layer.infer)]).collect()
}

/// Memory as a program sees it: which value's rows of which band each cell holds.
struct Memory<'a> {
    program: &'a Program,
    bands: usize,
    scratch: Vec<Option<(ValueId, usize)>>,
    pinned: BTreeMap<(Place, usize), ValueId>,
}

impl<'a> Memory<'a> {
    fn new(program: &'a Program, tokens: usize) -> Self {
        let bands = program.row_tile.map_or(1, |tile| tokens.div_ceil(tile));
        let scratch = vec![None; program.scratch_len.div_ceil(ALIGN)];
        Self { program, bands, scratch, pinned: BTreeMap::new() }
    }

    /// Where a band's rows of a value lie.
    fn cells(&self, v: ValueId, band: usize) -> Range<usize> {
        let placed = &self.program.places[&v];
        let Place::Scratch(at) = placed.place else { return 0..0 };
        assert_eq!((at % ALIGN, placed.len % ALIGN), (0, 0), "whole cells");
        let (start, end) = (at / ALIGN, (at + placed.len) / ALIGN);
        let Some(tile) = self.program.row_tile.filter(|_| placed.whole) else { return start..end };
        let cells = tile * self.program.values[v.0 as usize].cols / ALIGN;
        start + band * cells..if band + 1 == self.bands { end } else { start + (band + 1) * cells }
    }

    fn holds(&self, v: ValueId, band: usize) -> bool {
        match self.program.places[&v].place {
            Place::Scratch(_) => {
                self.scratch[self.cells(v, band)].iter().all(|c| *c == Some((v, band)))
            }
            place => self.pinned.get(&(place, band)) == Some(&v),
        }
    }

    fn holds_all(&self, v: ValueId) -> bool {
        (0..self.bands).all(|band| self.holds(v, band))
    }

    fn write(&mut self, v: ValueId, band: usize) {
        let cells = self.cells(v, band);
        match self.program.places[&v].place {
            Place::Scratch(_) => self.scratch[cells].fill(Some((v, band))),
            place => drop(self.pinned.insert((place, band), v)),
        }
    }

    /// Runs a step for a band.
    fn run(&mut self, what: &str, step: &Step, band: usize) {
        let (reads, writes) = (step.operands(Access::Read), step.operands(Access::Write));
        let across = step.across_rows();
        let bands = |v: &ValueId| if across.contains(v) { 0..band + 1 } else { band..band + 1 };
        for v in &reads {
            let all = bands(v).all(|band| self.holds(*v, band));
            assert!(all, "{what}: {step:?} reads {v:?}, which is lost");
        }
        if let Step::Head { x, .. } = step {
            let cells = self.cells(*x, band);
            self.scratch[cells].fill(None);
        }
        for v in &writes {
            // The last band's are the first sums over queries, to which the others add.
            let adds = across.contains(v) && band + 1 < self.bands;
            for band in bands(v) {
                assert!(!adds || self.holds(*v, band), "{what}: {step:?} adds to what is lost");
                self.write(*v, band);
            }
        }
        for v in &writes {
            assert!(self.holds(*v, band), "{what}: {step:?} writes two to one place");
        }
        let over = |v: &&ValueId| !self.holds(**v, band) && !matches!(step, Step::Head { .. });
        let taken: Vec<ValueId> = reads.iter().filter(over).copied().collect();
        let allowed = step.in_place().map_or(vec![], |(_, inputs)| inputs);
        assert!(taken.len() <= 1, "{what}: {step:?} writes over {taken:?}");
        for v in taken {
            let (place, out) =
                (self.program.places[&v].place, self.program.places[&writes[0]].place);
            assert!(allowed.contains(&v) && place == out, "{what}: {step:?} over {v:?}");
        }
    }
}

/// Runs a program on names, band after band: each step reads what was written for it, and writes
/// over nothing that it reads but by taking over in place. Returns the memory as it is left.
fn walk<'a>(
    what: &str,
    (program, tokens): (&'a Program, usize),
    given: impl Fn(ValueId, Place) -> bool,
) -> Memory<'a> {
    let mut memory = Memory::new(program, tokens);
    for (v, placed) in program.places.iter().filter(|(v, p)| given(**v, p.place)) {
        assert!(placed.len >= program.values[v.0 as usize].cols, "{what}: room for {v:?}");
        (0..memory.bands).for_each(|band| memory.write(*v, band));
    }
    let mut start = 0;
    for stage in &program.stages {
        let mut bands: Vec<usize> = (0..memory.bands).collect();
        if stage.order == Order::Back {
            bands.reverse();
        }
        for band in bands {
            program.steps[start..stage.end].iter().for_each(|step| memory.run(what, step, band));
        }
        start = stage.end;
    }
    assert_eq!(start, program.steps.len(), "{what}: stages hold all steps");
    memory
}

#[test]
fn no_program_loses_a_number() {
    for model in ALL.map(Model) {
        for request in requests() {
            let plan = make(&model, &request);
            let scratch = &plan.programs;
            for layer in scratch {
                let (input, output) = (layer.block.input, layer.block.output);
                let kept = |v: ValueId| layer.kept.iter().any(|(k, _)| *k == v);
                for (name, program) in programs(layer) {
                    let what = format!("{model:?} {name} {request:?}");
                    let memory = walk(&what, (program, plan.tokens), |v, place| match name {
                        "backward" => {
                            let d_output = program.values[v.0 as usize].name == "d_output";
                            Some(v) == input || kept(v) || d_output && place == Place::Scratch(0)
                        }
                        _ => Some(v) == input,
                    });
                    let holds = |v: ValueId| memory.holds_all(v);
                    match name {
                        "forward" => {
                            assert!(layer.kept.iter().all(|(v, _)| holds(*v)), "{what}: kept");
                            let in_place =
                                output.map(|v| program.places[&v].place) == Some(Place::Input);
                            assert!(output.is_some_and(holds), "{what}");
                            assert!(in_place || input.is_some_and(holds), "{what}");
                        }
                        "infer" => {
                            let places: BTreeSet<_> = memory.pinned.keys().map(|p| p.0).collect();
                            assert_eq!(places.len(), 1, "{what}: works in place");
                        }
                        _ => assert!(input.is_some_and(holds), "{what}: the input is kept"),
                    }
                }
            }
            walk("embedding", (&plan.embedding.1, plan.tokens), |_, _| false);
            let input = plan.head.0.input;
            walk("head", (&plan.head.1, plan.tokens), |v, _| Some(v) == input);
            walk("head, evaluating", (&plan.head.2, plan.tokens), |v, _| Some(v) == input);
        }
    }
}

/// Where a layer's kept values lie.
fn kept_ranges(plan: &Plan, layer: &LayerPlan) -> Vec<Range<usize>> {
    let cols = plan.programs[layer.programs].kept.iter().map(|(_, cols)| cols);
    let len = |cols: &usize| (cols * plan.tokens).next_multiple_of(ALIGN);
    layer.kept.iter().zip(cols).map(|(at, cols)| *at..*at + len(cols)).collect()
}

#[test]
fn lasting_buffers_do_not_overlap() {
    for model in ALL.map(Model) {
        for request in requests().into_iter().filter(|r| r.backward == Backward::Layers) {
            let plan = make(&model, &request);
            let stream_len = (HIDDEN * request.tokens).next_multiple_of(ALIGN);
            let trained = || plan.layers.iter().filter(|l| l.trained);
            let ends: BTreeSet<usize> =
                trained().flat_map(|l| [l.input, l.output]).chain([plan.stream]).collect();
            let mut taken = vec![0..plan.stream, plan.shared.clone()];
            taken.extend(ends.iter().map(|at| *at..*at + stream_len));
            for layer in trained() {
                let kept = kept_ranges(&plan, layer);
                let inside = |r: &Range<usize>| plan.shared.contains(&r.start);
                assert!(kept.iter().all(|r| !inside(r) || r.end <= plan.shared.end));
                taken.extend(kept.into_iter().filter(|r| !inside(r)));
            }
            taken.retain(|r| !r.is_empty());
            taken.sort_by_key(|r| r.start);
            assert!(taken.windows(2).all(|w| w[0].end == w[1].start), "{taken:?}");
            assert_eq!(taken.last().map(|r| r.end), Some(plan.arena_len));
            assert_eq!(plan.last, plan.layers[LAYERS - 1].output);
        }
    }
}

/// Who wrote each cell of the arena last, in a step as the runtime walks it: (layer, n), n being 0
/// for the layer's input and i + 1 for its i-th kept value.
#[derive(Default)]
struct Arena(BTreeMap<usize, (usize, usize)>);

impl Arena {
    fn write(&mut self, at: &Range<usize>, what: (usize, usize)) {
        at.clone().step_by(ALIGN).for_each(|cell| {
            self.0.insert(cell, what);
        });
    }

    fn holds(&self, at: &Range<usize>, what: (usize, usize)) -> bool {
        at.clone().step_by(ALIGN).all(|cell| self.0.get(&cell) == Some(&what))
    }
}

/// Every layer's backward finds its input and what its forward kept.
fn walk_layers(plan: &Plan) {
    let stream_len = (HIDDEN * plan.tokens).next_multiple_of(ALIGN);
    let input = |l: usize| plan.layers[l].input..plan.layers[l].input + stream_len;
    let output = |l: usize| plan.layers[l].output..plan.layers[l].output + stream_len;
    let kept = |l: usize| kept_ranges(plan, &plan.layers[l]);
    let mut arena = Arena::default();
    let mut file: BTreeMap<usize, Range<usize>> = BTreeMap::new();
    let first = plan.segments.first().map_or(LAYERS, |s| s.start);
    arena.write(&(plan.stream..plan.stream + stream_len), (first, 0));
    let forward = |l: usize, arena: &mut Arena| {
        assert!(arena.holds(&input(l), (l, 0)), "layer {l} finds its input");
        kept(l).iter().enumerate().for_each(|(i, r)| arena.write(r, (l, i + 1)));
        arena.write(&output(l), (l + 1, 0));
        let left = input(l) == output(l) || arena.holds(&input(l), (l, 0));
        assert!(left, "layer {l} leaves its input");
    };
    for (i, segment) in plan.segments.iter().enumerate() {
        assert!(arena.holds(&input(segment.start), (segment.start, 0)));
        match plan.segments.get(i + 1) {
            Some(next) => arena.write(&input(next.start), (next.start, 0)),
            None => segment.clone().for_each(|l| {
                forward(l, &mut arena);
                if let Some(at) = plan.layers[l].spooled {
                    let kept = plan.programs[plan.layers[l].programs].kept.iter();
                    let cols: usize = kept.map(|(_, cols)| cols).sum();
                    file.insert(l, at..at + (HIDDEN + cols) * plan.tokens);
                }
            }),
        }
    }
    let mut inside: Vec<_> = file.values().cloned().collect();
    inside.sort_by_key(|r| r.start);
    assert!(inside.windows(2).all(|w| w[0].end == w[1].start));
    assert_eq!(inside.last().map_or(0, |r| r.end), plan.spool_len);
    for (i, segment) in plan.segments.iter().enumerate().rev() {
        if i + 1 < plan.segments.len() {
            segment.clone().for_each(|l| forward(l, &mut arena));
        }
        for l in segment.clone().rev() {
            if file.contains_key(&l) {
                arena.write(&input(l), (l, 0));
                kept(l).iter().enumerate().for_each(|(i, r)| arena.write(r, (l, i + 1)));
            }
            assert!(arena.holds(&input(l), (l, 0)), "layer {l}'s backward finds its input");
            let found = |(i, r): (usize, &Range<usize>)| arena.holds(r, (l, i + 1));
            assert!(kept(l).iter().enumerate().all(found), "layer {l} finds what it kept");
        }
    }
}

#[test]
fn every_backward_finds_what_its_forward_left() {
    let mut ways = BTreeSet::new();
    for model in ALL.map(Model) {
        for request in requests().into_iter().filter(|r| r.backward == Backward::Layers) {
            let plan = make(&model, &request);
            walk_layers(&plan);
            let spooled = plan.layers.iter().filter(|l| l.spooled.is_some()).count();
            ways.insert((plan.segments.len() > 1, spooled > 0, !plan.shared.is_empty()));
        }
    }
    assert!(ways.iter().any(|way| way.0) && ways.iter().any(|way| way.1), "{ways:?}");
}

/// Of what a block works with, all rows lie in memory of the hidden state, keys and values alone.
#[test]
fn memory_grows_with_the_hidden_state_and_the_keys_alone() {
    for model in ALL.map(Model) {
        let least =
            |tokens| make(&model, &Request { tokens, spool: true, ..request(Budget::Least) });
        let (short, long) = (least(8 * ROW_TILE), least(16 * ROW_TILE));
        assert_eq!((short.row_tile, long.row_tile), (Some(ROW_TILE), Some(ROW_TILE)));
        assert_eq!(least(ROW_TILE).row_tile, None);
        let grown = (long.arena_len - short.arena_len) as f64 / (8 * ROW_TILE) as f64;
        let small = short.shared.len() as f64 / (8 * ROW_TILE) as f64;
        // A block's input, a gradient, and keys and values with their gradients.
        let most = (2 * HIDDEN + 4 * 2 * HEAD_DIM) as f64 + small;
        assert!(grown <= most + 1.0, "{model:?}: {grown} numbers a token, not {most}");
    }
}

/// Where no layer is walked back through, keys and values of the layer at work are gone before its
/// MLP runs, and the stream that it leaves for the MLP is where the layer's input was.
#[test]
fn a_forward_in_bands_holds_keys_and_values_for_attention_alone() {
    // Side by side with the MLP, attention shares the norm's output with it: there is no cut.
    for model in ALL.into_iter().filter(|norms| *norms != Norms::Shared).map(Model) {
        let backward = Backward::Nothing;
        let request = Request { tokens: 8 * ROW_TILE, backward, ..request(Budget::Least) };
        let plan = make(&model, &request);
        for program in plan.programs.iter().map(|p| &p.infer) {
            let of_mlp =
                |(v, _): &(&ValueId, &Placed)| program.values[v.0 as usize].name.starts_with("mlp");
            let whole =
                |(_, p): &(&ValueId, &Placed)| p.whole && matches!(p.place, Place::Scratch(_));
            let keys_end = program.places.iter().filter(whole).map(|(_, p)| p.life.end).max();
            let mlp_starts = program.places.iter().filter(of_mlp).map(|(_, p)| p.life.start).min();
            assert!(keys_end.is_some() && keys_end <= mlp_starts, "{keys_end:?} {mlp_starts:?}");
            let widest = program.places.iter().filter(whole);
            let widest = widest.map(|(v, _)| program.values[v.0 as usize].cols).max();
            assert_eq!(widest, Some(2 * HEAD_DIM), "{model:?}: keys and values alone");
        }
    }
}

#[test]
fn a_budget_is_kept_or_refused_and_memory_saves_time() {
    for model in ALL.map(Model) {
        for (dropout, spool) in [(0.0, false), (0.1, false), (0.0, true)] {
            let lora = lora(dropout, &SITES.map(|s| s.module));
            let request = |budget| Request { lora: lora.clone(), spool, ..request(budget) };
            let least = make(&model, &request(Budget::Least));
            let most = make(&model, &request(Budget::Unlimited));
            let points = curve(&model, &request(Budget::Unlimited));
            assert!(points.windows(2).all(|w| w[0].peak_bytes < w[1].peak_bytes));
            assert!(points.windows(2).all(|w| w[0].seconds > w[1].seconds));
            let ends = [&points[0], &points[points.len() - 1]];
            assert_eq!(ends[0].peak_bytes, least.peak_bytes);
            assert_eq!(ends[1].seconds, most.seconds);
            let (mut seconds, mut plans) = (f64::INFINITY, 0);
            for budget in (least.peak_bytes - 5_000..most.peak_bytes + 20_000).step_by(20_000) {
                match plan(&model, &request(Budget::AtMost(budget))) {
                    Err(OverBudget { needed, budget: asked, .. }) => {
                        assert_eq!((needed, asked), (least.peak_bytes, budget));
                        assert!(budget < needed);
                    }
                    Ok(plan) => {
                        assert!(plan.peak_bytes <= budget, "{} over {budget}", plan.peak_bytes);
                        assert!(plan.seconds <= seconds, "{model:?}: slower with {budget}");
                        let on = points.iter().rfind(|p| p.peak_bytes <= budget);
                        assert_eq!(on.map(|p| p.seconds), Some(plan.seconds), "on the curve");
                        plans += usize::from(plan.seconds < seconds);
                        seconds = plan.seconds;
                    }
                }
            }
            println!("{model:?}: {plans} plans of different time");
            assert!(plans >= 6);
            assert_eq!(seconds, most.seconds, "all that helps is kept in the end");
        }
    }
}

#[test]
fn the_bytes_that_are_asked_for_are_those_that_suffice() {
    for model in ALL.map(Model) {
        let refused = plan(&model, &request(Budget::AtMost(0))).expect_err("no plan takes nothing");
        let least = make(&model, &request(Budget::Least));
        assert_eq!(refused.needed, least.peak_bytes);
        let exact = make(&model, &request(Budget::AtMost(refused.needed)));
        assert_eq!(exact.peak_bytes, refused.needed);
        assert!(plan(&model, &request(Budget::AtMost(refused.needed - 1))).is_err());
    }
}

/// Frozen weights that a backward multiplies by, and whether as the forward does.
fn products(block: &Block, steps: &[Step]) -> Vec<(String, bool)> {
    let name = |t: &Term| match t.b {
        Source::Weight(w) => Some((block.weights[w.0 as usize].tensor.clone(), t.transposed)),
        Source::Param(_) => None,
    };
    let terms = steps.iter().flat_map(|s| match s {
        Step::Gemm { terms, .. } => terms.iter().filter_map(name).collect(),
        _ => vec![],
    });
    terms.collect()
}

/// Those that only the forward's values need.
fn again(products: Vec<(String, bool)>) -> Vec<String> {
    let mut names: Vec<String> = products.into_iter().filter(|p| p.1).map(|p| p.0).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn only_what_a_rule_reads_is_made_again() {
    let nothing_kept = |norms| {
        let block = Model(norms).layer_block(0, Some(&request(Budget::Least).lora), 256);
        let graph = differentiate(&block, true);
        let program = schedule::backward(&graph, &schedule::always_kept(&graph), false);
        again(products(&block, &program.steps))
    };
    let least = ["gate.weight", "k.weight", "o.weight", "q.weight", "up.weight", "v.weight"];
    assert_eq!(nothing_kept(Norms::Before), least);
    // Side by side, no rule reads what `o` makes either.
    let shared = least.into_iter().filter(|name| *name != "o.weight").collect::<Vec<_>>();
    assert_eq!(nothing_kept(Norms::Shared), shared);
    // An MLP of two projections enters its tiles by one.
    let centred = least.into_iter().filter(|name| *name != "up.weight").collect::<Vec<_>>();
    assert_eq!(nothing_kept(Norms::Centred), centred);
    // A norm after the MLP reads what `down` makes.
    let mut around = vec!["down.weight"];
    around.extend(least);
    assert_eq!(nothing_kept(Norms::Around), around);
    for norms in ALL {
        let plan = make(&Model(norms), &request(Budget::Unlimited));
        let layer = &plan.programs[plan.layers[LAYERS - 1].programs];
        let backward = layer.backward.as_ref().expect("a trained layer");
        let again = again(products(&layer.block, &backward.steps));
        assert!(again.is_empty(), "{norms:?} keeps all products");
    }
}

/// A sum over tiles that is made again holds one tile at a time.
#[test]
fn tiles_that_are_made_again_do_not_pile_up() {
    for norms in [Norms::Around, Norms::Centred] {
        check_tiles(norms);
    }
}

fn check_tiles(norms: Norms) {
    let block = Model(norms).layer_block(0, Some(&request(Budget::Least).lora), 256);
    let graph = differentiate(&block, true);
    let program = schedule::backward(&graph, &schedule::always_kept(&graph), false);
    let laid_out = lay_out(program, &Pins::default(), Rows { all: 256, tile: None });
    let tile = |v: &ValueId| laid_out.values[v.0 as usize].name.starts_with("mlp.act");
    let lives: Vec<_> =
        laid_out.places.iter().filter(|(v, _)| tile(v)).map(|(_, p)| &p.life).collect();
    for step in 0..laid_out.steps.len() {
        assert!(lives.iter().filter(|life| life.contains(&step)).count() <= 1, "at step {step}");
    }
}

#[test]
fn what_is_kept_is_not_computed_twice() {
    for model in ALL.map(Model) {
        let of = |budget| make(&model, &request(budget));
        let (least, most) = (of(Budget::Least), of(Budget::Unlimited));
        assert!(most.flops < least.flops);
        let kept = |p: &Plan| p.layers.iter().map(|l| l.kept.len()).sum::<usize>();
        assert!(kept(&least) < kept(&most));
    }
}

#[test]
fn no_gradient_is_computed_that_nobody_needs() {
    for model in ALL.map(Model) {
        let plan = make(&model, &request(Budget::Unlimited));
        let backward = |layer: usize| {
            let programs = &plan.programs[plan.layers[layer].programs];
            programs.backward.as_ref().expect("a trained layer")
        };
        let norms = |layer| {
            let steps = backward(layer).steps.iter().filter(|s| {
                matches!(s, Step::RmsNormBackward { .. } | Step::LayerNormBackward { .. })
            });
            steps.count()
        };
        // The first norm of the lowest layer has nothing trainable below it.
        assert_eq!(norms(0) + 1, norms(1), "{model:?}");
        let through_q = |layer: usize| {
            let weights = &plan.programs[plan.layers[layer].programs].block.weights;
            let q = |t: &Term| match t.b {
                Source::Weight(w) => weights[w.0 as usize].tensor == "q.weight" && !t.transposed,
                Source::Param(_) => false,
            };
            let gemm = |s: &Step| matches!(s, Step::Gemm { terms, .. } if terms.iter().any(q));
            backward(layer).steps.iter().any(gemm)
        };
        assert!(!through_q(0) && through_q(1), "{model:?}");
    }
}

#[test]
fn layers_below_the_adapter_have_no_backward_and_keep_nothing() {
    for model in ALL.map(Model) {
        let plan = make(&model, &Request { first_trained: 2, ..request(Budget::Unlimited) });
        for (layer, at) in plan.layers.iter().enumerate() {
            let programs = &plan.programs[at.programs];
            assert_eq!(programs.backward.is_some(), layer >= 2, "layer {layer}");
            assert_eq!(programs.forward.is_some(), layer >= 2, "layer {layer}");
            assert_eq!(at.kept.is_empty(), layer < 2, "layer {layer}");
            assert_eq!(at.trained, layer >= 2);
            assert_eq!(programs.block.params.is_empty(), layer < 2);
        }
        assert_eq!(plan.layers[2].input, plan.stream, "the first trained layer reads the stream");
        let none =
            make(&model, &Request { backward: Backward::Nothing, ..request(Budget::Unlimited) });
        assert!(none.programs.iter().all(|p| p.backward.is_none() && p.kept.is_empty()));
        assert_eq!(none.gradient_len, 0);
    }
}
