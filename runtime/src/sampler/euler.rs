//! Euler's method on the probability-flow ODE `dx/dsigma = (x - x0) / sigma`: Karras et al. 2022 (arXiv:2206.00364),
//! algorithm 2 without churn. One model call per step, no noise.

use super::{Run, Step, axpby};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// `x`: latents [N, C, h, w] at the first step's noise level.
pub(super) fn euler(
    model: &mut dyn Denoiser,
    mut x: Latents,
    steps: &[Step],
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    for (i, step) in steps.iter().enumerate() {
        let denoised = model.denoise(&x, step.level)?;
        // x + (x - x0) / sigma (sigma_next - sigma)
        let ratio = step.sigma_next / step.level.sigma;
        axpby(&mut x, ratio, &denoised, 1.0 - ratio);
        run.observe(i, &x, &denoised)?;
    }
    Ok(x)
}
