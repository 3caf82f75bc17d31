//! A checkpoint's `tokenizer.json` as GGUF's `tokenizer.ggml.*`.
//!
//! Two kinds are written. Byte-level BPE (`gpt2`): tokens, merges, and a name for how words are cut.
//! SentencePiece BPE (`llama`): tokens and scores; merges follow from the scores, since in files of
//! this kind a token's number is its rank.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use smidgen_weights::{Checkpoint, GgufWriter};

use crate::error::{Error, Result};

/// Kinds of token, GGUF's `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The score of tokens that no merge makes, as in files of this kind.
const NO_SCORE: f32 = -1000.0;

/// What SentencePiece spells a space as.
const SPACE: char = '▁';

/// How byte-level BPE cuts words, by the regular expression of its pre-tokenizer, and GGUF's names
/// for that.
const CUTS: [(&str, &str); 2] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
];

#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    vocab: BTreeMap<String, u32>,
    #[serde(default)]
    merges: Vec<Merge>,
}

/// `left right`; files have that, or a list of the two.
struct Merge(String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: two tokens, or both in one string")
            }

            fn visit_str<E>(self, text: &str) -> std::result::Result<Merge, E> {
                Ok(Merge(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut pair: A,
            ) -> std::result::Result<Merge, A::Error> {
                let lacks = |i| serde::de::Error::invalid_length(i, &self);
                let left: String = pair.next_element()?.ok_or_else(|| lacks(0))?;
                let right: String = pair.next_element()?.ok_or_else(|| lacks(1))?;
                Ok(Merge(left + " " + &right))
            }
        }
        deserializer.deserialize_any(Pair)
    }
}

/// Which of GGUF's kinds a tokenizer is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    ByteLevel { cut: &'static str },
    SentencePiece { add_space_prefix: bool },
}

/// Writes `tokenizer.ggml.*` for an embedding of `vocabulary` rows. `adds_bos` holds where neither
/// of the tokenizer's files says whether texts begin with BOS.
pub(super) fn write(
    checkpoint: &Checkpoint,
    adds_bos: bool,
    vocabulary: usize,
    gguf: &mut GgufWriter,
) -> Result<()> {
    let path = checkpoint.folder().join("tokenizer.json");
    let json = read(&path)?;
    let wrong = |what: String| Error::Checkpoint { path: path.clone(), what };
    let kind = kind(&json).map_err(wrong)?;
    let table = Table::new(&json, kind, vocabulary).map_err(wrong)?;
    match kind {
        Kind::ByteLevel { cut } => {
            gguf.str("tokenizer.ggml.model", "gpt2")?;
            gguf.str("tokenizer.ggml.pre", cut)?;
        }
        Kind::SentencePiece { add_space_prefix } => {
            gguf.str("tokenizer.ggml.model", "llama")?;
            gguf.str("tokenizer.ggml.pre", "default")?;
            gguf.bool("tokenizer.ggml.add_space_prefix", add_space_prefix)?;
        }
    }
    gguf.strings("tokenizer.ggml.tokens", &table.tokens)?;
    gguf.i32s("tokenizer.ggml.token_type", table.types.iter().copied())?;
    match kind {
        Kind::ByteLevel { .. } => {
            let merges = json.model.merges.iter().map(|merge| &merge.0);
            gguf.strings("tokenizer.ggml.merges", merges)?;
        }
        Kind::SentencePiece { .. } => gguf.f32s("tokenizer.ggml.scores", table.scores())?,
    }
    Settings::read(checkpoint)?.write(&json, &table, adds_bos, gguf)
}

fn read(path: &Path) -> Result<TokenizerJson> {
    /// No tokenizer.json comes near this.
    const LARGEST: u64 = 256 << 20;
    let wrong = |what: String| Error::Checkpoint { path: path.to_owned(), what };
    let file = File::open(path).map_err(|error| {
        match error.kind() {
        ErrorKind::NotFound => wrong(
            "it is not there; load the tokenizer with transformers' AutoTokenizer and save it with \
             save_pretrained"
                .to_owned(),
        ),
        _ => wrong(format!("could not open it: {error}")),
    }
    })?;
    let size = file.metadata().map_err(|error| wrong(error.to_string()))?.len();
    if size > LARGEST {
        return Err(wrong(format!("{size} bytes are too many for a tokenizer.json")));
    }
    serde_json::from_reader(BufReader::with_capacity(1 << 16, file))
        .map_err(|error| wrong(error.to_string()))
}

