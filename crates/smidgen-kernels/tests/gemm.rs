//! The GEMM of every instruction set against a naive one, bit for bit.

use std::ops::Range;

use smidgen_kernels::{
    Format, GEMM_SCRATCH, GRAIN, Init, Kernels, MatMut, MatRef, Matrix, Operand, QuantMatrix, Term,
};

const FORMATS: [Format; 11] = [
    Format::F32,
    Format::F16,
    Format::Bf16,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Numbers in -1..1.
    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// Blocks with random codes and scales of moderate size.
    fn blocks(&mut self, format: Format, count: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            (0..count * format.block_bytes()).map(|_| self.next() as u8).collect();
        let halves: &[usize] = match format {
            Format::F32 => {
                let floats = self.floats(count);
                return floats.into_iter().flat_map(f32::to_le_bytes).collect();
            }
            Format::F16 | Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => &[0],
            Format::Bf16 => {
                let floats = self.floats(count);
                return floats
                    .into_iter()
                    .flat_map(|x| x.to_le_bytes().into_iter().skip(2))
                    .collect();
            }
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q6K => &[208],
        };
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            for &at in halves {
                // A half between 2^-8 and 2^-3, of either sign.
                let bits = (0x1c00 + (self.next() % 0x1400) as u16) | (self.next() as u16 & 0x8000);
                block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            }
        }
        bytes
    }
}

/// A matrix of the test: its numbers, and its blocks where it is quantised.
struct Stored {
    rows: usize,
    cols: usize,
    numbers: Vec<f32>,
    blocks: Option<(Format, Vec<u8>)>,
}

impl Stored {
    fn dense(random: &mut Random, rows: usize, cols: usize) -> Self {
        Self { rows, cols, numbers: random.floats(rows * cols), blocks: None }
    }

    fn quant(random: &mut Random, format: Format, rows: usize, cols: usize) -> Self {
        let bytes = random.blocks(format, rows * cols / format.block_len());
        let mut numbers = vec![0.0; rows * cols];
        format.decode(&bytes, &mut numbers);
        Self { rows, cols, numbers, blocks: Some((format, bytes)) }
    }

    fn view(&self) -> MatRef<'_> {
        MatRef::new(&self.numbers, self.rows, self.cols)
    }

    fn operand(&self, transposed: bool) -> Operand<'_> {
        let matrix = match &self.blocks {
            None => Matrix::Dense(self.view()),
            Some((format, bytes)) => {
                Matrix::Quant(QuantMatrix::new(*format, bytes, self.rows, self.cols))
            }
        };
        Operand { matrix, transposed }
    }

    /// Element (k, n) of the operand as it is used.
    fn at(&self, transposed: bool, k: usize, n: usize) -> f32 {
        if transposed { self.numbers[n * self.cols + k] } else { self.numbers[k * self.cols + n] }
    }
}

/// The order of the sum, spelled out.
fn naive(c: &mut [f32], n: usize, init: Init<'_>, scale: f32, terms: &[(&Stored, &Stored, bool)]) {
    for (i, c) in c.iter_mut().enumerate() {
        let (row, col) = (i / n, i % n);
        let mut sum = match init {
            Init::Zero => None,
            Init::Keep => Some(*c),
            Init::Bias(bias) => Some(bias[col]),
        };
        for (a, b, transposed) in terms {
            for first in (0..a.cols).step_by(GRAIN) {
                let mut partial = 0.0f32;
                for k in first..a.cols.min(first + GRAIN) {
                    partial = a.at(false, row, k).mul_add(b.at(*transposed, k, col), partial);
                }
                sum = Some(sum.map_or(partial, |sum| sum + partial));
            }
        }
        *c = sum.unwrap_or(0.0) * scale;
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// Runs every instruction set on the product and on a cut one; all have the naive one's bits.
fn check(m: usize, n: usize, init: Init<'_>, scale: f32, terms: &[(&Stored, &Stored, bool)]) {
    let before = Random(7).floats(m * n);
    let mut expected = before.clone();
    naive(&mut expected, n, init, scale, terms);
    let terms: Vec<Term> = terms
        .iter()
        .map(|(a, b, transposed)| Term { a: a.view(), b: b.operand(*transposed) })
        .collect();
    for kernels in Kernels::all() {
        let mut scratch = vec![f32::NAN; GEMM_SCRATCH];
        let mut c = before.clone();
        kernels.gemm(MatMut::new(&mut c, m, n), init, scale, &terms, &mut scratch);
        assert_eq!(bits(&c), bits(&expected), "{:?} {m} x {n}", kernels.isa());
    }
}

fn part<'a>(term: &Term<'a>, rows: Range<usize>, cols: Range<usize>) -> Term<'a> {
    let transposed = term.b.transposed;
    let matrix = match term.b.matrix {
        Matrix::Dense(b) if transposed => Matrix::Dense(b.rows_range(cols)),
        Matrix::Dense(b) => Matrix::Dense(b.cols_range(cols)),
        Matrix::Quant(b) if transposed => Matrix::Quant(b.rows_range(cols)),
        Matrix::Quant(b) => Matrix::Quant(b.cols_range(cols)),
    };
    Term { a: term.a.rows_range(rows), b: Operand { matrix, transposed } }
}

