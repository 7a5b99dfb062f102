//! Number types that products are computed in.

/// What a product's factors are rounded to; sums are in single precision, or whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compute {
    /// Single precision.
    #[default]
    F32,
    /// Truncated single precision, where the processor multiplies it ([`crate::Isa::Avx512Bf16`]); else single precision.
    Bf16,
    /// Whole 16-bit numbers, scaled row by row, where they are faster ([`crate::Isa::multiplies_int16`]); else single precision.
    Int16,
    /// Whole 8-bit numbers in linear layers, scaled block by block, where the processor multiplies them
    /// ([`crate::Isa::multiplies_int8`]); else and elsewhere as [`Compute::Int16`].
    Int8,
}

impl Compute {
    /// The name in options and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int16 => "i16",
            Self::Int8 => "i8",
        }
    }
}
