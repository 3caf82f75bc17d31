//! Flags of side tuning.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::train::Bytes;

/// Side tuning: a server trains a network beside the model, and this machine only runs forward.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Side tuning (--method side)")]
pub struct SideArgs {
    /// The server that trains, as `smidgen serve` starts one: https://HOST:PORT, or http:// on this
    /// machine
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// The certificates that the server's is to be signed by, PEM [default: those of the web]
    #[arg(long, value_name = "FILE", requires = "server")]
    pub server_ca: Option<PathBuf>,
    /// The file that holds the token for the server
    #[arg(long, value_name = "FILE", requires = "server")]
    pub server_token: Option<PathBuf>,
    /// This device's own certificate, PEM, for a server that asks for one
    #[arg(long, value_name = "FILE", requires_all = ["server", "client_key"])]
    pub client_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,
    /// How long a server that can't be reached is tried again [default: 600]
    #[arg(long, value_name = "SECONDS", requires = "server")]
    pub retry_for: Option<u64>,
    /// 32 secret bytes that runs of this device share, so that the server knows samples again whose
    /// taps it has; made where the file is missing [default: one for each run, in its folder]
    #[arg(long, value_name = "FILE", requires = "server")]
    pub device_secret: Option<PathBuf>,
    /// Who computes the loss [default: device]: `server` tells it the tokens that are to follow, so
    /// nothing waits for its answer; the server has to have the same model (`serve -m`)
    #[arg(long, value_name = "WHERE", value_enum)]
    pub loss_on: Option<LossOnName>,
    /// The lowest layer behind which hidden states are sent, from 0 [default: half-way up]
    #[arg(long, value_name = "LAYER")]
    pub first_tap: Option<usize>,
    /// Every so many layers from there on, and the last [default: 1]
    #[arg(long, value_name = "N")]
    pub tap_every: Option<usize>,
    /// Bits of a number that is sent: 16, 8 or 4 [default: 16]
    #[arg(long, value_name = "BITS")]
    pub tap_bits: Option<usize>,
    /// Add normal noise to what is sent, so large against the root mean square of a position's hidden
    /// state; docs/threat-model.md has what that hides and what not [default: 0]
    #[arg(long, value_name = "SIGMA", allow_negative_numbers = true)]
    pub tap_noise: Option<f32>,
    /// Cut what is sent off at so many root mean squares before that [default: not]
    #[arg(long, value_name = "CLIP", allow_negative_numbers = true)]
    pub tap_clip: Option<f32>,
    /// Numbers inside one of the network's adapters [default: 64]
    #[arg(long, value_name = "N")]
    pub side_width: Option<usize>,
    /// The network is so many times narrower than the model [default: 1]
    #[arg(long, value_name = "K")]
    pub side_reduction: Option<usize>,
    /// How hidden states join the network [default: sum]
    #[arg(long, value_name = "GATE", value_enum)]
    pub side_gate: Option<SideGateName>,
    /// Steps whose hidden states are sent ahead of the one whose answer is waited for [default: 2];
    /// it changes the speed, never the result
    #[arg(long, value_name = "N")]
    pub window: Option<usize>,
    /// What to do once the server is lost for longer than --retry-for: `local` goes on here, by the
    /// exact gradient of a LoRA adapter in DIR/local, for the steps that are left
    #[arg(long, value_name = "HOW", value_enum, requires = "server")]
    pub fallback: Option<Fallback>,
    /// The most that the scratch file keeps of samples that come again, which then need no pass
    /// through the layers, as --memory takes it [default: 1GB]
    #[arg(long, value_name = "BYTES")]
    pub keep_hidden: Option<Bytes>,
}

/// Who computes the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LossOnName {
    /// This machine: text, tokens and labels stay here
    Device,
    /// The server, which is trusted with labels
    Server,
}

/// What a run does without its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fallback {
    /// It trains an adapter here
    Local,
}

/// How a tap joins the network's own stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SideGateName {
    /// It is added
    Sum,
    /// A learned share of each
    Ladder,
}