#[test]
fn every_number_of_rows_and_columns() {
    let mut random = Random(1);
    for m in 1..=40 {
        for n in [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 64, 65, 100] {
            let a = Stored::dense(&mut random, m, 37);
            let b = Stored::dense(&mut random, 37, n);
            let bt = Stored::dense(&mut random, n, 37);
            check(m, n, Init::Zero, 1.0, &[(&a, &b, false)]);
            check(m, n, Init::Keep, 0.3, &[(&a, &bt, true)]);
        }
    }
}

#[test]
fn lengths_of_the_reduction() {
    let mut random = Random(2);
    let (m, n) = (15, 50);
    for k in [0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 63, 64, 255, 256, 257, 300, 512, 515, 800] {
        let a = Stored::dense(&mut random, m, k);
        let b = Stored::dense(&mut random, k, n);
        let bt = Stored::dense(&mut random, n, k);
        let bias = random.floats(n);
        check(m, n, Init::Zero, 1.0, &[(&a, &b, false)]);
        check(m, n, Init::Bias(&bias), 1.0, &[(&a, &bt, true)]);
        check(m, n, Init::Bias(&bias), 1.7, &[(&a, &bt, true), (&a, &b, false)]);
    }
}

#[test]
fn every_format_both_ways_round() {
    let mut random = Random(3);
    for format in FORMATS {
        for (rows, cols) in [(1, 256), (33, 256), (40, 512), (300, 256), (17, 1024)] {
            let w = Stored::quant(&mut random, format, rows, cols);
            for m in [1, 3, 14, 20] {
                let x = Stored::dense(&mut random, m, cols);
                check(m, rows, Init::Zero, 1.0, &[(&x, &w, true)]);
                let dy = Stored::dense(&mut random, m, rows);
                check(m, cols, Init::Keep, 0.5, &[(&dy, &w, false)]);
            }
        }
    }
}

#[test]
fn formats_of_short_blocks_with_a_short_last_grain() {
    let mut random = Random(4);
    for format in FORMATS.into_iter().filter(|format| format.block_len() <= 32) {
        for (rows, cols) in [(20, 32), (50, 96), (16, 288), (48, 576), (5, 896)] {
            let w = Stored::quant(&mut random, format, rows, cols);
            let x = Stored::dense(&mut random, 9, cols);
            check(9, rows, Init::Zero, 1.0, &[(&x, &w, true)]);
            let dy = Stored::dense(&mut random, 9, rows);
            check(9, cols, Init::Zero, 1.0, &[(&dy, &w, false)]);
        }
    }
}

#[test]
fn a_lora_branch_is_one_more_term() {
    let mut random = Random(5);
    for rank in [4, 8, 16, 64] {
        let (m, d_in, d_out) = (21, 320, 96);
        let w = Stored::quant(&mut random, Format::Q5_0, d_out, d_in);
        let x = Stored::dense(&mut random, m, d_in);
        let xa = Stored::dense(&mut random, m, rank);
        let b = Stored::dense(&mut random, d_out, rank);
        let a = Stored::dense(&mut random, rank, d_in);
        check(m, d_out, Init::Zero, 1.0, &[(&x, &w, true), (&xa, &b, true)]);
        check(m, rank, Init::Zero, 2.0, &[(&x, &a, true)]);
        check(m, d_in, Init::Keep, 1.0, &[(&xa, &a, false)]);
    }
}

