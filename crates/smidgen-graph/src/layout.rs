//! Where each value of a program lives: liveness, memory taken over in place, and offsets.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::block::{Value, ValueId};
use crate::schedule::{Schedule, Stage};
use crate::step::{Access, Step};

/// Numbers that offsets are rounded up to: a cache line.
pub const ALIGN: usize = 16;

/// A place of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Numbers from the start of the scratch region, shared by all blocks in turn.
    Scratch(usize),
    /// Where the block's input lies.
    Input,
    /// Where the block's output goes.
    Output,
    /// The n-th kept value of the layer.
    Kept(usize),
}

/// A value of a program with its place and life.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Where it lies.
    pub place: Place,
    /// Numbers it takes at the planned length.
    pub len: usize,
    /// From the step that makes it to the last that reads it (both counted); of a value that holds
    /// all rows while others hold a band, from the first step of a stage to the last.
    pub life: Range<usize>,
    /// Whether it holds all rows, not only those of the band at work.
    pub whole: bool,
}

/// A program whose values have places.
#[derive(Clone, Debug)]
pub struct Program {
    /// Steps in order.
    pub steps: Vec<Step>,
    /// For each step, whether it makes a forward value again.
    pub remade: Vec<bool>,
    /// Every value that the steps name.
    pub values: Vec<Value>,
    /// Places, by value.
    pub places: BTreeMap<ValueId, Placed>,
    /// Numbers that the scratch region must hold.
    pub scratch_len: usize,
    /// The steps in runs.
    pub stages: Vec<Stage>,
    /// Rows of a band; none where all rows are worked on at once.
    pub row_tile: Option<usize>,
}

/// How many rows a program works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// All of them.
    pub all: usize,
    /// Those of a band, where each stage is run for one band after another; none for all at once.
    pub tile: Option<usize>,
}

impl Rows {
    /// Bands that a stage takes where all rows are of one sequence.
    pub fn bands(&self) -> usize {
        self.tile.map_or(1, |tile| self.all.div_ceil(tile))
    }
}

/// Values whose place is given.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    /// Value, place, and whether its memory may be taken over after its last use.
    pub pins: Vec<(ValueId, Place, bool)>,
    /// A value that must end in a given place: taken over in place if it can be, else copied.
    pub result: Option<(ValueId, Place)>,
}

/// Gives every value of `schedule` a place. Where rows are in bands, what has its place given, what
/// steps read across rows, and what a stage leaves for another, holds all of them; the rest holds a
/// band.
pub fn lay_out(schedule: Schedule, pins: &Pins, rows: Rows) -> Program {
    let Schedule { mut values, mut steps, mut remade, mut stages } = schedule;
    // A plan lasts as long as its run.
    values.shrink_to_fit();
    steps.shrink_to_fit();
    remade.shrink_to_fit();
    let mut groups = Groups::new(&steps, &stages, &values, pins, rows);
    groups.take_over(&steps);
    if let Some((result, place)) = pins.result
        && groups.place_of(result) != Some(place)
        && !groups.pin(result, place)
    {
        values.push(Value { name: "copy".into(), ..values[result.0 as usize].clone() });
        let out = ValueId(values.len() as u32 - 1);
        steps.push(Step::Copy { x: result, out });
        remade.push(false);
        stages.iter_mut().last().expect("a program has a stage").end += 1;
        let mut more = pins.clone();
        more.result = None;
        more.pins.push((out, place, false));
        return lay_out(Schedule { values, steps, remade, stages }, &more, rows);
    }
    let (places, scratch_len) = groups.assign(&stages, rows);
    Program { steps, remade, values, places, scratch_len, stages, row_tile: rows.tile }
}

#[derive(Clone, Debug)]
struct Group {
    members: Vec<(ValueId, Range<usize>)>,
    /// Numbers a row.
    cols: usize,
    /// Whether it holds all rows.
    whole: bool,
    place: Option<Place>,
    /// Whether the memory may be taken over once the last member has been read.
    free: bool,
}

