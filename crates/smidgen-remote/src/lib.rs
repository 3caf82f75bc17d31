//! The server's part of side tuning: the side network, trained from taps by a tensor library with
//! automatic differentiation, on a CPU or on what else that library runs on.

#![forbid(unsafe_code)]

mod error;
mod local;
mod trainer;

pub use error::{Error, Result};
pub use local::LocalLink;
pub use trainer::SideTrainer;