#[test]
fn tiles_have_the_bits_of_the_whole() {
    let mut random = Random(6);
    let (m, d_in, d_out) = (37, 416, 320);
    let w = Stored::quant(&mut random, Format::Q4_1, d_out, d_in);
    let x = Stored::dense(&mut random, m, d_in);
    let b = Stored::dense(&mut random, d_out, 24);
    let xa = Stored::dense(&mut random, m, 24);
    let terms =
        [Term { a: x.view(), b: w.operand(true) }, Term { a: xa.view(), b: b.operand(true) }];
    let mut whole = vec![0.0; m * d_out];
    let mut scratch = vec![0.0; GEMM_SCRATCH];
    let c = MatMut::new(&mut whole, m, d_out);
    Kernels::scalar().gemm(c, Init::Zero, 0.7, &terms, &mut scratch);
    for kernels in Kernels::all() {
        for (height, width) in [(1, 320), (37, 1), (5, 33), (16, 128), (37, 256), (14, 31)] {
            let mut cut = vec![f32::NAN; m * d_out];
            for (row, band) in MatMut::new(&mut cut, m, d_out).row_tiles(height) {
                for (col, tile) in band.col_tiles(width) {
                    let (rows, cols) = (row..row + tile.rows(), col..col + tile.cols());
                    let terms = terms.map(|term| part(&term, rows.clone(), cols.clone()));
                    kernels.gemm(tile, Init::Zero, 0.7, &terms, &mut scratch[..]);
                }
            }
            assert_eq!(bits(&cut), bits(&whole), "{:?} {height} x {width}", kernels.isa());
        }
    }
}

#[test]
fn nothing_outside_the_tile_is_written() {
    let mut random = Random(8);
    let a = Stored::dense(&mut random, 20, 30);
    let b = Stored::dense(&mut random, 30, 21);
    for kernels in Kernels::all() {
        let mut scratch = vec![0.0; GEMM_SCRATCH];
        let mut all = vec![9.0f32; 22 * 30];
        let (_, below) = MatMut::new(&mut all, 22, 30).split_at_row(1);
        let (tile, _) = below.split_at_row(20);
        let (tile, _) = tile.split_at_col(3).1.split_at_col(21);
        let terms = [Term { a: a.view(), b: b.operand(false) }];
        kernels.gemm(tile, Init::Zero, 1.0, &terms, &mut scratch);
        for (i, &x) in all.iter().enumerate() {
            let (row, col) = (i / 30, i % 30);
            let inside = (1..21).contains(&row) && (3..24).contains(&col);
            assert_eq!(x == 9.0, !inside, "{:?} row {row} column {col}", kernels.isa());
        }
    }
}

#[test]
fn products_summed_over_tokens() {
    let mut random = Random(9);
    for (t, m, n) in
        [(0, 4, 20), (1, 4, 128), (13, 8, 300), (256, 65, 40), (600, 16, 37), (300, 5, 257)]
    {
        let l = Stored::dense(&mut random, t, m);
        let r = Stored::dense(&mut random, t, n);
        let turned = (0..m * t).map(|i| l.at(false, i % t, i / t)).collect();
        let turned = Stored { rows: m, cols: t, numbers: turned, blocks: None };
        for keep in [false, true] {
            let before = random.floats(m * n);
            let mut expected = before.clone();
            let init = if keep { Init::Keep } else { Init::Zero };
            naive(&mut expected, n, init, 1.0, &[(&turned, &r, false)]);
            for kernels in Kernels::all() {
                let mut scratch = vec![f32::NAN; GEMM_SCRATCH];
                let mut c = before.clone();
                let tile = MatMut::new(&mut c, m, n);
                kernels.gemm_tn(tile, keep, l.view(), r.view(), &mut scratch);
                assert_eq!(bits(&c), bits(&expected), "{:?} {t} x {m} x {n}", kernels.isa());
            }
        }
    }
}
