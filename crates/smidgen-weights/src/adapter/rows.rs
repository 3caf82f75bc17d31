//! The order of a head's rows, which differs between GGUF's llama architecture and Hugging Face.
//!
//! Hugging Face keeps the first halves of all rotated pairs of a head, then the second halves;
//! llama.cpp's converter interleaves them for the q and k projections of the llama architecture
//! (`LlamaModel.permute` in convert_hf_to_gguf.py). Of a LoRA module only B has these rows.

/// Copies rows of `cols` numbers from Hugging Face's order into GGUF's.
///
/// Both slices are `[heads * head_dim, cols]`; for k, `heads` is the number of key heads.
///
/// # Panics
/// If the lengths differ or are no whole number of heads of an even number of rows.
pub fn hf_rows_to_gguf(hf: &[f32], gguf: &mut [f32], heads: usize, cols: usize) {
    check(hf, gguf, heads, cols);
    for_row_pairs(hf.len() / cols, heads, |hf_row, gguf_row| {
        gguf[gguf_row * cols..][..cols].copy_from_slice(&hf[hf_row * cols..][..cols]);
    });
}

/// Copies rows of `cols` numbers from GGUF's order into Hugging Face's: the inverse of
/// [`hf_rows_to_gguf`].
///
/// # Panics
/// As [`hf_rows_to_gguf`].
pub fn gguf_rows_to_hf(gguf: &[f32], hf: &mut [f32], heads: usize, cols: usize) {
    check(gguf, hf, heads, cols);
    for_row_pairs(gguf.len() / cols, heads, |hf_row, gguf_row| {
        hf[hf_row * cols..][..cols].copy_from_slice(&gguf[gguf_row * cols..][..cols]);
    });
}

/// The row in Hugging Face's order that is row `gguf_row` in GGUF's, in heads of `head_dim` rows.
///
/// # Panics
/// If `head_dim` is 0.
pub fn hf_row(gguf_row: usize, head_dim: usize) -> usize {
    let within = gguf_row % head_dim;
    gguf_row - within + within % 2 * (head_dim / 2) + within / 2
}

/// The row in GGUF's order that is row `hf_row` in Hugging Face's: the inverse of [`hf_row`].
///
/// # Panics
/// If `head_dim` is 0.
pub fn gguf_row(hf_row: usize, head_dim: usize) -> usize {
    let (within, half) = (hf_row % head_dim, head_dim / 2);
    let (side, pair) = if within < half { (0, within) } else { (1, within - half) };
    hf_row - within + 2 * pair + side
}

fn check(from: &[f32], to: &[f32], heads: usize, cols: usize) {
    assert_eq!(from.len(), to.len(), "rows in and rows out");
    let even_heads = heads > 0 && cols > 0 && from.len().is_multiple_of(2 * heads * cols);
    assert!(even_heads, "{} numbers are no {heads} heads of rows of {cols}", from.len());
}

/// Calls `visit(hf_row, gguf_row)` for every row.
fn for_row_pairs(rows: usize, heads: usize, mut visit: impl FnMut(usize, usize)) {
    let head_dim = rows / heads;
    for first in (0..rows).step_by(head_dim.max(1)) {
        for pair in 0..head_dim / 2 {
            for half in 0..2 {
                visit(first + half * (head_dim / 2) + pair, first + 2 * pair + half);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaves_the_halves_of_each_head() {
        // Two heads of six rows, two columns.
        let row = |row: usize| [row as f32, 100.0 + row as f32];
        let hf: Vec<f32> = (0..12).flat_map(row).collect();
        let mut gguf = vec![0.0; 24];
        hf_rows_to_gguf(&hf, &mut gguf, 2, 2);
        let expected: Vec<f32> =
            [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11].into_iter().flat_map(row).collect();
        assert_eq!(gguf, expected);
        let mut back = vec![0.0; 24];
        gguf_rows_to_hf(&gguf, &mut back, 2, 2);
        assert_eq!(back, hf);
        let rows: Vec<usize> = (0..12).map(|gguf_row| hf_row(gguf_row, 6)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert!((0..12).all(|row| gguf_row(hf_row(row, 6), 6) == row));
    }

    #[test]
    fn takes_no_rows() {
        hf_rows_to_gguf(&[], &mut [], 3, 8);
    }
}
