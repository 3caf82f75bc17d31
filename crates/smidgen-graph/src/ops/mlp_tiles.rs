//! What MLPs share that are worked on in tiles of their hidden columns: the ways into a tile and
//! out of it, in both directions.
//!
//! The grain of every sum over tiles is the GEMM's, so its order is the same for every width of
//! tile.

use std::ops::Range;

use super::linear::frozen;
use super::lora::{Branch, Share, down, down_b, drop_tile, up};
use super::{Contribution, Emit};
use crate::GRAIN;
use crate::block::{BlockBuilder, Life, Lora, Projection, ValueId};
use crate::step::{Start, Step, Term};

/// The hidden columns of each tile.
pub(super) fn ranges(hidden: usize, width: usize) -> Vec<Range<usize>> {
    (0..hidden).step_by(width).map(|at| at..(at + width).min(hidden)).collect()
}

/// A value of one tile.
pub(super) fn tile_value(
    builder: &mut BlockBuilder,
    name: &str,
    part: &str,
    cols: &Range<usize>,
) -> ValueId {
    let name = format!("{name}.{part}[{}..{}]", cols.start, cols.end);
    builder.value(&name, cols.len(), Life::Tile)
}

/// The projection into a tile: `x W[tile]ᵀ + b[tile] + h B[tile]`.
pub(super) fn enter(
    x: ValueId,
    out: ValueId,
    p: &Projection,
    branch: Option<&Branch>,
    cols: &Range<usize>,
    emit: &mut Emit,
) {
    let mut terms = vec![frozen(p, x, cols.clone(), 0..p.inputs, true)];
    terms.extend(branch.map(|b| up(b.lora.b, b.h, b.lora.rank, cols.clone())));
    emit.step(Step::Gemm { out, start: p.start(cols.start), scale: 1.0, terms });
}

/// The way out of a tile: its activation's share of the output.
#[derive(Clone, Debug)]
pub(super) struct Exit {
    pub cols: Range<usize>,
    /// The activation.
    pub a: ValueId,
    /// What `down`'s A reads, where it drops.
    dropped: Option<ValueId>,
    /// The output summed up to this tile, without LoRA.
    y: ValueId,
    /// `down`'s h summed up to this tile.
    h: Option<ValueId>,
}

impl Exit {
    /// The values of a tile's way out of an MLP called `name`, through its projection `down`.
    pub fn new(
        builder: &mut BlockBuilder,
        name: &str,
        down: &Projection,
        cols: Range<usize>,
    ) -> Self {
        let last = cols.end == down.inputs;
        let a = tile_value(builder, name, "act", &cols);
        let drops = down.lora.is_some_and(|l| l.dropout > 0.0);
        let dropped = drops.then(|| tile_value(builder, name, "dropped", &cols));
        let part = if last && down.lora.is_none() { "out" } else { "sum" };
        let y = builder.value(&format!("{name}.{part}"), down.outputs, Life::Plain);
        let h = down.lora.map(|lora| {
            let life = if last { Life::Saved } else { Life::Plain };
            builder.value(&format!("{name}.down.h"), lora.rank, life)
        });
        Self { cols, a, dropped, y, h }
    }

    /// What A reads: the activation, dropped where the branch drops.
    fn input(&self) -> ValueId {
        self.dropped.unwrap_or(self.a)
    }
}

/// An MLP's output, given its tiles' ways out, and `down`'s h.
pub(super) fn output(
    builder: &mut BlockBuilder,
    name: &str,
    down: &Projection,
    last: &Exit,
) -> (ValueId, Option<ValueId>) {
    let y = match down.lora {
        Some(_) => builder.value(&format!("{name}.out"), down.outputs, Life::Plain),
        None => last.y,
    };
    (y, last.h)
}

/// Adds a tile's share to the output and to `down`'s h.
pub(super) fn leave(p: &Projection, tile: &Exit, before: Option<&Exit>, emit: &mut Emit) {
    let terms = vec![frozen(p, tile.a, 0..p.outputs, tile.cols.clone(), true)];
    let start = before.map_or(p.start(0), |b| Start::Value(b.y));
    emit.step(Step::Gemm { out: tile.y, start, scale: 1.0, terms });
    if let (Some(lora), Some(out)) = (&p.lora, tile.h) {
        if let Some(dropped) = tile.dropped {
            emit.step(drop_tile(lora, tile.a, dropped, tile.cols.start, p.inputs));
        }
        let terms = vec![down(lora, tile.input(), tile.cols.clone())];
        let start = before.and_then(|b| b.h).map_or(Start::Zero, Start::Value);
        let scale = if tile.cols.end == p.inputs { lora.scale } else { 1.0 };
        emit.step(Step::Gemm { out, start, scale, terms });
    }
}

/// Adds `down`'s LoRA to the sum over all tiles.
pub(super) fn add_branch(p: &Projection, last: &Exit, y: ValueId, emit: &mut Emit) {
    if let (Some(lora), Some(h)) = (&p.lora, last.h) {
        let terms = vec![up(lora.b, h, lora.rank, 0..p.outputs)];
        emit.step(Step::Gemm { out: y, start: Start::Value(last.y), scale: 1.0, terms });
    }
}

