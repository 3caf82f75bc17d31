//! Side tuning over a few batches, for tests.

#![allow(dead_code)]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use smidgen_runtime::{Engine, Pass};
use smidgen_train::step::StepSettings;
use smidgen_train::{
    DeviceSecret, LossOn, Result, Sequence, Side, SideLink, SidePace, SideRun, SideSamples,
    SideShape, SideSize, TapNoise,
};

/// Rows of the longest sequence.
pub const TOKENS: usize = 32;
/// Sequences of the largest batch, at most.
const BATCH: usize = 16;

/// Batches that are taken in turn.
pub struct Batches<'a>(pub &'a [Vec<Sequence>]);

impl SideSamples for Batches<'_> {
    fn samples(&mut self, number: u64, samples: &mut Vec<u32>) {
        let batch = (number - 1) as usize % self.0.len();
        samples.extend((0..self.0[batch].len()).map(|place| (batch * BATCH + place) as u32));
    }

    fn read(&mut self, sample: u32, sequence: &mut Sequence) -> Result<()> {
        let sample = sample as usize;
        sequence.clone_from(&self.0[sample / BATCH][sample % BATCH]);
        Ok(())
    }
}

/// A run that takes so many steps ahead; with a folder, what waits is kept there.
pub fn run(
    shape: &SideShape,
    link: impl SideLink + 'static,
    loss: LossOn,
    window: usize,
    folder: Option<&Path>,
) -> SideRun {
    run_of(TOKENS, shape, Box::new(link), loss, window, folder)
}

/// The same with a link of any kind, over sequences of up to so many tokens.
pub fn run_of(
    tokens: usize,
    shape: &SideShape,
    link: Box<dyn SideLink>,
    loss: LossOn,
    window: usize,
    folder: Option<&Path>,
) -> SideRun {
    let size = SideSize { tokens, step_tokens: BATCH * tokens, samples: 8 * BATCH };
    let pace = SidePace { window, ..SidePace::default() };
    let side = Side { network: *shape.config(), noise: TapNoise::NONE, loss, pace };
    let keys = (DeviceSecret([7; 32]), 5);
    SideRun::new(shape.clone(), link, keys, &side, size, folder).expect("a run")
}

/// Losses before each of the steps, of which there are `last` in all.
pub fn train(
    engine: &mut Engine,
    run: &mut SideRun,
    batches: &[Vec<Sequence>],
    steps: impl Iterator<Item = u64>,
    last: u64,
    rate: f64,
) -> Vec<f64> {
    let (mut pass, cancel) = (Pass::default(), AtomicBool::new(false));
    let mut step = |number: u64| {
        let settings = StepSettings { number, rate, clip: None, seed: 0 };
        let data = &mut Batches(batches);
        run.step(engine, data, &settings, last, &mut pass, &cancel).expect("a step").loss
    };
    steps.map(&mut step).collect()
}
