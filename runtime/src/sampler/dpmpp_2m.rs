//! DPM-Solver++(2M): Lu et al. 2022 (arXiv:2211.01095), algorithm 2, with lambda = -ln(sigma).
//! One model call per step, no noise. First order at the start (no history) and at sigma 0 (infinite step).

use super::{Run, Step, axpby};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// `x`: latents [N, C, h, w] at the first step's noise level.
pub(super) fn dpmpp_2m(
    model: &mut dyn Denoiser,
    mut x: Latents,
    steps: &[Step],
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let lambda = |sigma: f64| -sigma.ln();
    let mut last: Option<(Latents, f64)> = None; // denoised and step size of the step before
    for (i, step) in steps.iter().enumerate() {
        let denoised = model.denoise(&x, step.level)?;
        let h = lambda(step.sigma_next) - lambda(step.level.sigma);
        let (a, b) = (step.sigma_next / step.level.sigma, -(-h).exp_m1());
        match &last {
            Some((previous, h_last)) if step.sigma_next > 0.0 => {
                let w = h / (2.0 * h_last);
                axpby(&mut x, a, &denoised, b * (1.0 + w));
                axpby(&mut x, 1.0, previous, -b * w);
            }
            _ => axpby(&mut x, a, &denoised, b),
        }
        run.observe(i, &x, &denoised)?;
        last = Some((denoised, h));
    }
    Ok(x)
}
