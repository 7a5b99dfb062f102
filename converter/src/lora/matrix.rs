//! Products of factors, into the rows of a tile.
//!
//! Factors and results are in single precision: ranks are small, and the weight is rounded to at most that. What is done once
//! per module is summed in double precision, what is done to every element of a weight in single precision, over the rank one
//! by one, with fused multiply-adds, so that every machine gets the same bits.

#![expect(
    clippy::inline_always,
    reason = "what runs under `Arch::dispatch` must be compiled with its features"
)]

use pulp::{Arch, Simd, WithSimd};

use super::Delta;

/// A matrix, row by row.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) values: Vec<f32>,
}

impl Matrix {
    /// `values` has a whole number of rows.
    pub(super) fn of_rows(rows: usize, values: Vec<f32>) -> Self {
        let columns = values.len() / rows.max(1);
        Self {
            rows,
            columns,
            values,
        }
    }

    /// The rows from `first` on.
    pub(super) fn rows_from(&self, first: usize) -> &[f32] {
        &self.values[first * self.columns..]
    }

    /// `at` gives the element in a row and a column.
    pub(super) fn from_fn(rows: usize, columns: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        let value = |n: usize| at(n / columns, n % columns);
        Self {
            rows,
            columns,
            values: (0..rows * columns).map(value).collect(),
        }
    }

    pub(super) fn transposed(&self) -> Self {
        Self::from_fn(self.columns, self.rows, |i, j| {
            self.values[j * self.columns + i]
        })
    }

    pub(super) fn first_rows(mut self, rows: usize) -> Self {
        self.values.truncate(rows * self.columns);
        Self { rows, ..self }
    }

    pub(super) fn first_columns(&self, columns: usize) -> Self {
        let rows = self.values.chunks(self.columns);
        let values = rows.flat_map(|row| &row[..columns]).copied().collect();
        Self {
            columns,
            values,
            ..*self
        }
    }

    pub(super) fn panels(&self) -> Panels {
        Panels::of(&self.values, self.columns)
    }

    pub(super) fn times(&self, other: &Self) -> Self {
        let mut values = Vec::with_capacity(self.rows * other.columns);
        let mut sums = vec![0.0; other.columns];
        for factors in self.values.chunks_exact(self.columns) {
            sums.fill(0.0);
            for (factor, row) in factors.iter().zip(other.values.chunks_exact(other.columns)) {
                let places = sums.iter_mut().zip(row);
                places.for_each(|(sum, x)| *sum += f64::from(*factor) * f64::from(*x));
            }
            values.extend(sums.iter().map(|sum| *sum as f32));
        }
        Self::of_rows(self.rows, values)
    }

    pub(super) fn is_zero(&self) -> bool {
        self.values.iter().all(|x| *x == 0.0)
    }
}

/// Columns that are worked on at once, in wide and in narrow matrices.
const WIDE: usize = 32;
const NARROW: usize = 16;

/// A matrix in panels of columns, each row by row and filled up with zeros: what stands on the right of products.
#[derive(Clone, Debug)]
pub(super) struct Panels {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Columns of a panel.
    width: usize,
    values: Vec<f32>,
}

impl Panels {
    /// `values` [rows, columns], row by row.
    pub(super) fn of(values: &[f32], columns: usize) -> Self {
        let rows = values.len() / columns;
        let width = if columns <= NARROW { NARROW } else { WIDE };
        let mut panels = Vec::with_capacity(columns.div_ceil(width) * rows * width);
        for first in (0..columns).step_by(width) {
            let filled = width.min(columns - first);
            for row in values.chunks_exact(columns) {
                panels.extend_from_slice(&row[first..first + filled]);
                panels.resize(panels.len() + width - filled, 0.0);
            }
        }
        Self {
            rows,
            columns,
            width,
            values: panels,
        }
    }

    fn matrix(&self) -> Matrix {
        Matrix::from_fn(self.rows, self.columns, |row, column| {
            let panel = column / self.width * self.rows;
            self.values[(panel + row) * self.width + column % self.width]
        })
    }

    pub(super) fn is_zero(&self) -> bool {
        self.values.iter().all(|x| *x == 0.0)
    }
}

/// Rows [m or more, k] and the [k, columns] that they are multiplied by.
pub(super) type Factors<'a> = (&'a [f32], &'a Panels);