impl Group {
    fn life(&self) -> Range<usize> {
        let start = self.members.iter().map(|m| m.1.start).min().expect("a group has members");
        let end = self.members.iter().map(|m| m.1.end).max().expect("a group has members");
        start..end
    }

    fn len(&self, rows: Rows) -> usize {
        let band = rows.tile.filter(|_| !self.whole);
        (self.cols * band.unwrap_or(rows.all)).next_multiple_of(ALIGN)
    }

    /// When the memory is in use. What holds all rows is in use for whole stages, since other
    /// bands come before and after the steps' own.
    fn in_use(&self, stages: &[Stage], rows: Rows) -> Range<usize> {
        let life = self.life();
        if rows.tile.is_none() || !self.whole || life.is_empty() {
            return life;
        }
        let before = stages.iter().rev().find(|s| s.end <= life.start);
        before.map_or(0, |s| s.end)..end_of_stage(stages, life.end - 1)
    }
}

/// Behind the last step of the stage that `step` is in.
fn end_of_stage(stages: &[Stage], step: usize) -> usize {
    stages.iter().find(|s| step < s.end).map_or(step + 1, |s| s.end)
}

struct Groups {
    groups: Vec<Group>,
    of: BTreeMap<ValueId, usize>,
}

impl Groups {
    fn new(steps: &[Step], stages: &[Stage], values: &[Value], pins: &Pins, rows: Rows) -> Self {
        let mut across = BTreeSet::new();
        let mut lives: BTreeMap<ValueId, Range<usize>> = BTreeMap::new();
        for (i, step) in steps.iter().enumerate() {
            for v in step.operands(Access::Read) {
                lives.entry(v).or_insert(0..i + 1).end = i + 1;
            }
            for v in step.operands(Access::Write) {
                lives.entry(v).or_insert(i..i + 1).end = i + 1;
            }
            let written = step.operands(Access::Write);
            for v in step.across_rows().into_iter().filter(|_| rows.tile.is_some()) {
                across.insert(v);
                if !written.contains(&v) {
                    // Later bands read this one's rows.
                    let life = lives.get_mut(&v).expect("an operand has a life");
                    life.end = end_of_stage(stages, i);
                }
            }
        }
        if let Some((result, _)) = pins.result {
            lives.entry(result).or_insert(0..0).end = steps.len();
        }
        for (v, _, _) in &pins.pins {
            lives.entry(*v).or_insert(0..0);
        }
        let left =
            |life: &Range<usize>| stages.iter().any(|s| life.start < s.end && s.end < life.end);
        let mut groups = Vec::new();
        let mut of = BTreeMap::new();
        for (v, life) in lives {
            let pin = pins.pins.iter().find(|p| p.0 == v);
            let shared = pin.is_some() || across.contains(&v) || left(&life);
            of.insert(v, groups.len());
            groups.push(Group {
                members: vec![(v, life)],
                cols: values[v.0 as usize].cols,
                whole: rows.tile.is_none() || shared,
                place: pin.map(|p| p.1),
                free: pin.is_none_or(|p| p.2),
            });
        }
        Self { groups, of }
    }

    fn place_of(&self, v: ValueId) -> Option<Place> {
        self.of.get(&v).and_then(|&g| self.groups[g].place)
    }

    /// Lets outputs take over the memory of inputs that end where they begin.
    fn take_over(&mut self, steps: &[Step]) {
        for (i, step) in steps.iter().enumerate() {
            let Some((out, candidates)) = step.in_place() else { continue };
            for input in candidates {
                let (from, to) = (self.of[&input], self.of[&out]);
                let ends_here = self.groups[from].life().end == i + 1;
                let begins_here = self.groups[to].life().start == i;
                if from == to || !ends_here || !begins_here || !self.groups[from].free {
                    continue;
                }
                let place = match (self.groups[from].place, self.groups[to].place) {
                    (Some(_), Some(_)) => continue,
                    (one, None) => one,
                    (None, other) => other,
                };
                let life = self.groups[from].life().start..self.groups[to].life().end;
                if place.is_some_and(|place| self.taken(place, &life, &[from, to])) {
                    continue;
                }
                self.merge(from, to, place);
                break;
            }
        }
    }

