//! Rotary position embedding: pairs of a head's columns are turned by an angle that grows with
//! the position.
//!
//! Source: Su et al., "RoFormer", 2021. Pair (a, b) at position p becomes
//! (a cos pω - b sin pω, b cos pω + a sin pω) with ω the pair's inverse frequency. The gradient
//! is the turn back, so the backward is the same operation with [`Turn::Back`].

use crate::arch::{Kernels, MatMut, MatRef};

/// Cosines and sines for every position.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// positions x half, row-major.
    cos: Vec<f32>,
    /// positions x half, row-major.
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// The table of positions 0..`positions`, one pair a number of `inv_freq` (radians a
    /// position). Made once before a run; it holds `8 * positions * inv_freq.len()` bytes.
    ///
    /// An angle is `position * inv_freq` in f32, as transformers computes it; its cosine and sine
    /// are computed in f64 and rounded.
    pub fn new(inv_freq: &[f32], positions: usize) -> Self {
        let half = inv_freq.len();
        let len = positions.checked_mul(half).expect("size of the table overflows");
        let (mut cos, mut sin) = (Vec::with_capacity(len), Vec::with_capacity(len));
        for position in 0..positions {
            for &inv_freq in inv_freq {
                let (s, c) = f64::from(position as f32 * inv_freq).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        Self { cos, sin, half }
    }

    /// Pairs that are turned in each head: half of the rotary dimensions.
    pub fn half(&self) -> usize {
        self.half
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(usize::MAX)
    }

    fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Which columns of a head make a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// 2i and 2i + 1: GGUF's llama family.
    Interleaved,
    /// i and i + half: GPT-NeoX, Qwen, Gemma.
    Halves,
}

/// Which way the pairs are turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Turn {
    /// By the position's angle: the forward.
    Forth,
    /// By minus the position's angle: the backward.
    Back,
}

/// How the rows of a matrix are turned.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// Angles. Twice its half is at most `head_dim`; a head's other columns are left alone.
    pub table: &'a RopeTable,
    /// Columns of a head. A row holds whole heads.
    pub head_dim: usize,
    /// Which columns make a pair.
    pub style: RopeStyle,
    /// Which way.
    pub turn: Turn,
}

impl Kernels {
    /// Turns the rows of `x` (rows x heads * head_dim) at positions `first_position`.. into `y`
    /// (the same shape).
    ///
    /// # Panics
    /// If a shape does not fit, or the table has too few positions.
    pub fn rope(&self, rope: Rope<'_>, first_position: usize, x: MatRef<'_>, y: MatMut<'_>) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "rope output");
        check(&rope, first_position, x.rows(), x.cols());
        self.compiled(
            #[inline(always)]
            || {
                let mut y = y;
                for row in 0..x.rows() {
                    let y = y.row_mut(row);
                    y.copy_from_slice(x.row(row));
                    turn_row(&rope, first_position + row, y);
                }
            },
        );
    }

    /// [`Kernels::rope`] where the rows stand.
    ///
    /// # Panics
    /// If a shape does not fit, or the table has too few positions.
    pub fn rope_in_place(&self, rope: Rope<'_>, first_position: usize, x: MatMut<'_>) {
        check(&rope, first_position, x.rows(), x.cols());
        self.compiled(
            #[inline(always)]
            || {
                let mut x = x;
                for row in 0..x.rows() {
                    turn_row(&rope, first_position + row, x.row_mut(row));
                }
            },
        );
    }
}

fn check(rope: &Rope<'_>, first_position: usize, rows: usize, cols: usize) {
    assert!(rope.head_dim > 0 && cols.is_multiple_of(rope.head_dim), "{cols} columns of heads");
    assert!(2 * rope.table.half <= rope.head_dim, "rotary dimensions of a head");
    let last = first_position.checked_add(rows).expect("position overflows");
    assert!(last <= rope.table.positions(), "positions up to {last}");
}

#[inline(always)]
fn turn_row(rope: &Rope<'_>, position: usize, row: &mut [f32]) {
    let (cos, sin) = rope.table.row(position);
    let sign = match rope.turn {
        Turn::Forth => 1.0,
        Turn::Back => -1.0,
    };
    for head in row.chunks_exact_mut(rope.head_dim) {
        let rotary = &mut head[..2 * cos.len()];
        match rope.style {
            RopeStyle::Halves => {
                let (a, b) = rotary.split_at_mut(cos.len());
                for (((a, b), &cos), &sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = turn_pair(*a, *b, cos, sign * sin);
                }
            }
            RopeStyle::Interleaved => {
                let (pairs, _) = rotary.as_chunks_mut::<2>();
                for (([a, b], &cos), &sin) in pairs.iter_mut().zip(cos).zip(sin) {
                    (*a, *b) = turn_pair(*a, *b, cos, sign * sin);
                }
            }
        }
    }
}

#[inline(always)]
fn turn_pair(a: f32, b: f32, cos: f32, sin: f32) -> (f32, f32) {
    (a.mul_add(cos, -(b * sin)), b.mul_add(cos, a * sin))
}
