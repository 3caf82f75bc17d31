//! Strided views of row-major f32 matrices that can be cut into disjoint tiles.
//!
//! A column tile of a row-major matrix is no contiguous slice, so threads that own tiles of one
//! output need a view with a stride. The two types here are that view. Cutting consumes or
//! reborrows the whole, so two live tiles never share an element: the API is safe.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

/// A shared view of `rows` x `cols` numbers whose rows start `stride` numbers apart.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    ptr: NonNull<f32>,
    rows: usize,
    cols: usize,
    stride: usize,
    life: PhantomData<&'a [f32]>,
}

// SAFETY: a MatRef gives shared access to f32s only, as &[f32] does.
unsafe impl Send for MatRef<'_> {}
// SAFETY: as above.
unsafe impl Sync for MatRef<'_> {}

impl<'a> MatRef<'a> {
    /// The first `rows * cols` numbers of `data` as a matrix.
    ///
    /// # Panics
    /// If `data` is shorter than that.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        let len = rows.checked_mul(cols).expect("matrix size overflows");
        assert!(data.len() >= len, "matrix {rows} x {cols} over {} numbers", data.len());
        let ptr = NonNull::from(data).cast();
        Self { ptr, rows, cols, stride: cols, life: PhantomData }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between the starts of two rows, in numbers.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The address of the first number; row `r` starts `r * stride` after it.
    pub fn as_ptr(&self) -> *const f32 {
        self.ptr.as_ptr()
    }

    /// One row.
    pub fn row(&self, row: usize) -> &'a [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the view covers `cols` numbers from the start of every row below `rows`,
        // all of them borrowed for 'a.
        unsafe { std::slice::from_raw_parts(self.as_ptr().add(row * self.stride), self.cols) }
    }

    /// The rows of `range`.
    pub fn rows_range(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?}");
        if range.is_empty() {
            return Self { rows: 0, ..self };
        }
        // SAFETY: range.start < rows, so the address lies inside the view.
        let ptr = unsafe { self.ptr.add(range.start * self.stride) };
        Self { ptr, rows: range.len(), ..self }
    }

    /// The columns of `range`.
    pub fn cols_range(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.cols, "columns {range:?}");
        if range.is_empty() || self.rows == 0 {
            return Self { cols: range.len(), ..self };
        }
        // SAFETY: range.start < cols and there is a first row, so the address lies in the view.
        let ptr = unsafe { self.ptr.add(range.start) };
        Self { ptr, cols: range.len(), ..self }
    }
}

/// An exclusive view of `rows` x `cols` numbers whose rows start `stride` numbers apart.
#[derive(Debug)]
pub struct MatMut<'a> {
    ptr: NonNull<f32>,
    rows: usize,
    cols: usize,
    stride: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: a MatMut gives exclusive access to its own f32s, as &mut [f32] does.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// The first `rows * cols` numbers of `data` as a matrix.
    ///
    /// # Panics
    /// If `data` is shorter than that.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        let len = rows.checked_mul(cols).expect("matrix size overflows");
        assert!(data.len() >= len, "matrix {rows} x {cols} over {} numbers", data.len());
        let ptr = NonNull::from(data).cast();
        Self { ptr, rows, cols, stride: cols, life: PhantomData }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between the starts of two rows, in numbers.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The address of the first number; row `r` starts `r * stride` after it.
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.ptr.as_ptr()
    }

    /// One row, to write.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the view owns `cols` numbers from the start of every row below `rows`, and
        // the borrow of self keeps every other view of them away.
        unsafe {
            std::slice::from_raw_parts_mut(self.ptr.as_ptr().add(row * self.stride), self.cols)
        }
    }

    /// The same numbers, to read.
    pub fn as_ref(&self) -> MatRef<'_> {
        MatRef {
            ptr: self.ptr,
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
            life: PhantomData,
        }
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut { life: PhantomData, ..*self }
    }

    /// The columns before `col` and those from it on.
    pub fn split_at_col(self, col: usize) -> (MatMut<'a>, MatMut<'a>) {
        assert!(col <= self.cols, "column {col} of {}", self.cols);
        let right = if col == self.cols || self.rows == 0 {
            self.ptr
        } else {
            // SAFETY: col < cols and there is a first row: the address lies in the view.
            unsafe { self.ptr.add(col) }
        };
        let cols = self.cols - col;
        (MatMut { cols: col, ..self }, MatMut { ptr: right, cols, ..self })
    }

    /// The rows before `row` and those from it on.
    pub fn split_at_row(self, row: usize) -> (MatMut<'a>, MatMut<'a>) {
        assert!(row <= self.rows, "row {row} of {}", self.rows);
        let below = if row == self.rows {
            self.ptr
        } else {
            // SAFETY: row < rows: the address lies in the view.
            unsafe { self.ptr.add(row * self.stride) }
        };
        let rows = self.rows - row;
        (MatMut { rows: row, ..self }, MatMut { ptr: below, rows, ..self })
    }

    /// Disjoint tiles of at most `width` columns, with the first column of each.
    pub fn col_tiles(self, width: usize) -> impl Iterator<Item = (usize, MatMut<'a>)> + Send {
        assert!(width > 0, "a tile has at least one column");
        let mut rest = Some(self);
        let mut first = 0;
        std::iter::from_fn(move || {
            let all = rest.take().filter(|m| m.cols > 0)?;
            let (tile, right) = {
                let at = width.min(all.cols);
                all.split_at_col(at)
            };
            let start = first;
            first += tile.cols;
            rest = Some(right);
            Some((start, tile))
        })
    }

    /// Disjoint tiles of at most `height` rows, with the first row of each.
    pub fn row_tiles(self, height: usize) -> impl Iterator<Item = (usize, MatMut<'a>)> + Send {
        assert!(height > 0, "a tile has at least one row");
        let mut rest = Some(self);
        let mut first = 0;
        std::iter::from_fn(move || {
            let all = rest.take().filter(|m| m.rows > 0)?;
            let (tile, below) = {
                let at = height.min(all.rows);
                all.split_at_row(at)
            };
            let start = first;
            first += tile.rows;
            rest = Some(below);
            Some((start, tile))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_element_once() {
        let mut data = vec![0.0f32; 7 * 11];
        for (row, band) in MatMut::new(&mut data, 7, 11).row_tiles(3) {
            for (col, mut tile) in band.col_tiles(4) {
                for r in 0..tile.rows() {
                    for (c, x) in tile.row_mut(r).iter_mut().enumerate() {
                        *x += ((row + r) * 11 + col + c) as f32 + 1.0;
                    }
                }
            }
        }
        assert!(data.iter().enumerate().all(|(i, &x)| x == i as f32 + 1.0));
    }
}
