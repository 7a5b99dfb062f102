//! Element types of checkpoint files, and their way to single precision.

use std::fmt;

use half::{bf16, f16};

use super::half_precision::widen;

/// Type of a tensor's elements, named as in safetensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// Double precision.
    F64,
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// 4 exponent and 3 mantissa bits, no infinity (the `fn` variant of the OCP 8-bit formats).
    F8E4M3,
    /// 5 exponent and 2 mantissa bits, with infinity.
    F8E5M2,
    /// Signed integers.
    I64,
    /// Signed integers.
    I32,
    /// Signed integers.
    I16,
    /// Signed integers.
    I8,
    /// Unsigned integers.
    U64,
    /// Unsigned integers.
    U32,
    /// Unsigned integers.
    U16,
    /// Unsigned integers.
    U8,
    /// One byte each.
    Bool,
}

impl Dtype {
    const NAMES: [(Self, &'static str); 15] = [
        (Self::F64, "F64"),
        (Self::F32, "F32"),
        (Self::F16, "F16"),
        (Self::Bf16, "BF16"),
        (Self::F8E4M3, "F8_E4M3"),
        (Self::F8E5M2, "F8_E5M2"),
        (Self::I64, "I64"),
        (Self::I32, "I32"),
        (Self::I16, "I16"),
        (Self::I8, "I8"),
        (Self::U64, "U64"),
        (Self::U32, "U32"),
        (Self::U16, "U16"),
        (Self::U8, "U8"),
        (Self::Bool, "BOOL"),
    ];

    /// The type that a safetensors header calls `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES
            .into_iter()
            .find(|(_, n)| *n == name)
            .map(|(dtype, _)| dtype)
    }

    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::F8E4M3 | Self::F8E5M2 | Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether weights may have this type.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(
            self,
            Self::F64 | Self::F32 | Self::F16 | Self::Bf16 | Self::F8E4M3 | Self::F8E5M2
        )
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, name) = Self::NAMES
            .into_iter()
            .find(|(d, _)| d == self)
            .expect("every type has a name");
        f.write_str(name)
    }
}

/// How many of the elements in `bytes` are NaN or infinite.
#[must_use]
pub fn count_non_finite(dtype: Dtype, bytes: &[u8]) -> usize {
    match dtype {
        Dtype::F64 => bytes
            .as_chunks()
            .0
            .iter()
            .filter(|b| !f64::from_le_bytes(**b).is_finite())
            .count(),
        Dtype::F32 => count_exponents_u32(bytes.as_chunks().0, 0x7F80_0000),
        Dtype::F16 => count_exponents_u16(bytes.as_chunks().0, 0x7C00),
        Dtype::Bf16 => count_exponents_u16(bytes.as_chunks().0, 0x7F80),
        Dtype::F8E4M3 => bytes.iter().filter(|&&b| b & 0x7F == 0x7F).count(),
        Dtype::F8E5M2 => bytes.iter().filter(|&&b| b & 0x7C == 0x7C).count(),
        _ => 0,
    }
}

/// Values are not finite where all bits of the exponent are set. Counting in vectors of small integers is what makes
/// this run at the speed of memory.
fn count_exponents_u16(values: &[[u8; 2]], mask: u16) -> usize {
    let is_set = |b: &[u8; 2]| u16::from(u16::from_le_bytes(*b) & mask == mask);
    values
        .chunks(4096)
        .map(|chunk| usize::from(chunk.iter().map(is_set).sum::<u16>()))
        .sum()
}

fn count_exponents_u32(values: &[[u8; 4]], mask: u32) -> usize {
    let is_set = |b: &[u8; 4]| u32::from(u32::from_le_bytes(*b) & mask == mask);
    values
        .chunks(4096)
        .map(|chunk| chunk.iter().map(is_set).sum::<u32>() as usize)
        .sum()
}

