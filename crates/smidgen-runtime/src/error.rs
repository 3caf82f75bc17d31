//! What can go wrong while a program runs.

/// The result of running.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while a program runs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model file can't be read, or lacks a tensor.
    #[error(transparent)]
    Weights(#[from] smidgen_weights::Error),
    /// A tensor has another shape than the model's configuration says.
    #[error(
        "tensor {tensor} has {found_rows} x {found_cols} numbers where the model's metadata asks \
         for {rows} x {cols}; the file is damaged or of an unknown variant"
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// Rows in the file.
        found_rows: usize,
        /// Columns in the file.
        found_cols: usize,
        /// Rows expected.
        rows: usize,
        /// Columns expected.
        cols: usize,
    },
    /// A tensor that no block of the family reads.
    #[error(
        "tensor {tensor} is not one that this family uses, so training without it would train \
         another model; the file is of an unknown variant"
    )]
    Unused {
        /// The tensor.
        tensor: String,
    },
    /// The scratch file can't be made, written or read.
    #[error(
        "the scratch file in {} failed: {source}; make room there, name another folder, or give \
         more memory", .folder.display()
    )]
    Spool {
        /// Where it is.
        folder: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A token that the model does not have.
    #[error(
        "token id {id} is beyond the model's vocabulary of {vocabulary}; the data was prepared for \
         another model: prepare it again with this one"
    )]
    Token {
        /// The token.
        id: u32,
        /// Number of tokens.
        vocabulary: usize,
    },
    /// A position that the model's table does not have.
    #[error(
        "position {position} is beyond the {positions} that the model has a place for; shorten the \
         sequences to that many tokens"
    )]
    Position {
        /// The position, from 0.
        position: usize,
        /// Number of positions.
        positions: usize,
    },
    /// A pass without a token.
    #[error("there is no token to run")]
    Empty,
    /// A pass longer than the plan.
    #[error("a pass of {rows} tokens does not fit a plan for {planned}")]
    Length {
        /// Rows of the pass.
        rows: usize,
        /// Rows planned.
        planned: usize,
    },
    /// A number became infinite or not a number.
    #[error(
        "the loss is {loss} at {place}; lower the learning rate, or check that the model file is \
         whole"
    )]
    NotFinite {
        /// What came out.
        loss: f64,
        /// Where.
        place: String,
    },
    /// The caller asked to stop.
    #[error("stopped before the step was done; nothing of it was applied")]
    Cancelled,
    /// The system has not that much memory.
    #[error("the system gives no {bytes} bytes of memory; name a smaller budget with --memory")]
    Memory {
        /// How many bytes were asked for.
        bytes: usize,
    },
    /// The threads can't be started.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// The system's word.
        reason: String,
    },
}
