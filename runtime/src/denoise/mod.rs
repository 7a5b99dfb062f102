//! From a noisy latent to an estimate of the clean one: what samplers call a model.
//!
//! Noisy latents are "variance exploding" here: clean latent plus `sigma` times unit noise (Karras et al. 2022,
//! arXiv:2206.00364). "Variance preserving" ones are these times `1 / sqrt(1 + sigma^2)`.

mod guidance;
mod noise_table;
mod prediction;
mod relay;
mod threshold;
mod unet;

use ndarray::Array4;

pub use guidance::{Guided, guide, rescale};
pub(crate) use noise_table::TIMESTEPS;
pub use noise_table::{NoiseTable, Precision};
pub use prediction::denoised;
pub use relay::{LeaseUnet, Networks, Relay, is_refined};
pub use threshold::{Threshold, Thresholded};
pub use unet::Unet;

use crate::Remedy;
use crate::engine::EngineError;

/// Latents [N, C, h, w].
pub type Latents = Array4<f32>;

/// A noise level, and the time at which the model is told it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Standard deviation of the noise.
    pub sigma: f64,
    /// Timestep in 0..=999; fractions lie between two levels of training.
    pub t: f64,
}

impl Level {
    /// No noise.
    pub const CLEAN: Self = Self { sigma: 0.0, t: 0.0 };
}

/// Estimates clean latents.
pub trait Denoiser {
    /// The clean latents (x0) that `x` at `level` is thought to come from; shape as `x`.
    ///
    /// # Errors
    /// The model fails, or the user stops it.
    fn denoise(&mut self, x: &Latents, level: Level) -> Result<Latents, DenoiseError>;

    /// The same, and the estimate that does not know the prompt. Without guidance they are one.
    ///
    /// # Errors
    /// The model fails, or the user stops it.
    fn denoise_both(&mut self, x: &Latents, level: Level) -> Result<[Latents; 2], DenoiseError> {
        let denoised = self.denoise(x, level)?;
        Ok([denoised.clone(), denoised])
    }
}

/// A denoising that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DenoiseError {
    /// The network failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The network returned another shape than it got.
    #[error("the UNet returned {found:?} for latents of {expected:?}")]
    Shape {
        /// What came.
        found: Vec<usize>,
        /// What should have come.
        expected: Vec<usize>,
    },
    /// The network returned NaN or infinity.
    #[error("the UNet returned {count} values that are NaN or infinite, at timestep {t}")]
    NonFinite {
        /// How many.
        count: usize,
        /// When.
        t: f64,
    },
    /// Guidance or the sampler made NaN or infinity of what the network returned.
    #[error("the latents have {count} values that are NaN or infinite")]
    Overflow {
        /// How many.
        count: usize,
    },
}

impl DenoiseError {
    /// What can be done about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        match self {
            Self::Engine(error) => error.hint(),
            Self::NonFinite { .. } => Some(Remedy::CheckWeights),
            Self::Overflow { .. } => Some(Remedy::words(
                "another sampler, other options or less guidance may do; the model's weights may be damaged if not",
            )),
            Self::Shape { .. } => None,
        }
    }
}
