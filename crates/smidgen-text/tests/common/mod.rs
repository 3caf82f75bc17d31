//! Real models' tokenizers for the tests: where they are, and a reader of GGUF's metadata.

// Each test file uses a part of it.
#![allow(dead_code)]

use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::path::PathBuf;

use smidgen_text::{ChatTemplateSource, GgufTokenizer, PackedStrings, TextError, Tokenizer};

pub mod bytes;
mod metadata;

pub use metadata::Metadata;

type Result<T> = std::result::Result<T, TextError>;

pub const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
pub const QWEN: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
pub const GEMMA: &str = "gemma-3-270m-Q4_K_M.gguf";

/// The folder that an environment variable names.
fn folder(variable: &str, how: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(folder) => folder.into(),
        None => panic!("{variable} is not set: {how}"),
    }
}

/// A file below `SMIDGEN_TEST_DATA`.
pub fn data(name: &str) -> PathBuf {
    folder("SMIDGEN_TEST_DATA", "set it to the folder with reference/ and data/").join(name)
}

pub fn tokenizer(model: &str) -> Tokenizer {
    metadata(model).build().unwrap()
}

/// A model's chat template.
pub fn chat_template(model: &str) -> ChatTemplateSource {
    let text = values(model).remove("tokenizer.chat_template").unwrap().string();
    ChatTemplateSource::new(model, text).unwrap()
}

fn values(model: &str) -> HashMap<String, Value> {
    let path = folder("SMIDGEN_TEST_MODELS", "`cargo xtask models` fetches the models").join(model);
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    read_metadata(BufReader::new(file))
}

/// What a model's file says of its tokenizer.
pub fn metadata(model: &str) -> Metadata {
    let mut values = values(model);
    let mut take = |key: &str| values.remove(&format!("tokenizer.ggml.{key}"));
    let strings = |value| match value {
        Some(Value::Array(items)) => items.into_iter().map(Value::string).collect(),
        _ => Vec::new(),
    };
    let numbers = |value| match value {
        Some(Value::Array(items)) => items.into_iter().map(Value::number).collect(),
        _ => Vec::new(),
    };
    let id = |value: Option<Value>| value.map(|value| value.number() as u32);
    let flag = |value: Option<Value>| value.map(|value| value.number() != 0.0);
    Metadata {
        model: take("model").unwrap().string(),
        pre: take("pre").map(Value::string),
        tokens: strings(take("tokens")),
        scores: numbers(take("scores")).into_iter().map(|score| score as f32).collect(),
        token_types: numbers(take("token_type")).into_iter().map(|kind| kind as i32).collect(),
        merges: strings(take("merges")),
        bos: id(take("bos_token_id")),
        eos: id(take("eos_token_id")),
        unk: id(take("unknown_token_id")),
        pad: id(take("padding_token_id")),
        add_space_prefix: flag(take("add_space_prefix")),
        add_bos: flag(take("add_bos_token")),
        add_eos: flag(take("add_eos_token")),
    }
}

enum Value {
    Number(f64),
    String(String),
    Array(Vec<Value>),
}

impl Value {
    fn number(self) -> f64 {
        if let Self::Number(number) = self { number } else { panic!("not a number") }
    }

    fn string(self) -> String {
        if let Self::String(string) = self { string } else { panic!("not a string") }
    }
}

fn read_metadata(mut file: impl Read) -> HashMap<String, Value> {
    assert_eq!(&bytes::<4>(&mut file), b"GGUF");
    let _version = u32::from_le_bytes(bytes(&mut file));
    let _tensors = u64::from_le_bytes(bytes(&mut file));
    let pairs = u64::from_le_bytes(bytes(&mut file));
    let mut pair = || {
        let key = string(&mut file);
        let kind = u32::from_le_bytes(bytes(&mut file));
        (key, value(&mut file, kind))
    };
    (0..pairs).map(|_| pair()).collect()
}

fn value(file: &mut impl Read, kind: u32) -> Value {
    Value::Number(match kind {
        0 => u8::from_le_bytes(bytes(file)).into(),
        1 => i8::from_le_bytes(bytes(file)).into(),
        2 => u16::from_le_bytes(bytes(file)).into(),
        3 => i16::from_le_bytes(bytes(file)).into(),
        4 => u32::from_le_bytes(bytes(file)).into(),
        5 => i32::from_le_bytes(bytes(file)).into(),
        6 => f32::from_le_bytes(bytes(file)).into(),
        7 => u8::from_le_bytes(bytes(file)).into(),
        8 => return Value::String(string(file)),
        9 => {
            let kind = u32::from_le_bytes(bytes(file));
            let count = u64::from_le_bytes(bytes(file));
            return Value::Array((0..count).map(|_| value(file, kind)).collect());
        }
        10 => u64::from_le_bytes(bytes(file)) as f64,
        11 => i64::from_le_bytes(bytes(file)) as f64,
        12 => f64::from_le_bytes(bytes(file)),
        kind => panic!("unknown kind {kind}"),
    })
}

fn string(file: &mut impl Read) -> String {
    let mut buffer = vec![0; u64::from_le_bytes(bytes(file)) as usize];
    file.read_exact(&mut buffer).unwrap();
    String::from_utf8(buffer).unwrap()
}

fn bytes<const N: usize>(file: &mut impl Read) -> [u8; N] {
    let mut buffer = [0; N];
    file.read_exact(&mut buffer).unwrap();
    buffer
}
