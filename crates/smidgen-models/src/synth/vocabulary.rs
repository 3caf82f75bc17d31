//! Vocabularies of any size that spell every text: all bytes or characters, then all pairs of them,
//! then triples of the commonest.

use smidgen_weights::{GgufWriter, Result};

/// Kinds of token, GGUF's `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Byte-level BPE has a token for each byte.
const BYTES: usize = 256;
/// Tokens behind the merged ones, as in Qwen2.5's embedding: these, then unused ones.
const RESERVED: usize = 293;
const QWEN2_SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Tokens in front of the bytes, with their kinds; the first four have Gemma's ids.
const GEMMA_SPECIAL: [(&str, i32); 6] = [
    ("<pad>", CONTROL),
    ("<eos>", CONTROL),
    ("<bos>", CONTROL),
    ("<unk>", UNKNOWN),
    ("<start_of_turn>", CONTROL),
    ("<end_of_turn>", CONTROL),
];

/// What SentencePiece spells a space as.
const SPACE: char = '▁';
/// English letters, the commonest first.
const LETTERS: &[u8] = b"etaoinshrdlcumwfgypbvkjxqz";

/// Writes `tokenizer.ggml.*` of Qwen2's kind: bytes, a merge for every further token, special
/// and unused tokens.
///
/// # Panics
/// If there is no room for a merge, or more than 2^24 of them.
pub(super) fn write_byte_level(gguf: &mut GgufWriter, size: usize) -> Result<()> {
    let normal = size.checked_sub(RESERVED).filter(|&n| n > BYTES);
    let normal = normal.unwrap_or_else(|| panic!("{size} tokens are too few"));
    let alphabet: Vec<char> = bytes_by_use().into_iter().map(byte_to_char).collect();
    let words = Words::new(&alphabet, &alphabet, normal - BYTES);
    let single = alphabet.iter().map(char::to_string);
    let reserved = (0..RESERVED).map(|i| match QWEN2_SPECIAL.get(i) {
        Some(special) => (*special).to_owned(),
        None => format!("[PAD{}]", normal + i),
    });
    let kinds = (0..size).map(|id| match id.checked_sub(normal) {
        None => NORMAL,
        Some(i) if i < QWEN2_SPECIAL.len() => CONTROL,
        Some(_) => UNUSED,
    });
    gguf.str("tokenizer.ggml.model", "gpt2")?;
    gguf.str("tokenizer.ggml.pre", "qwen2")?;
    gguf.strings("tokenizer.ggml.tokens", single.chain(words.iter()).chain(reserved))?;
    gguf.i32s("tokenizer.ggml.token_type", kinds)?;
    gguf.strings("tokenizer.ggml.merges", words.iter().map(|word| merge(&word)))?;
    gguf.u32("tokenizer.ggml.bos_token_id", normal as u32)?;
    gguf.u32("tokenizer.ggml.eos_token_id", normal as u32 + 2)?;
    gguf.u32("tokenizer.ggml.padding_token_id", normal as u32)?;
    gguf.bool("tokenizer.ggml.add_bos_token", false)
}

