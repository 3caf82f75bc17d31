//! Maths on slices: every operation of a training step.
//!
//! Nothing here allocates (but [`RopeTable::new`], once before a run), starts a thread or opens a
//! file. Each operation has one body in plain Rust, compiled once for every instruction set; the
//! GEMM alone has micro-kernels written with intrinsics. The order of every sum is fixed by the
//! operation, not by the instruction set, so a result has the same bits whichever set computes
//! it, however the work is cut into tiles.

#![deny(unsafe_code)]

pub mod arch;
pub mod attention;
pub mod dropout;
pub mod elementwise;
mod exp;
pub mod formats;
pub mod gate;
pub mod gemm;
pub mod head;
mod lanes;
pub mod layernorm;
pub mod normal;
pub mod optimiser;
pub mod philox;
pub mod relu;
pub mod rmsnorm;
pub mod rope;
pub mod tap;

pub use arch::{Isa, Kernels, MatMut, MatRef};
pub use attention::{
    ATTENTION_SCRATCH, AttentionGradient, AttentionTile, KEY_BLOCK, KEY_WALK, MAX_HEAD_DIM,
    QUERY_BLOCK,
};
pub use dropout::{DropoutKey, Place};
pub use formats::{Format, QuantMatrix, Unencodable};
pub use gate::Activation;
pub use gemm::{GEMM_SCRATCH, GRAIN, Init, Matrix, Operand, Task, Term, Tiling};
pub use head::{RowResult, RowState};
pub use normal::NormalKey;
pub use optimiser::{AdamW, EIGHT_BIT_BLOCK, eight_bit_words};
pub use philox::{PHILOX_WORDS, Philox};
pub use rope::{Rope, RopeStyle, RopeTable, Turn};
pub use tap::{TAP_GROUP, TapFormat, TapKey, TapNoise, TapRounding};
