//! Small dense algebra: an orthonormal basis, and the singular values in it.

use smidgen_kernels::{Kernels, MatMut, MatRef};

/// A vector of which less than this part is left is in the span of those before it.
const DEPENDENT: f64 = 1e-6;

/// A singular value that is a smaller part of the largest one is rounding.
const NEGLIGIBLE: f64 = 1e-6;

/// Makes the rows of `vectors`, each of `len` numbers, orthonormal, by Gram and Schmidt's way, each
/// twice. Rows that depend on those before become zero.
pub fn orthonormalise(kernels: Kernels, vectors: &mut [f32], len: usize) {
    for i in 0..vectors.len() / len {
        let (done, rest) = vectors.split_at_mut(i * len);
        let vector = &mut rest[..len];
        let before = kernels.sum_squares(vector).sqrt();
        for _ in 0..2 {
            for other in done.chunks_exact(len) {
                let part = -kernels.dot(other, vector) as f32;
                let other = MatRef::new(other, 1, len);
                kernels.axpy(part, other, MatMut::new(vector, 1, len));
            }
        }
        let norm = kernels.sum_squares(vector).sqrt();
        if norm > DEPENDENT * before {
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
        } else {
            vector.fill(0.0);
        }
    }
}

/// The largest singular values of T = Qᵀ E and their left vectors, which are those of E in Q.
#[derive(Debug)]
pub struct Approximation {
    /// Singular values, the largest first: as many as the rank, or as there are.
    sigmas: Vec<f64>,
    /// Row k: the left singular vector of value k.
    vectors: Vec<Vec<f64>>,
}

impl Approximation {
    /// Of T, `[vectors, cols]`, by the eigenvectors of T Tᵀ.
    pub fn new(t: &[f32], cols: usize, rank: usize) -> Self {
        let kernels = Kernels::detect();
        let rows: Vec<&[f32]> = t.chunks_exact(cols).collect();
        let gram = rows.iter().map(|a| rows.iter().map(|b| kernels.dot(a, b)).collect()).collect();
        let mut pairs = eigenvectors(gram);
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        let sigmas = pairs.iter().map(|(value, _)| value.max(0.0).sqrt());
        let largest = pairs.first().map_or(0.0, |(value, _)| value.max(0.0).sqrt());
        let kept = |sigma: &f64| *sigma > 0.0 && *sigma >= NEGLIGIBLE * largest;
        let sigmas: Vec<f64> = sigmas.take_while(kept).take(rank).collect();
        let vectors = pairs.into_iter().take(sigmas.len()).map(|(_, vector)| vector).collect();
        Self { sigmas, vectors }
    }

    /// Sum of the squares of the singular values.
    pub fn squares(&self) -> f64 {
        self.sigmas.iter().map(|sigma| sigma * sigma).sum()
    }

    /// Row k of `out` becomes the rows of `from`, each of `len` numbers, in the mixture that left
    /// vector k is, times `weight` of singular value k. Rows beyond the values stay.
    pub fn factor(&self, from: &[f32], len: usize, weight: impl Fn(f64) -> f64, out: &mut [f32]) {
        let kernels = Kernels::detect();
        let rows = out.chunks_exact_mut(len);
        for ((sigma, vector), row) in self.sigmas.iter().zip(&self.vectors).zip(rows) {
            row.fill(0.0);
            for (part, from) in vector.iter().zip(from.chunks_exact(len)) {
                let part = (part * weight(*sigma)) as f32;
                kernels.axpy(part, MatRef::new(from, 1, len), MatMut::new(row, 1, len));
            }
        }
    }
}

/// Eigenvalues and eigenvectors of a symmetric matrix, by Jacobi's rotations.
fn eigenvectors(mut a: Vec<Vec<f64>>) -> Vec<(f64, Vec<f64>)> {
    /// Each squares what is left beside the diagonal: six are enough, and it ends when none is.
    const MOST_SWEEPS: usize = 30;
    let n = a.len();
    let mut vectors: Vec<Vec<f64>> =
        (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    let size: f64 = a.iter().flatten().map(|x| x * x).sum();
    for _ in 0..MOST_SWEEPS {
        let beside = |i: usize| a[i][..i].iter().map(|x| x * x).sum::<f64>();
        if (0..n).map(beside).sum::<f64>() <= 1e-30 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut vectors, p, q);
            }
        }
    }
    (0..n).map(|i| a[i][i]).zip(vectors).collect()
}

