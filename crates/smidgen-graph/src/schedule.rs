//! From a differentiated block to straight programs: what is kept, what is made again and when.

use std::collections::{BTreeMap, BTreeSet};

use crate::autodiff::Differentiated;
use crate::block::{Life, Value, ValueId};
use crate::step::{Access, Step};

/// Which band of rows comes first where a stage works on one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A sequence's first: keys and values of earlier rows are there.
    Forth,
    /// A sequence's last: when a band's turn comes, all later queries have given their share to
    /// the gradients of its keys and values.
    Back,
}

/// Steps that are all run for one band of rows before the next band's turn. A program that has its
/// rows in one piece has one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Behind its last step; it begins where the one before it ends.
    pub end: usize,
    /// The order of bands.
    pub order: Order,
}

/// A straight program over a block's values.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Every value that the steps name.
    pub values: Vec<Value>,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// For each step, whether it makes a forward value again.
    pub remade: Vec<bool>,
    /// The steps in runs.
    pub stages: Vec<Stage>,
}

/// The forward values that the backward walk can start from.
pub type Kept = BTreeSet<ValueId>;

/// What every plan keeps of a block beside its input: the small values that the rules read.
pub fn always_kept(block: &Differentiated) -> Kept {
    let read = read_by_backward(block, &Kept::new());
    read.into_iter().filter(|v| block.values[v.0 as usize].life == Life::Saved).collect()
}

/// Forward values that the backward walk would make again, given what is kept, and that may be
/// worth keeping: what products and attention make, and sums that end in such a value. Norms'
/// outputs, activations, rotated and dropped copies are as fast to make again as to read.
pub fn keepable(block: &Differentiated, kept: &Kept) -> Vec<ValueId> {
    let makers = makers(block);
    let dear = |v: &ValueId| {
        let step = makers.get(v).map(|&maker| &block.forward[maker]);
        matches!(step, Some(Step::Gemm { .. } | Step::Attention { .. } | Step::Add { .. }))
    };
    read_by_backward(block, kept).into_iter().filter(|v| dear(v) && !kept.contains(v)).collect()
}

/// Counts what the backward walk makes again, without writing the program down.
#[derive(Debug)]
pub struct Recount<'a> {
    block: &'a Differentiated,
    makers: Vec<Option<usize>>,
    forward: Vec<[Vec<ValueId>; 2]>,
    demands: Vec<ValueId>,
}

impl<'a> Recount<'a> {
    /// Looks at a block once, for any number of counts.
    pub fn new(block: &'a Differentiated) -> Self {
        let mut makers_by_value = vec![None; block.values.len()];
        makers(block).into_iter().for_each(|(v, i)| makers_by_value[v.0 as usize] = Some(i));
        let operands = |s: &Step| [s.operands(Access::Read), s.operands(Access::Write)];
        Self {
            block,
            makers: makers_by_value,
            forward: block.forward.iter().map(operands).collect(),
            demands: block.backward.iter().flat_map(|s| s.operands(Access::Read)).collect(),
        }
    }

    /// The sum of `cost` over the forward steps that are issued again; one that is issued twice
    /// counts twice. The same walk as [`backward`]'s.
    pub fn cost(&self, kept: &Kept, cost: &[f64]) -> f64 {
        let tile = |v: usize| self.block.values[v].life == Life::Tile;
        let mut at_hand = vec![false; self.block.values.len()];
        kept.iter().chain(&self.block.input).for_each(|v| at_hand[v.0 as usize] = true);
        let mut sum = 0.0;
        for v in &self.demands {
            let at = v.0 as usize;
            if at_hand[at] || self.makers[at].is_none() {
                continue;
            }
            sum += self.make(at, &mut at_hand, cost);
            if !tile(at) {
                for v in (0..at_hand.len()).filter(|&v| tile(v)) {
                    at_hand[v] = kept.contains(&ValueId(v as u32));
                }
            }
        }
        sum
    }

    fn make(&self, v: usize, at_hand: &mut [bool], cost: &[f64]) -> f64 {
        let Some(maker) = self.makers[v].filter(|_| !at_hand[v]) else { return 0.0 };
        let [reads, writes] = &self.forward[maker];
        let below: f64 = reads.iter().map(|r| self.make(r.0 as usize, at_hand, cost)).sum();
        writes.iter().for_each(|w| at_hand[w.0 as usize] = true);
        below + cost[maker]
    }
}

/// The forward program. Nothing is left out: every step leads to the output or to a kept value.
pub fn forward(block: &Differentiated) -> Schedule {
    let steps = block.forward.clone();
    let remade = vec![false; steps.len()];
    let stages = vec![Stage { end: steps.len(), order: Order::Forth }];
    Schedule { values: block.values.clone(), steps, remade, stages }
}

/// The forward program for bands of rows with a stage's end wherever all that is left to do reads
/// one value of what was there, as the MLP reads the residual stream behind attention: keys and
/// values, which hold all rows, are not there while the other stages run.
pub fn forward_in_stages(block: &Differentiated) -> Schedule {
    let mut schedule = forward(block);
    let ends = narrows(block).into_iter().map(|end| Stage { end, order: Order::Forth });
    schedule.stages.splice(0..0, ends);
    schedule
}

