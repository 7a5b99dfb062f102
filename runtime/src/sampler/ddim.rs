//! DDIM: Song et al. 2020 (arXiv:2010.02502), equation 12 with eta 0. One model call per step, no noise.
//!
//! The state is variance preserving: a step may end at a level that the next one does not start from (diffusers'
//! `linspace` spacing does that), and the state is then taken as it is.

use super::{Run, Step, axpby};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// `x`: variance-preserving latents [N, C, h, w] at the first step's noise level.
pub(super) fn ddim(
    model: &mut dyn Denoiser,
    mut x: Latents,
    steps: &[Step],
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    for (i, step) in steps.iter().enumerate() {
        let now = Vp::new(step.level.sigma);
        let next = Vp::new(step.sigma_next);
        let denoised = model.denoise(&(&x * (1.0 / now.signal) as f32), step.level)?;
        // eps = (x - signal x0) / noise;  x <- signal' x0 + noise' eps
        let ratio = next.noise / now.noise;
        axpby(&mut x, ratio, &denoised, next.signal - now.signal * ratio);
        run.observe(i, &x, &denoised)?;
    }
    Ok(x)
}

/// Shares of signal and noise in a variance-preserving state: `sqrt(abar)` and `sqrt(1 - abar)`.
pub(super) struct Vp {
    pub(super) signal: f64,
    pub(super) noise: f64,
}

impl Vp {
    pub(super) fn new(sigma: f64) -> Self {
        let signal = 1.0 / (1.0 + sigma * sigma).sqrt();
        Self {
            signal,
            noise: sigma * signal,
        }
    }
}
