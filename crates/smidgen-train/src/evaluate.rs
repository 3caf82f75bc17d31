//! Scoring: losses of a dataset under a model and an adapter.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use smidgen_graph::plan::{Plan, Request, plan};
use smidgen_graph::{Backward, Budget, Row};
use smidgen_kernels::MatRef;
use smidgen_models::Info;
use smidgen_runtime::memory::RunPhase;
use smidgen_runtime::{Engine, KvCache, Pass, Taps, fixed_rows};
use smidgen_text::{Dataset, Sequence};

use crate::adapter::Adapter;
use crate::base::Base;
use crate::error::{Result, stop_if};
use crate::planning::{check_length, frozen_request, frozen_settings, process_row};
use crate::side::SideForward;
use crate::step::fill;
use crate::tuning::Tuning;

/// What a dataset scores.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy of all targets, in nats.
    pub loss: f64,
    /// Share of targets that had the largest logit.
    pub accuracy: f64,
    /// Number of targets.
    pub targets: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Mean cross-entropy of each sequence's targets.
    pub window_losses: Vec<f64>,
}

impl Evaluation {
    /// exp(loss).
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// A model with an adapter, ready to score and to generate.
#[derive(Debug)]
pub struct Evaluator<'a> {
    pub(crate) base: &'a Base,
    pub(crate) engine: Engine,
    pub(crate) adapter: Adapter,
    /// What runs beside the model, if anything.
    pub(crate) side: Option<SideForward>,
    pub(crate) pass: Pass,
    /// Positions that the plan has keys and values for; 0 where nothing is generated.
    pub(crate) cached_positions: usize,
}

impl<'a> Evaluator<'a> {
    /// Plans and makes what scoring passes of up to `tokens` rows, over up to `positions`
    /// positions, needs.
    ///
    /// # Errors
    /// The budget is too small, or threads can't be started.
    pub fn new(
        base: &'a Base,
        tuning: impl Into<Tuning>,
        tokens: usize,
        positions: usize,
        threads: usize,
        budget: Budget,
    ) -> Result<Self> {
        Self::planned(base, tuning.into(), tokens, positions, threads, budget, vec![])
    }

    /// The same for generating: prompt and new tokens together take up to `positions` positions,
    /// and `tokens` of the prompt go through the model at a time.
    ///
    /// # Errors
    /// Those of [`Evaluator::new`].
    pub fn to_generate(
        base: &'a Base,
        tuning: impl Into<Tuning>,
        tokens: usize,
        positions: usize,
        threads: usize,
        budget: Budget,
    ) -> Result<Self> {
        let Info { layers, key_cols, vocabulary, .. } = *base.info();
        let row = |name: &str, shape: String, bytes: u64, why: &str| {
            Row::new(name, shape, bytes, "whole run", why)
        };
        let shape = format!("2 x {layers} x {positions} x {key_cols}");
        let ids = 4 * positions as u64;
        let bytes = KvCache::bytes(layers, key_cols, positions).saturating_add(ids);
        let fixed = vec![
            row("keys and values", shape, bytes, "of all positions so far, and their tokens"),
            // The order is a list of u32 that may grow to twice its length.
            row("next token", format!("3 x {vocabulary}"), 12 * vocabulary as u64, "logits, order"),
        ];
        let made = Self::planned(base, tuning.into(), tokens, positions, threads, budget, fixed)?;
        Ok(Self { cached_positions: positions, ..made })
    }

    fn planned(
        base: &'a Base,
        tuning: Tuning,
        tokens: usize,
        positions: usize,
        threads: usize,
        budget: Budget,
        more: Vec<Row>,
    ) -> Result<Self> {
        check_length(base, positions)?;
        let (adapter, network) = match tuning {
            Tuning::Lora(adapter) => (adapter, None),
            Tuning::Side(network) => (Adapter::none(base), Some(network)),
        };
        let settings = frozen_settings(base, threads, positions, RunPhase::Evaluating);
        let mut fixed = fixed_rows(base.blocks.as_ref(), &base.weights, &settings, tokens);
        let mut process = process_row();
        // What was trained is there already and has a line of its own.
        let beside = network.as_ref().map_or(0, |network| network.numbers().len());
        let held = adapter.held().map_or(0, <[f32]>::len) + beside;
        process.bytes = process.bytes.saturating_sub(4 * held as u64);
        fixed.push(process);
        fixed.extend(more);
        if let Some(network) = &network {
            fixed.extend(SideForward::plan_rows(network.shape(), tokens));
        }
        let request = Request {
            budget,
            fixed,
            ..frozen_request(base, adapter.shape(), tokens, Backward::Nothing)
        };
        let plan = Arc::new(plan(base.blocks.as_ref(), &request)?);
        smidgen_weights::release_free_heap();
        let engine = Engine::new(base.blocks.as_ref(), Arc::clone(&base.weights), plan, &settings)?;
        let side = network.map(|network| SideForward::new(network, tokens)).transpose()?;
        Ok(Self { base, engine, adapter, side, pass: Pass::default(), cached_positions: 0 })
    }

