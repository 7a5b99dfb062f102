//! What follows a layer in the same pass over its output.

use crate::simd::{Simd, gelu, sigmoid, silu};

/// A function of single numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// x
    #[default]
    None,
    /// max(x, 0)
    Relu,
    /// x sigmoid(x) (Elfwing et al. 2017).
    Silu,
    /// x Phi(x) (Hendrycks and Gimpel 2016).
    Gelu,
    /// x sigmoid(1.702 x), the approximation CLIP was trained with.
    QuickGelu,
}

impl Activation {
    /// Of each number of a vector.
    ///
    /// # Safety
    /// The machine has the instructions of `S`.
    #[inline(always)]
    pub(crate) unsafe fn apply<S: Simd>(self, x: S::V) -> S::V {
        unsafe {
            match self {
                Self::None => x,
                Self::Relu => S::max(x, S::splat(0.0)),
                Self::Silu => silu::<S>(x),
                Self::Gelu => gelu::<S>(x),
                Self::QuickGelu => S::mul(x, sigmoid::<S>(S::mul(x, S::splat(1.702)))),
            }
        }
    }

    /// The scalar twin, in double precision.
    #[cfg(test)]
    pub(crate) fn of(self, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self {
            Self::None => x,
            Self::Relu => x.max(0.0),
            Self::Silu => x * sigmoid(x),
            Self::Gelu => 0.5 * x * crate::testing::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
            Self::QuickGelu => x * sigmoid(1.702 * x),
        }
    }
}
