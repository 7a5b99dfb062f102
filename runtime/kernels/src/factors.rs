//! Types of numbers that products multiply: single-precision numbers, or pairs of 16-bit ones in words of the same size.
//!
//! What is multiplied lies as words: a row of `a` has its words side by side, a panel of `b` a vector of columns' words for each
//! word of a row. Where factors are scaled, the word after a row's last one is what its products are to be multiplied by, and so
//! is the vector after a panel's last one.

use std::marker::PhantomData;

use crate::isa::Task;
use crate::simd::Simd;
use crate::{Compute, Run};

/// A type of factors.
pub(crate) trait Factors: 'static {
    /// Factors in a word.
    const IN_WORD: usize;

    /// Words after the last factor: the scale, and what else sums need.
    const SCALES: usize;

    /// Terms of a sum in a linear layer between two visits of its result, when factors have new scales: a panel of so many words
    /// stays in the first-level cache.
    const DEPTH: usize = 320;

    /// Whether factors are the numbers themselves.
    const PLAIN: bool = Self::IN_WORD == 1;

    /// How many times larger than the median's a channel's numbers must be to be an outlier of a linear layer.
    const OUTLIER: f32 = f32::INFINITY;

    /// Whether stored whole 8-bit numbers can be factors as they are.
    const STORED: bool = false;

    /// Words that `count` factors of a sum take.
    #[inline(always)]
    fn words(count: usize) -> usize {
        count.div_ceil(Self::IN_WORD) + Self::SCALES
    }

    /// Registers that a term takes besides its factors and sums.
    #[inline(always)]
    #[must_use]
    fn spare<S: Simd>() -> usize {
        0
    }

    /// Adds the products of a row's word and those of some columns.
    ///
    /// # Safety
    /// The word can be read; the machine has the instructions of `S`.
    unsafe fn multiply<S: Simd, const N: usize>(a: *const f32, b: &[S::V; N], sums: &mut [S::V; N]);

    /// Sums of products as numbers, given the words after the last factors: what they are unless factors are scaled.
    ///
    /// # Safety
    /// They can be read; the machine has the instructions of `S`.
    #[inline(always)]
    unsafe fn sums<S: Simd>(sums: S::V, _row: *const f32, _columns: *const f32) -> S::V {
        sums
    }

    /// Rounds a row of numbers to factors; it may be done in place.
    ///
    /// # Safety
    /// `count` numbers can be read and their words be written, and whole vectors from a number on, all of them numbers or
    /// followed by memory that may be read; the machine has the instructions of `S`.
    unsafe fn row<S: Simd>(from: *const f32, count: usize, to: *mut f32);

    /// Rounds `vectors` columns of `count` numbers to factors: from rows of so many vectors to a panel.
    ///
    /// # Safety
    /// The numbers can be read and their words be written; the machine has the instructions of `S`.
    unsafe fn panel<S: Simd>(from: *const f32, count: usize, vectors: usize, to: *mut f32);
}

/// Numbers of a sum in blocks, each with words (and a scale) of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    /// Numbers of all blocks.
    pub count: usize,
    /// Numbers of a block but the last.
    pub depth: usize,
}

impl Split {
    /// Split as equal as may be, of at most about `most` numbers; words are not torn.
    pub(crate) fn new(count: usize, most: usize) -> Self {
        let depth = count.div_ceil(count.div_ceil(most));
        Self {
            count,
            depth: depth.next_multiple_of(4),
        }
    }

    /// First number and length of each.
    pub(crate) fn each(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.count)
            .step_by(self.depth)
            .map(move |start| (start, self.depth.min(self.count - start)))
    }

    /// Words before the block that starts with number `start`.
    #[inline(always)]
    pub(crate) fn words_before<F: Factors>(self, start: usize) -> usize {
        start / self.depth * F::words(self.depth)
    }

    /// Words of all.
    #[inline(always)]
    pub(crate) fn words<F: Factors>(self) -> usize {
        let last = self.count.saturating_sub(1) / self.depth * self.depth;
        self.words_before::<F>(last) + F::words(self.count - last)
    }
}