/// The parts of a pre-tokenizer or normalizer: itself, or a sequence's.
fn parts(value: &Value) -> Vec<&Value> {
    let list = ["pretokenizers", "normalizers"].iter().find_map(|key| value.get(key)?.as_array());
    match list {
        Some(list) => list.iter().flat_map(parts).collect(),
        None if value.is_null() => Vec::new(),
        None => vec![value],
    }
}

fn is_of(part: &Value, kind: &str) -> bool {
    part.get("type").and_then(Value::as_str) == Some(kind)
}

fn kind(json: &TokenizerJson) -> std::result::Result<Kind, String> {
    let words = parts(&json.pre_tokenizer);
    if words.iter().any(|part| is_of(part, "ByteLevel")) {
        return cut(&words).map(|cut| Kind::ByteLevel { cut });
    }
    if !json.model.byte_fallback {
        return Err("this is neither byte-level BPE nor SentencePiece BPE with bytes; make the \
                    GGUF file with llama.cpp's convert_hf_to_gguf.py"
            .to_owned());
    }
    let prepends = |part: &&Value| {
        is_of(part, "Prepend")
            || is_of(part, "Metaspace")
                && part.get("prepend_scheme").and_then(Value::as_str) != Some("never")
    };
    let all = [words, parts(&json.normalizer)].concat();
    Ok(Kind::SentencePiece { add_space_prefix: all.iter().any(prepends) })
}

/// GGUF's name for how byte-level BPE cuts words.
fn cut(words: &[&Value]) -> std::result::Result<&'static str, String> {
    let regex = words.iter().find_map(|part| part.get("pattern")?.get("Regex")?.as_str());
    if let Some(regex) = regex {
        let known = CUTS.iter().find(|(known, _)| *known == regex);
        return known.map(|(_, name)| *name).ok_or_else(|| {
            format!("its words are cut by an expression that has no name here: {regex}")
        });
    }
    let digits = words.iter().any(|part| {
        is_of(part, "Digits") && part.get("individual_digits") == Some(&Value::Bool(true))
    });
    Ok(if digits { "smollm" } else { "gpt-2" })
}

/// The vocabulary by ids.
struct Table {
    tokens: Vec<String>,
    types: Vec<i32>,
    /// The first id that a merge, or a character of the text, has made.
    first_normal: usize,
}

impl Table {
    fn new(
        json: &TokenizerJson,
        kind: Kind,
        vocabulary: usize,
    ) -> std::result::Result<Self, String> {
        let mut table = Self {
            tokens: vec![String::new(); vocabulary],
            types: vec![0; vocabulary],
            first_normal: 0,
        };
        let is_piece = matches!(kind, Kind::SentencePiece { .. });
        for (token, &id) in &json.model.vocab {
            let is_unknown = json.model.unk_token.as_deref() == Some(token);
            let token_type = match token.as_bytes() {
                [b'<', b'0', b'x', _, _, b'>'] if is_piece => BYTE,
                _ if is_piece && is_unknown => UNKNOWN,
                _ => NORMAL,
            };
            table.put(id, token.clone(), token_type)?;
        }
        for token in &json.added_tokens {
            let looks_special = token.content.starts_with("<|") && token.content.ends_with("|>");
            let is_unknown = is_piece && json.model.unk_token.as_ref() == Some(&token.content);
            // GGUF spells user-defined runs of spaces as spaces.
            let (content, token_type) = match token.special || looks_special {
                _ if is_unknown => (token.content.clone(), UNKNOWN),
                true => (token.content.clone(), CONTROL),
                false if is_piece => (token.content.replace(SPACE, " "), USER_DEFINED),
                false => (token.content.clone(), USER_DEFINED),
            };
            table.put(token.id, content, token_type)?;
        }
        for (id, token_type) in table.types.iter_mut().enumerate().filter(|(_, t)| **t == 0) {
            (table.tokens[id], *token_type) = (format!("[PAD{id}]"), UNUSED);
        }
        let bytes_end = table.types.iter().rposition(|t| *t == BYTE).map_or(0, |last| last + 1);
        table.first_normal = bytes_end;
        Ok(table)
    }

