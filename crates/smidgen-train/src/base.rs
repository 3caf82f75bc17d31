//! An open model file.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use smidgen_graph::Architecture;
use smidgen_models::Info;
use smidgen_runtime::ModelWeights;
use smidgen_runtime::memory::Meter;
use smidgen_text::{
    ChatTemplate, ChatTemplateSource, Fingerprint, GgufTokenizer, PREPARE_BYTES, PackedStrings,
    TextError, Tokenizer,
};
use smidgen_weights::{BaseModel, Gguf, Optional};

use crate::adapter::AdapterNote;
use crate::error::{Error, Result};

/// A model file with its blocks, checked and bound; its weights stay in the file.
#[derive(Debug)]
pub struct Base {
    pub(crate) path: PathBuf,
    pub(crate) info: Info,
    pub(crate) blocks: Box<dyn Architecture>,
    pub(crate) weights: Arc<ModelWeights>,
    tokenizer_json: Option<PathBuf>,
    chat_template: Option<PathBuf>,
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
        let model = smidgen_models::open(&gguf).map_err(Error::in_file(&path))?;
        let weights = ModelWeights::bind(gguf, model.blocks.as_ref());
        let weights = Arc::new(weights.map_err(Error::in_file(&path))?);
        let (info, blocks, meter) = (model.info, model.blocks, Meter::default());
        let (tokenizer_json, chat_template) = (None, None);
        Ok(Self { path, info, blocks, weights, tokenizer_json, chat_template, meter })
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

    /// The same model with the chat template of this file: a `chat_template.jinja`, or a
    /// `tokenizer_config.json` with one in it, told by its ending. The file is read when the template is asked
    /// for.
    pub fn with_chat_template(self, path: impl AsRef<Path>) -> Self {
        Self { chat_template: Some(path.as_ref().to_owned()), ..self }
    }

    /// Whether a chat template was given with [`Base::with_chat_template`].
    pub fn has_given_chat_template(&self) -> bool {
        self.chat_template.is_some()
    }

    /// The text of the model's chat template: the one given with [`Base::with_chat_template`], else
    /// that of the `chat_template.jinja` or `tokenizer_config.json` beside the tokenizer.json given
    /// with [`Base::with_tokenizer_json`], else that of the model file's metadata. None where none of
    /// them has one: the model is not one for chats.
    ///
    /// # Errors
    /// A file can't be read or is not what its name says; the given one has no template.
    pub fn chat_template_source(&self) -> Result<Option<ChatTemplateSource>> {
        if let Some(path) = &self.chat_template {
            return match template_in(path)? {
                Some(source) => Ok(Some(source)),
                None => Err(Error::setting(format!(
                    "{}: there is no chat template in it; give a chat_template.jinja or a \
                     tokenizer_config.json that has one",
                    path.display()
                ))),
            };
        }
        if let Some(path) = &self.tokenizer_json
            && let Some(source) = template_beside(path)?
        {
            return Ok(Some(source));
        }
        let gguf = self.weights.gguf();
        let of = |key: &str| gguf.str(key).optional();
        let name = self.path.display().to_string();
        let source = match of("tokenizer.chat_template")? {
            None => None,
            Some(text) => {
                let source = ChatTemplateSource::new(name, text)?;
                match of("tokenizer.chat_template.tool_use")? {
                    Some(text) => Some(source.with_tool_use(text)?),
                    None => Some(source),
                }
            }
        };
        gguf.release_header();
        Ok(source)
    }

    /// The model's chat template, if it has one, for chats of `tokenizer`.
    ///
    /// # Errors
    /// Those of [`Base::chat_template_source`], and a template that is broken.
    pub fn chat_template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        let source = self.chat_template_source()?;
        Ok(source.map(|source| ChatTemplate::new(&source, tokenizer)).transpose()?)
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

    /// The fingerprint of the model's tokenizer, which is not built for it.
    ///
    /// # Errors
    /// Those of [`Base::tokenizer`] that show without building it.
    pub fn tokenizer_fingerprint(&self) -> Result<Fingerprint> {
        let fingerprint = match &self.tokenizer_json {
            Some(path) => {
                let read = File::open(path).and_then(Tokenizer::json_fingerprint);
                read.map_err(Error::io("read", path))?
            }
            None => self.gguf_tokenizer()?.fingerprint(),
        };
        self.weights.gguf().release_header();
        Ok(fingerprint)
    }

    /// The most bytes that [`prepare`](crate::prepare) takes above what the process has for text, and
    /// with `chat` for chats of that template, from the file's metadata alone. Long lines may take more
    /// where the budget has room for more.
    ///
    /// # Errors
    /// Those of [`Base::tokenizer`] that show without building it.
    pub fn prepare_bytes(&self, chat: Option<&ChatTemplateSource>) -> Result<u64> {
        let tokenizer = match &self.tokenizer_json {
            Some(path) => json_bytes(path)?.saturating_mul(JSON_MEMORY),
            None => self.gguf_tokenizer()?.memory().map_err(Error::in_file(&self.path))?,
        };
        self.weights.gguf().release_header();
        let chat = chat.map_or(0, ChatTemplateSource::prepare_bytes);
        Ok(tokenizer.saturating_add(PREPARE_BYTES + SLACK + chat))
    }

