//! Numbers as they are stored.

use half::{bf16, f16};

use crate::Order;

/// A slice of numbers in the type they are stored in.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// Truncated single precision.
    Bf16(&'a [bf16]),
    /// Weights as whole numbers times the scale of their output.
    Int8 {
        /// The whole numbers.
        numbers: &'a [i8],
        /// One for each output.
        scales: &'a [f32],
    },
}

impl Floats<'_> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::Bf16(x) => x.len(),
            Self::Int8 { numbers, .. } => numbers.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether they can be the weights of so many outputs: scales are one for each.
    #[must_use]
    pub fn fit(&self, outputs: usize) -> bool {
        match self {
            Self::Int8 { scales, .. } => scales.len() == outputs,
            Self::F32(_) | Self::F16(_) | Self::Bf16(_) => true,
        }
    }

    /// All of them in single precision. Only products with scales are rounded; `order` says which scale a number has.
    #[must_use]
    pub fn to_f32(&self, order: Order) -> Vec<f32> {
        match self {
            Self::F32(x) => x.to_vec(),
            Self::F16(x) => x.iter().map(|x| x.to_f32()).collect(),
            Self::Bf16(x) => x.iter().map(|x| x.to_f32()).collect(),
            Self::Int8 { numbers, scales } => {
                let inputs = (numbers.len() / scales.len().max(1)).max(1);
                let scale = |i: usize| match order {
                    Order::InputsFirst => scales[i % scales.len()],
                    Order::OutputsFirst => scales[i / inputs],
                };
                let scaled = |(i, &x): (usize, &i8)| f32::from(x) * scale(i);
                numbers.iter().enumerate().map(scaled).collect()
            }
        }
    }
}
