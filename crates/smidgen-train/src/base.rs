//! An open model file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use smidgen_graph::Architecture;
use smidgen_models::Info;
use smidgen_runtime::ModelWeights;
use smidgen_runtime::memory::Meter;
use smidgen_text::{GgufTokenizer, Tokenizer};
use smidgen_weights::{BaseModel, Gguf, Optional};

use crate::error::{Error, Result};

/// A model file with its blocks, checked and bound; its weights stay in the file.
#[derive(Debug)]
pub struct Base {
    pub(crate) path: PathBuf,
    pub(crate) info: Info,
    pub(crate) blocks: Box<dyn Architecture>,
    pub(crate) weights: Arc<ModelWeights>,
    tokenizer_json: Option<PathBuf>,
    meter: Meter,
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
        let (info, blocks, meter) = (model.info, model.blocks, Meter::default());
        Ok(Self { path, info, blocks, weights, tokenizer_json: None, meter })
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

    /// Watches what the process takes. What is done with the model (preparing, a run, scoring) has a
    /// meter of its own, made from this one by [`Meter::next_run`]; they share its trace.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// The same model, watched by another meter: one that sees made-up readings, in tests.
    pub fn with_meter(self, meter: Meter) -> Self {
        Self { meter, ..self }
    }

    /// The same model with the tokenizer of a Hugging Face `tokenizer.json` in place of the one in
    /// the file's metadata, which goes on saying which ids are BOS and EOS. The file is read when
    /// the tokenizer is asked for.
    pub fn with_tokenizer_json(self, path: impl AsRef<Path>) -> Self {
        Self { tokenizer_json: Some(path.as_ref().to_owned()), ..self }
    }

    /// The model's tokenizer: the one given with [`Base::with_tokenizer_json`], else that of the
    /// file's metadata.
    ///
    /// # Errors
    /// A kind that is not known, or metadata or a tokenizer.json that makes no sense.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.tokenizer_json {
            Some(path) => self.tokenizer_of(path),
            None => self.own_tokenizer(),
        }
    }

    fn tokenizer_of(&self, path: &Path) -> Result<Tokenizer> {
        /// No tokenizer.json comes near this.
        const LARGEST: u64 = 256 << 20;
        let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        if size > LARGEST {
            let what =
                format!("{}: {size} bytes are too many for a tokenizer.json", path.display());
            return Err(Error::setting(what));
        }
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let gguf = self.weights.gguf();
        let id = |name: &str| gguf.u32(&format!("tokenizer.ggml.{name}")).optional();
        let tokenizer =
            Tokenizer::from_json(&bytes)?.with_bos_eos(id("bos_token_id")?, id("eos_token_id")?)?;
        if tokenizer.vocab_size() > self.info.vocabulary {
            return Err(Error::setting(format!(
                "{} has {} tokens and the model {}; give the tokenizer.json of this model",
                path.display(),
                tokenizer.vocab_size(),
                self.info.vocabulary
            )));
        }
        Ok(tokenizer)
    }

    fn own_tokenizer(&self) -> Result<Tokenizer> {
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
