//! What was counted over a run, in a fixed number of samples.

use std::time::Instant;

use super::RunPhase;

/// What a look at the meter saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Since the trace began.
    pub seconds: f64,
    /// Number of the step that was last begun, 0 before the first.
    pub step: u64,
    /// What the run was at.
    pub phase: RunPhase,
    /// Bytes that the budget counts.
    pub counted: u64,
}

/// Samples of a whole run, at most [`Trace::CAPACITY`]. When they are that many, every two become
/// the larger one, and from then on each sample is the largest of twice as many looks: no peak is
/// ever lost, and the memory of the trace, 32 KiB, is there from its start.
#[derive(Clone, Debug)]
pub struct Trace {
    begin: Instant,
    samples: Vec<Sample>,
    /// Looks a sample.
    stride: u64,
    /// Looks in the last sample.
    filled: u64,
}

impl Trace {
    /// The most samples there are.
    pub const CAPACITY: usize = 1024;

    /// An empty trace that begins now.
    pub fn begin() -> Self {
        // Written and not just reserved, so that its pages are there.
        let none = Sample { seconds: f64::NAN, step: 1, phase: RunPhase::Saving, counted: 1 };
        let mut samples = std::hint::black_box(vec![none; Self::CAPACITY]);
        samples.clear();
        Self { begin: Instant::now(), samples, stride: 1, filled: 1 }
    }

    /// The samples, in order.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Takes in a look that was made now.
    pub(super) fn look(&mut self, step: u64, phase: RunPhase, counted: u64) {
        let seconds = self.begin.elapsed().as_secs_f64();
        self.push(Sample { seconds, step, phase, counted });
    }

    fn push(&mut self, sample: Sample) {
        match self.samples.last_mut() {
            Some(last) if self.filled < self.stride => {
                *last = larger(*last, sample);
                self.filled += 1;
            }
            _ => {
                if self.samples.len() == Self::CAPACITY {
                    self.halve();
                }
                self.samples.push(sample);
                self.filled = 1;
            }
        }
    }

    fn halve(&mut self) {
        let half = Self::CAPACITY / 2;
        for i in 0..half {
            self.samples[i] = larger(self.samples[2 * i], self.samples[2 * i + 1]);
        }
        self.samples.truncate(half);
        self.stride *= 2;
    }
}

/// The sample that counted more, the later one of two alike.
fn larger(a: Sample, b: Sample) -> Sample {
    if a.counted > b.counted { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(i: u64, counted: u64) -> Sample {
        Sample { seconds: i as f64, step: i, phase: RunPhase::Training, counted }
    }

    #[test]
    fn a_short_run_is_kept_whole() {
        let mut trace = Trace::begin();
        (0..1000).for_each(|i| trace.push(sample(i, 10 + i % 7)));
        let expected: Vec<Sample> = (0..1000).map(|i| sample(i, 10 + i % 7)).collect();
        assert_eq!(trace.samples(), expected);
    }

    #[test]
    fn a_long_run_keeps_its_memory_its_order_and_its_peaks() {
        let mut trace = Trace::begin();
        let (place, room) = (trace.samples.as_ptr(), trace.samples.capacity());
        let peaks = [3, 40_000, 99_998];
        for i in 0..100_000 {
            trace.push(sample(i, if peaks.contains(&i) { 1000 + i } else { i % 100 }));
        }
        assert_eq!((trace.samples.as_ptr(), trace.samples.capacity()), (place, room));
        let samples = trace.samples();
        assert!((512..=1024).contains(&samples.len()), "{}", samples.len());
        assert!(samples.is_sorted_by(|a, b| a.seconds < b.seconds));
        for peak in peaks {
            assert!(samples.contains(&sample(peak, 1000 + peak)), "{peak}");
        }
        // All of the run is there, each sample from its own 128 looks.
        assert_eq!(trace.stride, 128);
        for (i, sample) in samples.iter().enumerate() {
            assert_eq!(sample.step / 128, i as u64);
        }
    }
}
