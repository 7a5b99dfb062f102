//! Euler's method with ancestral noise (k-diffusion): every step goes below its target level and is raised to it by fresh
//! noise. One model call per step; one draw per step except where the target is 0.

use super::{Run, Step, axpby};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// `x`: latents [N, C, h, w] at the first step's noise level.
pub(super) fn euler_ancestral(
    model: &mut dyn Denoiser,
    mut x: Latents,
    steps: &[Step],
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let mut noise = Latents::zeros(x.raw_dim());
    for (i, step) in steps.iter().enumerate() {
        let denoised = model.denoise(&x, step.level)?;
        let (down, up) = ancestral(step.level.sigma, step.sigma_next);
        let ratio = down / step.level.sigma;
        axpby(&mut x, ratio, &denoised, 1.0 - ratio);
        if step.sigma_next > 0.0 {
            run.noise(&mut noise);
            x.scaled_add(up as f32, &noise);
        }
        run.observe(i, &x, &denoised)?;
    }
    Ok(x)
}

/// How far down a step from level `a` goes and how much noise raises it to `b`: `up^2 = b^2 (a^2 - b^2) / a^2`,
/// `down^2 = b^2 - up^2`.
fn ancestral(a: f64, b: f64) -> (f64, f64) {
    let up = (b * b * (a * a - b * b) / (a * a)).sqrt().min(b);
    ((b * b - up * up).sqrt(), up)
}

#[cfg(test)]
mod tests {
    #[test]
    fn levels_split_as_published() {
        let (down, up) = super::ancestral(5.0, 2.0);
        assert!((down - 0.8).abs() < 1e-12 && (up - 1.833_030_28).abs() < 1e-8);
    }
}
