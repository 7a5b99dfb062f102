//! What tests of kernels share: random numbers, stored types, and every level at every number of threads.

use half::{bf16, f16};

use crate::{Compute, Floats, Isa, Order, Pool, Run, Scratch, Serial, Threads};

/// Random numbers (Marsaglia 2003, xorshift).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// 0 up to 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// 1 to `most`, small ones as often as large ones.
    pub(crate) fn size(&mut self, most: usize) -> usize {
        let largest = 1.0 + self.unit() * (most as f64 - 1.0);
        1 + (self.unit() * largest) as usize
    }

    /// Normally distributed (Box and Muller 1958).
    pub(crate) fn normals(&mut self, count: usize) -> Vec<f32> {
        let mut normal = || {
            let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
            (radius * (std::f64::consts::TAU * self.unit()).cos()) as f32
        };
        (0..count).map(|_| normal()).collect()
    }
}

/// Numbers that were stored in one of four types.
pub(crate) enum StoredVec {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    Int8(Vec<i8>, Vec<f32>),
}

impl StoredVec {
    pub(crate) fn floats(&self) -> Floats<'_> {
        match self {
            Self::F32(x) => Floats::F32(x),
            Self::F16(x) => Floats::F16(x),
            Self::Bf16(x) => Floats::Bf16(x),
            Self::Int8(numbers, scales) => Floats::Int8 { numbers, scales },
        }
    }
}

/// `x`, the weights of so many outputs, in the type of number `kind`.
pub(crate) fn stored(x: &[f32], kind: usize, order: Order, outputs: usize) -> StoredVec {
    match kind % 4 {
        0 => StoredVec::F32(x.to_vec()),
        1 => StoredVec::F16(x.iter().map(|&x| f16::from_f32(x)).collect()),
        2 => StoredVec::Bf16(x.iter().map(|&x| bf16::from_f32(x)).collect()),
        _ => {
            let output = |i: usize| match order {
                Order::InputsFirst => i % outputs,
                Order::OutputsFirst => i * outputs / x.len(),
            };
            let mut scales = vec![f32::MIN_POSITIVE; outputs];
            for (i, x) in x.iter().enumerate() {
                let scale = &mut scales[output(i)];
                *scale = scale.max(x.abs() / 127.0);
            }
            let whole = |(i, x): (usize, &f32)| (x / scales[output(i)]).round() as i8;
            let numbers = x.iter().enumerate().map(whole).collect();
            StoredVec::Int8(numbers, scales)
        }
    }
}

/// Runs `work` at every level that the machine has, with one thread and with three: threads do not change a bit.
pub(crate) fn every_level(mut work: impl FnMut(&mut Run<'_>) -> Vec<f32>) {
    for isa in Isa::available() {
        let mut scratch = Scratch::new();
        let mut with = |pool: &dyn Pool| {
            let mut run = Run {
                isa,
                compute: Compute::F32,
                pool,
                scratch: &mut scratch,
            };
            work(&mut run)
        };
        let (alone, together) = (with(&Serial), with(&Threads(3)));
        assert!(
            alone
                .iter()
                .zip(&together)
                .all(|(a, b)| a.to_bits() == b.to_bits()),
            "{isa}: threads change the result"
        );
    }
}

/// Asserts a relative distance (L2) of at most `tolerance`.
#[track_caller]
pub(crate) fn close(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let difference: f64 = found
        .iter()
        .zip(expected)
        .map(|(&a, b)| (f64::from(a) - b).powi(2))
        .sum();
    let norm: f64 = expected.iter().map(|b| b * b).sum();
    let distance = (difference / norm.max(1e-60)).sqrt();
    assert!(
        distance <= tolerance,
        "relative distance {distance:e}, at most {tolerance:e}"
    );
}

/// The complementary error function, by its continued fraction and its series (Abramowitz and Stegun 1964, 7.1.5 and 7.1.14).
pub(crate) fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.5 {
        let mut term = x;
        let mut sum = x;
        for n in 1..100 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let fraction = (1..200).rev().fold(x, |f, n| x + f64::from(n) / 2.0 / f);
    (-x * x).exp() / fraction / std::f64::consts::PI.sqrt()
}