/// Work written over vectors and factors; `run` must be `#[inline(always)]`.
pub(crate) trait FactorTask {
    /// What it returns.
    type Output;

    /// Does the work.
    ///
    /// # Safety
    /// The machine has the instructions of `S` and multiplies `F`; pointers in `self` are what the task says.
    unsafe fn run<S: Simd, F: Factors>(self) -> Self::Output;
}

/// A task with a type of factors.
struct With<T, F>(T, PhantomData<F>);

impl<T: FactorTask, F: Factors> Task for With<T, F> {
    type Output = T::Output;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        unsafe { self.0.run::<S, F>() }
    }
}

/// Runs `task`, compiled with the instructions of `S`.
///
/// # Safety
/// As of [`FactorTask::run`].
#[inline(always)]
pub(crate) unsafe fn vectorize<S: Simd, F: Factors, T: FactorTask>(task: T) -> T::Output {
    unsafe { S::vectorize(With::<T, F>(task, PhantomData)) }
}

/// The types of factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Single,
    Bf16,
    Int16,
    Int8,
}

impl Kind {
    /// Runs `task` with this type.
    ///
    /// # Safety
    /// As of [`FactorTask::run`].
    #[inline(always)]
    pub(crate) unsafe fn dispatch<S: Simd, T: FactorTask>(self, task: T) -> T::Output {
        unsafe {
            match self {
                Self::Single => task.run::<S, Single>(),
                Self::Bf16 if S::BF16 => task.run::<S, Bf16>(),
                Self::Bf16 => unreachable!("this level has no products of bf16 numbers"),
                Self::Int16 => task.run::<S, Int16>(),
                Self::Int8 if S::INT8 => task.run::<S, Int8>(),
                Self::Int8 => unreachable!("this level has no products of 8-bit numbers"),
            }
        }
    }
}

impl Run<'_> {
    /// What products are of: what is asked for, if the processor multiplies it.
    pub(crate) fn factors(&self) -> Kind {
        match (self.compute, self.isa.here()) {
            (Compute::Bf16, isa) if isa.multiplies_bf16() => Kind::Bf16,
            (Compute::Int8, isa) if isa.multiplies_int8() => Kind::Int8,
            (Compute::Int16 | Compute::Int8, isa) if isa.multiplies_int16() => Kind::Int16,
            _ => Kind::Single,
        }
    }
}

/// Single-precision numbers.
pub(crate) struct Single;

impl Factors for Single {
    const IN_WORD: usize = 1;
    const SCALES: usize = 0;

    #[inline(always)]
    unsafe fn multiply<S: Simd, const N: usize>(
        a: *const f32,
        b: &[S::V; N],
        sums: &mut [S::V; N],
    ) {
        unsafe { S::fma_row(a, b, sums) }
    }

    #[inline(always)]
    unsafe fn row<S: Simd>(from: *const f32, count: usize, to: *mut f32) {
        if !std::ptr::eq(from, to) {
            unsafe { from.copy_to(to, count) }
        }
    }

    #[inline(always)]
    unsafe fn panel<S: Simd>(from: *const f32, count: usize, vectors: usize, to: *mut f32) {
        if !std::ptr::eq(from, to) {
            unsafe { from.copy_to(to, count * vectors * S::LANES) }
        }
    }
}

/// Pairs of bf16 numbers.
pub(crate) struct Bf16;

impl Factors for Bf16 {
    const IN_WORD: usize = 2;
    const SCALES: usize = 0;

    #[inline(always)]
    unsafe fn multiply<S: Simd, const N: usize>(
        a: *const f32,
        b: &[S::V; N],
        sums: &mut [S::V; N],
    ) {
        unsafe { S::bf16_row(a, b, sums) }
    }

    #[inline(always)]
    unsafe fn row<S: Simd>(from: *const f32, count: usize, to: *mut f32) {
        unsafe { Self::pair_row::<S>(from, count, S::splat(1.0), to) }
    }

