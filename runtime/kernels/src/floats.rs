//! Numbers as they are stored.

use half::{bf16, f16};

/// A slice of numbers in the type they are stored in.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// Truncated single precision.
    Bf16(&'a [bf16]),
}

impl Floats<'_> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::Bf16(x) => x.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number `i` in single precision, exactly.
    ///
    /// # Panics
    /// There is no number `i`.
    #[must_use]
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Self::F32(x) => x[i],
            Self::F16(x) => x[i].to_f32(),
            Self::Bf16(x) => x[i].to_f32(),
        }
    }

    /// All of them in single precision, exactly.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        (0..self.len()).map(|i| self.get(i)).collect()
    }
}
