//! From a differentiated block to straight programs: what is kept, what is made again and when.

use std::collections::{BTreeMap, BTreeSet};

use crate::autodiff::Differentiated;
use crate::block::{Life, Value, ValueId};
use crate::step::{Access, Step};

/// A straight program over a block's values.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Every value that the steps name.
    pub values: Vec<Value>,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// For each step, whether it makes a forward value again.
    pub remade: Vec<bool>,
}

/// The forward values that the backward walk can start from.
pub type Kept = BTreeSet<ValueId>;

/// What every plan keeps of a block beside its input: the small values that the rules read.
pub fn always_kept(block: &Differentiated) -> Kept {
    let read = read_by_backward(block, &Kept::new());
    read.into_iter().filter(|v| block.values[v.0 as usize].life == Life::Saved).collect()
}

/// Forward values that keeping would save work for, with the FLOPs saved over `tokens` rows and
/// the numbers a token they take, given what is kept already.
pub fn keepable(block: &Differentiated, kept: &Kept, tokens: usize) -> Vec<(ValueId, u64, usize)> {
    let base = recompute_flops(block, kept, tokens);
    let read = read_by_backward(block, kept);
    let mut found = Vec::new();
    for v in read {
        let value = &block.values[v.0 as usize];
        if value.life == Life::Cheap || kept.contains(&v) {
            continue;
        }
        let mut more = kept.clone();
        more.insert(v);
        let saved = base.saturating_sub(recompute_flops(block, &more, tokens));
        if saved > 0 {
            found.push((v, saved, value.cols));
        }
    }
    found
}

/// FLOPs that the backward program spends on making forward values again.
pub fn recompute_flops(block: &Differentiated, kept: &Kept, tokens: usize) -> u64 {
    let program = backward(block, kept);
    let flops = |steps: &[Step], values: &[Value]| -> u64 {
        steps.iter().map(|s| s.flops(tokens, |v| values[v.0 as usize].cols)).sum()
    };
    flops(&program.steps, &program.values) - flops(&block.backward, &block.values)
}

/// The forward program. Nothing is left out: every step leads to the output or to a kept value.
pub fn forward(block: &Differentiated) -> Schedule {
    let remade = vec![false; block.forward.len()];
    Schedule { values: block.values.clone(), steps: block.forward.clone(), remade }
}

/// The backward program: the rules' steps, each preceded by the forward steps that make what it
/// reads and what is neither kept nor made already.
///
/// A forward step is issued again only for a rule's sake, as late as it can be. Values of a tile
/// that were made again for a value outside the tile are dropped once that value stands, so that
/// one tile at a time lives in memory; they get a new identity each time.
pub fn backward(block: &Differentiated, kept: &Kept) -> Schedule {
    let mut recompute = Recompute::new(block, kept);
    for step in &block.backward {
        for v in step.operands(Access::Read) {
            recompute.demand(v);
        }
        recompute.issue(step, false);
    }
    let Recompute { values, steps, remade, .. } = recompute;
    Schedule { values, steps, remade }
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