    #[inline(always)]
    unsafe fn panel<S: Simd>(from: *const f32, count: usize, vectors: usize, to: *mut f32) {
        unsafe {
            for i in 0..vectors {
                let at = i * S::LANES;
                let one = S::splat(1.0);
                Self::pair_column::<S>(from.add(at), count, vectors * S::LANES, one, to.add(at));
            }
        }
    }
}

impl Pairs for Bf16 {
    #[inline(always)]
    unsafe fn in_order<S: Simd>(a: S::V, b: S::V) -> S::V {
        unsafe { S::bf16_pairs(a, b) }
    }

    #[inline(always)]
    unsafe fn by_lane<S: Simd>(a: S::V, b: S::V, _: S::V) -> S::V {
        unsafe { S::bf16_interleave(a, b) }
    }
}

/// Pairs of whole 16-bit numbers, whose sums are whole as well.
///
/// A row is scaled so that its Euclidean norm is at most 2^16, a column so that its is at most 2^15: by the inequality of Cauchy and
/// Schwarz no sum, finished or not, then leaves 32 bits. Some hundred numbers of like size keep about 13 bits each.
/// What is larger than 1e19 has no finite norm and is no number afterwards.
pub(crate) struct Int16;

impl Int16 {
    /// The largest norm of a row, less what rounding may add for up to 2^15 of its numbers: half the root of their count.
    const ROW: f32 = 65_536.0 - 91.0;

    /// The largest norm of a column: none of its numbers is larger.
    const COLUMN: f32 = 32_768.0 - 91.0;

    /// The largest number of a row.
    const LARGEST: f32 = 32_767.0;

    /// A norm that no row falls below, so that scales are finite.
    const LEAST: f32 = 1e-15;
}

impl Factors for Int16 {
    const IN_WORD: usize = 2;
    const SCALES: usize = 1;
    const OUTLIER: f32 = 64.0;

    #[inline(always)]
    fn spare<S: Simd>() -> usize {
        S::INT16_SPARE
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd, const N: usize>(
        a: *const f32,
        b: &[S::V; N],
        sums: &mut [S::V; N],
    ) {
        unsafe { S::int16_row(a, b, sums) }
    }

    #[inline(always)]
    unsafe fn sums<S: Simd>(sums: S::V, row: *const f32, columns: *const f32) -> S::V {
        unsafe { S::mul(S::mul(S::whole(sums), S::splat(*row)), S::load(columns)) }
    }

    #[inline(always)]
    unsafe fn row<S: Simd>(from: *const f32, count: usize, to: *mut f32) {
        unsafe {
            let mut squares = [S::splat(0.0); 2];
            let mut largest = [S::splat(0.0); 2];
            let pairs = count / (2 * S::LANES) * 2 * S::LANES;
            for i in (0..pairs).step_by(2 * S::LANES) {
                for j in 0..2 {
                    let x = S::load(from.add(i + j * S::LANES));
                    squares[j] = S::fma(x, x, squares[j]);
                    largest[j] = S::max(largest[j], S::abs(x));
                }
            }
            for i in (pairs..count).step_by(S::LANES) {
                let x = S::load_first(from.add(i), S::LANES.min(count - i));
                squares[0] = S::fma(x, x, squares[0]);
                largest[0] = S::max(largest[0], S::abs(x));
            }
            let squares = S::splat(S::sum(S::add(squares[0], squares[1])));
            let largest = S::splat(S::largest(S::max(largest[0], largest[1])));
            // Of two, the second stays if it is no number.
            let norm = S::max(S::splat(Self::LEAST), S::sqrt(squares));
            let norm = S::max(S::mul(largest, S::splat(Self::ROW / Self::LARGEST)), norm);
            let factor = S::div(S::splat(Self::ROW), norm);
            Self::pair_row::<S>(from, count, factor, to);
            let scale = S::div(S::splat(1.0), factor);
            S::store_first(to.add(count.div_ceil(2)), scale, 1);
        }
    }

    #[inline(always)]
    unsafe fn panel<S: Simd>(from: *const f32, count: usize, vectors: usize, to: *mut f32) {
        let stride = vectors * S::LANES;
        unsafe {
            for i in 0..vectors {
                let (from, to) = (from.add(i * S::LANES), to.add(i * S::LANES));
                let (mut even, mut odd) = (S::splat(0.0), S::splat(0.0));
                for k in 0..count / 2 {
                    let x = S::load(from.add(2 * k * stride));
                    even = S::fma(x, x, even);
                    let x = S::load(from.add((2 * k + 1) * stride));
                    odd = S::fma(x, x, odd);
                }
                if !count.is_multiple_of(2) {
                    let x = S::load(from.add((count - 1) * stride));
                    even = S::fma(x, x, even);
                }
                let norm = S::sqrt(S::add(even, odd));
                let norm = S::max(S::splat(Self::LEAST), norm);
                let factor = S::div(S::splat(Self::COLUMN), norm);
                Self::pair_column::<S>(from, count, stride, factor, to);
                let scale = S::div(S::splat(1.0), factor);
                S::store(to.add(count.div_ceil(2) * stride), scale);
            }
        }
    }
}

impl Pairs for Int16 {
    #[inline(always)]
    unsafe fn in_order<S: Simd>(a: S::V, b: S::V) -> S::V {
        unsafe { S::int16_pairs(a, b) }
    }

