//! The plan as a table for people: a line a buffer, whose bytes sum to the peak.

use std::collections::{BTreeMap, BTreeSet};

use crate::block::Block;
use crate::block::{Life, Value, ValueId};
use crate::layout::{Place, Placed, Program};
use crate::plan::{Backward, Gradients, LayerPlan, Paged, Plan, Request, Row, padded, stem};
use crate::step::{Step, Term};

/// The table. Lasting buffers first, then what lives at the scratch region's fullest moment.
pub(crate) fn rows(plan: &Plan, request: &Request, hidden: usize) -> Vec<Row> {
    let mut rows = request.fixed.clone();
    rows.push(Row::new(
        "programs",
        "bytes".into(),
        lists(plan) as u64,
        "whole run",
        "the plan's own lists: steps, values, places",
    ));
    rows.extend(adapter_rows(plan, request));
    rows.extend(input_rows(plan, hidden));
    rows.extend(kept_rows(plan));
    rows.extend(scratch_rows(plan, request.backward));
    rows.retain(|r| r.bytes > 0);
    rows
}

/// Factors, gradients, optimiser state.
fn adapter_rows(plan: &Plan, request: &Request) -> Vec<Row> {
    let layers = plan.programs.iter().map(|p| p.block.param_len());
    let largest = layers.max().unwrap_or(0);
    let row = |name: &str, len: usize, why: &str| {
        Row::new(name, format!("{len}"), 4 * len as u64, "whole run", why)
    };
    let paged = "one layer's at a time; all of it is in the scratch file";
    let factors = match plan.paged {
        Paged::All => row("LoRA weights", largest, paged),
        _ => row("LoRA weights", plan.param_len, "A and B of every adapted projection"),
    };
    let why = match request.gradients {
        Gradients::Block => "one block's at a time; each block is updated in the walk",
        Gradients::Whole => "summed over the step's passes, or clipped as a whole",
    };
    let gradients = row("LoRA gradients", plan.gradient_len, why);
    let runs: Vec<usize> = plan.param_ranges().iter().map(|run| run.len()).collect();
    let states = request.optimizer_state.iter().map(|state| {
        let (len, words, why) = match plan.paged {
            Paged::Nothing => {
                let words = runs.iter().map(|len| (state.words)(*len)).sum();
                (plan.param_len, words, "the optimiser's state")
            }
            _ => (largest, (state.words)(largest), paged),
        };
        Row { bytes: 4 * words as u64, ..row(state.name, len, why) }
    });
    [factors, gradients].into_iter().chain(states).collect()
}

/// Inputs of blocks.
fn input_rows(plan: &Plan, hidden: usize) -> Vec<Row> {
    let tokens = plan.tokens;
    let trained = plan.layers.iter().filter(|l| l.trained);
    let places = trained.flat_map(|l| [l.input, l.output]).chain([plan.stream]);
    let places: BTreeSet<usize> = places.collect();
    let spooled = plan.layers.iter().filter(|l| l.spooled.is_some()).count();
    let why = match (plan.segments.len(), spooled) {
        (0 | 1, 0) => "what each block's backward starts from; the last is the head's".to_owned(),
        (0 | 1, _) => format!("{spooled} more wait in the scratch file for their backward"),
        (segments, _) => format!("one for each of {segments} runs of layers, and one run's own"),
    };
    vec![Row::new(
        "block inputs",
        format!("{} x {tokens} x {hidden}", places.len()),
        4 * places.len() as u64 * padded(tokens * hidden) as u64,
        "forward to backward",
        &why,
    )]
}

/// What the plan's own lists take: steps, values and their names, places.
fn lists(plan: &Plan) -> usize {
    let layers = plan.programs.iter().map(|p| {
        let programs = [p.forward.as_ref(), p.backward.as_ref(), Some(&p.infer)];
        layer_lists(&p.block, programs.into_iter().flatten())
    });
    let ends = [&plan.embedding.1, &plan.head.1, &plan.head.2].map(program_lists);
    layers.sum::<usize>() + ends.iter().sum::<usize>()
}

/// A heap block's header, and its rounding up.
const HEAP_BLOCK: usize = 24;

fn names(values: &[Value]) -> usize {
    values.iter().map(|v| size_of::<Value>() + v.name.len() + HEAP_BLOCK).sum()
}

/// Bytes of a layer's block and programs.
pub(crate) fn layer_lists<'a>(block: &Block, programs: impl Iterator<Item = &'a Program>) -> usize {
    /// A node of a block's graph with its op and its lists.
    const NODE: usize = 320;
    let programs: usize = programs.map(program_lists).sum();
    programs + names(&block.values) + block.nodes.len() * NODE
}

/// Bytes of a program.
pub(crate) fn program_lists(program: &Program) -> usize {
    let terms = program.steps.iter().map(|step| match step {
        Step::Gemm { terms, .. } => terms.len() * size_of::<Term>() + HEAP_BLOCK,
        _ => 0,
    });
    let steps = program.steps.len() * size_of::<Step>() + terms.sum::<usize>();
    // A B-tree's nodes are between half full and full.
    let places = program.places.len() * 3 / 2 * (size_of::<ValueId>() + size_of::<Placed>());
    steps + names(&program.values) + places
}

/// Values that live from forward to backward: one line a value that the plan chose to keep, one
/// for all the small ones that it always keeps.
fn kept_rows(plan: &Plan) -> Vec<Row> {
    let mut sums: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    let mut small = (0, 0);
    let has_own = |l: &&LayerPlan| l.trained && l.kept.iter().all(|at| !plan.shared.contains(at));
    for layer in plan.layers.iter().filter(has_own) {
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
    let why = match plan.segments.len() {
        0 | 1 => "kept by the layer at work; others' wait in the scratch file",
        _ => "kept by the run of layers at work",
    };
    let shared = plan.shared.len();
    let bytes = 4 * shared as u64;
    rows.push(Row::new("kept in turn", format!("{shared}"), bytes, "forward to backward", why));
    rows
}

fn scratch_rows(plan: &Plan, backward: Backward) -> Vec<Row> {
    let all = plan.tokens;
    let mut named: Vec<(&str, &Program, usize)> =
        vec![("embedding", &plan.embedding.1, all), ("head, evaluating", &plan.head.2, all)];
    let head = ("head", &plan.head.1, plan.head_rows);
    named.extend((backward >= Backward::Head).then_some(head));
    for p in &plan.programs {
        named.extend(p.forward.iter().map(|f| ("forward", f, all)));
        named.extend(p.backward.iter().map(|b| ("backward", b, all)));
        named.push(("evaluating", &p.infer, all));
    }
    let fullest = named.into_iter().max_by_key(|(_, p, _)| p.scratch_len);
    let (phase, program, all) = fullest.expect("there are programs");
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
        let band = program.row_tile.filter(|_| !program.places[&v].whole);
        let shape = format!("{} x {}", band.unwrap_or(all), value.cols);
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
