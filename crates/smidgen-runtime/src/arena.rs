//! One run of numbers, lent out in disjoint pieces.

use std::ops::Range;

/// Cuts `writes` out of `arena` as exclusive slices, in the order given; all else can be read.
///
/// # Panics
/// If two of the ranges overlap or one leaves the arena: the plan is wrong.
pub fn carve<const W: usize>(
    arena: &mut [f32],
    writes: [Range<usize>; W],
) -> ([&mut [f32]; W], Reads<'_>) {
    let mut order: [usize; W] = std::array::from_fn(|i| i);
    order.sort_unstable_by_key(|&i| (writes[i].start, writes[i].end));
    let mut cut: [&mut [f32]; W] = std::array::from_fn(|_| [].as_mut_slice());
    let mut pieces = Vec::with_capacity(W + 1);
    let mut rest = arena;
    let mut at = 0;
    for i in order {
        let Range { start, end } = writes[i].clone();
        assert!(at <= start && start <= end, "buffers overlap: {writes:?}");
        let (before, tail) = rest.split_at_mut(start - at);
        let (write, tail) = tail.split_at_mut(end - start);
        pieces.push((at, &*before));
        cut[i] = write;
        rest = tail;
        at = end;
    }
    pieces.push((at, &*rest));
    (cut, Reads { pieces })
}

/// What can be read of an arena while some of it is being written.
#[derive(Clone, Debug)]
pub struct Reads<'a> {
    pieces: Vec<(usize, &'a [f32])>,
}

impl<'a> Reads<'a> {
    /// The numbers of `range`.
    ///
    /// # Panics
    /// If some of them are being written.
    pub fn get(&self, range: Range<usize>) -> &'a [f32] {
        let inside = self
            .pieces
            .iter()
            .find(|(start, piece)| *start <= range.start && range.end <= start + piece.len());
        let (start, piece) = inside.expect("a buffer is read while it is written");
        &piece[range.start - start..range.end - start]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_in_the_order_asked_for() {
        let mut arena: Vec<f32> = (0..10).map(|x| x as f32).collect();
        let ([a, b], reads) = carve(&mut arena, [6..8, 1..3]);
        assert_eq!((a[0], b[0]), (6.0, 1.0));
        assert_eq!(reads.get(3..6), [3.0, 4.0, 5.0]);
        assert_eq!(reads.get(8..10), [8.0, 9.0]);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_writes_are_a_mistake() {
        carve(&mut [0.0; 4], [0..2, 1..3]);
    }

    #[test]
    #[should_panic(expected = "while it is written")]
    fn reading_what_is_written_is_a_mistake() {
        let mut arena = [0.0; 4];
        let (_, reads) = carve(&mut arena, [1..2, 3..3]);
        reads.get(0..2);
    }
}
