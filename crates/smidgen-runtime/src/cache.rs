//! Keys and values of earlier positions, for generating one token at a time.

use crate::engine::sealed;
use crate::error::Result;

/// Keys and values of every layer for one sequence.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Vec<f32>, Vec<f32>)>,
    cols: usize,
    positions: usize,
}

impl KvCache {
    /// Room for `positions` positions of `layers` layers with `cols` numbers a key.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if the system does not give that much.
    pub fn new(layers: usize, cols: usize, positions: usize) -> Result<Self> {
        let one = || sealed(cols * positions);
        let layers = (0..layers).map(|_| Ok((one()?, one()?))).collect::<Result<_>>()?;
        Ok(Self { layers, cols, positions })
    }

    /// Bytes that such a cache takes.
    pub fn bytes(layers: usize, cols: usize, positions: usize) -> u64 {
        8 * layers as u64 * cols as u64 * positions as u64
    }

    /// How many positions fit.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Stores rows of a layer from position `first` on and returns all keys and values up to
    /// the last of them.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        first: usize,
        k: &[f32],
        v: &[f32],
    ) -> [&[f32]; 2] {
        let start = first * self.cols;
        let end = start + k.len();
        let (keys, values) = &mut self.layers[layer];
        keys[start..end].copy_from_slice(k);
        values[start..end].copy_from_slice(v);
        [&keys[..end], &values[..end]]
    }
}
