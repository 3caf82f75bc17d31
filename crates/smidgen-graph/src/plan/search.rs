//! The choice of a plan. Everything that could be planned is a [`Shape`]; what a shape takes is
//! added up from what each class of layers takes, without laying it out.
//!
//! Blocks are alike, so values are kept in one sorted order, by seconds saved a byte and among
//! equals the last layers first: how many of that order's entries are kept is one number. The
//! shapes do not depend on the budget.

use std::collections::BTreeMap;

use super::classes::{Choice, Class, Measure, Variant};
use super::ends::Ends;
use super::{
    Architecture, Backward, Budget, CurvePoint, Gradients, LayerPrograms, Paged, Request, Traffic,
    padded,
};
use crate::GRAIN;

/// How large the pieces are that a block is worked on in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiling {
    /// Width of an MLP tile: wide tiles share work among threads better.
    pub mlp: usize,
    /// Rows of a band; none for all rows at once.
    pub rows: Option<usize>,
}

impl Tiling {
    /// Whether it is so small that an input and an output of a block beside each other count.
    pub fn may_be_in_place(self) -> bool {
        self.mlp == GRAIN
    }
}

/// Rows of a band: whole grains of the gradient's sums over tokens, and whole steps of attention's
/// walks over keys and queries, so that no sum depends on them.
pub const ROW_TILE: usize = 256;

/// Width of the widest tile of an MLP.
pub(super) const WIDEST_MLP: usize = 1024;

/// The widest head whose walks of attention take steps that a band is a whole number of.
const BANDED_HEAD_DIM: usize = 256;

/// Rows of a smaller band, where no gradient is summed over tokens: whole steps of attention's walks
/// are all that it is to be.
pub const FORWARD_ROW_TILE: usize = 128;

/// From the fastest to the smallest. Those in bands are for more rows than a band's.
const TILINGS: [Tiling; 5] = [
    Tiling { mlp: WIDEST_MLP, rows: None },
    Tiling { mlp: 512, rows: None },
    Tiling { mlp: GRAIN, rows: None },
    Tiling { mlp: GRAIN, rows: Some(ROW_TILE) },
    Tiling { mlp: GRAIN, rows: Some(FORWARD_ROW_TILE) },
];

/// One way to run a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Index into [`Search::tilings`].
    pub tile: usize,
    /// Entries of the sorted order that are kept, among layers whose values stay in memory.
    pub kept: usize,
    /// Layers, from the first trained one, whose values wait in the scratch file. If that is all of
    /// them, each one's output takes the place of its input.
    pub spooled: usize,
    /// Choices that layers take which share places: those in the scratch file, or all of them
    /// where there are several segments.
    pub shared_depth: usize,
    /// Runs of layers that the forward is cut into.
    pub segments: usize,
    /// Which numbers of the adapter live in a scratch file.
    pub paged: Paged,
    /// Whether the model file's pages stay in memory from block to block.
    pub weights_stay: bool,
}

/// What a shape takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub peak: u64,
    pub seconds: f64,
    pub traffic: Traffic,
}

/// Everything that can be planned for a request.
#[derive(Debug)]
pub(super) struct Search<'a> {
    pub model: &'a dyn Architecture,
    pub request: &'a Request,
    /// The class of each layer, as an index into `classes`.
    pub class_of: Vec<usize>,
    classes: Vec<Class>,
    choices: Vec<Vec<Choice>>,
    /// Those that this request is planned with.
    pub tilings: Vec<Tiling>,
    /// By tile, class and depth; with a layer's output in a place of its own, and in its input's.
    measures: Vec<Vec<Vec<[Measure; 2]>>>,
    /// The sorted order: each entry is one more choice of a layer.
    order: Vec<usize>,
    /// Trainable numbers of all layers, and of the largest.
    params: [usize; 2],
    /// Words of the optimiser's states of all layers, and of the largest.
    state_words: [usize; 2],
    /// For each kind of bands in `tilings`.
    pub ends: Vec<Ends>,
}

/// Sums over the layers of a shape, kept up to date entry by entry.
#[derive(Clone, Debug, Default)]
struct Sums {
    /// Layers that run the programs of a class and depth.
    counts: BTreeMap<(usize, usize), usize>,
    /// Numbers kept in places of their own.
    own: usize,
    /// Numbers of the places that layers have in turn: what the fullest of them needs, but for
    /// the first whose values stay in memory.
    shared: usize,
    /// Numbers that the first layer whose values stay in memory keeps there.
    first_own: usize,
    /// Seconds of all layers, forward and backward.
    layers: f64,
    /// Numbers that go to the scratch file and come back.
    spooled: usize,
}

