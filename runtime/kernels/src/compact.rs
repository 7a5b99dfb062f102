//! Numbers in 17 bits, to keep large activations in half of their memory: 8 neighbours share an exponent, and are whole numbers of
//! 16 bits beside it (block floating point, Wilkinson 1963).
//!
//! What rounding takes away is at most 2^-15 of the largest of the 8, whatever their size: half precision would take 2^-11, and end
//! at 65504, which some decoders' activations exceed. A block with a number that is none, or infinite, is NaN.

use crate::OutOfMemory;
use crate::isa::Task;
use crate::simd::Simd;

/// Numbers that share an exponent.
const BLOCK: usize = 8;

/// Least exponent, as `f32` has it: what is smaller than 2^-127 is 0.
const LEAST: u32 = 15;

/// Exponent of numbers that are none.
const NONE: u32 = 255;

/// Adding it rounds to whole numbers, which are its last bits then.
const WHOLE: f32 = 12_582_912.0;

/// Some numbers.
#[derive(Debug)]
pub(crate) struct Compact {
    numbers: Vec<i16>,
    exponents: Vec<u8>,
}

impl Compact {
    /// As many zeros.
    pub(crate) fn zeros(count: usize) -> Result<Self, OutOfMemory> {
        Ok(Self {
            numbers: filled(count, 0)?,
            exponents: filled(count.div_ceil(BLOCK), LEAST as u8)?,
        })
    }
}

/// A vector, if there is memory for it.
pub(crate) fn filled<T: Copy>(count: usize, with: T) -> Result<Vec<T>, OutOfMemory> {
    let mut vector = Vec::new();
    let room = vector.try_reserve_exact(count);
    room.map_err(|_| OutOfMemory {
        bytes: count * size_of::<T>(),
    })?;
    vector.resize(count, with);
    Ok(vector)
}

/// Rounds as many numbers.
pub(crate) struct Narrow<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) to: &'a mut Compact,
}

impl Task for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (blocks, rest) = self.x.as_chunks::<BLOCK>();
        let (numbers, numbers_rest) = self.to.numbers.as_chunks_mut::<BLOCK>();
        let mut exponents = self.to.exponents.iter_mut();
        for ((x, numbers), exponent) in blocks.iter().zip(numbers).zip(&mut exponents) {
            (*numbers, *exponent) = narrow(x);
        }
        if let Some(exponent) = exponents.next() {
            let mut block = [0.0; BLOCK];
            block[..rest.len()].copy_from_slice(rest);
            let (numbers, shared) = narrow(&block);
            numbers_rest.copy_from_slice(&numbers[..rest.len()]);
            *exponent = shared;
        }
    }
}

/// Whole numbers and their exponent.
#[inline(always)]
fn narrow(x: &[f32; BLOCK]) -> ([i16; BLOCK], u8) {
    let largest = x.map(|x| x.to_bits() & 0x7fff_ffff);
    let largest = largest.into_iter().fold(0, u32::max);
    let shared = (largest >> 23).max(LEAST);
    // 2^14 for the power of two at or below the largest number.
    let scale = f32::from_bits((268 - shared).min(254) << 23);
    let whole = |x: f32| ((x * scale).clamp(-32767.0, 32767.0) + WHOLE).to_bits() as i16;
    (x.map(whole), shared as u8)
}

/// Gives the numbers back.
pub(crate) struct Widen<'a> {
    pub(crate) x: &'a Compact,
    pub(crate) to: &'a mut [f32],
}

impl Task for Widen<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (numbers, numbers_rest) = self.x.numbers.as_chunks::<BLOCK>();
        let (blocks, rest) = self.to.as_chunks_mut::<BLOCK>();
        let mut exponents = self.x.exponents.iter();
        for ((numbers, to), &exponent) in numbers.iter().zip(blocks).zip(&mut exponents) {
            let scale = scale(exponent);
            *to = numbers.map(|x| f32::from(x) * scale);
        }
        if let Some(&exponent) = exponents.next() {
            let scale = scale(exponent);
            for (to, &x) in rest.iter_mut().zip(numbers_rest) {
                *to = f32::from(x) * scale;
            }
        }
    }
}

/// What whole numbers of an exponent are multiplied by.
#[inline(always)]
fn scale(exponent: u8) -> f32 {
    match u32::from(exponent) {
        NONE => f32::NAN,
        exponent => f32::from_bits((exponent - LEAST + 1) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::testing::Random;

    fn there_and_back(isa: Isa, x: &[f32]) -> Vec<f32> {
        let mut compact = Compact::zeros(x.len()).unwrap();
        isa.dispatch(Narrow {
            x,
            to: &mut compact,
        });
        let mut y = vec![0.0; x.len()];
        isa.dispatch(Widen {
            x: &compact,
            to: &mut y,
        });
        y
    }

    #[test]
    fn numbers_lose_less_than_their_largest_neighbour_has_digits() {
        let mut random = Random::new(11);
        for case in 0..200 {
            let count = random.size(70);
            let size = 2.0f32.powi(random.size(230) as i32 - 110);
            let mut x: Vec<f32> = random.normals(count).iter().map(|x| x * size).collect();
            // The largest number below a power of two rounds to that.
            x[case % count] = f32::from_bits((size * 2.0).to_bits() - 1);
            let expected = there_and_back(Isa::Scalar, &x);
            for (x, y) in x.chunks(8).zip(expected.chunks(8)) {
                let largest = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                for (x, y) in x.iter().zip(y) {
                    let lost = f64::from((x - y).abs());
                    assert!(
                        lost <= f64::from(largest) / 32768.0,
                        "{x} of {largest}: {y}"
                    );
                }
            }
            for isa in Isa::available() {
                assert_eq!(there_and_back(isa, &x), expected, "{isa}");
            }
            assert_eq!(there_and_back(Isa::Scalar, &expected), expected);
        }
    }

    #[test]
    fn tiny_numbers_are_zero_and_what_is_no_number_stays_none() {
        for isa in Isa::available() {
            assert_eq!(there_and_back(isa, &[1e-45, -1e-40, 0.0]), [0.0; 3]);
            let large = [f32::MAX, f32::MIN, 1.0];
            let back = there_and_back(isa, &large);
            assert!(
                back.iter()
                    .zip(large)
                    .all(|(y, x)| (y - x).abs() <= f32::MAX / 32768.0)
            );
            for none in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = [1.0; 24];
                x[9] = none;
                let y = there_and_back(isa, &x);
                assert_eq!((&y[..8], &y[16..]), (&x[..8], &x[16..]));
                assert!(y[8..16].iter().all(|y| y.is_nan()), "{y:?}");
            }
        }
    }
}
