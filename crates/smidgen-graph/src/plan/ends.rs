//! The blocks at a model's ends: from tokens to the first hidden state, and from the last to the
//! loss.

use super::classes::{program_seconds, unpacking_seconds};
use super::{Architecture, Backward, Request};
use crate::autodiff::differentiate;
use crate::block::Block;
use crate::layout::{Pins, Place, Program, Rows, lay_out};
use crate::schedule::{self, Kept};
use crate::table;

/// The blocks at the model's ends with their programs.
#[derive(Debug)]
pub(super) struct Ends {
    pub rows: Rows,
    /// Rows of a pass through the head with its gradient.
    pub head_rows: Rows,
    pub embedding: (Block, Program),
    pub head: (Block, Program, Program),
}

impl Ends {
    /// The ends of a model, with its rows in bands of `tile` or all at once.
    pub fn new(model: &dyn Architecture, request: &Request, tile: Option<usize>) -> Self {
        let rows = Rows { all: request.tokens, tile };
        let block = model.embedding_block();
        let graph = differentiate(&block, false);
        let output = graph.output.expect("an embedding has an output");
        let pins = Pins { pins: vec![], result: Some((output, Place::Output)) };
        let embedding = (block, lay_out(schedule::forward(&graph), &pins, rows));
        let block = model.head_block();
        let graph = differentiate(&block, true);
        let input = graph.input.expect("a head has an input");
        let d_input = graph.d_input.expect("a head has a gradient");
        let mut pins = Pins { pins: vec![(input, Place::Input, false)], result: None };
        let infer = lay_out(schedule::forward(&graph), &pins, rows);
        pins.result = Some((d_input, Place::Scratch(0)));
        // A step that ends there passes the head band by band, from output to gradient.
        let head_rows = match request.backward {
            Backward::Head => Rows { all: tile.unwrap_or(request.tokens), tile: None },
            Backward::Nothing | Backward::Layers => rows,
        };
        let train = schedule::backward(&graph, &Kept::new(), head_rows.tile.is_some());
        let train = lay_out(train, &pins, head_rows);
        Self { rows, head_rows, embedding, head: (block, train, infer) }
    }

    /// Bytes of their lists.
    pub fn lists(&self) -> usize {
        [&self.embedding.1, &self.head.1, &self.head.2].map(table::program_lists).iter().sum()
    }

    /// Numbers of scratch that the ends need.
    pub fn scratch(&self, backward: Backward) -> usize {
        let train = if backward >= Backward::Head { self.head.1.scratch_len } else { 0 };
        self.embedding.1.scratch_len.max(self.head.2.scratch_len).max(train)
    }

    /// Rows of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.head.0.weights.iter().map(|w| w.rows).max().unwrap_or(0)
    }

    /// Times that the head's weights are unpacked for a pass.
    pub fn head_bands(&self) -> usize {
        self.head_rows.bands() * self.rows.all.div_ceil(self.head_rows.all.max(1))
    }

    /// Seconds of a pass.
    pub fn seconds(&self, request: &Request) -> f64 {
        let backward = request.backward >= Backward::Head;
        let head = if backward { &self.head.1 } else { &self.head.2 };
        let hidden = self.head.0.input.map_or(0, |v| self.head.0.values[v.0 as usize].cols);
        let sweep = request.rates.head(request.tokens, hidden, self.vocabulary(), backward);
        let products = if backward { 2 } else { 1 };
        let again = self.head_bands() - 1;
        let again =
            unpacking_seconds(again * products * hidden * self.vocabulary(), &request.rates);
        program_seconds(&self.embedding.1, request) + program_seconds(head, request) + sweep + again
    }
}
