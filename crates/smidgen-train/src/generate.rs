//! Generating text, one token at a time, over a cache of keys and values.

use std::sync::atomic::{AtomicBool, Ordering};

use smidgen_kernels::Philox;
use smidgen_runtime::KvCache;

use crate::error::{Error, Result};
use crate::evaluate::Evaluator;

/// How tokens are chosen, and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateConfig {
    /// At most so many new tokens.
    pub max_tokens: usize,
    /// Divides the logits before sampling; 0 takes the most likely token.
    pub temperature: f64,
    /// Samples among the most likely tokens whose probabilities reach this sum.
    pub top_p: f64,
    /// Decides the samples.
    pub seed: u64,
    /// Tokens that end the text; they are not returned.
    pub stop: Vec<u32>,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self { max_tokens: 100, temperature: 0.0, top_p: 1.0, seed: 0, stop: Vec::new() }
    }
}

impl Evaluator<'_> {
    /// Goes on with `prompt` and returns the new tokens. `token` is called with each as it comes.
    ///
    /// # Errors
    /// An empty prompt, a token that the model does not have; the caller cancelled.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        config: &GenerateConfig,
        cancel: &AtomicBool,
        token: &mut dyn FnMut(u32),
    ) -> Result<Vec<u32>> {
        if prompt.is_empty() {
            return Err(Error::setting("the prompt is empty; give at least one token"));
        }
        if !(config.temperature >= 0.0 && config.top_p > 0.0 && config.top_p <= 1.0) {
            return Err(Error::setting("--temperature is at least 0 and --top-p lies in (0, 1]"));
        }
        let info = self.base.info();
        let positions = prompt.len() + config.max_tokens;
        let mut cache = KvCache::new(info.layers, info.key_cols, positions);
        let mut logits = Vec::with_capacity(info.vocabulary);
        let step = self.engine.plan().tokens;
        let mut at = 0;
        for part in prompt.chunks(step) {
            self.next_logits(part, at, &mut cache, &mut logits)?;
            at += part.len();
        }
        let random = Philox::new(config.seed);
        let mut made = Vec::new();
        while made.len() < config.max_tokens {
            if cancel.load(Ordering::Relaxed) {
                return Err(smidgen_runtime::Error::Cancelled.into());
            }
            let next = choose(&logits, config, &random, made.len());
            if config.stop.contains(&next) {
                break;
            }
            token(next);
            made.push(next);
            if made.len() < config.max_tokens {
                self.next_logits(&[next], at, &mut cache, &mut logits)?;
                at += 1;
            }
        }
        Ok(made)
    }
}

/// The most likely token, the first among equals; or a sample.
fn choose(logits: &[f32], config: &GenerateConfig, random: &Philox, number: usize) -> u32 {
    let best = logits.iter().enumerate().fold(0, |best, (i, &l)| if l > logits[best] { i } else { best });
    if config.temperature == 0.0 {
        return best as u32;
    }
    let top = f64::from(logits[best]);
    let weight = |i: usize| ((f64::from(logits[i]) - top) / config.temperature).exp();
    let mut order: Vec<usize> = (0..logits.len()).filter(|&i| weight(i) > 1e-12).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    let mut kept = 0.0;
    let within = order.iter().take_while(|&&i| {
        let before = kept;
        kept += weight(i);
        before < config.top_p * total
    });
    let within: Vec<usize> = within.copied().collect();
    let mass: f64 = within.iter().map(|&i| weight(i)).sum();
    let mut uniform = [0.0f32];
    random.uniform(0, number as u64, &mut uniform);
    let mut left = f64::from(uniform[0]) * mass;
    for &i in &within {
        left -= weight(i);
        if left < 0.0 {
            return i as u32;
        }
    }
    within.last().map_or(best, |&i| i) as u32
}
