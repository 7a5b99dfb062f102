//! Half precision to single and back, many numbers at a time: loops without branches, compiled for the machine's vector units.
//! (The `half` crate calls a function for every eight numbers, which took longer than most changes of a weight.)

#![expect(
    clippy::inline_always,
    reason = "what runs under `Arch::dispatch` must be compiled with its features"
)]

use half::f16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// The exponents' biases, 127 and 15, apart, where exponents lie in single precision.
const REBIAS: u32 = (127 - 15) << 23;

/// Half-precision numbers in single precision; many of them on all cores.
pub(super) fn widen(bytes: &[u8], values: &mut [f32]) {
    const PIECE: usize = 1 << 17;
    let pieces = values.par_chunks_mut(PIECE);
    pieces
        .zip(bytes.as_chunks().0.par_chunks(PIECE))
        .for_each(|(values, halves)| Arch::new().dispatch(Widen { values, halves }));
}

struct Widen<'a> {
    values: &'a mut [f32],
    halves: &'a [[u8; 2]],
}

impl WithSimd for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (value, half) in self.values.iter_mut().zip(self.halves) {
            *value = to_single(u16::from_le_bytes(*half));
        }
    }
}

#[inline(always)]
fn to_single(half: u16) -> f32 {
    let (sign, magnitude) = (u32::from(half & 0x8000) << 16, u32::from(half & 0x7FFF));
    let subnormal = (magnitude as f32 * 2f32.powi(-24)).to_bits();
    let normal = (magnitude << 13) + REBIAS;
    // Infinity and NaN have the largest exponent of both types.
    let large = normal + REBIAS;
    let bits = if magnitude < 0x0400 {
        subnormal
    } else {
        normal
    };
    let bits = if magnitude < 0x7C00 { bits } else { large };
    f32::from_bits(sign | bits)
}

/// Rounds to half precision, to nearest even; too large numbers become infinite.
pub(crate) fn narrow(values: &[f32], bytes: &mut [u8]) {
    let halves = bytes.as_chunks_mut().0;
    Arch::new().dispatch(Narrow { values, halves });
}

struct Narrow<'a> {
    values: &'a [f32],
    halves: &'a mut [[u8; 2]],
}

impl WithSimd for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (half, value) in self.halves.iter_mut().zip(self.values) {
            *half = to_half(*value).to_le_bytes();
        }
    }
}

#[inline(always)]
fn to_half(value: f32) -> u16 {
    /// Beyond the largest exponent.
    const INFINITE: u32 = 65536f32.to_bits();
    const NAN: u32 = f32::INFINITY.to_bits() + 1;
    /// The least normal number of half precision.
    const NORMAL: u32 = f16::MIN_POSITIVE.to_f32_const().to_bits();
    let (sign, magnitude) = (
        value.to_bits() >> 16 & 0x8000,
        value.to_bits() & 0x7FFF_FFFF,
    );
    // Beside one half, the last bit of single precision counts steps of 2^-24, as subnormals do.
    let subnormal = (f32::from_bits(magnitude) + 0.5)
        .to_bits()
        .wrapping_sub(0.5f32.to_bits());
    // Half a step, a little less where the last bit is even; a carry may reach infinity.
    let round = 0x0FFF + (magnitude >> 13 & 1);
    let normal = magnitude.wrapping_sub(REBIAS).wrapping_add(round) >> 13;
    let large = if magnitude < NAN { 0x7C00 } else { 0x7E00 };
    let bits = if magnitude < NORMAL {
        subnormal
    } else {
        normal
    };
    let bits = if magnitude < INFINITE { bits } else { large };
    (sign | bits) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_becomes_the_single_that_it_is() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut values = vec![0.0; 1 << 16];
        widen(&bytes, &mut values);
        for (bits, value) in (0..=u16::MAX).zip(values) {
            let expected = f16::from_bits(bits).to_f32();
            assert!(value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan());
        }
    }

    /// Every half, every number halfway to the next, and the neighbours of both.
    #[test]
    fn singles_become_the_nearest_half() {
        let mut values = vec![f32::NAN, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45];
        for bits in 0..0x7C01 {
            let half = f16::from_bits(bits).to_f32();
            let next = f16::from_bits(bits.min(0x7BFE) + 1).to_f32();
            let middle = f32::midpoint(half, next);
            for x in [half, middle] {
                let near = [x.next_down(), x, x.next_up()];
                values.extend(near.into_iter().chain(near.map(|x| -x)));
            }
        }
        let mut bytes = vec![0; 2 * values.len()];
        narrow(&values, &mut bytes);
        for (value, half) in values.iter().zip(bytes.as_chunks().0) {
            let (found, expected) = (f16::from_le_bytes(*half), f16::from_f32(*value));
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{value:e} became {found}, not {expected}");
        }
    }
}
