//! Bands: the rows of a pass that a program's steps work on before the next rows' turn.

use std::ops::Range;

use smidgen_graph::schedule::Order;

use crate::pass::{Pass, Segment};

/// What of a sequence is in a band.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its rows in the band.
    pub rows: Range<usize>,
    /// Position of its first row in the sequence.
    pub first_position: usize,
    /// All rows of the sequence in the pass.
    pub sequence: Range<usize>,
    /// The sequence's number in the pass.
    pub number: usize,
    /// The sequence's number in the optimiser's step, which keys dropout.
    pub sample: u64,
}

/// Some rows of a pass: one or more whole sequences, or a piece of a long one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Band {
    /// Its rows in the pass.
    pub rows: Range<usize>,
    /// The same by sequence.
    pub parts: Vec<Part>,
}

impl Band {
    /// Appends the rows of a sequence from `first` on, at most `len` of them.
    fn push(&mut self, segment: &Segment, number: usize, first: usize, len: usize) {
        let rows =
            segment.rows.start + first..segment.rows.end.min(segment.rows.start + first + len);
        if self.parts.is_empty() {
            self.rows = rows.start..rows.start;
        }
        let at = self.rows.len();
        self.parts.push(Part {
            rows: at..at + rows.len(),
            first_position: segment.first_position + first,
            sequence: segment.rows.clone(),
            number,
            sample: segment.sample,
        });
        self.rows.end = rows.end;
    }

    /// Whether so many rows more are too many.
    fn is_full(&self, more: usize, tile: usize) -> bool {
        !self.parts.is_empty() && self.rows.len() + more > tile
    }
}

/// The bands of a pass: of at most `tile` rows, or one of all. Sequences are in order; the bands of
/// one begin at multiples of `tile` and come in the order asked for.
pub fn bands(pass: &Pass, tile: Option<usize>, order: Order) -> Vec<Band> {
    let tile = tile.unwrap_or(usize::MAX);
    let mut bands = Vec::new();
    let mut short = Band::default();
    for (number, segment) in pass.segments.iter().enumerate() {
        let len = segment.rows.len();
        if short.is_full(len, tile) {
            bands.push(std::mem::take(&mut short));
        }
        if len <= tile {
            short.push(segment, number, 0, len);
            continue;
        }
        let mut pieces: Vec<usize> = (0..len).step_by(tile).collect();
        if order == Order::Back {
            pieces.reverse();
        }
        bands.extend(pieces.into_iter().map(|first| {
            let mut band = Band::default();
            band.push(segment, number, first, tile);
            band
        }));
    }
    bands.extend((!short.parts.is_empty()).then_some(short));
    bands
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(lengths: &[usize]) -> Pass {
        let mut pass = Pass::default();
        for (sample, &len) in lengths.iter().enumerate() {
            pass.push(&vec![0; len], &vec![true; len], sample as u64);
        }
        pass
    }

    fn rows(lengths: &[usize], tile: Option<usize>, order: Order) -> Vec<Range<usize>> {
        bands(&pass(lengths), tile, order).into_iter().map(|band| band.rows).collect()
    }

    #[test]
    fn all_rows_are_one_band_where_there_are_no_tiles() {
        let found = bands(&pass(&[5, 600]), None, Order::Back);
        assert_eq!((found.len(), found[0].rows.clone()), (1, 0..605));
    }

    #[test]
    fn short_sequences_share_a_band_and_long_ones_are_cut() {
        let found = rows(&[5, 6, 25, 4, 8, 3], Some(10), Order::Forth);
        assert_eq!(found, [0..5, 5..11, 11..21, 21..31, 31..36, 36..40, 40..48, 48..51]);
        let back = rows(&[3, 25, 4], Some(10), Order::Back);
        assert_eq!(back, [0..3, 23..28, 13..23, 3..13, 28..32]);
        let shared = bands(&pass(&[3, 4, 25]), Some(10), Order::Forth);
        assert_eq!((shared[0].rows.clone(), shared[0].parts.len()), (0..7, 2));
        let part = &shared[2].parts[0];
        assert_eq!((part.rows.clone(), part.first_position, part.number), (0..10, 10, 2));
        assert_eq!(part.sequence, 7..32);
    }
}
