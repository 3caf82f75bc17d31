//! The gated MLP (GLU variants, arXiv 2002.05202): y = (act(x Wgᵀ) * (x Wuᵀ)) Wdᵀ, worked on in
//! tiles of hidden columns so that the hidden layer never exists whole.
//!
//! With a = act(g) u and da = dy Wd (+ LoRA): dg = da u act'(g), du = da act(g), and
//! dx = sum over grains of hidden columns of (dg Wg, then du Wu), LoRA last. The grain is the
//! GEMM's, so the order of the sum is the same for every width of tile.

use std::ops::Range;

use super::linear::frozen;
use super::lora::{Branch, Share, down, down_b, drop_tile, up};
use super::{Contribution, Emit, Op};
use crate::GRAIN;
use crate::block::{BlockBuilder, Life, Lora, Node, Projection, ValueId};
use crate::step::{Activation, Start, Step, Term};

/// The three projections of a gated MLP.
#[derive(Clone, Copy, Debug)]
pub struct Mlp {
    /// Through the activation.
    pub gate: Projection,
    /// Beside it.
    pub up: Projection,
    /// Back to the hidden state.
    pub down: Projection,
    /// The gate's activation.
    pub activation: Activation,
}

/// The values of one tile.
#[derive(Clone, Debug)]
struct Tile {
    cols: Range<usize>,
    g: ValueId,
    u: ValueId,
    a: ValueId,
    dropped: Option<ValueId>,
    /// The output summed up to this tile, without LoRA.
    y: ValueId,
    /// `down`'s h summed up to this tile.
    h: Option<ValueId>,
}

#[derive(Debug)]
struct GatedMlp {
    mlp: Mlp,
    gate: Option<Branch>,
    up: Option<Branch>,
    tiles: Vec<Tile>,
}

impl BlockBuilder {
    /// `x` through a gated MLP.
    pub fn gated_mlp(&mut self, name: &str, x: ValueId, mlp: Mlp) -> ValueId {
        let (inputs, hidden) = (mlp.gate.inputs, mlp.gate.outputs);
        assert_eq!(self.cols(x), inputs, "inputs of {name}");
        assert_eq!((mlp.up.inputs, mlp.up.outputs), (inputs, hidden), "shape of up");
        assert_eq!(mlp.down.inputs, hidden, "inputs of down");
        assert!(mlp.gate.bias.is_none() && mlp.up.bias.is_none() && mlp.down.bias.is_none());
        let gate = mlp.gate.lora.map(|l| Branch::new(self, &format!("{name}.gate"), l, inputs));
        let up = mlp.up.lora.map(|l| Branch::new(self, &format!("{name}.up"), l, inputs));
        let tiles = self.mlp_tiles(name, &mlp);
        let last = tiles.last().expect("a hidden layer has columns");
        let y = match mlp.down.lora {
            Some(_) => self.value(&format!("{name}.out"), mlp.down.outputs, Life::Plain),
            None => last.y,
        };
        let saved = [gate.map(|b| b.h), up.map(|b| b.h), last.h].into_iter().flatten();
        let outputs = [y].into_iter().chain(saved).collect();
        self.node(Box::new(GatedMlp { mlp, gate, up, tiles }), vec![x], outputs);
        y
    }

    fn mlp_tiles(&mut self, name: &str, mlp: &Mlp) -> Vec<Tile> {
        let hidden = mlp.gate.outputs;
        let starts = (0..hidden).step_by(self.mlp_tile);
        let ranges: Vec<_> = starts.map(|at| at..(at + self.mlp_tile).min(hidden)).collect();
        let last = ranges.len().saturating_sub(1);
        let mut tiles = Vec::new();
        for (i, cols) in ranges.into_iter().enumerate() {
            let mut value = |part: &str, life| {
                self.value(
                    &format!("{name}.{part}[{}..{}]", cols.start, cols.end),
                    cols.len(),
                    life,
                )
            };
            let (g, u) = (value("gate", Life::Tile), value("up", Life::Tile));
            let a = value("act", Life::Tile);
            let drops = mlp.down.lora.is_some_and(|l| l.dropout > 0.0);
            let dropped = drops.then(|| value("dropped", Life::Tile));
            let whole = i == last && mlp.down.lora.is_none();
            let part = if whole { "out" } else { "sum" };
            let y = self.value(&format!("{name}.{part}"), mlp.down.outputs, Life::Plain);
            let h = mlp.down.lora.map(|lora| {
                let life = if i == last { Life::Saved } else { Life::Plain };
                self.value(&format!("{name}.down.h"), lora.rank, life)
            });
            tiles.push(Tile { cols, g, u, a, dropped, y, h });
        }
        tiles
    }
}

