//! Which samples a step takes, counted from its number.

use std::ops::Range;

use smidgen_text::{Dataset, Order, Packs, Sequence};

use crate::error::Result;

/// The data of a run, cut into steps.
#[derive(Debug)]
pub(crate) struct Batches {
    data: Dataset,
    packs: Option<Packs>,
    /// Sequences a step, or packs of them.
    size: usize,
    order: Order,
    /// The order of the epoch that was asked for last, and that epoch.
    epoch: Vec<u32>,
    number: u64,
}

impl Batches {
    /// Steps of `size` sequences, or of as many packs where there are any.
    pub fn new(data: Dataset, packs: Option<Packs>, size: usize, order: Order) -> Self {
        Self { data, packs, size, order, epoch: Vec::new(), number: 0 }
    }

    /// The data.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// Appends the samples of the step `number`, from 1, to `samples`. A step never reaches over
    /// the end of an epoch: the last one may have fewer.
    pub fn samples(&mut self, number: u64, samples: &mut Vec<u32>) {
        let chosen = self.chosen(number);
        match &self.packs {
            Some(packs) => {
                samples.extend(self.epoch[chosen].iter().flat_map(|&p| packs.get(p as usize)));
            }
            None => samples.extend(&self.epoch[chosen]),
        }
    }

    /// Reads the sequences of the step `number`, those of its packs one after another.
    pub fn read(&mut self, number: u64, sequences: &mut Vec<Sequence>) -> Result<()> {
        let chosen = self.chosen(number);
        let chosen = &self.epoch[chosen];
        if let Some(packs) = &self.packs {
            let samples = chosen.iter().flat_map(|&pack| packs.get(pack as usize));
            return read_samples(&self.data, samples, sequences);
        }
        sequences.resize_with(chosen.len(), Sequence::default);
        let longest = self.data.max_len();
        for (&index, sequence) in chosen.iter().zip(sequences) {
            sequence.ids.reserve_exact(longest.saturating_sub(sequence.ids.len()));
            sequence.targets.reserve_exact(longest.saturating_sub(sequence.targets.len()));
            self.data.read(index as usize, sequence)?;
        }
        Ok(())
    }

    /// Where a step's sequences, or packs, stand in the order of its epoch, which is made.
    fn chosen(&mut self, number: u64) -> Range<usize> {
        let count = self.packs.as_ref().map_or(self.data.len(), Packs::len);
        let per_epoch = count.div_ceil(self.size) as u64;
        let done = number - 1;
        let (epoch, at) = (done / per_epoch, (done % per_epoch) as usize);
        if self.number != epoch || self.epoch.is_empty() {
            // The old order goes before the new one comes.
            self.epoch = Vec::new();
            self.epoch = self.order.epoch(count as u32, epoch);
            self.number = epoch;
        }
        at * self.size..((at + 1) * self.size).min(self.epoch.len())
    }
}

/// Reads a step's samples, each into memory of its own length: their number and lengths change from
/// step to step, and room for the longest in every place would be far more than the packs take.
fn read_samples<'a>(
    data: &Dataset,
    samples: impl Iterator<Item = &'a u32> + Clone,
    sequences: &mut Vec<Sequence>,
) -> Result<()> {
    sequences.clear();
    sequences.reserve_exact(samples.clone().count());
    for &sample in samples {
        let mut sequence = Sequence::default();
        data.read(sample as usize, &mut sequence)?;
        sequences.push(sequence);
    }
    Ok(())
}
