//! Reading the residual stream on its way.

use smidgen_kernels::{Kernels, MatMut, MatRef};

use crate::pool::Pool;

/// What reads the residual stream behind the layers of a walk that keeps nothing, and may add to
/// it before the head.
pub trait Taps {
    /// The stream behind `layer`: rows x hidden. Layers come in order.
    fn tap(&mut self, layer: usize, stream: MatRef<'_>, kernels: Kernels, pool: &mut Pool);

    /// The stream behind the last layer, once that has been tapped.
    fn join(&mut self, stream: MatMut<'_>, kernels: Kernels, pool: &mut Pool);
}
