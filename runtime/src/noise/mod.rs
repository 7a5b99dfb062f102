//! Unit normal noise that other programs draw too: the same seed gives the same picture.
//!
//! One file per generator; [`Rng`] lists them. Reference programs: torch on the CPU, and torch on CUDA as A1111 imitates it.
//! [`BrownianTree`] is noise between any two noise levels; [`FirstNoise`] what pictures start from, and [`Origin`] whether they draw alone.

mod brownian;
mod first;
mod mt19937;
mod origin;
mod philox;
mod seed_sequence;
mod slerp;
pub mod texture;
mod torch_cpu;

use std::str::FromStr;

pub use brownian::BrownianTree;
pub use first::{FirstNoise, Variation};
pub use origin::Origin;
pub use philox::Philox;
pub use torch_cpu::TorchCpu;

/// A stream of unit normal numbers.
pub trait NoiseSource {
    /// Fills `out` with the next draw: what one `torch.randn` of as many elements would return.
    fn normal(&mut self, out: &mut [f32]);
}

/// A generator of noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rng {
    /// torch's CPU generator, to the last bit.
    TorchCpu,
    /// torch's CUDA generator as A1111's "NV" source imitates it, to the last ulp of the library's logarithm and sine.
    Philox,
}

/// A name that is no generator's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no generator is called `{0}`; there are torch-cpu and philox")]
pub struct UnknownRng(String);

impl Rng {
    /// Every generator.
    pub const ALL: [Self; 2] = [Self::TorchCpu, Self::Philox];

    /// Starts the generator; torch's uses the lower 32 bits of `seed` only.
    ///
    /// ```
    /// use sd_runtime::noise::Rng;
    ///
    /// let mut noise = [0.0; 2];
    /// Rng::TorchCpu.source(0).normal(&mut noise); // torch.manual_seed(0); torch.randn(2)
    /// assert!((noise[0] - 1.5410).abs() < 1e-4 && (noise[1] + 0.2934).abs() < 1e-4);
    /// ```
    #[must_use]
    pub fn source(self, seed: u64) -> Box<dyn NoiseSource + Send> {
        match self {
            Self::TorchCpu => Box::new(TorchCpu::new(seed)),
            Self::Philox => Box::new(Philox::new(seed)),
        }
    }

    /// The name on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TorchCpu => "torch-cpu",
            Self::Philox => "philox",
        }
    }
}

impl FromStr for Rng {
    type Err = UnknownRng;

    fn from_str(name: &str) -> Result<Self, UnknownRng> {
        let rng = Self::ALL.into_iter().find(|rng| rng.name() == name);
        rng.ok_or_else(|| UnknownRng(name.to_owned()))
    }
}

/// The SHA-256 of numbers as little-endian bytes.
#[cfg(test)]
fn digest(values: &[f32]) -> String {
    use sha2::{Digest, Sha256};
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let digest = Sha256::digest(bytes);
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for rng in Rng::ALL {
            assert_eq!(rng.name().parse(), Ok(rng));
        }
        assert!(
            "nv".parse::<Rng>()
                .unwrap_err()
                .to_string()
                .contains("torch-cpu")
        );
    }
}
