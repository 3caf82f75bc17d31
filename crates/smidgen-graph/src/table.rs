//! The plan as a table for people: a line a buffer, whose bytes sum to the peak.

use std::collections::{BTreeMap, BTreeSet};

use crate::block::{Life, Value, ValueId};
use crate::layout::{Place, Placed, Program};
use crate::plan::{Gradients, Plan, Request, Row, padded, spool_buffer, stem};
use crate::step::{Step, Term};

/// The table. Lasting buffers first, then what lives at the scratch region's fullest moment.
pub(crate) fn rows(plan: &Plan, request: &Request, hidden: usize) -> Vec<Row> {
    let mut rows = request.fixed.clone();
    let tokens = plan.tokens;
    let programs = program_bytes(plan);
    rows.push(Row::new(
        "programs",
        "bytes".into(),
        programs as u64,
        "whole run",
        "the plan's own lists: steps, values, places",
    ));
    let params = 4 * plan.param_len as u64;
    rows.push(Row::new(
        "LoRA weights",
        format!("{}", plan.param_len),
        params,
        "whole run",
        "A and B of every adapted projection",
    ));
    let why = match request.gradients {
        Gradients::Block => "one block's at a time; each block is updated in the walk",
        Gradients::Whole => "summed over the step's passes, or clipped as a whole",
    };
    let bytes = 4 * plan.gradient_len as u64;
    rows.push(Row::new(
        "LoRA gradients",
        format!("{}", plan.gradient_len),
        bytes,
        "whole run",
        why,
    ));
    for state in &request.optimizer_state {
        let shape = format!("{}", plan.param_len);
        rows.push(Row::new(state, shape, params, "whole run", "the optimiser's state"));
    }
    let trained = plan.layers.iter().filter(|l| l.trained);
    let places: BTreeSet<usize> = trained.map(|l| l.input).chain([plan.last]).collect();
    let spooled = plan.layers.iter().filter(|l| l.spooled).count();
    let why = match spooled {
        0 => "what each block's backward starts from; the last is the head's".to_owned(),
        _ => format!("{spooled} more wait in the scratch file for their backward"),
    };
    rows.push(Row::new(
        "block inputs",
        format!("{} x {tokens} x {hidden}", places.len()),
        4 * places.len() as u64 * padded(tokens * hidden) as u64,
        "forward to backward",
        &why,
    ));
    if spooled > 0 {
        let (shape, bytes) = ("bytes".into(), spool_buffer(tokens * hidden) as u64);
        rows.push(Row::new("spool buffer", shape, bytes, "whole run", "to and from the file"));
    }
    rows.extend(kept_rows(plan));
    rows.extend(scratch_rows(plan, request.backward));
    rows.retain(|r| r.bytes > 0);
    rows
}

/// What the plan's own lists take: steps, values and their names, places.
fn program_bytes(plan: &Plan) -> usize {
    /// A heap block's header, and its rounding up.
    const BLOCK: usize = 24;
    /// A node of a block's graph with its op and its lists.
    const NODE: usize = 320;
    let names = |values: &[Value]| -> usize {
        values.iter().map(|v| size_of::<Value>() + v.name.len() + BLOCK).sum()
    };
    let program = |p: &Program| {
        let terms = p.steps.iter().map(|step| match step {
            Step::Gemm { terms, .. } => terms.len() * size_of::<Term>() + BLOCK,
            _ => 0,
        });
        let steps = p.steps.capacity() * size_of::<Step>() + terms.sum::<usize>();
        // A B-tree's nodes are between half full and full.
        let places = p.places.len() * 3 / 2 * (size_of::<ValueId>() + size_of::<Placed>());
        steps + names(&p.values) + places
    };
    let layers = plan.programs.iter().map(|p| {
        let programs = [p.forward.as_ref(), p.backward.as_ref(), Some(&p.infer)];
        let steps: usize = programs.into_iter().flatten().map(program).sum();
        steps + names(&p.block.values) + p.block.nodes.len() * NODE
    });
    let ends = [&plan.embedding.1, &plan.head.1, &plan.head.2].map(program);
    layers.sum::<usize>() + ends.iter().sum::<usize>()
}

/// Values that live from forward to backward: one line a value that the plan chose to keep, one
/// for all the small ones that it always keeps.
fn kept_rows(plan: &Plan) -> Vec<Row> {
    let mut sums: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    let mut small = (0, 0);
    for layer in plan.layers.iter().filter(|l| l.trained) {
        let programs = &plan.programs[layer.programs];
        for (v, cols) in &programs.kept {
            let value = &programs.block.values[v.0 as usize];
            let sum = match value.life {
                Life::Saved => &mut small,
                _ => sums.entry(stem(&value.name)).or_default(),
            };
            sum.0 += cols;
            sum.1 += 4 * padded(cols * plan.tokens) as u64;
        }
    }
    let row = |name: &str, (cols, bytes): (usize, u64), why| {
        Row::new(name, format!("{} x {cols}", plan.tokens), bytes, "forward to backward", why)
    };
    let mut rows =
        vec![row("h, 1/RMS, log-sum-exp", small, "small beside what they save: always kept")];
    rows.extend(sums.iter().map(|(name, sum)| row(name, *sum, "kept: the budget allows it")));
    rows
}

fn scratch_rows(plan: &Plan, backward: bool) -> Vec<Row> {
    let mut named: Vec<(&str, &Program)> =
        vec![("embedding", &plan.embedding.1), ("head, evaluating", &plan.head.2)];
    named.extend(backward.then_some(("head", &plan.head.1)));
    for p in &plan.programs {
        named.extend(p.forward.iter().map(|f| ("forward", f)));
        named.extend(p.backward.iter().map(|b| ("backward", b)));
        named.push(("evaluating", &p.infer));
    }
    let (phase, program) =
        named.into_iter().max_by_key(|(_, p)| p.scratch_len).expect("there are programs");
    let mut spans: BTreeMap<usize, Vec<(ValueId, &Placed)>> = BTreeMap::new();
    for (v, placed) in &program.places {
        if let Place::Scratch(at) = placed.place {
            spans.entry(at).or_default().push((*v, placed));
        }
    }
    let live_at = |step: usize| -> Vec<(ValueId, usize)> {
        let live = |values: &Vec<(ValueId, &Placed)>| {
            let live = values.iter().filter(|(_, placed)| placed.life.contains(&step));
            live.map(|(v, placed)| (*v, placed.len)).max_by_key(|(_, len)| *len)
        };
        spans.values().filter_map(live).collect()
    };
    let size = |step: &usize| -> usize { live_at(*step).iter().map(|x| x.1).sum() };
    let fullest = (0..program.steps.len()).max_by_key(size).unwrap_or(0);
    let mut rows = Vec::new();
    let mut used = 0;
    for (v, len) in live_at(fullest) {
        let value = &program.values[v.0 as usize];
        let shape = format!("{} x {}", plan.tokens, value.cols);
        let life = format!("{phase}, a block");
        let why = "live at the scratch region's fullest step";
        rows.push(Row::new(&value.name, shape, 4 * len as u64, &life, why));
        used += len;
    }
    let gaps = program.scratch_len - used;
    let why = "space between scratch buffers that do not fit side by side";
    rows.push(Row::new("gaps", format!("{gaps}"), 4 * gaps as u64, phase, why));
    rows
}
