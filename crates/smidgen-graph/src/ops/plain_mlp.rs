//! The MLP of two projections with a rectifier between them: y = max(x Wuᵀ + bu, 0) Wdᵀ + bd
//! (arXiv 1706.03762, section 3.3), worked on in tiles of hidden columns so that the hidden layer
//! never exists whole.
//!
//! With a = max(u, 0) and da = dy Wd (+ LoRA): du = da where a > 0, else 0, and dx = sum over grains
//! of hidden columns of du Wu, LoRA last. The rule reads a alone, so a tile's u and a share memory.

use super::lora::Branch;
use super::mlp_tiles::{self as tiles, Exit};
use super::{Emit, Op};
use crate::block::{BlockBuilder, Life, Node, Projection, ValueId};
use crate::step::Step;

/// The values of one tile.
#[derive(Clone, Debug)]
struct Tile {
    u: ValueId,
    exit: Exit,
}

#[derive(Debug)]
struct PlainMlp {
    up_proj: Projection,
    down_proj: Projection,
    up: Option<Branch>,
    tiles: Vec<Tile>,
}

impl BlockBuilder {
    /// `x` through `up`, a rectifier and `down`.
    pub fn plain_mlp(
        &mut self,
        name: &str,
        x: ValueId,
        up: Projection,
        down: Projection,
    ) -> ValueId {
        assert_eq!(self.cols(x), up.inputs, "inputs of {name}");
        assert_eq!(down.inputs, up.outputs, "inputs of down");
        let (up_proj, down_proj) = (up, down);
        let up = up.lora.map(|l| Branch::new(self, &format!("{name}.up"), l, up_proj.inputs));
        let mut tiles = Vec::new();
        for cols in tiles::ranges(up_proj.outputs, self.mlp_tile) {
            let u = tiles::tile_value(self, name, "up", &cols);
            tiles.push(Tile { u, exit: Exit::new(self, name, &down_proj, cols) });
        }
        let last = &tiles.last().expect("a hidden layer has columns").exit;
        let (y, h) = tiles::output(self, name, &down_proj, last);
        let saved = [up.map(|b| b.h), h].into_iter().flatten();
        let outputs = [y].into_iter().chain(saved).collect();
        self.node(Box::new(PlainMlp { up_proj, down_proj, up, tiles }), vec![x], outputs);
        y
    }
}

impl PlainMlp {
    fn last(&self) -> &Exit {
        &self.tiles.last().expect("a hidden layer has columns").exit
    }
}

impl Op for PlainMlp {
    fn forward(&self, node: &Node, emit: &mut Emit) {
        let x = node.inputs[0];
        self.up.iter().for_each(|b| b.forward(x, emit));
        let mut before: Option<&Exit> = None;
        for Tile { u, exit } in &self.tiles {
            tiles::enter(x, *u, &self.up_proj, self.up.as_ref(), &exit.cols, emit);
            emit.step(Step::Relu { x: *u, out: exit.a });
            tiles::leave(&self.down_proj, exit, before, emit);
            before = Some(exit);
        }
        tiles::add_branch(&self.down_proj, self.last(), node.outputs[0], emit);
    }

    fn backward(&self, node: &Node, dy: Option<ValueId>, wanted: &[bool], emit: &mut Emit) {
        let dy = dy.expect("an MLP has a gradient");
        let x = node.inputs[0];
        let (up, down) = (&self.up_proj, &self.down_proj);
        let dh_down = tiles::d_branch(down, self.last(), dy, emit);
        let (mut dx, mut dh) = (None, None);
        for (i, Tile { exit, .. }) in self.tiles.iter().enumerate() {
            tiles::gradient_a(down, exit, dh_down, emit);
            if !wanted[0] && self.up.is_none() {
                continue;
            }
            let da = tiles::d_activation(down, exit, dy, dh_down, emit);
            let du = emit.value("du", exit.cols.len(), Life::Plain);
            emit.step(Step::ReluBackward { a: exit.a, da, dx: du });
            if let Some(branch) = &self.up {
                branch.gradient_b(du, exit.cols.clone(), emit);
                let last = i + 1 == self.tiles.len();
                dh = Some(tiles::chain_dh(branch, du, &exit.cols, dh, last, emit));
            }
            if wanted[0] {
                dx = Some(tiles::chain_dx(&[(up, du)], &exit.cols, dx, emit));
            }
        }
        tiles::finish_dx(x, dx, [(self.up.as_ref(), dh)], wanted[0], emit);
    }

    fn has_params(&self) -> bool {
        self.up.is_some() || self.down_proj.lora.is_some()
    }
}
