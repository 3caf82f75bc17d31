//! The block graph, its reverse-mode differentiation and the plan.
//!
//! Only integers, shapes and names live here: no tensor's data, no file, no thread. A model
//! family writes a [`Block`] with a [`BlockBuilder`]; [`differentiate`] turns it into steps;
//! [`schedule`] decides what is made again; [`layout`] gives every value a place; the planner
//! chooses what to keep under a budget and adds up the peak.

#![forbid(unsafe_code)]

mod autodiff;
mod block;
mod cost;
pub mod layout;
pub mod ops;
pub mod plan;
pub mod schedule;
mod step;
mod table;

pub use autodiff::{Differentiated, differentiate};
pub use block::{
    Block, BlockBuilder, Factor, Life, Lora, LoraSpec, Node, ParamId, ParamSlot, Projection, Site,
    Value, ValueId, WeightId, WeightSlot,
};
pub use cost::Rates;
pub use plan::{
    Architecture, Backward, Budget, Gradients, OptimizerState, OverBudget, Paged, Plan, Request,
    Row, Traffic, WeightPages,
};
pub use step::{
    Access, Activation, AttentionShape, RopeShape, RopeStyle, Source, Start, Step, Term,
};

/// Length of a grain of a reduction, as the GEMM cuts it. Tiles of a reduction are whole grains,
/// so that a sum has one order whatever the tile.
pub const GRAIN: usize = 256;