/// Steps of the forward, but the first, before which one value is all that it and those behind it
/// read of what was there before.
fn narrows(block: &Differentiated) -> Vec<usize> {
    let mut read = BTreeSet::new();
    let mut narrows = Vec::new();
    for (at, step) in block.forward.iter().enumerate().skip(1).rev() {
        for v in step.operands(Access::Write) {
            read.remove(&v);
        }
        read.extend(step.operands(Access::Read));
        if read.len() == 1 {
            narrows.push(at);
        }
    }
    narrows.reverse();
    narrows
}

/// The backward program: the rules' steps, each preceded by the forward steps that make what it
/// reads and what is neither kept nor made already.
///
/// A forward step is issued again only for a rule's sake, as late as it can be. Values of a tile
/// that were made again for a value outside the tile are dropped once that value stands, so that
/// one tile at a time lives in memory; they get a new identity each time.
///
/// In bands of rows, the keys and values that attention reads are made first, for all rows: the
/// walk goes from the last band to the first, and a query reads the keys before it.
pub fn backward(block: &Differentiated, kept: &Kept, in_bands: bool) -> Schedule {
    let mut recompute = Recompute::new(block, kept);
    let mut stages = Vec::new();
    if in_bands {
        recompute.make_across_rows();
        let end = recompute.steps.len();
        stages.extend((end > 0).then_some(Stage { end, order: Order::Forth }));
    }
    for step in &block.backward {
        for v in step.operands(Access::Read) {
            recompute.demand(v);
        }
        recompute.issue(step, false);
    }
    let Recompute { values, steps, remade, .. } = recompute;
    // Losses are summed from the first row on; gradients, of factors too, from the last back.
    let sums = |s: &Step| matches!(s, Step::ParamGradient { .. }) || !s.across_rows().is_empty();
    let order = if steps.iter().any(sums) { Order::Back } else { Order::Forth };
    stages.push(Stage { end: steps.len(), order });
    Schedule { values, steps, remade, stages }
}

fn read_by_backward(block: &Differentiated, kept: &Kept) -> BTreeSet<ValueId> {
    let makers = makers(block);
    let mut read = BTreeSet::new();
    let mut work: Vec<ValueId> =
        block.backward.iter().flat_map(|s| s.operands(Access::Read)).collect();
    while let Some(v) = work.pop() {
        let Some(&maker) = makers.get(&v) else { continue };
        if read.insert(v) && !kept.contains(&v) {
            work.extend(block.forward[maker].operands(Access::Read));
        }
    }
    read
}

fn makers(block: &Differentiated) -> BTreeMap<ValueId, usize> {
    let mut makers = BTreeMap::new();
    for (i, step) in block.forward.iter().enumerate() {
        for v in step.operands(Access::Write) {
            makers.insert(v, i);
        }
    }
    makers
}

struct Recompute<'a> {
    block: &'a Differentiated,
    makers: BTreeMap<ValueId, usize>,
    kept: &'a Kept,
    /// Forward values at hand, under the name that they have in this program.
    at_hand: BTreeMap<ValueId, ValueId>,
    values: Vec<Value>,
    steps: Vec<Step>,
    remade: Vec<bool>,
}

impl<'a> Recompute<'a> {
    fn new(block: &'a Differentiated, kept: &'a Kept) -> Self {
        let at_hand = kept.iter().copied().chain(block.input).map(|v| (v, v)).collect();
        let (values, makers) = (block.values.clone(), makers(block));
        Self { block, makers, kept, at_hand, values, steps: Vec::new(), remade: Vec::new() }
    }

    fn life(&self, v: ValueId) -> Life {
        self.block.values[v.0 as usize].life
    }

    /// Makes what the walk reads across rows, and lets go of all else that was made for it.
    fn make_across_rows(&mut self) {
        let read = read_by_backward(self.block, self.kept);
        let across: Kept = self.block.forward.iter().flat_map(Step::across_rows).collect();
        across.intersection(&read).for_each(|v| self.demand(*v));
        let (kept, input) = (self.kept, self.block.input);
        self.at_hand.retain(|v, _| kept.contains(v) || across.contains(v) || Some(*v) == input);
    }

    /// Brings a forward value to hand.
    fn demand(&mut self, v: ValueId) {
        if self.at_hand.contains_key(&v) {
            return;
        }
        let Some(&maker) = self.makers.get(&v) else { return };
        self.make(v, maker);
        if self.life(v) != Life::Tile {
            let kept = self.kept;
            let values = &self.block.values;
            self.at_hand
                .retain(|id, _| kept.contains(id) || values[id.0 as usize].life != Life::Tile);
        }
    }

    fn make(&mut self, v: ValueId, maker: usize) {
        if self.at_hand.contains_key(&v) {
            return;
        }
        let step = &self.block.forward[maker];
        for read in step.operands(Access::Read) {
            if let Some(&below) = self.makers.get(&read) {
                self.make(read, below);
            }
        }
        for written in step.operands(Access::Write) {
            if !self.kept.contains(&written) {
                self.values.push(self.block.values[written.0 as usize].clone());
                let fresh = ValueId(self.values.len() as u32 - 1);
                self.at_hand.insert(written, fresh);
            }
        }
        self.issue(step, true);
    }

    /// Appends a step under this program's names.
    fn issue(&mut self, step: &Step, remade: bool) {
        let mut step = step.clone();
        step.visit_mut(&mut |_, v| *v = self.at_hand.get(v).copied().unwrap_or(*v));
        self.steps.push(step);
        self.remade.push(remade);
    }
}