impl<'a> Search<'a> {
    pub fn new(model: &'a dyn Architecture, request: &'a Request) -> Self {
        let mut classes: Vec<Class> = Vec::new();
        let mut class_of = Vec::new();
        for layer in 0..model.layers() {
            let class = Class::of(model, request, layer);
            let at = classes.iter().position(|c| *c == class).unwrap_or_else(|| {
                classes.push(class);
                classes.len() - 1
            });
            class_of.push(at);
        }
        // What is worth keeping is the same for every tile; few tiles are looked at fastest.
        let choices: Vec<Vec<Choice>> =
            classes.iter().map(|c| c.choices(model, request, WIDEST_MLP)).collect();
        let narrow = || classes.iter().all(|c| c.widest_head(model, request) <= BANDED_HEAD_DIM);
        let sums_over_tokens = request.backward == Backward::Layers;
        let tilings = TILINGS.into_iter().filter(|tiling| match tiling.rows {
            None => true,
            Some(rows) if rows < ROW_TILE && sums_over_tokens => false,
            Some(rows) => request.tokens > rows && narrow(),
        });
        let tilings: Vec<Tiling> = tilings.collect();
        let ends = tilings.iter().fold(Vec::new(), |mut ends: Vec<Ends>, tiling| {
            if ends.iter().all(|ends| ends.rows.tile != tiling.rows) {
                ends.push(Ends::new(model, request, tiling.rows));
            }
            ends
        });
        let order = Vec::new();
        let (measures, params, state_words) = (Vec::new(), [0; 2], [0; 2]);
        let mut search = Self {
            model,
            request,
            class_of,
            classes,
            choices,
            tilings,
            measures,
            order,
            params,
            state_words,
            ends,
        };
        search.measures = (0..search.tilings.len())
            .map(|tile| (0..search.classes.len()).map(|c| search.measure(tile, c)).collect())
            .collect();
        search.order = search.sorted();
        let params = |layer| search.measured(&Shape::PLAIN, layer, 0).params;
        let words = |len| request.optimizer_state.iter().map(|s| (s.words)(len)).sum();
        let layers = 0..model.layers();
        let total = |[sum, max]: [usize; 2], n: usize| [sum + n, max.max(n)];
        let state_words = layers.clone().map(params).map(words).fold([0; 2], total);
        search.params = layers.map(params).fold([0; 2], total);
        search.state_words = state_words;
        search
    }