    #[inline(always)]
    unsafe fn by_lane<S: Simd>(a: S::V, b: S::V, factor: S::V) -> S::V {
        unsafe { S::int16_interleave(a, b, factor) }
    }
}

/// Fours of whole 8-bit numbers, whose sums are whole as well: 128 is added to those of a panel, so that they are not negative,
/// and a row ends with its scale and what that adds to its sums.
pub(crate) struct Int8;

impl Int8 {
    /// The largest whole number.
    const LARGEST: f32 = 127.0;

    /// A largest number that no row falls below, so that scales are finite.
    const LEAST: f32 = 1e-30;

    /// What numbers are multiplied by, given the largest. `nothing` is a sum of what they are times zero.
    #[inline(always)]
    unsafe fn factor<S: Simd>(largest: S::V, nothing: S::V) -> S::V {
        unsafe {
            let largest = S::max(largest, S::splat(Self::LEAST));
            S::add(S::div(S::splat(Self::LARGEST), largest), nothing)
        }
    }
}

impl Factors for Int8 {
    const IN_WORD: usize = 4;
    const SCALES: usize = 2;
    /// The fewer numbers share a scale, the smaller is the largest one.
    const DEPTH: usize = 160;
    const OUTLIER: f32 = 16.0;
    const STORED: bool = true;

    #[inline(always)]
    unsafe fn multiply<S: Simd, const N: usize>(
        a: *const f32,
        b: &[S::V; N],
        sums: &mut [S::V; N],
    ) {
        unsafe { S::int8_row(a, b, sums) }
    }

    /// Sums are exact in single precision up to 512 terms.
    #[inline(always)]
    unsafe fn sums<S: Simd>(sums: S::V, row: *const f32, columns: *const f32) -> S::V {
        unsafe {
            let sums = S::sub(S::whole(sums), S::splat(*row.add(1)));
            S::mul(S::mul(sums, S::splat(*row)), S::load(columns))
        }
    }

    #[inline(always)]
    unsafe fn row<S: Simd>(from: *const f32, count: usize, to: *mut f32) {
        unsafe {
            let (mut largest, mut nothing) = (S::splat(0.0), S::splat(0.0));
            for i in (0..count).step_by(S::LANES) {
                let x = S::load_first(from.add(i), S::LANES.min(count - i));
                largest = S::max(largest, S::abs(x));
                nothing = S::fma(x, S::splat(0.0), nothing);
            }
            let largest = S::splat(S::largest(largest));
            let factor = Self::factor::<S>(largest, S::splat(S::sum(nothing)));
            let mut sum = S::splat(0.0);
            for i in (0..count).step_by(4 * S::LANES) {
                let mut x = [S::splat(0.0); 4];
                for (j, x) in x.iter_mut().enumerate() {
                    let at = i + j * S::LANES;
                    let n = count.saturating_sub(at).min(S::LANES);
                    let scaled = S::mul(S::load_first(from.wrapping_add(at), n), factor);
                    *x = S::round(scaled);
                    sum = S::add(sum, *x);
                }
                let words = S::LANES.min((count - i).div_ceil(4));
                S::store_first(to.add(i / 4), S::int8_in_order(x), words);
            }
            let to = to.add(count.div_ceil(4));
            S::store_first(to, S::div(S::splat(1.0), factor), 1);
            *to.add(1) = 128.0 * S::sum(sum);
        }
    }