/// Products of factors, which are multiplied element by element.
pub(super) type Term<'a> = &'a [Factors<'a>];

/// `out = scale * a b`: `out` [m, columns].
pub(super) fn product(out: &mut [f32], scale: f64, factors: Factors<'_>) {
    out.fill(0.0);
    add_product(out, scale, &[&[factors]]);
}

/// `out += scale * sum (a b o ..)`: `out` [m, columns], the sum of terms; returns the sum of squares of what is added.
pub(super) fn add_product(out: &mut [f32], scale: f64, terms: &[Term<'_>]) -> f64 {
    let arch = Arch::new();
    let scale = scale as f32;
    match terms {
        [[_]] => arch.dispatch(Product::<true> { out, scale, terms }),
        _ => arch.dispatch(Product::<false> { out, scale, terms }),
    }
}

/// `PLAIN` if it is one product.
struct Product<'a, const PLAIN: bool> {
    out: &'a mut [f32],
    scale: f32,
    terms: &'a [Term<'a>],
}

impl<const PLAIN: bool> WithSimd for Product<'_, PLAIN> {
    /// Sum of squares of what is added.
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        // As many rows as keep their sums in registers.
        match (S::F32_LANES, self.terms[0][0].1.width) {
            (16, WIDE) => self.run::<S, 8, 2>(simd),
            (16, _) => self.run::<S, 8, 1>(simd),
            (8, WIDE) => self.run::<S, 2, 4>(simd),
            (8, _) => self.run::<S, 4, 2>(simd),
            (4, WIDE) => self.run::<S, 1, 8>(simd),
            (4, _) => self.run::<S, 2, 4>(simd),
            (_, WIDE) => self.run::<S, 1, WIDE>(simd),
            _ => self.run::<S, 1, NARROW>(simd),
        }
    }
}

impl<const PLAIN: bool> Product<'_, PLAIN> {
    /// `R` rows at a time, in `V` vectors.
    #[inline(always)]
    fn run<S: Simd, const R: usize, const V: usize>(mut self, simd: S) -> f64 {
        let Panels { columns, width, .. } = *self.terms[0][0].1;
        let rows = self.out.len() / columns;
        let mut energy = simd.splat_f32s(0.0);
        for panel in 0..columns.div_ceil(width) {
            let mut row = 0;
            while row + R <= rows {
                self.block::<S, R, V>(simd, row, panel, &mut energy);
                row += R;
            }
            while row < rows {
                self.block::<S, 1, V>(simd, row, panel, &mut energy);
                row += 1;
            }
        }
        let scale = f64::from(self.scale);
        scale * scale * f64::from(simd.reduce_sum_f32s(energy))
    }

    /// `R` rows of a panel.
    #[inline(always)]
    fn block<S: Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        row: usize,
        panel: usize,
        energy: &mut S::f32s,
    ) {
        let sums = if PLAIN {
            sums::<S, R, V>(simd, self.terms[0][0], row, panel)
        } else {
            self.sum_of_terms::<S, R, V>(simd, row, panel)
        };
        let columns = self.terms[0][0].1.columns;
        let (full, scale) = (V * S::F32_LANES, simd.splat_f32s(self.scale));
        let width = full.min(columns - panel * full);
        for (r, sums) in sums.into_iter().enumerate() {
            let out = &mut self.out[(row + r) * columns + panel * full..][..width];
            if width == full {
                add_scaled::<S, V>(simd, out, sums, scale, energy);
            } else {
                let mut last = [0.0; WIDE];
                last[..width].copy_from_slice(out);
                add_scaled::<S, V>(simd, &mut last, sums, scale, energy);
                out.copy_from_slice(&last[..width]);
            }
        }
    }

    #[inline(always)]
    fn sum_of_terms<S: Simd, const R: usize, const V: usize>(
        &self,
        simd: S,
        row: usize,
        panel: usize,
    ) -> [[S::f32s; V]; R] {
        let mut total = [[simd.splat_f32s(0.0); V]; R];
        for term in self.terms {
            let mut term_sums = sums::<S, R, V>(simd, term[0], row, panel);
            for factors in &term[1..] {
                let others = sums::<S, R, V>(simd, *factors, row, panel);
                for r in 0..R {
                    for v in 0..V {
                        term_sums[r][v] = simd.mul_f32s(term_sums[r][v], others[r][v]);
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    total[r][v] = simd.add_f32s(total[r][v], term_sums[r][v]);
                }
            }
        }
        total
    }
}