impl GatedMlp {
    /// One projection into a tile: `x W[tile]ᵀ + h B[tile]`.
    fn enter(
        x: ValueId,
        out: ValueId,
        p: &Projection,
        branch: Option<&Branch>,
        cols: &Range<usize>,
        emit: &mut Emit,
    ) {
        let mut terms = vec![frozen(p, x, cols.clone(), 0..p.inputs, true)];
        terms.extend(branch.map(|b| up(b.lora.b, b.h, b.lora.rank, cols.clone())));
        emit.step(Step::Gemm { out, start: Start::Zero, scale: 1.0, terms });
    }

    /// The gradient of a tile's activation: `dy Wd[.., tile]` and LoRA's share.
    fn d_activation(
        &self,
        tile: &Tile,
        dy: ValueId,
        dh: Option<ValueId>,
        emit: &mut Emit,
    ) -> ValueId {
        let p = &self.mlp.down;
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
    fn chain_dh(
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

impl Op for GatedMlp {
    fn forward(&self, node: &Node, emit: &mut Emit) {
        let x = node.inputs[0];
        let Mlp { gate, up: up_p, down: down_p, activation } = &self.mlp;
        [&self.gate, &self.up].into_iter().flatten().for_each(|b| b.forward(x, emit));
        let mut before: Option<&Tile> = None;
        let count = self.tiles.len();
        for (i, tile) in self.tiles.iter().enumerate() {
            Self::enter(x, tile.g, gate, self.gate.as_ref(), &tile.cols, emit);
            Self::enter(x, tile.u, up_p, self.up.as_ref(), &tile.cols, emit);
            emit.step(Step::Gate { g: tile.g, u: tile.u, a: tile.a, activation: *activation });
            let a_terms = vec![frozen(down_p, tile.a, 0..down_p.outputs, tile.cols.clone(), true)];
            let start = before.map_or(Start::Zero, |b| Start::Value(b.y));
            emit.step(Step::Gemm { out: tile.y, start, scale: 1.0, terms: a_terms });
            if let (Some(lora), Some(out)) = (&down_p.lora, tile.h) {
                if let Some(dropped) = tile.dropped {
                    let (at, total) = (tile.cols.start, down_p.inputs);
                    emit.step(drop_tile(lora, tile.a, dropped, at, total));
                }
                let terms = vec![down(lora, tile.dropped.unwrap_or(tile.a), tile.cols.clone())];
                let start = before.and_then(|b| b.h).map_or(Start::Zero, Start::Value);
                let scale = if i + 1 == count { lora.scale } else { 1.0 };
                emit.step(Step::Gemm { out, start, scale, terms });
            }
            before = Some(tile);
        }
        if let (Some(lora), Some(last)) = (&down_p.lora, before) {
            let h = last.h.expect("down has a branch");
            let terms = vec![up(lora.b, h, lora.rank, 0..down_p.outputs)];
            let start = Start::Value(last.y);
            emit.step(Step::Gemm { out: node.outputs[0], start, scale: 1.0, terms });
        }
    }

    fn backward(&self, node: &Node, dy: Option<ValueId>, wanted: &[bool], emit: &mut Emit) {
        let dy = dy.expect("an MLP has a gradient");
        let x = node.inputs[0];
        let down_p = &self.mlp.down;
        let dh_down = down_p.lora.map(|lora| {
            let h = self.tiles.last().and_then(|t| t.h).expect("down has a branch");
            let cols = 0..down_p.outputs;
            emit.step(Step::ParamGradient {
                param: lora.b,
                cols: cols.clone(),
                left: h,
                right: dy,
            });
            chain_h(&lora, vec![down_b(&lora, dy, cols)], None, true, emit)
        });
        let inner = wanted[0] || self.gate.is_some() || self.up.is_some();
        let mut dx: Option<ValueId> = None;
        let mut dh: [Option<ValueId>; 2] = [None, None];
        for (i, tile) in self.tiles.iter().enumerate() {
            if let (Some(lora), Some(left)) = (&down_p.lora, dh_down) {
                let right = tile.dropped.unwrap_or(tile.a);
                let cols = tile.cols.clone();
                emit.step(Step::ParamGradient { param: lora.a, cols, left, right });
            }
            if !inner {
                continue;
            }
            let da = self.d_activation(tile, dy, dh_down, emit);
            let (dg, du) = self.d_gate(tile, da, emit);
            let last = i + 1 == self.tiles.len();
            for (slot, (branch, d)) in [(&self.gate, dg), (&self.up, du)].into_iter().enumerate() {
                let Some(branch) = branch else { continue };
                branch.gradient_b(d, tile.cols.clone(), emit);
                dh[slot] = Some(Self::chain_dh(branch, d, &tile.cols, dh[slot], last, emit));
            }
            if wanted[0] {
                dx = Some(self.chain_dx(tile, dg, du, dx, emit));
            }
        }
        self.finish_dx(x, dx, dh, wanted[0], emit);
    }

    fn has_params(&self) -> bool {
        self.gate.is_some() || self.up.is_some() || self.mlp.down.lora.is_some()
    }
}

impl GatedMlp {
    fn d_gate(&self, tile: &Tile, da: ValueId, emit: &mut Emit) -> (ValueId, ValueId) {
        let width = tile.cols.len();
        let dg = emit.value("dg", width, Life::Plain);
        let du = emit.value("du", width, Life::Plain);
        let activation = self.mlp.activation;
        emit.step(Step::GateBackward { g: tile.g, u: tile.u, da, dg, du, activation });
        (dg, du)
    }

    /// Adds a tile's `dg Wg + du Wu`, grain by grain, to dx.
    fn chain_dx(
        &self,
        tile: &Tile,
        dg: ValueId,
        du: ValueId,
        before: Option<ValueId>,
        emit: &mut Emit,
    ) -> ValueId {
        let inputs = self.mlp.gate.inputs;
        let mut terms = Vec::new();
        for at in (0..tile.cols.len()).step_by(GRAIN) {
            let grain = at..(at + GRAIN).min(tile.cols.len());
            let rows = tile.cols.start + grain.start..tile.cols.start + grain.end;
            for (p, d) in [(&self.mlp.gate, dg), (&self.mlp.up, du)] {
                let mut term = frozen(p, d, rows.clone(), 0..inputs, false);
                term.a_cols = grain.clone();
                terms.push(term);
            }
        }
        let out = emit.value("dx", inputs, Life::Plain);
        let start = before.map_or(Start::Zero, Start::Value);
        emit.step(Step::Gemm { out, start, scale: 1.0, terms });
        out
    }

    /// The branches' gradients of A, and their shares of dx, last.
    fn finish_dx(
        &self,
        x: ValueId,
        dx: Option<ValueId>,
        dh: [Option<ValueId>; 2],
        wanted: bool,
        emit: &mut Emit,
    ) {
        let mut terms = Vec::new();
        for (branch, dh) in [&self.gate, &self.up].into_iter().zip(dh) {
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
            let out = emit.value("dx", self.mlp.gate.inputs, Life::Plain);
            let start = Start::Value(before);
            emit.step(Step::Gemm { out, start, scale: 1.0, terms });
            out
        };
        emit.contribute(x, Contribution::Value(out));
    }
}
