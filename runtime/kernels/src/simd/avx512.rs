//! AVX-512 F, BW, DQ and VL.

#![allow(clippy::wildcard_imports)] // intrinsics

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{COLUMNS, Simd};
use crate::isa::Task;

/// Vectors of 16 numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512;

const LANES: usize = 16;

/// The first `n` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    debug_assert!(n <= LANES);
    ((1u32 << n) - 1) as __mmask16
}

/// 16 rows of 8 half words become columns: rows i and i + 8 side by side, three perfect shuffles.
#[inline(always)]
unsafe fn turn(rows: *const *const u16, at: usize) -> [__m256i; COLUMNS] {
    unsafe {
        let mut r = [_mm256_setzero_si256(); COLUMNS];
        for (i, r) in r.iter_mut().enumerate() {
            let low = _mm_loadu_si128((*rows.add(i)).add(at).cast());
            let high = _mm_loadu_si128((*rows.add(i + COLUMNS)).add(at).cast());
            *r = _mm256_set_m128i(high, low);
        }
        for _ in 0..3 {
            let s = r;
            for i in 0..COLUMNS / 2 {
                r[2 * i] = _mm256_unpacklo_epi16(s[i], s[i + COLUMNS / 2]);
                r[2 * i + 1] = _mm256_unpackhi_epi16(s[i], s[i + COLUMNS / 2]);
            }
        }
        r
    }
}

