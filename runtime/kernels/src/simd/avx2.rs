//! AVX2, FMA and F16C, and AVX-VNNI besides.

#![allow(clippy::wildcard_imports)] // intrinsics

use std::arch::x86_64::*;
use std::marker::PhantomData;

use half::{bf16, f16};

use super::{COLUMNS, Simd};
use crate::isa::Task;

/// Vectors of 8 numbers, of which whole ones are multiplied as `W` does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2<W>(PhantomData<W>);

/// How whole numbers are multiplied.
///
/// # Safety
/// As of [`Simd`].
pub(crate) trait Whole: Copy + 'static {
    /// [`Simd::INT8`]
    const INT8: bool;
    /// [`Simd::INT16_SPARE`]
    const INT16_SPARE: usize = 0;

    /// [`Simd::int16_row`]
    unsafe fn int16_row<const N: usize>(a: *const f32, b: &[__m256; N], sums: &mut [__m256; N]);
    /// [`Simd::int8_row`]
    unsafe fn int8_row<const N: usize>(a: *const f32, b: &[__m256; N], sums: &mut [__m256; N]);
}

/// What AVX2 has: sums of two products of 16-bit numbers. Those of 8-bit numbers have 16 bits, which are too few.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs;

/// AVX-VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vex;

/// The same instructions in the encoding of AVX-512, where a processor has AVX512-VNNI and VL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evex;

const LANES: usize = 8;

/// All bits set in the first `n` lanes.
#[inline(always)]
unsafe fn first(n: usize) -> __m256i {
    const MASKS: [i32; 2 * LANES] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    debug_assert!(n <= LANES);
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(LANES - n).cast()) }
}

/// 8 rows of 8 half words become columns: three perfect shuffles.
#[inline(always)]
unsafe fn turn(rows: *const *const u16, at: usize) -> [__m128i; COLUMNS] {
    unsafe {
        let mut r = [_mm_setzero_si128(); COLUMNS];
        for (i, r) in r.iter_mut().enumerate() {
            *r = _mm_loadu_si128((*rows.add(i)).add(at).cast());
        }
        for _ in 0..3 {
            let s = r;
            for i in 0..COLUMNS / 2 {
                r[2 * i] = _mm_unpacklo_epi16(s[i], s[i + COLUMNS / 2]);
                r[2 * i + 1] = _mm_unpackhi_epi16(s[i], s[i + COLUMNS / 2]);
            }
        }
        r
    }
}