/// The elements of `bytes` in single precision.
///
/// # Errors
/// A type that holds no weights, or a finite value that becomes infinite; the text says which.
pub fn to_f32(dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, String> {
    let mut values = vec![0.0; bytes.len() / dtype.size()];
    read_f32(dtype, bytes, &mut values)?;
    Ok(values)
}

/// Fills `values` with the elements of `bytes`, which are as many.
///
/// # Errors
/// As [`to_f32`].
pub(crate) fn read_f32(dtype: Dtype, bytes: &[u8], values: &mut [f32]) -> Result<(), String> {
    match dtype {
        Dtype::F64 => {
            for (i, (value, b)) in values.iter_mut().zip(bytes.as_chunks().0).enumerate() {
                let x = f64::from_le_bytes(*b);
                if x.is_finite() && !(x as f32).is_finite() {
                    return Err(format!(
                        "element {i} is {x:e}, too large for single precision"
                    ));
                }
                *value = x as f32;
            }
        }
        Dtype::F32 => fill(values, bytes, f32::from_le_bytes),
        Dtype::F16 => widen(bytes, values),
        Dtype::Bf16 => fill(values, bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F8E4M3 => fill(values, bytes, |[b]| f8_e4m3(b)),
        Dtype::F8E5M2 => fill(values, bytes, |[b]| f8_e5m2(b)),
        _ => return Err(format!("type {dtype} holds no weights")),
    }
    Ok(())
}

fn fill<const SIZE: usize>(values: &mut [f32], bytes: &[u8], of: impl Fn([u8; SIZE]) -> f32) {
    let places = values.iter_mut().zip(bytes.as_chunks().0);
    places.for_each(|(value, bytes)| *value = of(*bytes));
}

/// Bias 7, subnormals in steps of 2^-9, NaN where all bits but the sign are set, no infinity.
fn f8_e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if bits & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

/// The upper byte of half precision.
fn f8_e5m2(bits: u8) -> f32 {
    f16::from_bits(u16::from(bits) << 8).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(dtype: Dtype, bytes: &[u8]) -> f32 {
        to_f32(dtype, bytes).unwrap()[0]
    }

    #[test]
    fn eight_bit_codes_have_their_published_values() {
        let e4m3 = |b| one(Dtype::F8E4M3, &[b]);
        assert_eq!(
            [e4m3(0x38), e4m3(0x7E), e4m3(0x01), e4m3(0xB8)],
            [1.0, 448.0, 0.001_953_125, -1.0]
        );
        assert!(e4m3(0x7F).is_nan() && e4m3(0xFF).is_nan());
        let e5m2 = |b| one(Dtype::F8E5M2, &[b]);
        assert_eq!(
            [e5m2(0x3C), e5m2(0x7B), e5m2(0x7C), e5m2(0x01)],
            [1.0, 57344.0, f32::INFINITY, 2f32.powi(-16)]
        );
    }

    #[test]
    fn all_eight_bit_codes_follow_the_closed_formula() {
        let value = |bits: u8, mantissa_bits: u32, bias: i32| {
            let exponent = i32::from((bits & 0x7F) >> mantissa_bits);
            let fraction =
                f64::from(bits & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
            let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
            if exponent == 0 {
                sign * fraction * 2f64.powi(1 - bias)
            } else {
                sign * (1.0 + fraction) * 2f64.powi(exponent - bias)
            }
        };
        for bits in 0..=255u8 {
            if bits & 0x7F != 0x7F {
                assert_eq!(
                    f64::from(f8_e4m3(bits)),
                    value(bits, 3, 7),
                    "E4M3 {bits:#x}"
                );
            }
            if bits & 0x7C != 0x7C {
                assert_eq!(
                    f64::from(f8_e5m2(bits)),
                    value(bits, 2, 15),
                    "E5M2 {bits:#x}"
                );
            }
        }
    }

    #[test]
    fn doubles_round_and_refuse_overflow() {
        assert_eq!(one(Dtype::F64, &0.1f64.to_le_bytes()), 0.1f32);
        let error = to_f32(Dtype::F64, &1e300f64.to_le_bytes()).unwrap_err();
        assert!(error.contains("1e300"), "{error}");
        assert_eq!(one(Dtype::F64, &f64::INFINITY.to_le_bytes()), f32::INFINITY);
    }

    #[test]
    fn non_finite_values_are_counted_in_every_float_type() {
        let halves: Vec<u8> = [1.0, f32::NAN, f32::INFINITY, -0.0, 65504.0]
            .iter()
            .flat_map(|&x| f16::from_f32(x).to_le_bytes())
            .collect();
        assert_eq!(count_non_finite(Dtype::F16, &halves), 2);
        let brain: Vec<u8> = [1.0, f32::NAN, f32::NEG_INFINITY, 3e38]
            .iter()
            .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
            .collect();
        assert_eq!(count_non_finite(Dtype::Bf16, &brain), 2);
        let singles: Vec<u8> = vec![f32::NAN; 10_000]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        assert_eq!(count_non_finite(Dtype::F32, &singles), 10_000);
        assert_eq!(
            count_non_finite(
                Dtype::F64,
                &[f64::NAN.to_le_bytes(), 1f64.to_le_bytes()].concat()
            ),
            1
        );
        assert_eq!(count_non_finite(Dtype::F8E4M3, &[0x7F, 0xFF, 0x7E]), 2);
        assert_eq!(count_non_finite(Dtype::F8E5M2, &[0x7C, 0x7D, 0x7B]), 2);
    }
}
