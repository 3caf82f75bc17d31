//! An adapter on its way into the weights.

use std::collections::BTreeMap;
use std::ops::Range;

use smidgen_graph::Factor;
use smidgen_kernels::{Kernels, MatMut, MatRef};

use super::export::tensor_name;
use crate::adapter::Adapter;
use crate::base::Base;
use crate::error::Result;

/// An adapter by the names of the tensors that it changes.
pub(super) struct Merge<'a> {
    adapter: &'a mut Adapter,
    /// Where A and B lie among the adapter's numbers.
    pairs: BTreeMap<String, [Range<usize>; 2]>,
}

impl<'a> Merge<'a> {
    pub fn new(base: &Base, adapter: &'a mut Adapter) -> Self {
        let mut pairs: BTreeMap<String, [Range<usize>; 2]> = BTreeMap::new();
        for (layer, module, factor, range) in adapter.shape().factors() {
            let pair = pairs.entry(tensor_name(base, layer, module)).or_insert([0..0, 0..0]);
            pair[usize::from(factor == Factor::B)] = range;
        }
        Self { adapter, pairs }
    }

    /// Whether the adapter changes the tensor of that name.
    pub fn changes(&self, tensor: &str) -> bool {
        self.pairs.contains_key(tensor)
    }

    /// What is added to the tensor of that name, if anything is.
    pub fn delta(&mut self, tensor: &str) -> Result<Option<Delta>> {
        let Some([a, b]) = self.pairs.get(tensor).cloned() else { return Ok(None) };
        let rank = self.adapter.config().rank;
        let (cols, rows) = (a.len() / rank, b.len() / rank);
        let scale = self.adapter.shape().spec().scale;
        let a = self.adapter.values().piece(a)?.to_vec();
        let b = self.adapter.values().piece(b)?.to_vec();
        Ok(Some(Delta { kernels: Kernels::detect(), a, b, rows, cols, scale }))
    }
}

/// scale B A.
pub(super) struct Delta {
    kernels: Kernels,
    /// `[rank, cols]`.
    a: Vec<f32>,
    /// `[rank, rows]`.
    b: Vec<f32>,
    rows: usize,
    cols: usize,
    scale: f32,
}

impl Delta {
    /// Adds columns of a row to `numbers`. They are summed in `room` first: beside a weight, a
    /// small term would lose its last bits.
    pub fn add(&self, row: usize, cols: Range<usize>, numbers: &mut [f32], room: &mut [f32]) {
        room.fill(0.0);
        let len = cols.len();
        for (a, b) in self.a.chunks_exact(self.cols).zip(self.b.chunks_exact(self.rows)) {
            let a = MatRef::new(&a[cols.clone()], 1, len);
            self.kernels.axpy(self.scale * b[row], a, MatMut::new(room, 1, len));
        }
        self.kernels.add(MatRef::new(room, 1, len), MatMut::new(numbers, 1, len));
    }
}