/// 8 rows of 8 bytes become columns, two to a vector: rows 2i and 2i + 1 side by side, three perfect shuffles.
#[inline(always)]
unsafe fn turn_bytes(rows: *const *const i8, at: usize) -> [__m128i; COLUMNS / 2] {
    unsafe {
        let mut r = [_mm_setzero_si128(); COLUMNS / 2];
        for (i, r) in r.iter_mut().enumerate() {
            let low = _mm_loadl_epi64((*rows.add(2 * i)).add(at).cast());
            let high = _mm_loadl_epi64((*rows.add(2 * i + 1)).add(at).cast());
            *r = _mm_unpacklo_epi64(low, high);
        }
        for _ in 0..3 {
            let s = r;
            for i in 0..2 {
                r[2 * i] = _mm_unpacklo_epi8(s[i], s[i + 2]);
                r[2 * i + 1] = _mm_unpackhi_epi8(s[i], s[i + 2]);
            }
        }
        r
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn with_instructions<W: Whole, T: Task>(task: T) -> T::Output {
    unsafe { task.run::<Avx2<W>>() }
}

rows!(fma_row: "vbroadcastss" "vfmadd231ps", __m256, ymm_reg, "avx2,fma,f16c");
rows!(int16_pairs: "vpbroadcastd" "vpmaddwd" "vpaddd", __m256, ymm_reg, "avx2,fma,f16c");
// Assemblers take the other encoding unless they are told.
rows!(int16_vex: "vpbroadcastd" "{{vex}} vpdpwssd", __m256, ymm_reg, "avx2,fma,f16c");
rows!(int8_vex: "vpbroadcastd" "{{vex}} vpdpbusd", __m256, ymm_reg, "avx2,fma,f16c");
rows!(int16_evex: "vpbroadcastd" "{{evex}} vpdpwssd", __m256, ymm_reg, "avx2,fma,f16c");
rows!(int8_evex: "vpbroadcastd" "{{evex}} vpdpbusd", __m256, ymm_reg, "avx2,fma,f16c");

impl Whole for Pairs {
    const INT8: bool = false;
    const INT16_SPARE: usize = 1;

    #[inline(always)]
    unsafe fn int16_row<const N: usize>(a: *const f32, b: &[__m256; N], sums: &mut [__m256; N]) {
        unsafe { int16_pairs(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn int8_row<const N: usize>(_: *const f32, _: &[__m256; N], _: &mut [__m256; N]) {
        unreachable!("this level has no products of 8-bit numbers");
    }
}

impl Whole for Vex {
    const INT8: bool = true;

    #[inline(always)]
    unsafe fn int16_row<const N: usize>(a: *const f32, b: &[__m256; N], sums: &mut [__m256; N]) {
        unsafe { int16_vex(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn int8_row<const N: usize>(a: *const f32, b: &[__m256; N], sums: &mut [__m256; N]) {
        unsafe { int8_vex(a, b, sums) }
    }
}

impl Whole for Evex {
    const INT8: bool = true;

    #[inline(always)]
    unsafe fn int16_row<const N: usize>(a: *const f32, b: &[__m256; N], sums: &mut [__m256; N]) {
        unsafe { int16_evex(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn int8_row<const N: usize>(a: *const f32, b: &[__m256; N], sums: &mut [__m256; N]) {
        unsafe { int8_evex(a, b, sums) }
    }
}

impl<W: Whole> Simd for Avx2<W> {
    type V = __m256;

    const LANES: usize = LANES;
    const ROWS: usize = 6;
    const INT8: bool = W::INT8;
    const INT16_SPARE: usize = W::INT16_SPARE;

    #[inline(always)]
    unsafe fn vectorize<T: Task>(task: T) -> T::Output {
        unsafe { with_instructions::<W, T>(task) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> __m256 {
        unsafe {
            if n == LANES {
                _mm256_loadu_ps(from)
            } else {
                _mm256_maskload_ps(from, first(n))
            }
        }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, v: __m256, n: usize) {
        unsafe {
            // Masked stores take tens of cycles on some processors.
            if n == LANES {
                _mm256_storeu_ps(to, v);
            } else {
                _mm256_maskstore_ps(to, first(n), v);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn columns_f32(rows: *const *const f32, at: usize) -> [__m256; COLUMNS] {
        unsafe {
            let mut columns = [_mm256_setzero_ps(); COLUMNS];
            for half in 0..2 {
                // Rows i and i + 4 side by side; two perfect shuffles of 4 rows.
                let mut r = [_mm256_setzero_ps(); 4];
                for (i, r) in r.iter_mut().enumerate() {
                    let low = _mm_loadu_ps((*rows.add(i)).add(at + 4 * half));
                    let high = _mm_loadu_ps((*rows.add(i + 4)).add(at + 4 * half));
                    *r = _mm256_set_m128(high, low);
                }
                for _ in 0..2 {
                    let s = r;
                    for i in 0..2 {
                        r[2 * i] = _mm256_unpacklo_ps(s[i], s[i + 2]);
                        r[2 * i + 1] = _mm256_unpackhi_ps(s[i], s[i + 2]);
                    }
                }
                columns[4 * half..4 * half + 4].copy_from_slice(&r);
            }
            columns
        }
    }
    #[inline(always)]
    unsafe fn columns_f16(rows: *const *const f16, at: usize) -> [__m256; COLUMNS] {
        unsafe {
            let mut columns = [_mm256_setzero_ps(); COLUMNS];
            for (column, h) in columns.iter_mut().zip(turn(rows.cast(), at)) {
                *column = _mm256_cvtph_ps(h);
            }
            columns
        }
    }
    #[inline(always)]
    unsafe fn columns_bf16(rows: *const *const bf16, at: usize) -> [__m256; COLUMNS] {
        unsafe {
            let mut columns = [_mm256_setzero_ps(); COLUMNS];
            for (column, h) in columns.iter_mut().zip(turn(rows.cast(), at)) {
                let wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
                *column = _mm256_castsi256_ps(wide);
            }
            columns
        }
    }
    #[inline(always)]
    unsafe fn columns_i8(rows: *const *const i8, at: usize) -> [__m256; COLUMNS] {
        unsafe {
            let mut columns = [_mm256_setzero_ps(); COLUMNS];
            for (two, bytes) in columns.chunks_exact_mut(2).zip(turn_bytes(rows, at)) {
                two[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                let second = _mm_srli_si128::<8>(bytes);
                two[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(second));
            }
            columns
        }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fma_row<const N: usize>(a: *const f32, b: &[__m256; N], sums: &mut [__m256; N]) {
        unsafe { fma_row(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn int16_row<const N: usize>(a: *const f32, b: &[__m256; N], sums: &mut [__m256; N]) {
        unsafe { W::int16_row(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn int16_pairs(a: __m256, b: __m256) -> __m256 {
        unsafe {
            // Halves of both, crosswise.
            let packed = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
            _mm256_castsi256_ps(_mm256_permute4x64_epi64(packed, 0b11_01_10_00))
        }
    }
    #[inline(always)]
    unsafe fn int16_interleave(a: __m256, b: __m256, factor: __m256) -> __m256 {
        unsafe {
            let low = _mm256_cvtps_epi32(_mm256_mul_ps(a, factor));
            // In upper halves, and half a unit more, since the lower ones are cut off.
            let upper = _mm256_mul_ps(factor, _mm256_set1_ps(65_536.0));
            let high = _mm256_fmadd_ps(b, upper, _mm256_set1_ps(32_768.0));
            let both = _mm256_blend_epi16(low, _mm256_cvtps_epi32(high), 0b1010_1010);
            _mm256_castsi256_ps(both)
        }
    }
    #[inline(always)]
    unsafe fn int8_row<const N: usize>(a: *const f32, b: &[__m256; N], sums: &mut [__m256; N]) {
        unsafe { W::int8_row(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn int8_in_order([a, b, c, d]: [__m256; 4]) -> __m256 {
        unsafe {
            // Halves of all four, crosswise.
            let low = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
            let high = _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let packed = _mm256_packs_epi16(low, high);
            _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(packed, order))
        }
    }
    #[inline(always)]
    unsafe fn int8_by_lane([a, b, c, d]: [__m256; 4]) -> __m256 {
        unsafe {
            let byte = _mm256_set1_epi32(0xFF);
            let a = _mm256_and_si256(_mm256_cvtps_epi32(a), byte);
            let b = _mm256_and_si256(_mm256_cvtps_epi32(b), byte);
            let c = _mm256_and_si256(_mm256_cvtps_epi32(c), byte);
            let low = _mm256_or_si256(a, _mm256_slli_epi32(b, 8));
            let d = _mm256_slli_epi32(_mm256_cvtps_epi32(d), 24);
            let high = _mm256_or_si256(_mm256_slli_epi32(c, 16), d);
            let all = _mm256_or_si256(low, high);
            // The uppermost bits are turned.
            Self::int8_raise(_mm256_castsi256_ps(all))
        }
    }
    #[inline(always)]
    unsafe fn int8_raise(x: __m256) -> __m256 {
        unsafe {
            let raised = _mm256_xor_si256(_mm256_castps_si256(x), _mm256_set1_epi8(-128));
            _mm256_castsi256_ps(raised)
        }
    }
    #[inline(always)]
    unsafe fn whole(sums: __m256) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_castps_si256(sums)) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m256) -> __m256 {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: __m256) -> __m256 {
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: __m256) -> __m256 {
        unsafe { _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(n: __m256) -> __m256 {
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))
        }
    }

    #[inline(always)]
    unsafe fn sum(a: __m256) -> f32 {
        unsafe {
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
        }
    }
    #[inline(always)]
    unsafe fn largest(a: __m256) -> f32 {
        unsafe {
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        unsafe { _mm_prefetch(at.cast(), _MM_HINT_T0) }
    }
}