/// 16 rows of 8 bytes become columns: rows 2i and 2i + 1 side by side, four perfect shuffles.
#[inline(always)]
unsafe fn turn_bytes(rows: *const *const i8, at: usize) -> [__m128i; COLUMNS] {
    unsafe {
        let mut r = [_mm_setzero_si128(); COLUMNS];
        for (i, r) in r.iter_mut().enumerate() {
            let low = _mm_loadl_epi64((*rows.add(2 * i)).add(at).cast());
            let high = _mm_loadl_epi64((*rows.add(2 * i + 1)).add(at).cast());
            *r = _mm_unpacklo_epi64(low, high);
        }
        for _ in 0..4 {
            let s = r;
            for i in 0..COLUMNS / 2 {
                r[2 * i] = _mm_unpacklo_epi8(s[i], s[i + COLUMNS / 2]);
                r[2 * i + 1] = _mm_unpackhi_epi8(s[i], s[i + COLUMNS / 2]);
            }
        }
        r
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn with_instructions<T: Task>(task: T) -> T::Output {
    unsafe { task.run::<Avx512>() }
}

rows!(fma_row: "vbroadcastss" "vfmadd231ps", __m512, zmm_reg, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");
rows!(int16_row: "vpbroadcastd" "vpdpwssd", __m512, zmm_reg, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");
rows!(int8_row: "vpbroadcastd" "vpdpbusd", __m512, zmm_reg, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");
rows!(bf16_row: "vpbroadcastd" "vdpbf16ps", __m512, zmm_reg, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn bf16_pairs(a: __m512, b: __m512) -> __m512 {
    let result: __m512;
    // SAFETY: the processor has the instruction.
    unsafe {
        std::arch::asm!(
            "vcvtne2ps2bf16 {result}, {b}, {a}",
            result = out(zmm_reg) result,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    result
}

impl Simd for Avx512 {
    type V = __m512;

    const LANES: usize = LANES;
    const ROWS: usize = 14;
    const BF16: bool = true;
    const INT8: bool = true;

    #[inline(always)]
    unsafe fn vectorize<T: Task>(task: T) -> T::Output {
        unsafe { with_instructions(task) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(first(n), from) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, v: __m512, n: usize) {
        unsafe { _mm512_mask_storeu_ps(to, first(n), v) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn columns_f32(rows: *const *const f32, at: usize) -> [__m512; COLUMNS] {
        unsafe {
            let mut columns = [_mm512_setzero_ps(); COLUMNS];
            for half in 0..2 {
                // Rows i, i + 4, i + 8 and i + 12 side by side; two perfect shuffles of 4 rows.
                let mut r = [_mm512_setzero_ps(); 4];
                for (i, r) in r.iter_mut().enumerate() {
                    let part = [0, 4, 8, 12].map(|row| (*rows.add(i + row)).add(at + 4 * half));
                    let v = _mm512_castps128_ps512(_mm_loadu_ps(part[0]));
                    let v = _mm512_insertf32x4(v, _mm_loadu_ps(part[1]), 1);
                    let v = _mm512_insertf32x4(v, _mm_loadu_ps(part[2]), 2);
                    *r = _mm512_insertf32x4(v, _mm_loadu_ps(part[3]), 3);
                }
                for _ in 0..2 {
                    let s = r;
                    for i in 0..2 {
                        r[2 * i] = _mm512_unpacklo_ps(s[i], s[i + 2]);
                        r[2 * i + 1] = _mm512_unpackhi_ps(s[i], s[i + 2]);
                    }
                }
                columns[4 * half..4 * half + 4].copy_from_slice(&r);
            }
            columns
        }
    }
    #[inline(always)]
    unsafe fn columns_f16(rows: *const *const f16, at: usize) -> [__m512; COLUMNS] {
        unsafe {
            let mut columns = [_mm512_setzero_ps(); COLUMNS];
            for (column, h) in columns.iter_mut().zip(turn(rows.cast(), at)) {
                *column = _mm512_cvtph_ps(h);
            }
            columns
        }
    }
    #[inline(always)]
    unsafe fn columns_bf16(rows: *const *const bf16, at: usize) -> [__m512; COLUMNS] {
        unsafe {
            let mut columns = [_mm512_setzero_ps(); COLUMNS];
            for (column, h) in columns.iter_mut().zip(turn(rows.cast(), at)) {
                let wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
                *column = _mm512_castsi512_ps(wide);
            }
            columns
        }
    }
    #[inline(always)]
    unsafe fn columns_i8(rows: *const *const i8, at: usize) -> [__m512; COLUMNS] {
        unsafe {
            let mut columns = [_mm512_setzero_ps(); COLUMNS];
            for (column, bytes) in columns.iter_mut().zip(turn_bytes(rows, at)) {
                *column = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
            }
            columns
        }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fma_row<const N: usize>(a: *const f32, b: &[__m512; N], sums: &mut [__m512; N]) {
        unsafe { fma_row(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn bf16_row<const N: usize>(a: *const f32, b: &[__m512; N], sums: &mut [__m512; N]) {
        unsafe { bf16_row(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn bf16_pairs(a: __m512, b: __m512) -> __m512 {
        unsafe { bf16_pairs(a, b) }
    }
    #[inline(always)]
    unsafe fn bf16_interleave(a: __m512, b: __m512) -> __m512 {
        // The numbers of `a` are followed by those of `b`.
        const ORDER: [u16; 2 * LANES] = {
            let mut order = [0; 2 * LANES];
            let mut i = 0;
            while i < 2 * LANES {
                order[i] = (i / 2 + i % 2 * LANES) as u16;
                i += 1;
            }
            order
        };
        unsafe {
            let rounded = _mm512_castps_si512(bf16_pairs(a, b));
            let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, rounded))
        }
    }
    #[inline(always)]
    unsafe fn int16_row<const N: usize>(a: *const f32, b: &[__m512; N], sums: &mut [__m512; N]) {
        unsafe { int16_row(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn int16_pairs(a: __m512, b: __m512) -> __m512 {
        unsafe {
            // Quarters of both, crosswise.
            let packed = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
            let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
            _mm512_castsi512_ps(_mm512_permutexvar_epi64(order, packed))
        }
    }
    #[inline(always)]
    unsafe fn int16_interleave(a: __m512, b: __m512, factor: __m512) -> __m512 {
        unsafe {
            let low = _mm512_cvtps_epi32(_mm512_mul_ps(a, factor));
            // In upper halves, and half a unit more, since the lower ones are cut off.
            let upper = _mm512_mul_ps(factor, _mm512_set1_ps(65_536.0));
            let high = _mm512_fmadd_ps(b, upper, _mm512_set1_ps(32_768.0));
            let both = _mm512_mask_blend_epi16(0xAAAA_AAAA, low, _mm512_cvtps_epi32(high));
            _mm512_castsi512_ps(both)
        }
    }
    #[inline(always)]
    unsafe fn int8_row<const N: usize>(a: *const f32, b: &[__m512; N], sums: &mut [__m512; N]) {
        unsafe { int8_row(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn int8_in_order([a, b, c, d]: [__m512; 4]) -> __m512 {
        unsafe {
            // Quarters of all four, crosswise.
            let low = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
            let high = _mm512_packs_epi32(_mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let packed = _mm512_packs_epi16(low, high);
            _mm512_castsi512_ps(_mm512_permutexvar_epi32(order, packed))
        }
    }
    #[inline(always)]
    unsafe fn int8_by_lane([a, b, c, d]: [__m512; 4]) -> __m512 {
        unsafe {
            let byte = _mm512_set1_epi32(0xFF);
            let a = _mm512_and_si512(_mm512_cvtps_epi32(a), byte);
            let b = _mm512_and_si512(_mm512_cvtps_epi32(b), byte);
            let c = _mm512_and_si512(_mm512_cvtps_epi32(c), byte);
            let low = _mm512_or_si512(a, _mm512_slli_epi32(b, 8));
            let d = _mm512_slli_epi32(_mm512_cvtps_epi32(d), 24);
            let high = _mm512_or_si512(_mm512_slli_epi32(c, 16), d);
            let all = _mm512_or_si512(low, high);
            // The uppermost bits are turned.
            Self::int8_raise(_mm512_castsi512_ps(all))
        }
    }
    #[inline(always)]
    unsafe fn int8_raise(x: __m512) -> __m512 {
        unsafe {
            let raised = _mm512_xor_si512(_mm512_castps_si512(x), _mm512_set1_epi8(-128));
            _mm512_castsi512_ps(raised)
        }
    }
    #[inline(always)]
    unsafe fn whole(sums: __m512) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(sums)) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(n: __m512) -> __m512 {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))
        }
    }
    #[inline(always)]
    unsafe fn scale(a: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(a, n) }
    }

    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    unsafe fn largest(a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        unsafe { _mm_prefetch(at.cast(), _MM_HINT_T0) }
    }
}
