//! Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) around a UNet.

use super::{DenoiseError, Denoiser, Latents, Level, Unet, denoised};
use crate::engine::Cancel;
use crate::text::Condition;

/// `uncond + scale sum(weight (cond - uncond))`: away from what should not be seen, towards each of the prompts as much as its
/// weight says (Liu et al. 2022, arXiv:2206.01714).
#[must_use]
pub fn guide<'a>(
    conds: impl IntoIterator<Item = (&'a Latents, f64)>,
    uncond: &Latents,
    scale: f64,
) -> Latents {
    let mut guided = uncond.clone();
    for (cond, weight) in conds {
        let mut towards = cond - uncond;
        towards *= (weight * scale) as f32;
        guided += &towards;
    }
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
    /// The prompts that are followed at once, with their weights; at least one.
    pub conds: Vec<(&'a Condition, f64)>,
    /// The negative prompt.
    pub uncond: &'a Condition,
    /// How strongly prompts are followed; one prompt that is followed at 1 alone runs without the negative prompt, which has
    /// no influence then.
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

    /// What the difference of prompt and negative prompt is multiplied by. Networks that embed guidance need no difference.
    fn guidance(&self) -> f64 {
        match self.unet.embeds_guidance() {
            true => 1.0,
            false => self.scale,
        }
    }

    /// The guided estimate, and that of the negative prompt.
    fn guided(&mut self, x: &Latents, level: Level) -> Result<[Latents; 2], DenoiseError> {
        let conditions = self.conds.iter().map(|(cond, _)| *cond);
        let conditions: Vec<_> = conditions.chain([self.uncond]).collect();
        let mut outputs = self.predict(x, level, &conditions)?;
        let uncond = outputs.pop().expect("an output for every condition");
        let weights = self.conds.iter().map(|(_, weight)| *weight);
        let conds = outputs.iter().zip(weights);
        let mut guided = guide(conds.clone(), &uncond, self.guidance());
        if self.rescale > 0.0 {
            match &outputs[..] {
                [cond] => rescale(&mut guided, cond, self.rescale),
                _ => rescale(&mut guided, &guide(conds, &uncond, 1.0), self.rescale),
            }
        }
        Ok([&guided, &uncond].map(|output| self.clean(x, output, level)))
    }

    /// The clean latents by an output.
    fn clean(&self, x: &Latents, output: &Latents, level: Level) -> Latents {
        denoised(self.unet.prediction, x, output, level.sigma)
    }
}

impl Denoiser for Guided<'_> {
    fn denoise(&mut self, x: &Latents, level: Level) -> Result<Latents, DenoiseError> {
        if let [(cond, weight)] = self.conds[..]
            && weight * self.guidance() == 1.0
        {
            let outputs = self.predict(x, level, &[cond])?;
            return Ok(self.clean(x, &outputs[0], level));
        }
        let [guided, _] = self.guided(x, level)?;
        Ok(guided)
    }

    fn denoise_both(&mut self, x: &Latents, level: Level) -> Result<[Latents; 2], DenoiseError> {
        if self.unet.embeds_guidance() {
            let denoised = self.denoise(x, level)?;
            return Ok([denoised.clone(), denoised]);
        }
        self.guided(x, level)
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
        let mut guided = guide([(&cond, 1.0)], &latents([0.0, 1.0, 0.0, 1.0]), 7.5);
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

    #[test]
    fn prompts_are_followed_as_much_as_they_weigh() {
        let (a, b) = (latents([1.0, 2.0, 3.0, 4.0]), latents([0.0, 4.0, 0.0, 8.0]));
        let uncond = latents([1.0, 0.0, 1.0, 0.0]);
        let guided = guide([(&a, 1.0), (&b, -0.5)], &uncond, 2.0);
        assert_eq!(guided, latents([2.0, 0.0, 6.0, 0.0]));
    }
}
