//! Exponentials and the activations made of them.

use super::Simd;

/// `e^x`, within 2 ulp; x is clamped to -87.3..88, so it never is zero or infinite.
///
/// `2^n e^r` with n the nearest whole number to `x / ln 2` and `|r| <= ln 2 / 2`, where a polynomial of degree 6 does
/// (Cody and Waite 1980, chapter 6).
///
/// # Safety
/// The machine has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let x = S::max(S::splat(-87.3), S::min(S::splat(88.0), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, the first of few bits, so that the difference is exact.
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.0 / 720.0);
        for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = S::fma(p, r, S::splat(c));
        }
        S::scale(p, n)
    }
}

/// `2^x` for x of -126 to 127, within 2e-7: a minimax polynomial of degree 5 on -1/2..1/2, times a power of two.
///
/// # Safety
/// The machine has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn exp2<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let n = S::round(x);
        let r = S::sub(x, n);
        let mut p = S::splat(0.001_327_647_1);
        for c in [
            0.009_675_541,
            0.055_507_13,
            0.240_221_2,
            0.693_146_94,
            1.000_000_1,
        ] {
            p = S::fma(p, r, S::splat(c));
        }
        S::scale(p, n)
    }
}

/// `1 / (1 + e^-x)`
///
/// # Safety
/// The machine has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let one = S::splat(1.0);
        let e = exp::<S>(S::sub(S::splat(0.0), x));
        S::div(one, S::add(one, e))
    }
}

/// `x sigmoid(x)` (Elfwing et al. 2017).
///
/// # Safety
/// The machine has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    unsafe { S::mul(x, sigmoid::<S>(x)) }
}

/// `x Phi(x)`, with the error function to 1.5e-7 (Hendrycks and Gimpel 2016; Abramowitz and Stegun 1964, 7.1.26).
///
/// # Safety
/// The machine has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let (zero, one) = (S::splat(0.0), S::splat(1.0));
        let z = S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let z = S::max(z, S::sub(zero, z));
        let t = S::div(one, S::fma(S::splat(0.327_591_1), z, one));
        let mut p = S::splat(1.061_405_4);
        for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            p = S::fma(p, t, S::splat(c));
        }
        // The half of the complement: Phi(-|x|).
        let e = exp::<S>(S::sub(zero, S::mul(z, z)));
        let tail = S::mul(S::splat(0.5), S::mul(S::mul(p, t), e));
        // x Phi(x) = max(x, 0) - |x| Phi(-|x|)
        let magnitude = S::max(x, S::sub(zero, x));
        S::sub(S::max(x, zero), S::mul(magnitude, tail))
    }
}