    fn merge(&mut self, from: usize, to: usize, place: Option<Place>) {
        let taken = std::mem::take(&mut self.groups[to].members);
        taken.iter().for_each(|(v, _)| {
            self.of.insert(*v, from);
        });
        let free = self.groups[to].free;
        let cols = self.groups[from].cols.max(self.groups[to].cols);
        let whole = self.groups[from].whole || self.groups[to].whole;
        let group = &mut self.groups[from];
        group.members.extend(taken);
        (group.place, group.free) = (place, free);
        (group.cols, group.whole) = (cols, whole);
    }

    /// Pins an unpinned group to `place` if nothing else lives there at the same time.
    fn pin(&mut self, v: ValueId, place: Place) -> bool {
        let Some(&at) = self.of.get(&v) else { return false };
        if self.groups[at].place.is_some() {
            return false;
        }
        let clash = self.taken(place, &self.groups[at].life(), &[at]);
        if !clash {
            (self.groups[at].place, self.groups[at].whole) = (Some(place), true);
        }
        !clash
    }

    /// Whether a group other than `but` is pinned to `place` at some time of `life`.
    fn taken(&self, place: Place, life: &Range<usize>, but: &[usize]) -> bool {
        self.groups.iter().enumerate().any(|(i, g)| {
            let there = g.place == Some(place) && !g.members.is_empty() && !but.contains(&i);
            there && overlap(&g.life(), life)
        })
    }

    /// Offsets for all that is left: the largest first, each as low as it fits.
    fn assign(mut self, stages: &[Stage], rows: Rows) -> (BTreeMap<ValueId, Placed>, usize) {
        self.groups.retain(|g| !g.members.is_empty());
        let taking = |g: &Group| Taking { in_use: g.in_use(stages, rows), len: g.len(rows) };
        let takings: Vec<Taking> = self.groups.iter().map(taking).collect();
        let mut order: Vec<usize> = (0..self.groups.len()).collect();
        order.sort_by_key(|&g| (std::cmp::Reverse(takings[g].len), takings[g].in_use.start));
        for &g in &order {
            if self.groups[g].place.is_none() {
                let at = self.lowest_fit(&takings, g);
                self.groups[g].place = Some(Place::Scratch(at));
            }
        }
        let mut places = BTreeMap::new();
        let mut scratch_len = 0;
        for (group, Taking { in_use, len }) in self.groups.into_iter().zip(takings) {
            let place = group.place.expect("every group has a place");
            if let Place::Scratch(at) = place {
                scratch_len = scratch_len.max(at + len);
            }
            let whole = group.whole;
            let stages_long = rows.tile.is_some() && whole;
            for (v, life) in group.members {
                let life = if stages_long { in_use.clone() } else { life };
                places.insert(v, Placed { place, len, life, whole });
            }
        }
        (places, scratch_len)
    }

    fn lowest_fit(&self, takings: &[Taking], group: usize) -> usize {
        let Taking { in_use, len } = &takings[group];
        let others = self.groups.iter().zip(takings);
        let mut taken: Vec<Range<usize>> = others
            .filter(|(_, other)| overlap(&other.in_use, in_use))
            .filter_map(|(g, other)| match g.place {
                Some(Place::Scratch(at)) => Some(at..at + other.len),
                _ => None,
            })
            .collect();
        taken.sort_by_key(|r| r.start);
        let mut at = 0;
        for range in taken {
            if at + len <= range.start {
                break;
            }
            at = at.max(range.end);
        }
        at
    }
}

/// What a group takes of the scratch region: when, and how many numbers.
struct Taking {
    in_use: Range<usize>,
    len: usize,
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}
