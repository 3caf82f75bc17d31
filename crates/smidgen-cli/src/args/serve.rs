//! Flags of serve.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::train::Bytes;

/// A server of side tuning.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Keep sessions, taps and the list of tokens in this folder
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// Compute losses with this GGUF model, for devices that have the same one and say `--loss-on
    /// server`; of its file only the head's part is read
    #[arg(short, long, value_name = "FILE.gguf")]
    pub model: Option<PathBuf>,
    /// Listen here; beyond this machine only with a certificate
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7733")]
    pub listen: SocketAddr,
    /// Print a new token for a device or its owner, put its hash on the list, and end
    #[arg(long, value_name = "NAME")]
    pub new_token: Option<String>,
    /// The certificate, PEM, with those between it and its authority
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Take only devices with a certificate of this authority, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub client_ca: Option<PathBuf>,
    /// The most that taps take on the disk, which are then sent once; the longest unused go first
    #[arg(long, value_name = "BYTES", default_value = "10GB")]
    pub cache: Bytes,
    /// Tell Prometheus of the server at http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// Sessions that are worked for at the same time [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub workers: Option<u32>,
    /// How the server tells what it does, on stderr
    #[arg(long, value_name = "FORM", value_enum, default_value_t = LogForm::Text)]
    pub log: LogForm,
    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Limits")]
    pub connections: usize,
    /// Sessions of a token
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Limits")]
    pub sessions: u64,
    /// Numbers of a side network
    #[arg(long, value_name = "N", default_value_t = 64_000_000, help_heading = "Limits")]
    pub parameters: u64,
    /// Positions of a sample that are tapped
    #[arg(long, value_name = "N", default_value_t = 8192, help_heading = "Limits")]
    pub rows: u64,
    /// Samples of a step
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Limits")]
    pub samples: u64,
    /// Steps of a session that are under way
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Limits")]
    pub steps: u64,
    /// Taps of such steps in memory
    #[arg(long, value_name = "BYTES", default_value = "512MB", help_heading = "Limits")]
    pub tap_memory: Bytes,
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogForm {
    /// For people
    Text,
    /// An object a line
    Json,
}