    fn variant(&self, tile: usize, class: usize) -> Variant<'_> {
        let choices = &self.choices[class];
        Variant::new(self.classes[class], self.model, self.request, self.tilings[tile], choices)
    }

    /// The model's ends as a tiling works on them.
    pub fn ends(&self, tile: usize) -> &Ends {
        let rows = self.tilings[tile].rows;
        self.ends.iter().find(|ends| ends.rows.tile == rows).expect("ends for each tiling")
    }

    fn measure(&self, tile: usize, class: usize) -> Vec<[Measure; 2]> {
        let variant = self.variant(tile, class);
        let infer = variant.infer();
        (0..=self.choices[class].len()).map(|depth| variant.measures(depth, &infer)).collect()
    }

    /// Whether each layer's output takes the place of its input.
    pub fn in_place(&self, shape: &Shape) -> bool {
        shape.spooled > 0 && shape.spooled == self.trained().len()
    }

    /// The programs of a class at a depth.
    pub fn programs(&self, shape: &Shape, class: usize, depth: usize) -> LayerPrograms {
        self.variant(shape.tile, class).programs(depth, self.in_place(shape))
    }

    fn of_class(&self, shape: &Shape, class: usize, depth: usize) -> &Measure {
        &self.measures[shape.tile][class][depth][usize::from(self.in_place(shape))]
    }

    fn measured(&self, shape: &Shape, layer: usize, depth: usize) -> &Measure {
        self.of_class(shape, self.class_of[layer], depth)
    }

    /// Layers that are trained and walked back through.
    pub fn trained(&self) -> std::ops::Range<usize> {
        let layers = self.model.layers();
        if self.request.backward == Backward::Layers {
            self.request.first_trained.min(layers)..layers
        } else {
            layers..layers
        }
    }

    fn sorted(&self) -> Vec<usize> {
        let mut entries = Vec::new();
        for layer in self.trained() {
            let mut worst = f64::INFINITY;
            for (rank, choice) in self.choices[self.class_of[layer]].iter().enumerate() {
                worst = worst.min(choice.worth());
                entries.push((worst, layer, rank));
            }
        }
        entries.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
        entries.into_iter().map(|(_, layer, _)| layer).collect()
    }

    /// How many choices each layer takes.
    pub fn depths(&self, shape: &Shape) -> Vec<usize> {
        let trained = self.trained();
        let own = trained.start + shape.spooled;
        let mut depths = vec![0; self.model.layers()];
        let shared = if shape.segments > 1 { trained.clone() } else { trained.start..own };
        for layer in shared {
            depths[layer] = shape.shared_depth.min(self.choices[self.class_of[layer]].len());
        }
        let entries = self.order.iter().filter(|layer| **layer >= own);
        entries.take(shape.kept).for_each(|layer| depths[*layer] += 1);
        depths
    }

    /// The shape that takes least time within the budget, or none if none fits. Among equals the
    /// one that takes least memory.
    pub fn best(&self, budget: Budget) -> Option<(Shape, Estimate)> {
        let mut best: Option<(Shape, Estimate)> = None;
        let better = |a: &Estimate, b: &Estimate| match budget {
            Budget::Least => (a.peak, a.seconds) < (b.peak, b.seconds),
            _ => (a.seconds, a.peak) < (b.seconds, b.peak),
        };
        self.visit(&mut |shape, estimate| {
            let fits = match budget {
                Budget::AtMost(bytes) => self.counted(shape, estimate) <= bytes,
                Budget::Least => !shape.weights_stay,
                Budget::Unlimited => true,
            };
            if fits && best.as_ref().is_none_or(|(_, b)| better(estimate, b)) {
                best = Some((*shape, *estimate));
            }
        });
        best
    }

    /// What must fit a budget: the peak, and all of the model file where it is to stay.
    fn counted(&self, shape: &Shape, estimate: &Estimate) -> u64 {
        let pages = if shape.weights_stay { self.request.weights.all } else { 0 };
        estimate.peak.saturating_add(pages)
    }

    /// All that is beaten by nothing else, from the smallest to the fastest.
    pub fn front(&self) -> Vec<CurvePoint> {
        let mut front: BTreeMap<u64, CurvePoint> = BTreeMap::new();
        self.visit(&mut |shape, estimate| {
            let peak_bytes = self.counted(shape, estimate);
            let Estimate { seconds, traffic, .. } = *estimate;
            let below = front.range(..=peak_bytes).next_back();
            if below.is_some_and(|(_, point)| point.seconds <= seconds) {
                return;
            }
            while let Some((&above, _)) =
                front.range(peak_bytes..).next().filter(|(_, point)| point.seconds >= seconds)
            {
                front.remove(&above);
            }
            front.insert(peak_bytes, CurvePoint { peak_bytes, seconds, scratch_traffic: traffic });
        });
        front.into_values().collect()
    }

    /// Shows every shape with what it takes.
    fn visit(&self, f: &mut dyn FnMut(&Shape, &Estimate)) {
        let trained = self.trained().len();
        let deepest = self.choices.iter().map(Vec::len).max().unwrap_or(0);
        for (tile, tiling) in self.tilings.iter().enumerate() {
            let most_spooled = match tiling.may_be_in_place() {
                _ if !self.request.spool => 0,
                true => trained,
                false => trained.saturating_sub(1),
            };
            for spooled in 0..=most_spooled {
                let depths = if spooled == 0 { 0 } else { deepest };
                for shared_depth in 0..=depths {
                    self.visit_kept(Shape { tile, spooled, shared_depth, ..Shape::PLAIN }, f);
                }
            }
            for segments in 2..=trained {
                for shared_depth in 0..=deepest {
                    let shape = Shape { tile, segments, shared_depth, ..Shape::PLAIN };
                    self.visit_ways(&shape, &self.sums(&shape), f);
                }
            }
        }
    }

    /// Shows a shape of one segment with each number of kept entries.
    fn visit_kept(&self, mut shape: Shape, f: &mut dyn FnMut(&Shape, &Estimate)) {
        let mut sums = self.sums(&shape);
        let mut depths = self.depths(&shape);
        let first_own = self.trained().start + shape.spooled;
        self.visit_ways(&shape, &sums, f);
        for &layer in self.order.iter().filter(|layer| **layer >= first_own) {
            let (class, depth) = (self.class_of[layer], depths[layer]);
            let before = self.measured(&shape, layer, depth);
            let after = self.measured(&shape, layer, depth + 1);
            sums.count(class, depth, depth + 1);
            sums.layers += self.seconds(after) - self.seconds(before);
            let kept = match layer {
                first if first == first_own => &mut sums.first_own,
                _ => &mut sums.own,
            };
            *kept = *kept + after.kept - before.kept;
            depths[layer] += 1;
            shape.kept += 1;
            self.visit_ways(&shape, &sums, f);
        }
    }

    fn sums(&self, shape: &Shape) -> Sums {
        let (trained, depths) = (self.trained(), self.depths(shape));
        let first_own = trained.start + shape.spooled;
        let mut sums = Sums::default();
        for (layer, &depth) in depths.iter().enumerate() {
            let measure = self.measured(shape, layer, depth);
            *sums.counts.entry((self.class_of[layer], depth)).or_default() += 1;
            sums.layers += self.seconds(measure);
            if !trained.contains(&layer) {
                continue;
            }
            if shape.segments > 1 || layer < first_own {
                sums.shared = sums.shared.max(measure.kept);
            } else if layer == first_own {
                sums.first_own = measure.kept;
            } else {
                sums.own += measure.kept;
            }
            if layer < first_own {
                sums.spooled += measure.kept_exact + self.request.tokens * self.model.hidden();
            }
        }
        sums
    }

    /// Shows a shape with each choice of what is paged.
    fn visit_ways(&self, shape: &Shape, sums: &Sums, f: &mut dyn FnMut(&Shape, &Estimate)) {
        let arena = self.arena_len(shape, sums);
        let step = self.step_seconds(shape, sums);
        let lists = self.lists(shape, sums);
        let may_page = self.request.spool;
        let states = !self.request.optimizer_state.is_empty();
        for paged in [Paged::Nothing, Paged::State, Paged::All] {
            if paged != Paged::Nothing && !may_page || paged == Paged::State && !states {
                continue;
            }
            let memory = self.adapter_memory(paged);
            let traffic = self.traffic(sums, paged);
            if self.request.spool_limit.is_some_and(|limit| traffic.written > limit) {
                continue;
            }
            let files = traffic.read as f64 / self.request.rates.read
                + traffic.written as f64 / self.request.rates.write;
            let peak = self.fixed() + lists + 4 * (arena + memory) as u64;
            for weights_stay in [false, true] {
                let paging = if weights_stay { 0.0 } else { self.weights_seconds(shape) };
                let seconds = step + files + paging;
                let shape = Shape { paged, weights_stay, ..*shape };
                f(&shape, &Estimate { peak, seconds, traffic });
            }
        }
    }

    /// Seconds of a layer, forward and, as often as it is walked back through, backward.
    fn seconds(&self, layer: &Measure) -> f64 {
        match layer.backward {
            0.0 => layer.infer,
            backward => layer.forward + self.request.walked_back * backward,
        }
    }

    fn fixed(&self) -> u64 {
        self.request.fixed.iter().map(|r| r.bytes).sum()
    }

    /// Bytes of the lists of all programs.
    fn lists(&self, shape: &Shape, sums: &Sums) -> u64 {
        let used = sums.counts.iter().filter(|(_, layers)| **layers > 0);
        let layers = used.map(|((class, depth), _)| self.of_class(shape, *class, *depth).lists);
        (layers.sum::<usize>() + self.ends(shape.tile).lists()) as u64
    }

    /// Numbers of the arena: scratch, inputs, kept values.
    fn arena_len(&self, shape: &Shape, sums: &Sums) -> usize {
        let used = sums.counts.iter().filter(|(_, layers)| **layers > 0);
        let layers = used.map(|((class, depth), _)| self.of_class(shape, *class, *depth).scratch);
        let scratch =
            layers.max().unwrap_or(0).max(self.ends(shape.tile).scratch(self.request.backward));
        let trained = self.trained().len();
        let places = match (shape.segments, shape.spooled) {
            (1, 0) => trained + 1,
            (1, spooled) => trained + 1 - spooled,
            (segments, _) => segments + trained.div_ceil(segments),
        };
        let kept = match (shape.segments, shape.spooled) {
            (1, 0) => sums.own + sums.first_own,
            (1, _) => sums.own + sums.shared.max(sums.first_own),
            (segments, _) => sums.shared * trained.div_ceil(segments),
        };
        scratch + places * padded(self.request.tokens * self.model.hidden()) + kept
    }

    /// Words of factors, gradients and optimiser state in memory.
    fn adapter_memory(&self, paged: Paged) -> usize {
        let [all, largest] = self.params;
        let gradients = match self.request.gradients {
            _ if self.request.backward != Backward::Layers => 0,
            Gradients::Whole => all,
            Gradients::Block => largest,
        };
        let [all_states, largest_states] = self.state_words;
        let [factors, states] = match paged {
            Paged::Nothing => [all, all_states],
            Paged::State => [all, largest_states],
            Paged::All => [largest, largest_states],
        };
        gradients + factors + states
    }

    /// Bytes to and from the scratch files in a step.
    fn traffic(&self, sums: &Sums, paged: Paged) -> Traffic {
        let passes = self.request.passes as u64;
        let spooled = (sums.spooled * self.request.spool_number) as f64;
        let spooled = passes * (self.request.walked_back * spooled) as u64;
        let [params, states] = [self.params[0], self.state_words[0]].map(|words| 4 * words as u64);
        // Factors are read by each walk and, where no backward updates them, once more.
        let backward = self.request.backward == Backward::Layers;
        let in_walk = backward && self.request.gradients == Gradients::Block;
        let reads = (1 + u64::from(backward)) * passes + u64::from(!in_walk);
        let [factors, state] = match paged {
            Paged::Nothing => [0, 0],
            Paged::State => [0, states],
            Paged::All => [params, states],
        };
        let own = self.request.own_traffic;
        Traffic {
            read: own.read + spooled + reads * factors + state,
            written: own.written + spooled + factors + state,
        }
    }

    /// Seconds of a step but for files.
    fn step_seconds(&self, shape: &Shape, sums: &Sums) -> f64 {
        let Request { rates, passes, .. } = self.request;
        let segments = if shape.segments > 1 { self.segments(shape.segments) } else { vec![] };
        let again = segments.iter().rev().skip(1).flat_map(|s| s.clone());
        let again: f64 = again.map(|layer| self.measured(shape, layer, 0).infer).sum();
        let again = self.request.walked_back * again;
        let params = if self.request.backward == Backward::Layers { self.params[0] } else { 0 };
        let states = self.request.optimizer_state.len().max(1) as f64 / 2.0;
        let pass = self.ends(shape.tile).seconds(self.request) + sums.layers + again;
        *passes as f64 * pass + states * params as f64 / rates.optimizer
    }

    /// Seconds of bringing weights into memory and dropping them.
    fn weights_seconds(&self, shape: &Shape) -> f64 {
        let Request { rates, passes, weights, backward, walked_back, .. } = self.request;
        let layers = weights.all.saturating_sub(weights.head) as f64;
        let again = 1.0 - 1.0 / shape.segments as f64;
        let walks = match backward {
            Backward::Layers => 1.0 + walked_back * (1.0 + again),
            Backward::Nothing | Backward::Head => 1.0,
        };
        let head = self.ends(shape.tile).head_bands() as f64 * weights.head as f64;
        *passes as f64 * (walks * layers + head) / rates.weights
    }

    /// The trained layers in `count` runs, the longest first.
    pub fn segments(&self, count: usize) -> Vec<std::ops::Range<usize>> {
        let trained = self.trained();
        let mut runs = Vec::with_capacity(count);
        let mut start = trained.start;
        for i in 0..count {
            let len = (trained.end - start).div_ceil(count - i);
            runs.push(start..start + len);
            start += len;
        }
        runs
    }
}

impl Sums {
    /// One layer of a class goes from one depth to another.
    fn count(&mut self, class: usize, from: usize, to: usize) {
        if let Some(layers) = self.counts.get_mut(&(class, from)) {
            *layers -= 1;
        }
        *self.counts.entry((class, to)).or_default() += 1;
    }
}

impl Shape {
    /// Nothing kept, nothing in a file.
    const PLAIN: Self = Self {
        tile: 0,
        kept: 0,
        spooled: 0,
        shared_depth: 0,
        segments: 1,
        paged: Paged::Nothing,
        weights_stay: false,
    };
}
