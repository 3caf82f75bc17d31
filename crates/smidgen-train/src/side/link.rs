//! Between the device and what trains the side network.

use std::fmt;

/// How the trainer knows a sample: the same key always stands for the same taps. It says nothing of
/// what is in it to whom does not know the device's secret.
pub type SampleKey = [u8; 16];

/// A sample of a step, as the trainer is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SideSample {
    /// Which one.
    pub key: SampleKey,
    /// Positions that are tapped, at least 1.
    pub rows: usize,
}

/// A tapped position, as a trainer is told of it that computes the loss itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SideLabel {
    /// The token that is to follow.
    pub target: u32,
    /// Root mean square of the last hidden state: what its tap was divided by.
    pub rms: f32,
}

/// Why a link did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The trainer began anew from the last step whose update it had confirmed: all later steps are
    /// to be begun again, and end the same.
    #[error("the trainer lost the steps that it had not confirmed")]
    StartedAnew,
    /// The trainer can't be reached, and the caller asked to stop: it is not waited for. What it had
    /// confirmed is safe.
    #[error(transparent)]
    Stopped(Box<dyn std::error::Error + Send + Sync>),
    /// It can't go on.
    #[error(transparent)]
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl LinkError {
    /// A failure for good.
    pub fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }
}

/// Where a side network is trained: in this process, or on a server.
///
/// Steps are begun in order, and a few may be under way: the taps of the next ones are given while
/// the trainer is at work. Of each step, the device begins it and gives the taps that are wanted;
/// takes the network's output for each sample, which the trainer computes once all earlier steps are
/// done; gives the gradient of each, and the update; and waits until that is confirmed. With
/// [`super::LossOn::Trainer`] it gives the labels of each sample in place of taking an output.
pub trait SideLink: fmt::Debug + Send {
    /// Steps whose update is confirmed: the next one to begin is one more.
    ///
    /// # Errors
    /// The link's own.
    fn confirmed(&mut self) -> Result<u64, LinkError>;

    /// Begins the step `step`, from 1, over these samples. Tells which of them the taps are wanted
    /// of: the trainer may have others' from before.
    ///
    /// # Errors
    /// The link's own.
    fn begin(&mut self, step: u64, samples: &[SideSample]) -> Result<Vec<bool>, LinkError>;

    /// Gives the next bytes of the taps of a step's sample, by its place in the step: for each
    /// tapped layer in order, `rows` rows as [`smidgen_kernels::TapFormat::encode`] makes them, cut
    /// anywhere.
    ///
    /// # Errors
    /// The link's own.
    fn taps(&mut self, step: u64, place: usize, bytes: &[u8]) -> Result<(), LinkError>;

    /// Tells what the loss of a step's sample is computed from, beside the taps of its last layer: c,
    /// and a label for each of its rows.
    ///
    /// # Errors
    /// The link's own; the trainer computes no losses.
    fn labels(
        &mut self,
        step: u64,
        place: usize,
        scale: f32,
        labels: &[SideLabel],
    ) -> Result<(), LinkError>;

    /// Waits for the next numbers of the network's output for a sample, rows x hidden. Steps in
    /// order, places in order, each to its end.
    ///
    /// # Errors
    /// The link's own.
    fn output(&mut self, step: u64, place: usize, output: &mut [f32]) -> Result<(), LinkError>;

    /// Gives the next numbers of the gradient of such an output, of the mean loss over the step's
    /// targets: as many as were taken of it, at most.
    ///
    /// # Errors
    /// The link's own.
    fn gradient(&mut self, step: u64, place: usize, gradient: &[f32]) -> Result<(), LinkError>;

    /// Has the network moved by the step's gradients, for which all was given, at this rate. Need not
    /// wait for it.
    ///
    /// # Errors
    /// The link's own.
    fn update(&mut self, step: u64, rate: f64) -> Result<(), LinkError>;

    /// Waits until the step's update is done and not lost whatever happens to the trainer. Returns the
    /// sum of the losses over the step's targets before it, if the trainer computes them; asked again,
    /// it says the same.
    ///
    /// # Errors
    /// The link's own.
    fn confirm(&mut self, step: u64) -> Result<Option<f64>, LinkError>;

    /// The numbers of the network after the last confirmed step, in the order of
    /// [`super::SideShape::tensors`], given to `take` in pieces of any size.
    ///
    /// # Errors
    /// The link's own.
    fn numbers(&mut self, take: &mut dyn FnMut(&[f32])) -> Result<(), LinkError>;
}
