//! A tokenizer whose ids are bytes, but for control tokens.

use super::{Metadata, Tokenizer};

/// Byte b is token b, token 256 is two bytes that no UTF-8 has; `controls` follow, the first of them
/// BOS and the second EOS.
pub fn tokenizer<S: AsRef<str>>(controls: &[S]) -> Tokenizer {
    // GPT-2's alphabet: bytes that print stand for themselves, the others for characters from 256 on.
    let mut next = 256;
    let spelled = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte).to_string(),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap().to_string()
        }
    };
    let mut tokens: Vec<String> = (0..=255).map(spelled).collect();
    tokens.push("ÿÿ".into());
    tokens.extend(controls.iter().map(|token| token.as_ref().to_owned()));
    let mut token_types = vec![1; 257];
    token_types.resize(tokens.len(), 3);
    let file = Metadata {
        model: "gpt2".into(),
        pre: Some("smollm".into()),
        tokens,
        token_types,
        bos: (!controls.is_empty()).then_some(257),
        merges: vec!["ÿ ÿ".into()],
        eos: (controls.len() > 1).then_some(258),
        ..Metadata::default()
    };
    file.build().unwrap()
}
