//! Vectors of single-precision numbers: what kernels are written over.

/// [`Simd::fma_row`] and its likes for panels of one to three vectors.
///
/// It is assembly, whose order stands: the compiler would read numbers of many rows ahead, lack registers and keep sums in
/// memory.
#[cfg(target_arch = "x86_64")]
macro_rules! rows {
    ($name:ident: $broadcast:literal $($multiply:literal)+, $vector:ident, $class:ident, $features:literal) => {
        #[inline(always)]
        unsafe fn $name<const N: usize>(a: *const f32, b: &[$vector; N], sums: &mut [$vector; N]) {
            rows!(@one one: $broadcast $($multiply)+, $vector, $class, $features, b0 s0);
            rows!(@one two: $broadcast $($multiply)+, $vector, $class, $features, b0 s0, b1 s1);
            rows!(@one three: $broadcast $($multiply)+, $vector, $class, $features, b0 s0, b1 s1, b2 s2);
            unsafe {
                match (&b[..], &mut sums[..]) {
                    (&[b0], [s0]) => one(a, b0, s0),
                    (&[b0, b1], [s0, s1]) => two(a, b0, s0, b1, s1),
                    (&[b0, b1, b2], [s0, s1, s2]) => three(a, b0, s0, b1, s1, b2, s2),
                    _ => unreachable!("panels have one to three vectors"),
                }
            }
        }
    };
    (@one $name:ident: $broadcast:literal $multiply:literal, $vector:ident, $class:ident, $features:literal, $($b:ident $sum:ident),*) => {
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $name(a: *const f32, $($b: $vector, $sum: &mut $vector),*) {
            // Its type names the register.
            let _factor: $vector;
            unsafe {
                std::arch::asm!(
                    concat!($broadcast, " {factor}, dword ptr [{a}]"),
                    $(concat!($multiply, " {", stringify!($sum), "}, {", stringify!($b), "}, {factor}"),)*
                    a = in(reg) a,
                    factor = out($class) _factor,
                    $($b = in($class) $b, $sum = inout($class) *$sum,)*
                    options(readonly, nostack, preserves_flags),
                );
            }
        }
    };
    // A product of its own, which another instruction adds.
    (@one $name:ident: $broadcast:literal $multiply:literal $add:literal, $vector:ident, $class:ident, $features:literal, $($b:ident $sum:ident),*) => {
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $name(a: *const f32, $($b: $vector, $sum: &mut $vector),*) {
            // Their type names the registers.
            let (_factor, _product): ($vector, $vector);
            unsafe {
                std::arch::asm!(
                    concat!($broadcast, " {factor}, dword ptr [{a}]"),
                    $(
                        concat!($multiply, " {product}, {", stringify!($b), "}, {factor}"),
                        concat!($add, " {", stringify!($sum), "}, {", stringify!($sum), "}, {product}"),
                    )*
                    a = in(reg) a,
                    factor = out($class) _factor,
                    product = out($class) _product,
                    $($b = in($class) $b, $sum = inout($class) *$sum,)*
                    options(readonly, nostack, preserves_flags),
                );
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod math;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::{Avx2, Evex, Pairs, Vex};
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

    /// Whether processors of this level may multiply pairs of bf16 numbers.
    const BF16: bool = false;

    /// Whether processors of this level may multiply whole 8-bit numbers, four at a time.
    const INT8: bool = false;

    /// Registers that [`Simd::int16_row`] takes besides its factors and sums.
    const INT16_SPARE: usize = 0;

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
    /// Whole 8-bit numbers from memory.
    unsafe fn load_i8(from: *const i8) -> Self::V;

    /// Numbers `at..at + 8` of `LANES` rows, as 8 vectors over rows; any words of that size.
    unsafe fn columns_f32(rows: *const *const f32, at: usize) -> [Self::V; COLUMNS];
    /// The same of half-precision numbers.
    unsafe fn columns_f16(rows: *const *const half::f16, at: usize) -> [Self::V; COLUMNS];
    /// The same of truncated single-precision numbers.
    unsafe fn columns_bf16(rows: *const *const half::bf16, at: usize) -> [Self::V; COLUMNS];
    /// The same of whole 8-bit numbers.
    unsafe fn columns_i8(rows: *const *const i8, at: usize) -> [Self::V; COLUMNS];

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
    /// Adds the number at `a` times each of `b` to `sums`, where a product's inner loop does nothing else.
    #[inline(always)]
    unsafe fn fma_row<const N: usize>(a: *const f32, b: &[Self::V; N], sums: &mut [Self::V; N]) {
        unsafe {
            let a = Self::splat(*a);
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = Self::fma(a, b, *sum);
            }
        }
    }
    /// [`Simd::fma_row`] of pairs of bf16 numbers, whose two products are added; for levels that have [`Simd::BF16`].
    #[inline(always)]
    unsafe fn bf16_row<const N: usize>(_: *const f32, _: &[Self::V; N], _: &mut [Self::V; N]) {
        unreachable!("this level has no products of bf16 numbers");
    }
    /// Rounds two vectors' numbers to bf16, the pairs in order.
    #[inline(always)]
    unsafe fn bf16_pairs(_: Self::V, _: Self::V) -> Self::V {
        unreachable!("this level has no products of bf16 numbers");
    }
    /// Rounds two vectors' numbers to bf16, a pair of each lane's two, that of `a` first.
    #[inline(always)]
    unsafe fn bf16_interleave(_: Self::V, _: Self::V) -> Self::V {
        unreachable!("this level has no products of bf16 numbers");
    }
    /// [`Simd::fma_row`] of pairs of whole 16-bit numbers, whose two products are added to whole 32-bit sums.
    unsafe fn int16_row<const N: usize>(a: *const f32, b: &[Self::V; N], sums: &mut [Self::V; N]);
    /// Rounds two vectors' numbers of at most 16 bits to whole ones, the pairs in order.
    unsafe fn int16_pairs(a: Self::V, b: Self::V) -> Self::V;
    /// Rounds two vectors' numbers times `factor` to whole ones between -32767 and 32767, a pair of each lane's two, that of `a`
    /// first.
    unsafe fn int16_interleave(a: Self::V, b: Self::V, factor: Self::V) -> Self::V;
    /// [`Simd::fma_row`] of four whole 8-bit numbers, whose products are added to whole 32-bit sums: the row's between -128 and 127,
    /// the columns' between 0 and 255; for levels that have [`Simd::INT8`].
    #[inline(always)]
    unsafe fn int8_row<const N: usize>(_: *const f32, _: &[Self::V; N], _: &mut [Self::V; N]) {
        unreachable!("this level has no products of 8-bit numbers");
    }
    /// Rounds four vectors' numbers to whole ones between -127 and 127, in order.
    #[inline(always)]
    unsafe fn int8_in_order(_: [Self::V; 4]) -> Self::V {
        unreachable!("this level has no products of 8-bit numbers");
    }
    /// Rounds four vectors' numbers to whole ones between -127 and 127 and adds 128, each lane's four side by side.
    #[inline(always)]
    unsafe fn int8_by_lane(_: [Self::V; 4]) -> Self::V {
        unreachable!("this level has no products of 8-bit numbers");
    }
    /// 128 more to each whole 8-bit number.
    #[inline(always)]
    unsafe fn int8_raise(_: Self::V) -> Self::V {
        unreachable!("this level has no products of 8-bit numbers");
    }
    /// Whole 32-bit numbers as single-precision ones.
    unsafe fn whole(sums: Self::V) -> Self::V;
    /// `|a|`
    unsafe fn abs(a: Self::V) -> Self::V;
    /// The square root.
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// The larger ones; `b` where one is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller ones; `b` where one is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// The nearest whole numbers, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `2^n` for whole `n` of -126 to 127.
    unsafe fn exp2_whole(n: Self::V) -> Self::V;
    /// `a 2^n` for whole `n` of -126 to 127.
    #[inline(always)]
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V {
        unsafe { Self::mul(a, Self::exp2_whole(n)) }
    }

    /// The sum of all, in a fixed order.
    unsafe fn sum(a: Self::V) -> f32;
    /// The largest.
    unsafe fn largest(a: Self::V) -> f32;

    /// Asks for the cache line at `at`, which need not exist.
    unsafe fn prefetch(at: *const f32);
}
