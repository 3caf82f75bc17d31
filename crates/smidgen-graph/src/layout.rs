//! Where each value of a program lives: liveness, memory taken over in place, and offsets.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::block::{Value, ValueId};
use crate::schedule::Schedule;
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
    /// From the step that makes it to the last that reads it (both counted).
    pub life: Range<usize>,
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
}

/// Values whose place is given.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    /// Value, place, and whether its memory may be taken over after its last use.
    pub pins: Vec<(ValueId, Place, bool)>,
    /// A value that must end in a given place: taken over in place if it can be, else copied.
    pub result: Option<(ValueId, Place)>,
}

/// Gives every value of `schedule` a place, at `tokens` rows.
pub fn lay_out(schedule: Schedule, pins: &Pins, tokens: usize) -> Program {
    let Schedule { mut values, mut steps, mut remade } = schedule;
    // A plan lasts as long as its run.
    values.shrink_to_fit();
    steps.shrink_to_fit();
    remade.shrink_to_fit();
    let mut groups = Groups::new(&steps, &values, pins, tokens);
    groups.take_over(&steps);
    if let Some((result, place)) = pins.result
        && groups.place_of(result) != Some(place)
        && !groups.pin(result, place)
    {
        values.push(Value { name: "copy".into(), ..values[result.0 as usize].clone() });
        let out = ValueId(values.len() as u32 - 1);
        steps.push(Step::Copy { x: result, out });
        remade.push(false);
        let mut more = pins.clone();
        more.result = None;
        more.pins.push((out, place, false));
        return lay_out(Schedule { values, steps, remade }, &more, tokens);
    }
    let (places, scratch_len) = groups.assign();
    Program { steps, remade, values, places, scratch_len }
}

#[derive(Clone, Debug)]
struct Group {
    members: Vec<(ValueId, Range<usize>)>,
    len: usize,
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
}

struct Groups {
    groups: Vec<Group>,
    of: BTreeMap<ValueId, usize>,
}

impl Groups {
    fn new(steps: &[Step], values: &[Value], pins: &Pins, tokens: usize) -> Self {
        let mut lives: BTreeMap<ValueId, Range<usize>> = BTreeMap::new();
        for (i, step) in steps.iter().enumerate() {
            for v in step.operands(Access::Read) {
                lives.entry(v).or_insert(0..i + 1).end = i + 1;
            }
            for v in step.operands(Access::Write) {
                lives.entry(v).or_insert(i..i + 1).end = i + 1;
            }
        }
        if let Some((result, _)) = pins.result {
            lives.entry(result).or_insert(0..0).end = steps.len();
        }
        for (v, _, _) in &pins.pins {
            lives.entry(*v).or_insert(0..0);
        }
        let mut groups = Vec::new();
        let mut of = BTreeMap::new();
        for (v, life) in lives {
            let pin = pins.pins.iter().find(|p| p.0 == v);
            let len = (values[v.0 as usize].cols * tokens).next_multiple_of(ALIGN);
            of.insert(v, groups.len());
            groups.push(Group {
                members: vec![(v, life)],
                len,
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
        let len = self.groups[from].len.max(self.groups[to].len);
        let group = &mut self.groups[from];
        group.members.extend(taken);
        (group.place, group.free, group.len) = (place, free, len);
    }

    /// Pins an unpinned group to `place` if nothing else lives there at the same time.
    fn pin(&mut self, v: ValueId, place: Place) -> bool {
        let Some(&at) = self.of.get(&v) else { return false };
        if self.groups[at].place.is_some() {
            return false;
        }
        let clash = self.taken(place, &self.groups[at].life(), &[at]);
        if !clash {
            self.groups[at].place = Some(place);
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
    fn assign(mut self) -> (BTreeMap<ValueId, Placed>, usize) {
        self.groups.retain(|g| !g.members.is_empty());
        let mut order: Vec<usize> = (0..self.groups.len()).collect();
        order
            .sort_by_key(|&g| (std::cmp::Reverse(self.groups[g].len), self.groups[g].life().start));
        for &g in &order {
            if self.groups[g].place.is_none() {
                let at = self.lowest_fit(g);
                self.groups[g].place = Some(Place::Scratch(at));
            }
        }
        let mut places = BTreeMap::new();
        let mut scratch_len = 0;
        for group in self.groups {
            let place = group.place.expect("every group has a place");
            if let Place::Scratch(at) = place {
                scratch_len = scratch_len.max(at + group.len);
            }
            for (v, life) in group.members {
                places.insert(v, Placed { place, len: group.len, life });
            }
        }
        (places, scratch_len)
    }

    fn lowest_fit(&self, group: usize) -> usize {
        let (life, len) = (self.groups[group].life(), self.groups[group].len);
        let mut taken: Vec<Range<usize>> = self
            .groups
            .iter()
            .filter(|g| overlap(&g.life(), &life))
            .filter_map(|g| match g.place {
                Some(Place::Scratch(at)) => Some(at..at + g.len),
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

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}
