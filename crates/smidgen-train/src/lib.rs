//! Training methods, optimisers, evaluation and generation: what is done with the programs.
//!
//! [`Base`] is an open model, [`Planned`] a run whose memory is known, [`Session`] a run that
//! trains; [`Evaluator`] scores and generates. One step of training is [`step`], top to
//! bottom.

#![forbid(unsafe_code)]

mod adapter;
mod base;
mod bench;
mod budget;
mod compare;
mod convert;
mod error;
mod evaluate;
mod generate;
mod gradient;
mod loftq;
mod method;
mod mezo;
mod optimizer;
mod planning;
mod prepare;
mod replay;
mod run;
mod schedule;
mod session;
mod side;
mod state;
pub mod step;
mod train_config;
mod tuning;

pub use adapter::{
    Adapter, AdapterNote, AdapterShape, AdapterStart, InitLoraWeights, LoraConfig, TargetModules,
};
pub use base::Base;
pub use bench::{BenchCase, BenchReport, BenchSettings, Round, bench};
pub use compare::{Curve, CurveEvaluation};
pub use convert::{Convert, Converted, ConvertedTensor, GgufKind, export_gguf};
pub use error::{Error, Kind, Result};
pub use evaluate::{Evaluation, Evaluator};
pub use generate::{Conversation, GenerateConfig};
pub use gradient::{DirectionCosines, cosine, direction_cosines, gradient};
pub use loftq::{LoftqOverBudget, LoftqReport, LoftqTensor};
pub use method::{LayerOrder, Lcsb, Method, Side};
pub use mezo::{Mezo, Projection};
pub use optimizer::{Optimizer, OptimizerConfig, StateFormat};
pub use planning::{curve_ahead, fits_ahead, measure_rates, plan_ahead};
pub use prepare::{PrepareOverBudget, PrepareReport, plan_prepare, prepare};
pub use replay::replay;
pub use run::{History, RunFolder, StepGroup};
pub use schedule::{Schedule, Shape};
pub use session::{Flow, Outcome, Planned, Session, SideStart, StepReport};
pub use side::{
    DeviceSecret, LinkError, LossOn, SampleKey, SessionName, SideConfig, SideGate, SideHead,
    SideLabel, SideLink, SideNetwork, SidePace, SideRun, SideSample, SideSamples, SideShape,
    SideSize, SideTensor,
};

pub use train_config::{Length, MemoryBudget, TrainConfig};
pub use tuning::Tuning;

pub use state::{Difference, Differences, RunState};

pub use smidgen_graph::plan::{CurvePoint, Paged, Plan, Remedy};
pub use smidgen_graph::{Budget, OverBudget, Rates, Row, Traffic};
pub use smidgen_kernels::{Format, TapFormat, TapNoise};
pub use smidgen_models::{Info, synth};
pub use smidgen_runtime::SpoolFormat;
pub use smidgen_runtime::measure::Packing;
pub use smidgen_runtime::memory;
pub use smidgen_runtime::profile::{Cost, Phase, Profile, Work};
pub use smidgen_text::{
    ChatTemplate, ChatTemplateSource, DataFiles, Dataset, FeatureNames, Fingerprint, Message,
    Order, Packs, PrepareOptions, Progress, Sequence, StreamDecoder, Summary, TokenFile,
    TokenFileHeader, TokenFileKind, Tokenizer, WindowSpec,
};
