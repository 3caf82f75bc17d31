//! Side tuning between a device that runs a frozen model forward and a server that trains the side
//! network.
//!
//! - feature `client`: [`RemoteLink`], a device's link to a server.
//! - feature `server`: [`SideTrainer`], the side network trained by a tensor library with automatic
//!   differentiation; [`LocalLink`], which has it in the device's process; [`Server`], which has many
//!   of them for devices elsewhere.
//!
//! What goes over the wire is [`proto`].

#![forbid(unsafe_code)]

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "server")]
mod error;
#[cfg(feature = "server")]
mod local;
pub mod proto;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod trainer;

#[cfg(feature = "client")]
pub use client::{ClientIdentity, RemoteConfig, RemoteError, RemoteLink, RemoteSession};
#[cfg(feature = "server")]
pub use error::{Error, Result};
#[cfg(feature = "server")]
pub use local::LocalLink;
#[cfg(feature = "server")]
pub use server::{Limits, Server, ServerConfig, ServerError, ServerTls, Token};
#[cfg(feature = "server")]
pub use trainer::{SideTrainer, TrainerState};