    fn tokenizer_of(&self, path: &Path) -> Result<Tokenizer> {
        let bytes = read_json(path)?;
        let gguf = self.weights.gguf();
        let id = |name: &str| gguf.u32(&format!("tokenizer.ggml.{name}")).optional();
        let tokenizer = Tokenizer::from_json(&bytes).map_err(Error::in_file(path))?;
        let tokenizer = tokenizer.with_bos_eos(id("bos_token_id")?, id("eos_token_id")?)?;
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
        let tokenizer =
            Tokenizer::from_gguf(&self.gguf_tokenizer()?).map_err(Error::in_file(&self.path))?;
        let (tokens, rows) = (tokenizer.vocab_size(), self.info.vocabulary);
        if tokens > rows {
            let what = format!("it has {tokens} tokens, and the model's embedding {rows}");
            return Err(Error::in_file(&self.path)(TextError::BadVocabulary(what)));
        }
        self.weights.gguf().release_header();
        // What building took and gave back.
        smidgen_weights::release_free_heap();
        Ok(tokenizer)
    }

    /// What the file says of its tokenizer, in the map.
    fn gguf_tokenizer(&self) -> Result<GgufTokenizer<'_>> {
        let gguf = self.weights.gguf();
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let strings = |name: &str| -> Result<PackedStrings<'_>> {
            let strings = gguf.strings(&key(name)).optional()?;
            Ok(PackedStrings::parse(strings.map_or(&[], |strings| strings.packed()))?)
        };
        let id = |name: &str| gguf.u32(&key(name)).optional();
        let flag = |name: &str| gguf.bool(&key(name)).optional();
        Ok(GgufTokenizer {
            model: gguf.str(&key("model"))?,
            pre: gguf.str(&key("pre")).optional()?,
            tokens: strings("tokens")?,
            scores: gguf.f32_words(&key("scores")).optional()?.unwrap_or_default(),
            token_types: gguf.i32_words(&key("token_type")).optional()?.unwrap_or_default(),
            merges: strings("merges")?,
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            unk: id("unknown_token_id")?,
            pad: id("padding_token_id")?,
            add_space_prefix: flag("add_space_prefix")?,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
        })
    }

    /// Refuses what was trained on another model, as its folder's record says; notes that there is
    /// none.
    pub(crate) fn check_record(&self, folder: &Path) -> Result<Vec<AdapterNote>> {
        match BaseModel::read(folder)? {
            Some(record) if record.fingerprint != self.record()?.fingerprint => {
                let what = format!(
                    "it was trained on {} ({}), whose weights are not those of {}; give that model",
                    record.file_name,
                    record.architecture,
                    self.path.display()
                );
                Err(Error::Adapter { path: folder.to_owned(), what })
            }
            Some(_) => Ok(vec![]),
            None => Ok(vec![AdapterNote(format!(
                "{} does not say which weights it was trained on; taken as it is",
                folder.display()
            ))]),
        }
    }

    /// What tells the model's weights from all others': the file may lie elsewhere, or have another
    /// name.
    ///
    /// # Errors
    /// The file can't be read any more.
    pub fn fingerprint(&self) -> Result<smidgen_weights::Fingerprint> {
        Ok(self.weights.gguf().fingerprint()?)
    }

    /// The record of this model that is kept beside an adapter.
    pub(crate) fn record(&self) -> Result<BaseModel> {
        let file_name =
            self.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into());
        Ok(BaseModel {
            architecture: self.info.family.to_owned(),
            file_name,
            fingerprint: self.fingerprint()?,
        })
    }
}

/// Bytes that a tokenizer.json and the tokenizer made of it take, for each byte of the file.
const JSON_MEMORY: u64 = 30;

/// Stacks, the allocator's own tables and what pages are not full of.
const SLACK: u64 = 64 << 10;

/// The size of a tokenizer.json.
fn json_bytes(path: &Path) -> Result<u64> {
    /// No tokenizer.json comes near this.
    const LARGEST: u64 = 256 << 20;
    let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    if size > LARGEST {
        let what = format!("{}: {size} bytes are too many for a tokenizer.json", path.display());
        return Err(Error::setting(what));
    }
    Ok(size)
}

fn read_json(path: &Path) -> Result<Vec<u8>> {
    json_bytes(path)?;
    std::fs::read(path).map_err(Error::io("read", path))
}

/// The chat template in the file at `path`: in JSON, or the file itself.
fn template_in(path: &Path) -> Result<Option<ChatTemplateSource>> {
    /// No file with a template comes near this.
    const LARGEST: u64 = 64 << 20;
    if !std::fs::metadata(path).map_err(Error::io("read", path))?.is_file() {
        return Err(Error::setting(format!("{}: not a regular file", path.display())));
    }
    let file = File::open(path).map_err(Error::io("read", path))?.take(LARGEST);
    let name = path.display().to_string();
    if path.extension().is_some_and(|extension| extension == "json") {
        return Ok(ChatTemplateSource::from_config(name, BufReader::new(file))?);
    }
    let mut text = String::new();
    // One more than is taken, so that a longer one is told.
    let mut file = file.take(ChatTemplateSource::LONGEST as u64 + 1);
    file.read_to_string(&mut text).map_err(Error::io("read", path))?;
    Ok(Some(ChatTemplateSource::new(name, text)?))
}

/// The chat template in one of the files that Hugging Face keeps beside the tokenizer at `path`.
fn template_beside(path: &Path) -> Result<Option<ChatTemplateSource>> {
    let there = |name: &str| match template_in(&path.with_file_name(name)) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        found => found,
    };
    let Some(source) = there("chat_template.jinja")? else {
        return there("tokenizer_config.json");
    };
    Ok(Some(match there("additional_chat_templates/tool_use.jinja")? {
        Some(tools) => source.with_tool_use(tools.text())?,
        None => source,
    }))
}