    fn put(&mut self, id: u32, token: String, token_type: i32) -> std::result::Result<(), String> {
        let rows = self.tokens.len();
        let Some(place) = self.tokens.get_mut(id as usize) else {
            return Err(format!("token {token:?} has the id {id}, and the embedding {rows} rows"));
        };
        (*place, self.types[id as usize]) = (token, token_type);
        Ok(())
    }

    /// Scores that rank tokens by their numbers.
    fn scores(&self) -> impl Iterator<Item = f32> {
        self.types.iter().enumerate().map(|(id, token_type)| match *token_type {
            NORMAL if id >= self.first_normal => -((id - self.first_normal) as f32),
            BYTE => 0.0,
            _ => NO_SCORE,
        })
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.tokens.iter().position(|t| t == token).map(|id| id as u32)
    }
}

/// What files beside tokenizer.json say.
struct Settings {
    tokenizer: Value,
    /// `generation_config.json`, then `config.json`.
    models: [Value; 2],
    template: Option<String>,
}

impl Settings {
    fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let tokenizer = checkpoint.settings("tokenizer_config.json")?.unwrap_or_default();
        let generation = checkpoint.settings("generation_config.json")?.unwrap_or_default();
        let template = match template_file(&checkpoint.folder().join("chat_template.jinja"))? {
            Some(template) => Some(template),
            None => template(&tokenizer).map(str::to_owned),
        };
        Ok(Self { tokenizer, models: [generation, checkpoint.config().clone()], template })
    }

    /// The id of `bos`, `eos`, `unk` or `pad`.
    fn id(&self, name: &str, table: &Table) -> Option<u32> {
        let token = self.tokenizer.get(format!("{name}_token"));
        let token = token.and_then(|t| t.as_str().or_else(|| t.get("content")?.as_str()));
        if let Some(id) = token.and_then(|token| table.id(token)) {
            return Some(id);
        }
        let key = format!("{name}_token_id");
        let values = self.models.iter().filter_map(|model| model.get(&key));
        let mut ids = values.filter_map(|value| value.as_u64().or_else(|| value.get(0)?.as_u64()));
        let id = u32::try_from(ids.next()?).ok()?;
        ((id as usize) < table.tokens.len()).then_some(id)
    }

    fn write(
        &self,
        json: &TokenizerJson,
        table: &Table,
        adds_bos: bool,
        gguf: &mut GgufWriter,
    ) -> Result<()> {
        for (name, key) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]
        {
            if let Some(id) = self.id(name, table) {
                gguf.u32(&format!("tokenizer.ggml.{key}_token_id"), id)?;
            }
        }
        let flag = |key: &str| self.tokenizer.get(key).and_then(Value::as_bool);
        let begins = json.post_processor.get("single").and_then(|single| single.get(0));
        let begins = begins.map(|first| first.get("SpecialToken").is_some());
        let adds_bos = flag("add_bos_token").or(begins).unwrap_or(adds_bos);
        gguf.bool("tokenizer.ggml.add_bos_token", adds_bos)?;
        if let Some(adds_eos) = flag("add_eos_token") {
            gguf.bool("tokenizer.ggml.add_eos_token", adds_eos)?;
        }
        if let Some(template) = &self.template {
            gguf.str("tokenizer.chat_template", template)?;
        }
        Ok(())
    }
}

/// The template in a file of its own, which goes before the one in tokenizer_config.json.
fn template_file(path: &Path) -> Result<Option<String>> {
    /// No template comes near this.
    const LARGEST: u64 = 1 << 20;
    let wrong = |what: String| Error::Checkpoint { path: path.to_owned(), what };
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| wrong(format!("could not open it: {error}")))?,
    };
    let mut text = String::new();
    let read = file.take(LARGEST + 1).read_to_string(&mut text);
    match read.map_err(|error| wrong(format!("could not read it: {error}")))? as u64 {
        0..=LARGEST => Ok(Some(text)),
        _ => Err(wrong(format!("more than {LARGEST} bytes are too many for a chat template"))),
    }
}

/// The template in tokenizer_config.json: a string, or the one named `default` of a list.
fn template(tokenizer: &Value) -> Option<&str> {
    let template = tokenizer.get("chat_template")?;
    let named = || {
        let is_default =
            |item: &&Value| item.get("name").and_then(Value::as_str) == Some("default");
        template.as_array()?.iter().find(is_default)?.get("template")?.as_str()
    };
    template.as_str().or_else(named)
}
