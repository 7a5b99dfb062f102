//! Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) around a UNet.

use super::{DenoiseError, Denoiser, Latents, Level, Unet, denoised};
use crate::engine::Cancel;
use crate::text::Condition;

/// `uncond + scale (cond - uncond)`.
#[must_use]
pub fn guide(cond: &Latents, uncond: &Latents, scale: f32) -> Latents {
    let mut guided = cond - uncond;
    guided *= scale;
    guided += uncond;
    guided
}

/// Gives `guided` back some of the spread of `cond`, which strong guidance exaggerates (Lin et al. 2023,
/// arXiv:2305.08891, section 3.4): `phi std(cond) / std(guided) guided + (1 - phi) guided`.
pub fn rescale(guided: &mut Latents, cond: &Latents, phi: f64) {
    let ratio = f64::from(cond.std(1.0)) / f64::from(guided.std(1.0));
    if ratio.is_finite() {
        *guided *= (phi * ratio + 1.0 - phi) as f32;
    }
}

/// A UNet that follows a prompt.
#[derive(Debug)]
pub struct Guided<'a> {
    /// The network.
    pub unet: &'a mut Unet,
    /// The prompt.
    pub cond: &'a Condition,
    /// The negative prompt.
    pub uncond: &'a Condition,
    /// How strongly the prompt is followed; at 1 the negative prompt has no influence and is not run.
    pub scale: f64,
    /// How much of the prompt's spread is given back, 0 to 1.
    pub rescale: f64,
    /// Ends the calls.
    pub cancel: &'a Cancel,
}

impl Guided<'_> {
    /// The network's outputs under conditions.
    fn predict(
        &mut self,
        x: &Latents,
        level: Level,
        conditions: &[&Condition],
    ) -> Result<Vec<Latents>, DenoiseError> {
        let input = x * (1.0 / (level.sigma * level.sigma + 1.0).sqrt()) as f32;
        self.unet
            .predict(&input, level.t, conditions, self.scale, self.cancel)
    }

    /// The clean latents by an output.
    fn clean(&self, x: &Latents, output: &Latents, level: Level) -> Latents {
        denoised(self.unet.prediction, x, output, level.sigma)
    }
}

impl Denoiser for Guided<'_> {
    fn denoise(&mut self, x: &Latents, level: Level) -> Result<Latents, DenoiseError> {
        if self.scale != 1.0 && !self.unet.embeds_guidance() {
            let [guided, _] = self.denoise_both(x, level)?;
            return Ok(guided);
        }
        let mut outputs = self.predict(x, level, &[self.cond])?;
        Ok(self.clean(x, &outputs.remove(0), level))
    }

    fn denoise_both(&mut self, x: &Latents, level: Level) -> Result<[Latents; 2], DenoiseError> {
        if self.unet.embeds_guidance() {
            let denoised = self.denoise(x, level)?;
            return Ok([denoised.clone(), denoised]);
        }
        let outputs = self.predict(x, level, &[self.cond, self.uncond])?;
        let mut guided = guide(&outputs[0], &outputs[1], self.scale as f32);
        if self.rescale > 0.0 {
            rescale(&mut guided, &outputs[0], self.rescale);
        }
        Ok([&guided, &outputs[1]].map(|output| self.clean(x, output, level)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latents(values: [f32; 4]) -> Latents {
        Latents::from_shape_vec((1, 1, 1, 4), values.to_vec()).unwrap()
    }

    #[test]
    fn guidance_extrapolates_and_its_spread_is_given_back() {
        let cond = latents([1.0, 2.0, 3.0, 4.0]);
        let mut guided = guide(&cond, &latents([0.0, 1.0, 0.0, 1.0]), 7.5);
        assert_eq!(guided, latents([7.5, 8.5, 22.5, 23.5]));
        rescale(&mut guided, &cond, 0.7);
        let expected = [3.030_89, 3.435_009, 9.092_671, 9.496_79];
        for (found, expected) in guided.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{guided}");
        }
        let mut whole = latents([7.5, 8.5, 22.5, 23.5]);
        rescale(&mut whole, &cond, 1.0);
        assert!((whole.std(1.0) - cond.std(1.0)).abs() < 1e-5);
    }
}
