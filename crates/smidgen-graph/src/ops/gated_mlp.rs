//! The gated MLP (GLU variants, arXiv 2002.05202): y = (act(x Wgᵀ) * (x Wuᵀ)) Wdᵀ, worked on in
//! tiles of hidden columns so that the hidden layer never exists whole.
//!
//! With a = act(g) u and da = dy Wd (+ LoRA): dg = da u act'(g), du = da act(g), and
//! dx = sum over grains of hidden columns of (dg Wg, then du Wu), LoRA last.

use super::lora::Branch;
use super::mlp_tiles::{self as tiles, Exit};
use super::{Emit, Op};
use crate::block::{BlockBuilder, Life, Node, Projection, ValueId};
use crate::step::{Activation, Step};

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
    g: ValueId,
    u: ValueId,
    exit: Exit,
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
        let gate = mlp.gate.lora.map(|l| Branch::new(self, &format!("{name}.gate"), l, inputs));
        let up = mlp.up.lora.map(|l| Branch::new(self, &format!("{name}.up"), l, inputs));
        let mut tiles = Vec::new();
        for cols in tiles::ranges(hidden, self.mlp_tile) {
            let g = tiles::tile_value(self, name, "gate", &cols);
            let u = tiles::tile_value(self, name, "up", &cols);
            tiles.push(Tile { g, u, exit: Exit::new(self, name, &mlp.down, cols) });
        }
        let last = &tiles.last().expect("a hidden layer has columns").exit;
        let (y, h) = tiles::output(self, name, &mlp.down, last);
        let saved = [gate.map(|b| b.h), up.map(|b| b.h), h].into_iter().flatten();
        let outputs = [y].into_iter().chain(saved).collect();
        self.node(Box::new(GatedMlp { mlp, gate, up, tiles }), vec![x], outputs);
        y
    }
}

impl GatedMlp {
    fn last(&self) -> &Exit {
        &self.tiles.last().expect("a hidden layer has columns").exit
    }

    fn d_gate(&self, tile: &Tile, da: ValueId, emit: &mut Emit) -> (ValueId, ValueId) {
        let width = tile.exit.cols.len();
        let dg = emit.value("dg", width, Life::Plain);
        let du = emit.value("du", width, Life::Plain);
        let activation = self.mlp.activation;
        emit.step(Step::GateBackward { g: tile.g, u: tile.u, da, dg, du, activation });
        (dg, du)
    }
}

impl Op for GatedMlp {
    fn forward(&self, node: &Node, emit: &mut Emit) {
        let x = node.inputs[0];
        let Mlp { gate, up, down, activation } = &self.mlp;
        [&self.gate, &self.up].into_iter().flatten().for_each(|b| b.forward(x, emit));
        let mut before: Option<&Exit> = None;
        for Tile { g, u, exit } in &self.tiles {
            tiles::enter(x, *g, gate, self.gate.as_ref(), &exit.cols, emit);
            tiles::enter(x, *u, up, self.up.as_ref(), &exit.cols, emit);
            emit.step(Step::Gate { g: *g, u: *u, a: exit.a, activation: *activation });
            tiles::leave(down, exit, before, emit);
            before = Some(exit);
        }
        tiles::add_branch(down, self.last(), node.outputs[0], emit);
    }

    fn backward(&self, node: &Node, dy: Option<ValueId>, wanted: &[bool], emit: &mut Emit) {
        let dy = dy.expect("an MLP has a gradient");
        let x = node.inputs[0];
        let Mlp { gate, up, down, .. } = &self.mlp;
        let dh_down = tiles::d_branch(down, self.last(), dy, emit);
        let inner = wanted[0] || self.gate.is_some() || self.up.is_some();
        let mut dx: Option<ValueId> = None;
        let mut dh: [Option<ValueId>; 2] = [None, None];
        for (i, tile) in self.tiles.iter().enumerate() {
            tiles::gradient_a(down, &tile.exit, dh_down, emit);
            if !inner {
                continue;
            }
            let cols = &tile.exit.cols;
            let da = tiles::d_activation(down, &tile.exit, dy, dh_down, emit);
            let (dg, du) = self.d_gate(tile, da, emit);
            let last = i + 1 == self.tiles.len();
            for (slot, (branch, d)) in [(&self.gate, dg), (&self.up, du)].into_iter().enumerate() {
                let Some(branch) = branch else { continue };
                branch.gradient_b(d, cols.clone(), emit);
                dh[slot] = Some(tiles::chain_dh(branch, d, cols, dh[slot], last, emit));
            }
            if wanted[0] {
                dx = Some(tiles::chain_dx(&[(gate, dg), (up, du)], cols, dx, emit));
            }
        }
        let branches = [self.gate.as_ref(), self.up.as_ref()].into_iter().zip(dh);
        tiles::finish_dx(x, dx, branches, wanted[0], emit);
    }

    fn has_params(&self) -> bool {
        self.gate.is_some() || self.up.is_some() || self.mlp.down.lora.is_some()
    }
}
