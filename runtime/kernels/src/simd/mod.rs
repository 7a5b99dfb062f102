//! Vectors of single-precision numbers: what kernels are written over.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod math;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use math::{exp2, gelu, sigmoid, silu};
pub(crate) use scalar::Scalar;

use crate::isa::Task;

/// Numbers of a row that are turned at a time.
pub(crate) const COLUMNS: usize = 8;

/// An instruction level's vectors.
///
/// Methods are `#[inline(always)]` and meant to be called inside [`Simd::vectorize`]; elsewhere they are right, but slow.
///
/// # Safety
/// All methods: the machine has the instructions. Those with pointers: `LANES` (or `n`) elements can be read or written there;
/// no alignment is needed.
pub(crate) trait Simd: Copy + 'static {
    /// `LANES` numbers.
    type V: Copy;

    /// Numbers in a vector.
    const LANES: usize;

    /// Rows of the block of a product that stays in registers, with two vectors' width of columns.
    const ROWS: usize;

    /// Runs `task`, compiled with this level's instructions.
    unsafe fn vectorize<T: Task>(task: T) -> T::Output;

    /// The same number everywhere.
    unsafe fn splat(x: f32) -> Self::V;
    /// `LANES` numbers from memory.
    unsafe fn load(from: *const f32) -> Self::V;
    /// `LANES` numbers to memory.
    unsafe fn store(to: *mut f32, v: Self::V);
    /// The first `n` numbers, and zeros.
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V;
    /// The first `n` numbers to memory.
    unsafe fn store_first(to: *mut f32, v: Self::V, n: usize);
    /// Half-precision numbers from memory.
    unsafe fn load_f16(from: *const half::f16) -> Self::V;
    /// Truncated single-precision numbers from memory.
    unsafe fn load_bf16(from: *const half::bf16) -> Self::V;

    /// Numbers `at..at + 8` of `LANES` rows, as 8 vectors over rows.
    unsafe fn columns_f32(rows: *const *const f32, at: usize) -> [Self::V; COLUMNS];
    /// The same of half-precision numbers.
    unsafe fn columns_f16(rows: *const *const half::f16, at: usize) -> [Self::V; COLUMNS];
    /// The same of truncated single-precision numbers.
    unsafe fn columns_bf16(rows: *const *const half::bf16, at: usize) -> [Self::V; COLUMNS];

    /// `a + b`
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger ones; `b` where one is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller ones; `b` where one is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// The nearest whole numbers, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `2^n` for whole `n` of -126 to 127.
    unsafe fn exp2_whole(n: Self::V) -> Self::V;

    /// The sum of all, in a fixed order.
    unsafe fn sum(a: Self::V) -> f32;
    /// The largest.
    unsafe fn largest(a: Self::V) -> f32;

    /// Asks for the cache line at `at`, which need not exist.
    unsafe fn prefetch(at: *const f32);
}