/// `R` rows of a panel of a product.
#[inline(always)]
fn sums<S: Simd, const R: usize, const V: usize>(
    simd: S,
    (a, b): Factors<'_>,
    row: usize,
    panel: usize,
) -> [[S::f32s; V]; R] {
    let rank = b.rows;
    let mut rows: [&[f32]; R] = [&[]; R];
    for (r, values) in rows.iter_mut().enumerate() {
        *values = &a[(row + r) * rank..][..rank];
    }
    let length = rank * V * S::F32_LANES;
    let panel = &b.values[panel * length..][..length];
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for (k, b) in panel.chunks_exact(V * S::F32_LANES).enumerate() {
        let (b, _) = S::as_simd_f32s(b);
        for r in 0..R {
            let a = simd.splat_f32s(rows[r][k]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_f32s(a, b[v], sums[r][v]);
            }
        }
    }
    sums
}

/// Adds a row of sums to as many places.
#[inline(always)]
fn add_scaled<S: Simd, const V: usize>(
    simd: S,
    out: &mut [f32],
    sums: [S::f32s; V],
    scale: S::f32s,
    energy: &mut S::f32s,
) {
    let (out, _) = S::as_mut_simd_f32s(out);
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = simd.mul_add_f32s(scale, sum, *out);
        *energy = simd.mul_add_f32s(sum, sum, *energy);
    }
}

/// Mode product with a Tucker core: `core` [r1, r2, kernel ..] and `factor` [r2, in] give [r1, in * kernel]:
/// `out[m, i, k] = sum_n core[m, n, k] factor[n, i]`.
pub(super) fn tucker(core: &[f32], r1: usize, factor: &Matrix) -> Matrix {
    let (r2, inputs) = (factor.rows, factor.columns);
    let kernel = core.len() / (r1 * r2).max(1);
    let mut values = Vec::with_capacity(r1 * inputs * kernel);
    let mut sums = vec![0.0; inputs * kernel];
    for m in 0..r1 {
        sums.fill(0.0);
        for n in 0..r2 {
            let taps = &core[(m * r2 + n) * kernel..][..kernel];
            for (i, sums) in sums.chunks_exact_mut(kernel).enumerate() {
                let factor = f64::from(factor.values[n * inputs + i]);
                let places = sums.iter_mut().zip(taps);
                places.for_each(|(sum, tap)| *sum += f64::from(*tap) * factor);
            }
        }
        values.extend(sums.iter().map(|sum| *sum as f32));
    }
    Matrix::of_rows(r1, values)
}

/// `scale * up down`: a change of low rank.
#[derive(Debug)]
pub(super) struct LowRank {
    /// [out, rank]
    up: Matrix,
    /// [rank, in * kernel]
    down: Panels,
    pub(super) scale: f64,
}

impl LowRank {
    pub(super) fn new(up: Matrix, down: &Matrix, scale: f64) -> Self {
        Self {
            up,
            down: down.panels(),
            scale,
        }
    }

    /// The two, for the rows from that on in which element `start` is.
    pub(super) fn factors(&self, start: usize) -> Factors<'_> {
        (self.up.rows_from(start / self.down.columns), &self.down)
    }

    /// `up` [out, rank] and `down` [rank, in * kernel].
    pub(super) fn matrices(&self) -> (&Matrix, Matrix) {
        (&self.up, self.down.matrix())
    }
}

impl Delta for LowRank {
    fn add(&self, start: usize, scale: f64, tile: &mut [f32]) -> f64 {
        add_product(tile, scale * self.scale, &[&[self.factors(start)]])
    }

    fn is_zero(&self) -> bool {
        self.scale == 0.0 || self.up.is_zero() || self.down.is_zero()
    }

    fn low_rank(&self) -> Option<&LowRank> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_matrix_has_rows_and_columns_exchanged() {
        let matrix = Matrix::of_rows(2, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let transposed = matrix.transposed();
        assert_eq!((transposed.rows, transposed.columns), (3, 2));
        assert_eq!(transposed.values, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }

    /// Every size of block, against the definition.
    #[test]
    fn products_are_sums_over_the_rank() {
        for (rows, rank, columns) in [(1, 1, 1), (4, 3, 32), (7, 5, 47), (9, 2, 81), (3, 0, 8)] {
            let number = |n: usize| (n * 7 % 11) as f32 - 5.0;
            let a: Vec<f32> = (0..rows * rank).map(number).collect();
            let b: Vec<f32> = (3..3 + rank * columns).map(number).collect();
            let mut out = vec![f32::NAN; rows * columns];
            let panels = Panels::of(&b, columns);
            product(&mut out, 0.5, (&a, &panels));
            for (n, found) in out.iter().enumerate() {
                let (i, j) = (n / columns, n % columns);
                let sum: f32 = (0..rank)
                    .map(|k| a[i * rank + k] * b[k * columns + j])
                    .sum();
                assert_eq!(*found, 0.5 * sum);
            }
        }
    }
}
