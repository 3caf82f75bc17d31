//! Side tuning: a small network beside the frozen model, which reads hidden states behind its
//! layers (taps) and adds to the last of them. The model only runs forward.
//!
//! The idea is MobiLLM's (arXiv 2502.20421, PAE MobiLLM 2507.01216): parallel adapters that are
//! decoupled from the backbone, so that a device which runs it and a server which trains them can
//! be two machines. The papers leave the network's exact form open; this one is
//!
//! ```text
//! x_l = h_l / RMS(h_l)                  the tap behind layer l, quantised as TapFormat says
//! s_0 = 0
//! u_l = P_l x_l + s_{l-1}               SideGate::Sum
//! u_l = m P_l x_l + (1 - m) s_{l-1}     SideGate::Ladder, m = sigmoid(10 a_l), a_l = 0 at first
//! s_l = s_{l-1} + U_l silu(D_l u_l)     U_l zero at first
//! logits = head(norm(h_L + c E s_L))    c: RMS of h_L over the first step, fixed from then on
//! ```
//!
//! with D_l `[width, d]`, U_l `[d, width]`. With [`SideConfig::reduction`] k above 1 the network is
//! d / k wide, P_l `[d / k, d]` and E `[d, d / k]`; with 1 there is neither. Since U is zero at
//! first, training begins exactly at the pre-trained model. Every position is by itself, so only
//! those are tapped that have a target, or whose next token is wanted.

mod files;
mod head;
mod hidden;
mod identity;
mod link;
mod network;
mod run;
mod shape;

pub use head::SideHead;
pub use identity::{DeviceSecret, SessionName};
pub use link::{LinkError, SampleKey, SideLabel, SideLink, SideSample};
pub(crate) use network::SideForward;
pub use network::SideNetwork;
pub use run::{SidePace, SideRun, SideSamples, SideSize};
pub use shape::{SideShape, SideTensor};

use std::fmt;

use smidgen_kernels::TapFormat;

use crate::error::{Error, Result};

/// Who computes the loss of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LossOn {
    /// The device, through its own head: what the trainer gets is the gradient of its output.
    #[default]
    Device,
    /// The trainer, which is told the tokens that are to follow and has the model's head; the last
    /// hidden state is to it what the tap of the last layer holds. Nothing waits for an output: the
    /// transfer is one-way, as MobiLLM's.
    Trainer,
}

/// What kind of side network, and what is read for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideConfig {
    /// The lowest layer that is tapped, from 0.
    pub first_tap: usize,
    /// Every so many layers from there on one is tapped; the last one always is.
    pub every: usize,
    /// Numbers inside an adapter.
    pub width: usize,
    /// The network is so many times narrower than the model, k.
    pub reduction: usize,
    /// How a tap joins the network.
    pub gate: SideGate,
    /// How taps are held and sent.
    pub format: TapFormat,
}

/// How a tap joins the network's own stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SideGate {
    /// It is added.
    #[default]
    Sum,
    /// A learned share of each: the ladder of arXiv 2206.06522 and PAE MobiLLM.
    Ladder,
}

impl fmt::Display for SideConfig {
    /// All of it, as the flags name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first_tap, every, width, reduction, gate, format } = self;
        write!(
            f,
            "taps from layer {first_tap}, every {every}, {} bits; width {width}",
            format.bits()
        )?;
        if *reduction > 1 {
            write!(f, ", reduction {reduction}")?;
        }
        f.write_str(match gate {
            SideGate::Sum => ", sum",
            SideGate::Ladder => ", ladder",
        })
    }
}

impl SideConfig {
    /// The usual settings for a model of `layers` layers: the upper half of them tapped.
    pub fn usual(layers: usize) -> Self {
        Self {
            first_tap: layers / 2,
            every: 1,
            width: 64,
            reduction: 1,
            gate: SideGate::Sum,
            format: TapFormat::F16,
        }
    }

    /// The layers behind which the stream is read, in order.
    pub fn tapped(&self, layers: usize) -> Vec<usize> {
        let last = layers.saturating_sub(1);
        let below = (self.first_tap..last).step_by(self.every.max(1));
        below.chain([last]).collect()
    }

    /// Refuses what can't be in a model of `layers` layers and `hidden` numbers a token.
    pub(crate) fn check(&self, layers: usize, hidden: usize) -> Result<()> {
        let Self { first_tap, every, width, reduction, .. } = *self;
        if first_tap >= layers {
            return Err(Error::setting(format!(
                "--first-tap {first_tap}: the model's layers are 0 to {}",
                layers.saturating_sub(1)
            )));
        }
        if every == 0 {
            return Err(Error::setting("--tap-every 0: it is at least 1"));
        }
        if !(1..=1 << 14).contains(&width) {
            return Err(Error::setting(format!("--side-width {width}: it lies in 1 to 16384")));
        }
        if reduction == 0 || !hidden.is_multiple_of(reduction) {
            return Err(Error::setting(format!(
                "--side-reduction {reduction}: it divides the model's width, {hidden}"
            )));
        }
        Ok(())
    }
}