/// Makes `a[p][q]` zero by a turn in the plane of p and q; row k of `vectors` is eigenvector k.
fn rotate(a: &mut [Vec<f64>], vectors: &mut [Vec<f64>], p: usize, q: usize) {
    let off = a[p][q];
    if off == 0.0 {
        return;
    }
    let theta = (a[q][q] - a[p][p]) / (2.0 * off);
    let tan = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let cos = 1.0 / (tan * tan + 1.0).sqrt();
    let sin = tan * cos;
    let turn = |x: &mut f64, y: &mut f64| (*x, *y) = (cos * *x - sin * *y, sin * *x + cos * *y);
    for row in a.iter_mut() {
        let (left, right) = row.split_at_mut(q);
        turn(&mut left[p], &mut right[0]);
    }
    for matrix in [a, vectors] {
        let (upper, lower) = matrix.split_at_mut(q);
        upper[p].iter_mut().zip(&mut lower[0]).for_each(|(x, y)| turn(x, y));
    }
}

#[cfg(test)]
mod tests {
    use smidgen_kernels::Philox;

    use super::*;

    fn random(stream: u64, len: usize) -> Vec<f32> {
        let mut x = vec![0.0; len];
        Philox::new(4).uniform(stream, 0, &mut x);
        x.iter_mut().for_each(|x| *x = 2.0 * *x - 1.0);
        x
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    }

    #[test]
    fn rows_become_orthonormal_or_zero() {
        const LEN: usize = 50;
        let mut vectors = random(1, 6 * LEN);
        let (first, rest) = vectors.split_at_mut(3 * LEN);
        rest[..LEN].iter_mut().zip(&first[..LEN]).for_each(|(x, y)| *x = -3.0 * y);
        orthonormalise(Kernels::detect(), &mut vectors, LEN);
        let rows: Vec<&[f32]> = vectors.chunks(LEN).collect();
        assert!(rows[3].iter().all(|&x| x == 0.0));
        for (i, a) in rows.iter().enumerate() {
            for (j, b) in rows.iter().enumerate() {
                let want = f64::from(u8::from(i == j && i != 3));
                assert!((dot(a, b) - want).abs() < 1e-6, "{i}, {j}: {}", dot(a, b));
            }
        }
    }

    /// T = diag(sigma) V with V orthonormal has the singular values sigma.
    #[test]
    fn singular_values_are_found() {
        const SIGMAS: [f32; 5] = [1.0, 7.0, 0.0, 3.0, 3.0];
        let mut t = random(2, SIGMAS.len() * 40);
        orthonormalise(Kernels::detect(), &mut t, 40);
        for (row, sigma) in t.chunks_mut(40).zip(SIGMAS) {
            row.iter_mut().for_each(|x| *x *= sigma);
        }
        let found = Approximation::new(&t, 40, 9);
        assert_eq!(found.sigmas.len(), 4);
        for (got, want) in found.sigmas.iter().zip([7.0, 3.0, 3.0, 1.0]) {
            assert!((got - want).abs() < 1e-5, "{:?}", found.sigmas);
        }
        assert_eq!(Approximation::new(&t, 40, 2).sigmas.len(), 2);
        assert!(Approximation::new(&vec![0.0; 200], 40, 2).sigmas.is_empty());
    }

    #[test]
    fn eigenvectors_of_a_random_matrix() {
        const N: usize = 24;
        let x = random(3, N * N);
        let a: Vec<Vec<f64>> = (0..N)
            .map(|i| (0..N).map(|j| f64::from(x[i * N + j]) + f64::from(x[j * N + i])).collect())
            .collect();
        for (value, vector) in eigenvectors(a.clone()) {
            for (row, x) in a.iter().zip(&vector) {
                let image: f64 = row.iter().zip(&vector).map(|(a, x)| a * x).sum();
                assert!((image - value * x).abs() < 1e-12, "{image} for {}", value * x);
            }
        }
    }
}
