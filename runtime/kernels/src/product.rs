//! Products of matrices: a block of rows by a packed panel of columns (Goto and van de Geijn 2008).
//!
//! A panel is `[k][2 LANES]`, columns filled up with zeros; or of 1 or 3 vectors instead of 2, where columns are few. Rows are
//! read where they lie, one number at a time.

use std::marker::PhantomData;

use crate::factors::Factors;
use crate::isa::Task;
use crate::simd::Simd;

/// Columns of a panel.
#[inline(always)]
pub(crate) const fn panel_columns<S: Simd>() -> usize {
    2 * S::LANES
}

/// Vectors of the next panel when so many are left: pairs, and three where one would be left over.
#[inline(always)]
pub(crate) const fn panel_vectors(left: usize) -> usize {
    match left {
        1 => 1,
        left if left % 2 == 1 => 3,
        _ => 2,
    }
}

/// Rows of the block of a product with a panel of `N` vectors.
#[inline(always)]
fn block_rows<S: Simd, F: Factors, const N: usize>() -> usize {
    if N > 2 {
        (2 * S::ROWS - F::spare::<S>()) / N
    } else {
        S::ROWS
    }
}

/// `rows` by one panel: `c` (+)= `a b`.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// Rows of `a` and `c`.
    pub rows: usize,
    /// Length of the sums, in words of factors.
    pub k: usize,
    /// `[rows][k]`, rows `a_stride` apart; each is followed by its scale if factors have one.
    pub a: *const f32,
    pub a_stride: usize,
    /// The panel, followed by its columns' scales if factors have them.
    pub b: *const f32,
    /// As wide as the panel, rows `c_stride` apart.
    pub c: *mut f32,
    pub c_stride: usize,
    /// Whether the product is added to `c`.
    pub accumulate: bool,
    /// What the caller reads next: it is brought near meanwhile.
    pub next: *const f32,
}

impl Product {
    /// With a panel of 1 to 3 vectors.
    ///
    /// # Safety
    /// The matrices are there; the machine has the instructions of `S` and multiplies `F`.
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd, F: Factors>(self, vectors: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match vectors {
                1 => self.run_panel::<S, F, 1>(),
                2 => self.run_panel::<S, F, 2>(),
                _ => self.run_panel::<S, F, 3>(),
            }
        }
    }

    /// Rows are split evenly: 16 are 6, 5 and 5, not 6, 6 and 4.
    #[inline(always)]
    unsafe fn run_panel<S: Simd, F: Factors, const N: usize>(self) {
        let blocks = self.rows.div_ceil(block_rows::<S, F, N>());
        if blocks == 0 {
            return;
        }
        let (least, more) = (self.rows / blocks, self.rows % blocks);
        let mut row = 0;
        for block in 0..blocks {
            let rows = least + usize::from(block < more);
            let part = Self {
                a: self.a.wrapping_add(row * self.a_stride),
                c: self.c.wrapping_add(row * self.c_stride),
                next: self
                    .next
                    .wrapping_add(block % 4 * self.k * N * S::LANES / 4),
                rows,
                ..self
            };
            // SAFETY: the caller's promise.
            unsafe { part.block::<S, F, N>() };
            row += rows;
        }
    }

    /// As many rows as fit in registers.
    #[inline(always)]
    unsafe fn block<S: Simd, F: Factors, const N: usize>(self) {
        unsafe {
            match self.rows {
                1 => S::vectorize(Block::<F, 1, N>::new(self)),
                2 => S::vectorize(Block::<F, 2, N>::new(self)),
                3 => S::vectorize(Block::<F, 3, N>::new(self)),
                4 => S::vectorize(Block::<F, 4, N>::new(self)),
                5 => S::vectorize(Block::<F, 5, N>::new(self)),
                6 => S::vectorize(Block::<F, 6, N>::new(self)),
                7 => S::vectorize(Block::<F, 7, N>::new(self)),
                8 => S::vectorize(Block::<F, 8, N>::new(self)),
                9 => S::vectorize(Block::<F, 9, N>::new(self)),
                10 => S::vectorize(Block::<F, 10, N>::new(self)),
                11 => S::vectorize(Block::<F, 11, N>::new(self)),
                12 => S::vectorize(Block::<F, 12, N>::new(self)),
                13 => S::vectorize(Block::<F, 13, N>::new(self)),
                _ => S::vectorize(Block::<F, 14, N>::new(self)),
            }
        }
    }
}

/// `R` rows by `N` vectors of columns.
struct Block<F, const R: usize, const N: usize>(Product, PhantomData<F>);

impl<F, const R: usize, const N: usize> Block<F, R, N> {
    #[inline(always)]
    fn new(product: Product) -> Self {
        Self(product, PhantomData)
    }
}

/// Terms between two prefetches.
const UNROLL: usize = 4;

impl<F: Factors, const R: usize, const N: usize> Task for Block<F, R, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // The widest level has the most rows; others never ask for as many.
        if R > block_rows::<S, F, N>() {
            return;
        }
        let Product {
            k,
            a,
            a_stride,
            b,
            c,
            c_stride,
            accumulate,
            next,
            ..
        } = self.0;
        unsafe {
            let mut sums = [[S::splat(0.0); N]; R];
            let unrolled = k / UNROLL * UNROLL;
            for k in (0..unrolled).step_by(UNROLL) {
                for line in (0..N * S::LANES).step_by(16) {
                    S::prefetch(next.wrapping_add(k / UNROLL * N * S::LANES + line));
                }
                for u in 0..UNROLL {
                    term::<S, F, R, N>(&self.0, k + u, &mut sums);
                }
            }
            for k in unrolled..k {
                term::<S, F, R, N>(&self.0, k, &mut sums);
            }
            for (i, sum) in sums.into_iter().enumerate() {
                for (j, sum) in sum.into_iter().enumerate() {
                    let scale = a.wrapping_add(i * a_stride + k);
                    let scales = b.wrapping_add((N * k + j) * S::LANES);
                    let sum = F::sums::<S>(sum, scale, scales);
                    let c = c.add(i * c_stride + j * S::LANES);
                    let sum = if accumulate {
                        S::add(S::load(c), sum)
                    } else {
                        sum
                    };
                    S::store(c, sum);
                }
            }
        }
    }
}

/// Adds term `k` to each sum.
#[inline(always)]
unsafe fn term<S: Simd, F: Factors, const R: usize, const N: usize>(
    product: &Product,
    k: usize,
    sums: &mut [[S::V; N]; R],
) {
    unsafe {
        let mut b = [S::splat(0.0); N];
        for (j, b) in b.iter_mut().enumerate() {
            *b = S::load(product.b.add((N * k + j) * S::LANES));
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            let a = product.a.add(i * product.a_stride + k);
            F::multiply::<S, N>(a, &b, sums);
        }
    }
}
