//! An open model file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use smidgen_graph::Architecture;
use smidgen_models::Info;
use smidgen_runtime::ModelWeights;
use smidgen_text::{GgufTokenizer, Tokenizer};
use smidgen_weights::{BaseModel, Gguf, Optional};

use crate::error::Result;

/// A model file with its blocks, checked and bound; its weights stay in the file.
#[derive(Debug)]
pub struct Base {
    pub(crate) path: PathBuf,
    pub(crate) info: Info,
    pub(crate) blocks: Box<dyn Architecture>,
    pub(crate) weights: Arc<ModelWeights>,
}

impl Base {
    /// Opens a GGUF file.
    ///
    /// # Errors
    /// The file can't be read, is damaged, or its family or one of its tensors is not known.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let gguf = Gguf::open(&path)?;
        let model = smidgen_models::open(&gguf)?;
        let weights = Arc::new(ModelWeights::bind(gguf, model.blocks.as_ref())?);
        Ok(Self { path, info: model.info, blocks: model.blocks, weights })
    }

    /// What the model is.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The model's blocks, as the planner takes them.
    pub fn blocks(&self) -> &dyn Architecture {
        self.blocks.as_ref()
    }

    /// The model's weights, as the engine takes them.
    pub fn weights(&self) -> &Arc<ModelWeights> {
        &self.weights
    }

    /// The model's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file that are mapped at a time while training.
    pub fn window_bytes(&self) -> u64 {
        self.weights.window_bytes()
    }

    /// The tokenizer in the file's metadata.
    ///
    /// # Errors
    /// A kind that is not known, or metadata that makes no sense.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let gguf = self.weights.gguf();
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let strings = |name: &str| -> Result<Vec<String>> {
            let Some(strings) = gguf.strings(&key(name)).optional()? else { return Ok(vec![]) };
            Ok(strings.map(|s| s.map(str::to_owned)).collect::<std::result::Result<_, _>>()?)
        };
        let id = |name: &str| gguf.u32(&key(name)).optional();
        let flag = |name: &str| gguf.bool(&key(name)).optional();
        let file = GgufTokenizer {
            model: gguf.str(&key("model"))?.to_owned(),
            pre: gguf.str(&key("pre")).optional()?.map(str::to_owned),
            tokens: strings("tokens")?,
            scores: gguf.f32s(&key("scores")).optional()?.map_or(vec![], Iterator::collect),
            token_types: gguf
                .i32s(&key("token_type"))
                .optional()?
                .map_or(vec![], Iterator::collect),
            merges: strings("merges")?,
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            unk: id("unknown_token_id")?,
            pad: id("padding_token_id")?,
            add_space_prefix: flag("add_space_prefix")?,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
        };
        let tokenizer = Tokenizer::from_gguf(file)?;
        gguf.release_header();
        Ok(tokenizer)
    }

    /// The record of this model that is kept beside an adapter.
    pub(crate) fn record(&self) -> Result<BaseModel> {
        let file_name =
            self.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into());
        Ok(BaseModel {
            architecture: self.info.family.to_owned(),
            file_name,
            fingerprint: self.weights.gguf().fingerprint()?,
        })
    }
}
