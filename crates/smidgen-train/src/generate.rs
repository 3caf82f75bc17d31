//! Generating text, one token at a time, over a cache of keys and values.

use std::sync::atomic::AtomicBool;

use smidgen_kernels::Philox;
use smidgen_runtime::KvCache;

use crate::error::{Error, Result, stop_if};
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

/// A text that goes on, by the model's answers and by others' words: what the model has read of it
/// is not read again.
#[derive(Debug)]
pub struct Conversation {
    cache: KvCache,
    /// The tokens whose keys and values are in the cache.
    ids: Vec<u32>,
}

impl Evaluator<'_> {
    /// An empty conversation, of as many positions as [`Evaluator::to_generate`] was given.
    ///
    /// # Errors
    /// The system does not give the memory.
    pub fn conversation(&self) -> Result<Conversation> {
        let (info, positions) = (self.base.info(), self.cached_positions);
        let cache = KvCache::new(info.layers, info.key_cols, positions)?;
        Ok(Conversation { cache, ids: Vec::with_capacity(positions) })
    }

    /// Goes on with `prompt` and returns the new tokens. `token` is called with each as it comes.
    /// `prompt` is the whole text so far: of what it shares with the conversation before, from the
    /// first token on, only the last token may be read again.
    ///
    /// # Errors
    /// An empty prompt, more positions than [`Evaluator::to_generate`] was given, a token that the
    /// model does not have; the caller cancelled.
    pub fn reply(
        &mut self,
        conversation: &mut Conversation,
        prompt: &[u32],
        config: &GenerateConfig,
        cancel: &AtomicBool,
        token: &mut dyn FnMut(u32),
    ) -> Result<Vec<u32>> {
        self.check(prompt, config)?;
        let Conversation { cache, ids } = conversation;
        let known = ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        ids.truncate(known.min(prompt.len() - 1));
        let mut logits = Vec::with_capacity(self.base.info().vocabulary);
        let step = self.engine.plan().tokens;
        for part in prompt[ids.len()..].chunks(step) {
            self.next_logits(part, ids.len(), cache, &mut logits)?;
            ids.extend_from_slice(part);
        }
        self.engine.meter().look();
        let random = Philox::new(config.seed);
        let mut made = Vec::new();
        while made.len() < config.max_tokens {
            stop_if(cancel)?;
            let next = choose(&logits, config, &random, made.len());
            if config.stop.contains(&next) {
                break;
            }
            token(next);
            made.push(next);
            if made.len() < config.max_tokens {
                self.next_logits(&[next], ids.len(), cache, &mut logits)?;
                ids.push(next);
            }
        }
        self.engine.meter().look();
        Ok(made)
    }

    fn check(&self, prompt: &[u32], config: &GenerateConfig) -> Result<()> {
        if prompt.is_empty() {
            return Err(Error::setting("the prompt is empty; give at least one token"));
        }
        if !(config.temperature >= 0.0 && config.top_p > 0.0 && config.top_p <= 1.0) {
            return Err(Error::setting("--temperature is at least 0 and --top-p lies in (0, 1]"));
        }
        let positions = prompt.len().saturating_add(config.max_tokens);
        if positions > self.cached_positions {
            return Err(Error::setting(format!(
                "prompt and new tokens take {positions} positions, and the evaluator was made to \
                 generate up to {}",
                self.cached_positions
            )));
        }
        Ok(())
    }
}

/// The most likely token, the first among equals; or a sample.
fn choose(logits: &[f32], config: &GenerateConfig, random: &Philox, number: usize) -> u32 {
    let best =
        logits.iter().enumerate().fold(0, |best, (i, &l)| if l > logits[best] { i } else { best });
    if config.temperature == 0.0 {
        return best as u32;
    }
    let top = f64::from(logits[best]);
    let weight = |i: u32| ((f64::from(logits[i as usize]) - top) / config.temperature).exp();
    let mut order: Vec<u32> = (0..logits.len() as u32).filter(|&i| weight(i) > 1e-12).collect();
    let logit = |i: u32| logits[i as usize];
    order.sort_unstable_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
    let limit = config.top_p * order.iter().map(|&i| weight(i)).sum::<f64>();
    let mut mass = 0.0;
    let kept = order.iter().take_while(|&&i| {
        let goes_on = mass < limit;
        mass += if goes_on { weight(i) } else { 0.0 };
        goes_on
    });
    let kept = kept.count();
    order.truncate(kept);
    let mut uniform = [0.0f32];
    random.uniform(0, number as u64, &mut uniform);
    let mut left = f64::from(uniform[0]) * mass;
    for &i in &order {
        left -= weight(i);
        if left < 0.0 {
            return i;
        }
    }
    order.last().map_or(best as u32, |&i| i)
}
