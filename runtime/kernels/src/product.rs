//! Products of matrices: a block of rows by a packed panel of columns (Goto and van de Geijn 2008).
//!
//! A panel is `[k][2 LANES]`, columns filled up with zeros. Rows are read where they lie, one number at a time.

use crate::isa::Task;
use crate::simd::Simd;

/// Columns of a panel.
#[inline(always)]
pub(crate) const fn panel_columns<S: Simd>() -> usize {
    2 * S::LANES
}

/// `rows` by one panel: `c` (+)= `a b`.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// Rows of `a` and `c`.
    pub rows: usize,
    /// Length of the sums.
    pub k: usize,
    /// `[rows][k]`, rows `a_stride` apart.
    pub a: *const f32,
    pub a_stride: usize,
    /// The panel.
    pub b: *const f32,
    /// `[rows][2 LANES]`, rows `c_stride` apart.
    pub c: *mut f32,
    pub c_stride: usize,
    /// Whether the product is added to `c`.
    pub accumulate: bool,
    /// What the caller reads next: it is brought near meanwhile.
    pub next: *const f32,
}

impl Product {
    /// Rows are split evenly: 16 are 6, 5 and 5, not 6, 6 and 4.
    ///
    /// # Safety
    /// The matrices are there; the machine has the instructions of `S`.
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd>(self) {
        let blocks = self.rows.div_ceil(S::ROWS);
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
                next: self.next.wrapping_add(block % 4 * self.k * S::LANES / 2),
                rows,
                ..self
            };
            // SAFETY: the caller's promise.
            unsafe { part.block::<S>() };
            row += rows;
        }
    }

    /// As many rows as fit in registers.
    #[inline(always)]
    unsafe fn block<S: Simd>(self) {
        unsafe {
            match self.rows {
                1 => S::vectorize(Block::<1>(self)),
                2 => S::vectorize(Block::<2>(self)),
                3 => S::vectorize(Block::<3>(self)),
                4 => S::vectorize(Block::<4>(self)),
                5 => S::vectorize(Block::<5>(self)),
                6 => S::vectorize(Block::<6>(self)),
                7 => S::vectorize(Block::<7>(self)),
                8 => S::vectorize(Block::<8>(self)),
                9 => S::vectorize(Block::<9>(self)),
                10 => S::vectorize(Block::<10>(self)),
                11 => S::vectorize(Block::<11>(self)),
                12 => S::vectorize(Block::<12>(self)),
                13 => S::vectorize(Block::<13>(self)),
                _ => S::vectorize(Block::<14>(self)),
            }
        }
    }
}

/// `R` rows by two vectors of columns.
struct Block<const R: usize>(Product);

/// Terms between two prefetches.
const UNROLL: usize = 4;

impl<const R: usize> Task for Block<R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // The widest level has the most rows; others never ask for as many.
        if R > S::ROWS {
            return;
        }
        let Product {
            k,
            c,
            c_stride,
            accumulate,
            next,
            ..
        } = self.0;
        unsafe {
            let mut sums = [[S::splat(0.0); 2]; R];
            let unrolled = k / UNROLL * UNROLL;
            for k in (0..unrolled).step_by(UNROLL) {
                for line in (0..2 * S::LANES).step_by(16) {
                    S::prefetch(next.wrapping_add(k * S::LANES / 2 + line));
                }
                for u in 0..UNROLL {
                    term::<S, R>(&self.0, k + u, &mut sums);
                }
            }
            for k in unrolled..k {
                term::<S, R>(&self.0, k, &mut sums);
            }
            for (i, sum) in sums.into_iter().enumerate() {
                for (j, sum) in sum.into_iter().enumerate() {
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
unsafe fn term<S: Simd, const R: usize>(product: &Product, k: usize, sums: &mut [[S::V; 2]; R]) {
    unsafe {
        let b = product.b.add(2 * S::LANES * k);
        let (b0, b1) = (S::load(b), S::load(b.add(S::LANES)));
        for (i, sum) in sums.iter_mut().enumerate() {
            let a = S::splat(*product.a.add(i * product.a_stride + k));
            sum[0] = S::fma(a, b0, sum[0]);
            sum[1] = S::fma(a, b1, sum[1]);
        }
    }
}
