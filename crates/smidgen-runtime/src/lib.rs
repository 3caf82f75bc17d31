//! Runs a planned program: one arena, weights paged in block by block, work cut into tiles of
//! outputs for a pool of threads, and a meter of the process's memory.
//!
//! Nothing here knows a model family or a training method.

#![cfg_attr(not(target_vendor = "apple"), forbid(unsafe_code))]
// One call of the system, in memory/apple.rs.
#![cfg_attr(target_vendor = "apple", deny(unsafe_code))]

mod arena;
mod band;
mod cache;
mod engine;
mod error;
mod exec;
pub mod measure;
pub mod memory;
mod numbers;
mod pass;
mod pool;
pub mod profile;
mod rates;
mod spool;
mod taps;
mod weights;

pub use cache::KvCache;
pub use engine::{Engine, OnBlock, Settings, fixed_rows, sealed};
pub use error::{Error, Result};
pub use numbers::{Factors, Numbers};
pub use pass::{Dropout, Pass, Segment, SegmentLoss};
pub use pool::Pool;
pub use rates::measure_rates;
pub use spool::{Spool, SpoolFormat};
pub use taps::Taps;
pub use weights::ModelWeights;
