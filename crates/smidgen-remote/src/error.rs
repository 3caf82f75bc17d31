//! What can go wrong while a side network is trained.

/// The result of training.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while a side network is trained.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tensor library failed: memory, or the device it runs on.
    #[error("the side network can't be computed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A message's sizes contradict each other or the network.
    #[error("{found} {what} where {expected} are due")]
    Size {
        /// Bytes of taps, numbers of an output or of a gradient.
        what: &'static str,
        /// How many came.
        found: usize,
        /// How many should have.
        expected: usize,
    },
    /// A gradient for a sample whose output was not asked for in this step.
    #[error("sample {sample} has no output that waits for its gradient")]
    NoOutput {
        /// The sample.
        sample: u64,
    },
    /// The loss can't be computed: a label is none of the model's tokens, or the loss is not finite.
    #[error("the loss: {0}")]
    Loss(smidgen_train::Error),
    /// There is no head to compute a loss through.
    #[error("labels are given where no loss is computed")]
    NoHead,
    /// A number is infinite or no number.
    #[error("{what}: some are not finite; lower the learning rate")]
    NotFinite {
        /// Taps, a gradient, or the network.
        what: &'static str,
    },
}

impl From<Error> for smidgen_train::LinkError {
    fn from(error: Error) -> Self {
        Self::failed(error)
    }
}
