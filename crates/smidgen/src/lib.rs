//! Fine-tune a language model inside a memory budget you name.
//!
//! A run goes through four types:
//!
//! | type | what it is | to the next |
//! |---|---|---|
//! | [`Base`] | an open GGUF model; its weights stay in the file | [`open_data`], then [`Planned::new`] |
//! | [`Planned`] | a run whose memory is known, buffer by buffer, and within the budget | [`Planned::start`] |
//! | [`Session`] | a run that trains: step, pause, evaluate, save | [`Session::finish`] |
//! | [`Evaluator`] | a model with an adapter, to score and to generate | |
//!
//! ```
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//! use std::time::Duration;
//!
//! use smidgen::{
//!     Base, DataOptions, FeatureNames, Flow, Length, MemoryBudget, Outcome, Planned, TrainConfig,
//!     WindowSpec, open_data,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo"));
//! # let temporary = tempfile::tempdir()?;
//! # let folder = temporary.path();
//! // Set by the host's cancel button, from any thread.
//! let cancel = AtomicBool::new(false);
//!
//! let base = Base::open(demo.join("demo.gguf"))?;
//! let window = WindowSpec { max_seq_length: 64, chunks: None, bos: false, single_token: false };
//! let memory = MemoryBudget::Bytes(64_000_000);
//! let features = FeatureNames::default();
//! let options = DataOptions { window, mask_prompt: Some(true), features, memory };
//! let tokens = folder.join("train.tokens");
//! let data =
//!     open_data(&base, &demo.join("train.jsonl"), &options, &tokens, &cancel, &mut |_| {})?;
//!
//! // The peak is known, and refused if it is too much, before anything is allocated.
//! let config = TrainConfig {
//!     length: Length::Iters(4),
//!     learning_rate: 3e-3,
//!     memory,
//!     ..TrainConfig::default()
//! };
//! let planned = Planned::new(base, data.dataset, 0, config)?;
//! for row in &planned.plan().rows {
//!     println!("{:24} {:>12} {}", row.name, row.bytes, row.why);
//! }
//! assert!(planned.plan().peak_bytes <= 64_000_000);
//!
//! // Steps in slices: after each step the host goes on, pauses, or gives the memory back.
//! let mut session = planned.start()?;
//! let system_is_short_of_memory = || true;
//! loop {
//!     let slice = Some(Duration::from_secs(5));
//!     let outcome = session.run(slice, &cancel, &mut |_, report| {
//!         println!("step {} of {}: loss {:.3}", report.step, report.steps, report.loss);
//!         Ok(if system_is_short_of_memory() { Flow::Release } else { Flow::Continue })
//!     })?;
//!     if outcome == Outcome::Finished {
//!         break;
//!     }
//! }
//!
//! // The loss with the adapter as it is, within the same plan; then a PEFT folder.
//! let valid =
//!     open_data(&session.base(), &tokens, &options, &tokens, &cancel, &mut |_| {})?.dataset;
//! let scored = session.evaluate(&valid, &cancel)?;
//! println!("loss {:.3}, perplexity {:.1}", scored.loss, scored.perplexity());
//! session.save(&folder.join("adapter"))?;
//! # assert!(folder.join("adapter/adapter_model.safetensors").is_file());
//! # Ok(())
//! # }
//! ```
//!
//! # What a host can rely on
//! - Nothing here prints, reads the environment, spawns a process, exits or sets global state.
//!   Threads are those that [`TrainConfig::threads`] asks for.
//! - Every long call takes a `cancel` flag. A step that is cancelled has either changed nothing or
//!   is finished first; [`Error::kind`] is then [`Kind::Cancelled`].
//! - Progress comes as callbacks on the calling thread: [`open_data`] after every part of the
//!   text, [`Session::run`] after every step, [`Evaluator::evaluate`] after every pass.
//! - [`Flow::Release`] and [`Session::release`] give all memory but the adapter and the optimiser's
//!   state back; the next step makes it anew and gets the same numbers.
//! - Losses depend on neither [`TrainConfig::threads`] nor [`TrainConfig::memory`], bit for bit.

#![forbid(unsafe_code)]

mod data;
mod logits;

pub use data::{DataOptions, OpenData, is_token_file, open_data};
pub use logits::write_logits;

// Errors.
pub use smidgen_train::{
    Difference, Differences, Error, Kind, LoftqOverBudget, OverBudget, PrepareOverBudget, Result,
};

// Models and adapters.
pub use smidgen_train::{
    Adapter, AdapterNote, AdapterShape, AdapterStart, Base, Info, InitLoraWeights, LoftqReport,
    LoftqTensor, LoraConfig, TargetModules,
};

// Data.
pub use smidgen_train::{
    ChatTemplate, ChatTemplateSource, DataFiles, Dataset, FeatureNames, Fingerprint, Message,
    Packs, PrepareReport, Progress, Sequence, StreamDecoder, Summary, TokenFile, TokenFileHeader,
    TokenFileKind, Tokenizer, WindowSpec,
};

// A run.
pub use smidgen_train::{
    Flow, History, LayerOrder, Lcsb, Length, Method, Mezo, OptimizerConfig, Outcome, Planned,
    Projection, RunFolder, RunState, Session, Shape, StateFormat, StepGroup, StepReport,
    TrainConfig, replay,
};

// Methods beside each other.
pub use smidgen_train::{
    Curve, CurveEvaluation, DirectionCosines, cosine, direction_cosines, gradient,
};

// Its memory.
pub use smidgen_train::{
    Budget, CurvePoint, MemoryBudget, Paged, Plan, Rates, Remedy, Row, SpoolFormat, Traffic,
    curve_ahead, fits_ahead, measure_rates, memory, plan_ahead, plan_prepare,
};

// Measuring, and models of true shapes with random weights to measure on.
pub use smidgen_train::{
    BenchCase, BenchReport, BenchSettings, Cost, Packing, Phase, Profile, Round, Work, bench, synth,
};

// Models and adapters as other files.
pub use smidgen_train::{Convert, Converted, ConvertedTensor, Format, GgufKind, export_gguf};

// Side networks.
pub use smidgen_train::{
    DeviceSecret, LinkError, LossOn, SampleKey, SessionName, Side, SideConfig, SideGate, SideLabel,
    SideLink, SideNetwork, SidePace, SideSample, SideShape, SideStart, SideTensor, TapFormat,
    TapNoise, Tuning,
};

// The device's way to a server that trains them.
#[cfg(feature = "client")]
pub use smidgen_remote::{ClientIdentity, RemoteConfig, RemoteError, RemoteLink, RemoteSession};

// That server.
#[cfg(feature = "server")]
pub use smidgen_remote::{Limits, Server, ServerConfig, ServerError, ServerTls, Token};

// Scoring and generating.
pub use smidgen_train::{Conversation, Evaluation, Evaluator, GenerateConfig};