    #[inline(always)]
    unsafe fn panel<S: Simd>(from: *const f32, count: usize, vectors: usize, to: *mut f32) {
        let stride = vectors * S::LANES;
        unsafe {
            for i in 0..vectors {
                let (from, to) = (from.add(i * S::LANES), to.add(i * S::LANES));
                let (mut largest, mut nothing) = (S::splat(0.0), S::splat(0.0));
                for k in 0..count {
                    let x = S::load(from.add(k * stride));
                    largest = S::max(largest, S::abs(x));
                    nothing = S::fma(x, S::splat(0.0), nothing);
                }
                let factor = Self::factor::<S>(largest, nothing);
                for k in (0..count).step_by(4) {
                    let mut x = [S::splat(0.0); 4];
                    for (j, x) in x.iter_mut().enumerate().take(count - k) {
                        *x = S::mul(S::load(from.add((k + j) * stride)), factor);
                    }
                    S::store(to.add(k / 4 * stride), S::int8_by_lane(x));
                }
                let to = to.add(count.div_ceil(4) * stride);
                S::store(to, S::div(S::splat(1.0), factor));
            }
        }
    }
}

/// How numbers become pairs.
trait Pairs {
    /// Rounds two vectors' numbers, the pairs in order.
    unsafe fn in_order<S: Simd>(a: S::V, b: S::V) -> S::V;

    /// Rounds two vectors' numbers times `factor`, a pair of each lane's two, that of `a` first.
    unsafe fn by_lane<S: Simd>(a: S::V, b: S::V, factor: S::V) -> S::V;

    /// A row of numbers times `factor` becomes pairs, the last one filled up with zero. It may be done in place.
    #[inline(always)]
    unsafe fn pair_row<S: Simd>(from: *const f32, count: usize, factor: S::V, to: *mut f32) {
        let whole = count / (2 * S::LANES) * 2 * S::LANES;
        unsafe {
            for i in (0..whole).step_by(2 * S::LANES) {
                let low = S::mul(S::load(from.add(i)), factor);
                let high = S::mul(S::load(from.add(i + S::LANES)), factor);
                S::store(to.add(i / 2), Self::in_order::<S>(low, high));
            }
            let left = count - whole;
            if left > 0 {
                let low = S::load_first(from.add(whole), S::LANES.min(left));
                let high = left.saturating_sub(S::LANES);
                let high = S::load_first(from.wrapping_add(whole + S::LANES), high);
                let pairs = Self::in_order::<S>(S::mul(low, factor), S::mul(high, factor));
                S::store_first(to.add(whole / 2), pairs, left.div_ceil(2));
            }
        }
    }

    /// A vector of columns, rows `stride` apart, times `factor` becomes pairs of two rows each.
    #[inline(always)]
    unsafe fn pair_column<S: Simd>(
        from: *const f32,
        count: usize,
        stride: usize,
        factor: S::V,
        to: *mut f32,
    ) {
        unsafe {
            for i in 0..count / 2 {
                let low = S::load(from.add(2 * i * stride));
                let high = S::load(from.add((2 * i + 1) * stride));
                S::store(to.add(i * stride), Self::by_lane::<S>(low, high, factor));
            }
            if !count.is_multiple_of(2) {
                let low = S::load(from.add((count - 1) * stride));
                let pair = Self::by_lane::<S>(low, S::splat(0.0), factor);
                S::store(to.add(count / 2 * stride), pair);
            }
        }
    }
}
