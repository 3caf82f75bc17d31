//! The one tokenizer type the rest of the program sees.

use std::ops::Range;
use std::{fmt, io};

use crate::bpe::{BpeModel, Word};
use crate::cut::CutRule;
use crate::decode::StreamDecoder;
use crate::error::{Result, TextError};
use crate::gguf::GgufTokenizer;
use crate::json::JsonTokenizer;
use crate::special::{AddedTokens, Piece};
use crate::token_file::Fingerprint;

/// Text to token ids and back.
///
/// Ids are those the model's Hugging Face tokenizer gives with `add_special_tokens=False`: no BOS
/// or EOS is added, and special tokens that stand in the text are recognised.
pub struct Tokenizer {
    pub(crate) engine: Engine,
    pub(crate) vocab_size: usize,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) adds_bos: bool,
    pub(crate) fingerprint: [u8; 16],
}

pub(crate) enum Engine {
    Bpe { model: Box<dyn BpeModel>, added: AddedTokens, cuts: CutRule },
    Json(Box<JsonTokenizer>),
}

/// The ids of a text, and room for what is worked on: kept from text to text, so that its memory is
/// reused.
#[derive(Default)]
pub(crate) struct Encoding {
    pub(crate) ids: Vec<u32>,
    word: Word,
}

impl Tokenizer {
    /// A tokenizer from a GGUF file's metadata: byte-level BPE with `pre` `qwen2` or `smollm`, or
    /// SentencePiece BPE without a space prefix (Gemma 3). It takes 4 to 6 MB for 150,000 to
    /// 260,000 tokens; [`GgufTokenizer::memory`] tells beforehand what building it takes.
    ///
    /// # Errors
    /// A kind that is not known, or tables that contradict themselves.
    pub fn from_gguf(file: &GgufTokenizer<'_>) -> Result<Self> {
        file.build()
    }

    /// A tokenizer from the bytes of a Hugging Face `tokenizer.json` of any kind. Its ids of BOS and
    /// EOS stand in other files: see [`with_bos_eos`](Self::with_bos_eos). It takes about 1 kB a
    /// token, and a `.txt` file of more than [`MAX_PIECE_BYTES`](crate::MAX_PIECE_BYTES) can't be
    /// prepared with it, because nothing is known of where such a tokenizer's texts may be cut.
    ///
    /// # Errors
    /// The bytes are no tokenizer.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let (json, vocab_size, fingerprint) = JsonTokenizer::parse(bytes)?;
        let engine = Engine::Json(Box::new(json));
        Ok(Self { engine, vocab_size, bos: None, eos: None, adds_bos: false, fingerprint })
    }

    /// The fingerprint of the tokenizer that [`Tokenizer::from_json`] makes of these bytes.
    ///
    /// # Errors
    /// They can't be read.
    pub fn json_fingerprint(bytes: impl io::Read) -> io::Result<Fingerprint> {
        JsonTokenizer::fingerprint(bytes).map(Fingerprint)
    }

    /// The most bytes that [`prepare`](crate::prepare) takes for a byte of the line or uncuttable
    /// stretch that it is at. The most is for a text that is one long word; English takes 8 with a
    /// tokenizer from a GGUF file.
    pub fn piece_memory(&self) -> u64 {
        match &self.engine {
            Engine::Bpe { .. } => 96,
            Engine::Json(_) => 160,
        }
    }

    /// The same tokenizer with other ids of BOS and EOS.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn with_bos_eos(self, bos: Option<u32>, eos: Option<u32>) -> Result<Self> {
        match bos.iter().chain(&eos).find(|&&id| id as usize >= self.vocab_size) {
            Some(id) => Err(TextError::BadVocabulary(format!(
                "the id {id} is outside the {} tokens",
                self.vocab_size
            ))),
            None => Ok(Self { bos, eos, ..self }),
        }
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// Only a tokenizer from a `tokenizer.json` can fail on a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut encoding = Encoding::default();
        self.encode_into(text, &mut encoding)?;
        Ok(encoding.ids)
    }

    /// Puts the ids of `text` in place of those in `encoding`.
    pub(crate) fn encode_into(&self, text: &str, encoding: &mut Encoding) -> Result<()> {
        let Encoding { word, ids } = encoding;
        ids.clear();
        match &self.engine {
            Engine::Bpe { model, added, .. } => added.split(text, |piece| match piece {
                Piece::Text(text) => model.encode(text, word, ids),
                Piece::Token(id) => ids.push(id),
            }),
            Engine::Json(json) => ids.extend_from_slice(&json.encode(text)?),
        }
        Ok(())
    }

    /// The text of `ids`, special tokens included. Bytes that are no UTF-8 and ids outside the
    /// vocabulary become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        if let Engine::Json(json) = &self.engine {
            return json.decode(ids);
        }
        let mut bytes = Vec::new();
        ids.iter().for_each(|&id| self.decode_bytes(id, &mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A decoder for ids that arrive one by one.
    pub fn stream_decoder(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// The id of the token spelled `token`, such as `<|im_end|>`, found by a walk through the
    /// vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.engine {
            Engine::Bpe { model, .. } => model.strings().position(token),
            Engine::Json(json) => json.token_id(token),
        }
    }

    /// How the token `id` is spelled; none outside the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.engine {
            _ if id as usize >= self.vocab_size => None,
            Engine::Bpe { model, .. } => Some(model.strings().get(id).to_owned()),
            Engine::Json(json) => json.token(id),
        }
    }

    /// The id that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The id that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether the model expects BOS in front of a text (GGUF's `add_bos_token`).
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// All ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Names the vocabulary and its kind: equal where all texts get the same ids.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(self.fingerprint)
    }

    /// The control tokens in `text`, such as `<|im_end|>`, in order, and where they stand.
    pub(crate) fn controls(&self, text: &str) -> impl Iterator<Item = (u32, Range<usize>)> {
        match &self.engine {
            Engine::Bpe { added, .. } => added.controls(text),
            Engine::Json(json) => json.controls().controls(text),
        }
    }

    /// Where `text` may be cut last, see [`CutRule::last_cut`].
    pub(crate) fn last_cut(&self, text: &str) -> Option<usize> {
        match &self.engine {
            Engine::Bpe { cuts, .. } => cuts.last_cut(text),
            Engine::Json(_) => None,
        }
    }

    /// Appends the bytes of `id`; nothing for a tokenizer from a `tokenizer.json`, whose tokens
    /// have no bytes of their own.
    pub(crate) fn decode_bytes(&self, id: u32, bytes: &mut Vec<u8>) {
        match &self.engine {
            _ if id as usize >= self.vocab_size => bytes.extend_from_slice("\u{fffd}".as_bytes()),
            Engine::Bpe { model, added, .. } => model.decode(id, added.contains(id), bytes),
            Engine::Json(_) => {}
        }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({} tokens, {})", self.vocab_size, self.fingerprint())
    }
}
