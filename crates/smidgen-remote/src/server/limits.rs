//! What a token may do.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::ServerError;
use crate::proto;

/// What a token's sessions may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions that a token has at once.
    pub sessions: u64,
    /// Numbers of a side network. While its device trains, the server holds four times as many (the
    /// network, its gradient, AdamW's moments), and some more during an update.
    pub parameters: u64,
    /// Tapped positions of a sample.
    pub rows: u64,
    /// Samples of a step.
    pub samples: u64,
    /// Steps of a session that are begun and not confirmed.
    pub steps: u64,
    /// Bytes of their taps that a session has the server hold in memory.
    pub tap_bytes: u64,
}

impl Default for Limits {
    /// 16 sessions of 64 million numbers; 1,024 samples of 8,192 rows; 4 steps, 512 MiB.
    fn default() -> Self {
        Self {
            sessions: 16,
            parameters: 64_000_000,
            rows: 8192,
            samples: 1024,
            steps: 4,
            tap_bytes: 512 << 20,
        }
    }
}

impl Limits {
    pub(super) fn message(&self) -> proto::Limits {
        let Self { rows, samples, steps, tap_bytes, .. } = *self;
        proto::Limits { rows, samples, steps, tap_bytes }
    }
}

/// Who may train here: a name, and what a token is recognised by. The token itself is not held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose sessions these are.
    pub name: String,
    /// SHA-256 of the token.
    pub sha256: [u8; 32],
}

impl Token {
    /// For a token as the device says it.
    pub fn new(name: impl Into<String>, token: &str) -> Self {
        Self { name: name.into(), sha256: Sha256::digest(token).into() }
    }
}

/// All tokens.
#[derive(Debug)]
pub(super) struct Tokens(Vec<Token>);

impl Tokens {
    pub fn new(tokens: Vec<Token>) -> Result<Self, ServerError> {
        if tokens.is_empty() {
            let what = "no token is given: nobody could train here".to_owned();
            return Err(ServerError::Setting(what));
        }
        for (at, token) in tokens.iter().enumerate() {
            let others = &tokens[..at];
            if token.name.is_empty() || others.iter().any(|other| other.name == token.name) {
                let what = format!("tokens need different names, not {:?} twice", token.name);
                return Err(ServerError::Setting(what));
            }
            if others.iter().any(|other| other.sha256 == token.sha256) {
                let what = format!("the token of {:?} is another one's too", token.name);
                return Err(ServerError::Setting(what));
            }
        }
        Ok(Self(tokens))
    }

    /// The name of a token's owner, found in the same time whoever it is.
    pub fn owner(&self, token: &str) -> Option<&str> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let mut found = u64::MAX;
        for (at, token) in (0u64..).zip(&self.0) {
            let is_it: Choice = token.sha256.ct_eq(&hash);
            found.conditional_assign(&at, is_it);
        }
        usize::try_from(found).ok().and_then(|at| self.0.get(at)).map(|token| token.name.as_str())
    }
}