    /// The plan that was made.
    pub fn plan(&self) -> &Plan {
        self.engine.plan()
    }

    /// The most memory that was counted.
    pub fn peak_bytes(&mut self) -> u64 {
        self.engine.meter().peak()
    }

    /// Scores every sequence of `data`. `progress(done, all)` is called after each pass.
    ///
    /// # Errors
    /// The data can't be read or does not fit the model; the caller cancelled.
    pub fn evaluate(
        &mut self,
        data: &Dataset,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Evaluation> {
        let Self { engine, adapter, side, pass, .. } = self;
        evaluate(engine, adapter, side, data, pass, cancel, progress)
    }

    /// The logits of every position of `ids`: `visit(first token, positions x tokens)` is called
    /// for each tile of the vocabulary.
    ///
    /// # Errors
    /// A token that the model does not have, or too many of them.
    pub fn logits(&mut self, ids: &[u32], visit: &mut dyn FnMut(usize, MatRef<'_>)) -> Result<()> {
        self.pass.clear();
        self.pass.push(ids, &vec![false; ids.len()], 0);
        let (params, side) = (&mut self.adapter.values, wanted(&mut self.side, 0..ids.len()));
        Ok(self.engine.logits(&self.pass, params, side, None, 0, visit)?)
    }

    /// The logits after the last of `ids`, which stand from position `first` on.
    pub(crate) fn next_logits(
        &mut self,
        ids: &[u32],
        first: usize,
        cache: &mut KvCache,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        self.pass.clear();
        self.pass.push(ids, &vec![false; ids.len()], 0);
        self.pass.segments[0].first_position = first;
        out.clear();
        let last = ids.len() - 1;
        let (params, side) = (&mut self.adapter.values, wanted(&mut self.side, last..ids.len()));
        self.engine.logits(&self.pass, params, side, Some(cache), last, &mut |_, tile| {
            out.extend_from_slice(tile.row(0));
        })?;
        Ok(())
    }
}

/// The network beside the model, if there is one, with these rows of a pass wanted of it.
fn wanted(
    side: &mut Option<SideForward>,
    rows: impl Iterator<Item = usize>,
) -> Option<&mut dyn Taps> {
    let side = side.as_mut()?;
    side.begin(rows);
    Some(side)
}

pub(crate) fn evaluate(
    engine: &mut Engine,
    adapter: &mut Adapter,
    side: &mut Option<SideForward>,
    data: &Dataset,
    pass: &mut Pass,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation> {
    let rows = engine.plan().tokens;
    pass.dropout = None;
    pass.weight = 0.0;
    let mut result = Evaluation::default();
    let (mut sum, mut correct, mut done) = (0.0, 0, 0);
    let mut waiting: Vec<Sequence> = Vec::new();
    while done < data.len() {
        stop_if(cancel)?;
        let mut held: usize = waiting.iter().map(|s| s.ids.len()).sum();
        while done + waiting.len() < data.len() && held <= rows {
            let mut sequence = Sequence::default();
            data.read(done + waiting.len(), &mut sequence)?;
            held += sequence.ids.len();
            waiting.push(sequence);
        }
        let taken = fill(pass, &waiting, 0, rows);
        let taps = wanted(side, pass.target_rows());
        for loss in engine.evaluate(pass, &mut adapter.values, taps)? {
            sum += loss.sum;
            correct += loss.correct;
            result.targets += loss.targets;
            result.window_losses.push(loss.sum / loss.targets.max(1) as f64);
        }
        result.tokens += pass.rows();
        waiting.drain(..taken);
        done += taken;
        progress(done, data.len());
    }
    result.loss = sum / result.targets.max(1) as f64;
    result.accuracy = correct as f64 / result.targets.max(1) as f64;
    Ok(result)
}