/// Writes `tokenizer.ggml.*` of Gemma's kind: special tokens, bytes, characters, and what they are
/// merged to. A space stands only at the beginning of a token, a newline or tab only alone.
///
/// # Panics
/// If there is no room for all characters, or the vocabulary has more than all their triples.
pub(super) fn write_sentence_piece(gguf: &mut GgufWriter, size: usize) -> Result<()> {
    let printable = |byte: &u8| byte.is_ascii_graphic();
    let rest: Vec<char> = bytes_by_use().into_iter().filter(printable).map(char::from).collect();
    let first: Vec<char> = [SPACE].into_iter().chain(rest.iter().copied()).collect();
    let characters = || ['\n', '\t'].into_iter().chain(first.iter().copied());
    let before_normal = GEMMA_SPECIAL.len() + BYTES;
    let words = size.checked_sub(before_normal + characters().count());
    let words = words.unwrap_or_else(|| panic!("{size} tokens are too few"));
    let words = Words::new(&first, &rest, words);
    let special = GEMMA_SPECIAL.iter().map(|(special, _)| (*special).to_owned());
    let bytes = (0..BYTES).map(|byte| format!("<0x{byte:02X}>"));
    let single = characters().map(String::from);
    let tokens = special.chain(bytes).chain(single).chain(words.iter());
    let kind = |id: usize| match GEMMA_SPECIAL.get(id) {
        Some((_, kind)) => *kind,
        None if id < before_normal => BYTE,
        None => NORMAL,
    };
    // As in Gemma's files: a placeholder, 0 for bytes, then falling by one from token to token.
    let score = |id: usize| match id.checked_sub(before_normal) {
        None if id < GEMMA_SPECIAL.len() => -1000.0,
        None => 0.0,
        Some(rank) => -(rank as f32),
    };
    gguf.str("tokenizer.ggml.model", "llama")?;
    gguf.str("tokenizer.ggml.pre", "default")?;
    gguf.strings("tokenizer.ggml.tokens", tokens)?;
    gguf.f32s("tokenizer.ggml.scores", (0..size).map(score))?;
    gguf.i32s("tokenizer.ggml.token_type", (0..size).map(kind))?;
    for (key, id) in [("bos", 2), ("eos", 1), ("unknown", 3), ("padding", 0)] {
        gguf.u32(&format!("tokenizer.ggml.{key}_token_id"), id)?;
    }
    gguf.bool("tokenizer.ggml.add_bos_token", true)?;
    gguf.bool("tokenizer.ggml.add_space_prefix", false)
}

/// Different words of two and then of three characters: `count` of them, each of three beginning
/// with one of two, so that merging two parts at a time makes them all.
struct Words<'a> {
    first: &'a [char],
    rest: &'a [char],
    count: usize,
    /// Triples are made of so many characters from the front of either list.
    base: usize,
}

impl<'a> Words<'a> {
    /// Words whose first character is one of `first` and the others of `rest`, in that order.
    fn new(first: &'a [char], rest: &'a [char], count: usize) -> Self {
        let triples = count.saturating_sub(first.len() * rest.len());
        let most = first.len().min(rest.len());
        let base = (0..=most).find(|base| base.pow(3) >= triples);
        let base = base.unwrap_or_else(|| panic!("{count} words are too many"));
        Self { first, rest, count, base }
    }

    fn iter(&self) -> impl Iterator<Item = String> + '_ {
        let pairs = self.first.len() * self.rest.len();
        (0..self.count).map(move |i| match i.checked_sub(pairs) {
            None => {
                [self.first[i / self.rest.len()], self.rest[i % self.rest.len()]].iter().collect()
            }
            Some(i) => {
                let [a, b, c] = [i / self.base.pow(2), i / self.base % self.base, i % self.base];
                [self.first[a], self.rest[b], self.rest[c]].iter().collect()
            }
        })
    }
}

/// The merge that makes a word: all but its last character, and that.
fn merge(word: &str) -> String {
    let (last, _) = word.char_indices().next_back().expect("words have characters");
    let (left, right) = word.split_at(last);
    format!("{left} {right}")
}

/// All bytes: space, letters, the rest of ASCII's printable ones, then all others.
fn bytes_by_use() -> Vec<u8> {
    let mut bytes: Vec<u8> = [b' '].into_iter().chain(LETTERS.iter().copied()).collect();
    let others = (b'!'..=b'~').chain(0..=u8::MAX);
    for byte in others {
        if !bytes.contains(&byte) {
            bytes.push(byte);
        }
    }
    bytes
}

/// GPT-2's spelling of a byte: itself where it is printable Latin-1, else the next free character
/// from U+0100 on.
fn byte_to_char(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_printable(byte) {
        return char::from(byte);
    }
    let place = (0..byte).filter(|&b| !is_printable(b)).count() as u32;
    char::from_u32(0x100 + place).expect("below U+0144")
}