/// The gradient of `down`'s B, and that of its h.
pub(super) fn d_branch(
    p: &Projection,
    last: &Exit,
    dy: ValueId,
    emit: &mut Emit,
) -> Option<ValueId> {
    let (lora, left) = p.lora.zip(last.h)?;
    let cols = 0..p.outputs;
    emit.step(Step::ParamGradient { param: lora.b, cols: cols.clone(), left, right: dy });
    Some(chain_h(&lora, vec![down_b(&lora, dy, cols)], None, true, emit))
}

/// A tile's part of the gradient of `down`'s A.
pub(super) fn gradient_a(p: &Projection, tile: &Exit, dh: Option<ValueId>, emit: &mut Emit) {
    if let Some((lora, left)) = p.lora.zip(dh) {
        let (cols, right) = (tile.cols.clone(), tile.input());
        emit.step(Step::ParamGradient { param: lora.a, cols, left, right });
    }
}

/// The gradient of a tile's activation: `dy Wd[.., tile]` and LoRA's share.
pub(super) fn d_activation(
    p: &Projection,
    tile: &Exit,
    dy: ValueId,
    dh: Option<ValueId>,
    emit: &mut Emit,
) -> ValueId {
    let cols = tile.cols.clone();
    let width = cols.len();
    let mut terms = vec![frozen(p, dy, 0..p.outputs, cols.clone(), false)];
    let branch = p.lora.zip(dh);
    let product = branch.map(|(l, dh)| up(l.a, dh, l.rank, cols.clone()));
    if tile.dropped.is_none() {
        terms.extend(product.clone());
    }
    let base = emit.value("da", width, Life::Plain);
    emit.step(Step::Gemm { out: base, start: Start::Zero, scale: 1.0, terms });
    let (Some(term), Some((lora, _)), Some(_)) = (product, branch, tile.dropped) else {
        return base;
    };
    let whole = emit.value("d_dropped", width, Life::Plain);
    emit.step(Step::Gemm { out: whole, start: Start::Zero, scale: 1.0, terms: vec![term] });
    let masked = emit.value("d_lora", width, Life::Plain);
    emit.step(drop_tile(&lora, whole, masked, cols.start, p.inputs));
    let da = emit.value("da", width, Life::Plain);
    emit.step(Step::Add { x: base, y: masked, out: da });
    da
}

/// Adds a tile's `d B[.., tile]ᵀ` to dh; the last tile brings the scale.
pub(super) fn chain_dh(
    branch: &Branch,
    d: ValueId,
    cols: &Range<usize>,
    before: Option<ValueId>,
    last: bool,
    emit: &mut Emit,
) -> ValueId {
    let terms = vec![down_b(&branch.lora, d, cols.clone())];
    chain_h(&branch.lora, terms, before, last, emit)
}

/// One link of a sum over tiles with `rank` columns.
fn chain_h(
    lora: &Lora,
    terms: Vec<Term>,
    before: Option<ValueId>,
    last: bool,
    emit: &mut Emit,
) -> ValueId {
    let out = emit.value("dh", lora.rank, Life::Plain);
    let start = before.map_or(Start::Zero, Start::Value);
    let scale = if last { lora.scale } else { 1.0 };
    emit.step(Step::Gemm { out, start, scale, terms });
    out
}

/// Adds what a tile's gradients `d` give through the projections that entered it, grain by grain
/// and in each in their order, to dx.
pub(super) fn chain_dx(
    entries: &[(&Projection, ValueId)],
    cols: &Range<usize>,
    before: Option<ValueId>,
    emit: &mut Emit,
) -> ValueId {
    let inputs = entries[0].0.inputs;
    let mut terms = Vec::new();
    for at in (0..cols.len()).step_by(GRAIN) {
        let grain = at..(at + GRAIN).min(cols.len());
        let rows = cols.start + grain.start..cols.start + grain.end;
        for (p, d) in entries {
            let mut term = frozen(p, *d, rows.clone(), 0..inputs, false);
            term.a_cols = grain.clone();
            terms.push(term);
        }
    }
    let out = emit.value("dx", inputs, Life::Plain);
    let start = before.map_or(Start::Zero, Start::Value);
    emit.step(Step::Gemm { out, start, scale: 1.0, terms });
    out
}

/// The gradients of A of the branches that entered the tiles, given their dh, and their shares of
/// dx, last.
pub(super) fn finish_dx<'b>(
    x: ValueId,
    dx: Option<ValueId>,
    branches: impl IntoIterator<Item = (Option<&'b Branch>, Option<ValueId>)>,
    wanted: bool,
    emit: &mut Emit,
) {
    let mut terms = Vec::new();
    for (branch, dh) in branches {
        let (Some(branch), Some(dh)) = (branch, dh) else { continue };
        match branch.backward(x, dh, wanted, emit) {
            Share::None => {}
            Share::Product(term) => terms.push(term),
            Share::Value(value) => emit.contribute(x, Contribution::Value(value)),
        }
    }
    let Some(before) = dx.filter(|_| wanted) else { return };
    let out = if terms.is_empty() {
        before
    } else {
        let out = emit.value("dx", emit.cols(x), Life::Plain);
        emit.step(Step::Gemm { out, start: Start::Value(before), scale: 1.0, terms });
        out
    };
    emit.contribute(x, Contribution::Value(out));
}
