//! Kernels for aarch64.

mod bytes;
pub(super) mod neon;
