//! What the model says to a few held-out prompts, before a run and after it.

use smidgen::{Base, Budget, Dataset, Evaluator, GenerateConfig, Kind, Sequence, Tuning};

use super::generate::{PROMPT_ROWS, answer, ends};
use crate::error::Result;
use crate::report::Answer;
use crate::stop::Stop;
use crate::ui::{self, Ui};

/// Samples whose prompts were chosen.
#[derive(Debug)]
pub struct Samples {
    chosen: Vec<Sample>,
    /// Tokens of an answer, at most.
    tokens: usize,
    threads: usize,
    budget: Budget,
}

#[derive(Debug)]
struct Sample {
    prompt: Vec<u32>,
    /// What the data says to it.
    expected: Vec<u32>,
}

impl Samples {
    /// `count` samples of `data`, evenly spread, of those that have a prompt without loss.
    pub fn choose(
        data: &Dataset,
        count: usize,
        tokens: usize,
        threads: usize,
        budget: Budget,
    ) -> Result<Self> {
        let mut chosen = Vec::new();
        let mut sequence = Sequence::default();
        for i in 0..count.min(data.len()) {
            data.read(i * data.len() / count.min(data.len()), &mut sequence)
                .map_err(smidgen::Error::from)?;
            let Some(first) = sequence.targets.iter().position(|&target| target) else { continue };
            let is_prompt = first > 1 && first + 1 < sequence.ids.len();
            let learned = sequence.targets[first..].iter().take_while(|&&target| target).count();
            if is_prompt {
                let (prompt, rest) = sequence.ids.split_at(first);
                let expected = rest[..learned.min(tokens)].to_vec();
                chosen.push(Sample { prompt: prompt.to_vec(), expected });
            }
        }
        Ok(Self { chosen, tokens, threads, budget })
    }

    /// Number of prompts.
    pub fn len(&self) -> u64 {
        self.chosen.len() as u64
    }

    /// Whether there is no prompt.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// The model's answers with what was trained. None where the budget has no room for keys and
    /// values.
    pub fn ask(&self, base: &Base, tuning: Tuning, stop: &Stop) -> Result<Option<Vec<String>>> {
        let tokenizer = base.tokenizer()?;
        // Data without chats needs none, so a broken one is no failure here.
        let template = base.chat_template(&tokenizer).ok().flatten();
        let longest = self.chosen.iter().map(|s| s.prompt.len()).max().unwrap_or(1);
        // A prompt is shorter than its sample, so there is room.
        let room = base.info().positions.map(|all| all.saturating_sub(longest));
        let tokens = self.tokens.min(room.unwrap_or(self.tokens));
        let config = GenerateConfig {
            max_tokens: tokens,
            stop: ends(&tokenizer, template.as_ref()),
            ..GenerateConfig::default()
        };
        let (rows, positions) = (longest.min(PROMPT_ROWS), longest + tokens);
        let made = Evaluator::to_generate(base, tuning, rows, positions, self.threads, self.budget);
        let mut evaluator = match made {
            Err(error) if error.kind() == Kind::Budget => return Ok(None),
            made => made?,
        };
        let mut conversation = evaluator.conversation()?;
        let mut texts = Vec::new();
        for Sample { prompt, .. } in &self.chosen {
            let (talk, flag) = (&mut conversation, stop.flag());
            let said = answer(&mut evaluator, talk, &tokenizer, prompt, &config, flag, &|_| {});
            texts.push(said?.0);
        }
        Ok(Some(texts))
    }

    /// The prompts with what was said to them.
    pub fn answers(
        &self,
        base: &Base,
        before: Vec<String>,
        after: Vec<String>,
    ) -> Result<Vec<Answer>> {
        let tokenizer = base.tokenizer()?;
        let mut answers = Vec::new();
        for (sample, (before, after)) in self.chosen.iter().zip(before.into_iter().zip(after)) {
            answers.push(Answer {
                prompt: tokenizer.decode(&sample.prompt),
                expected: Some(tokenizer.decode(&sample.expected)),
                before,
                after,
            });
        }
        Ok(answers)
    }
}

/// Shows answers, a line each.
pub fn say(ui: &Ui, answers: &[Answer]) {
    let line = |text: &str| ui::shortened(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    for Answer { prompt, expected, before, after } in answers {
        ui.say(&format!("\n  {}", line(prompt)));
        if let Some(expected) = expected {
            ui.say(&format!("    data    {}", line(expected)));
        }
        ui.say(&format!("    before  {}", line(before)));
        ui.say(&format!("    after   {}", line(after)));
    }
}
