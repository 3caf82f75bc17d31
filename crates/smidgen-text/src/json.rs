//! `tokenizer.json`, by way of the `tokenizers` crate. Only single texts are encoded: batches
//! would start a thread pool.

use std::io::{self, Read};

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer as HfTokenizer;

use crate::error::{Result, TextError};
use crate::special::AddedTokens;

pub(crate) struct JsonTokenizer {
    inner: HfTokenizer,
    /// Its special tokens.
    controls: AddedTokens,
}

impl JsonTokenizer {
    /// The tokenizer, its number of ids and its fingerprint.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Self, usize, [u8; 16])> {
        let json_error = |error: tokenizers::Error| TextError::TokenizerJson(error.to_string());
        let mut inner = HfTokenizer::from_bytes(bytes).map_err(json_error)?;
        // The file may ask for both; ids must be those of the whole text, and no more.
        inner.with_truncation(None).map_err(json_error)?;
        inner.with_padding(None);
        let vocab_size = match inner.get_vocab(true).values().max() {
            Some(&last) if last <= i32::MAX as u32 => last as usize + 1,
            Some(last) => {
                return Err(TextError::TokenizerJson(format!("the id {last} is too large")));
            }
            None => return Err(TextError::TokenizerJson("the vocabulary is empty".into())),
        };
        let fingerprint = Self::fingerprint(bytes).expect("a slice is read without errors");
        let mut special: Vec<_> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| (id, token.content))
            .collect();
        special.sort_unstable();
        let special = special.iter().map(|(id, content)| (*id, content.as_str(), true));
        let controls = AddedTokens::build(special)?;
        Ok((Self { inner, controls }, vocab_size, fingerprint))
    }

    /// The first 16 bytes of the SHA-256 of what `file` gives.
    pub(crate) fn fingerprint(mut file: impl Read) -> io::Result<[u8; 16]> {
        let mut hash = Sha256::new();
        let mut buffer = [0; 4096];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => hash.update(&buffer[..read]),
            }
        }
        let digest: [u8; 32] = hash.finalize().into();
        Ok(*digest.first_chunk().expect("32 bytes hold 16"))
    }

    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self.inner.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(TextError::TokenizerJson(error.to_string())),
        }
    }

    pub(crate) fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, false).unwrap_or_else(|_| "\u{fffd}".into())
    }

    pub(crate) fn controls(&self) -> &AddedTokens {
        &self.controls
    }

    pub(crate) fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    pub(crate) fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}
