//! Dynamic thresholding of clean latents (Saharia et al. 2022, arXiv:2205.11487, section 2.3), as diffusers' schedulers have it.

use super::{DenoiseError, Denoiser, Latents, Level};

/// What numbers of a clean latent may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// The share of numbers, by size, that stay within the bound: 0 to 1.
    pub ratio: f64,
    /// The greatest bound; the least is 1.
    pub most: f64,
}

impl Threshold {
    /// Clamps numbers to the bound, and divides them by it.
    pub fn apply(self, x: &mut Latents) {
        let bound = self.bound(x);
        x.mapv_inplace(|x| x.clamp(-bound, bound) / bound);
    }

    /// The size below which the share of numbers lies; linear between two of them.
    fn bound(self, x: &Latents) -> f32 {
        let mut sizes: Vec<f32> = x.iter().map(|x| x.abs()).collect();
        sizes.sort_unstable_by(f32::total_cmp);
        let place = self.ratio * (sizes.len() - 1) as f64;
        let [low, high] = [place.floor(), place.ceil()].map(|i| f64::from(sizes[i as usize]));
        let bound = low + place.fract() * (high - low);
        bound.max(1.0).min(self.most) as f32
    }
}

/// A denoiser whose clean latents are thresholded, if there is a threshold.
pub struct Thresholded<'a> {
    /// What estimates.
    pub inner: &'a mut dyn Denoiser,
    /// What is done with it.
    pub threshold: Option<Threshold>,
}

impl Denoiser for Thresholded<'_> {
    fn denoise(&mut self, x: &Latents, level: Level) -> Result<Latents, DenoiseError> {
        let mut denoised = self.inner.denoise(x, level)?;
        if let Some(threshold) = self.threshold {
            threshold.apply(&mut denoised);
        }
        Ok(denoised)
    }

    fn denoise_both(&mut self, x: &Latents, level: Level) -> Result<[Latents; 2], DenoiseError> {
        let mut both = self.inner.denoise_both(x, level)?;
        if let Some(threshold) = self.threshold {
            both.iter_mut()
                .for_each(|denoised| threshold.apply(denoised));
        }
        Ok(both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_torchs_quantiles_between_one_and_the_most() {
        let x = Latents::from_shape_vec((1, 1, 1, 5), vec![0.1, -4.0, 2.0, 0.5, -1.5]).unwrap();
        for (ratio, most, expected) in [
            (0.9, 10.0, 3.2),
            (0.5, 10.0, 1.5),
            (0.0, 10.0, 1.0),
            (1.0, 2.5, 2.5),
        ] {
            let threshold = Threshold { ratio, most };
            assert!((threshold.bound(&x) - expected).abs() < 1e-6, "{ratio}");
        }
        let mut bounded = x;
        Threshold {
            ratio: 0.9,
            most: 10.0,
        }
        .apply(&mut bounded);
        let expected = [0.031_25, -1.0, 0.625, 0.156_25, -0.468_75];
        for (found, expected) in bounded.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{bounded}");
        }
    }
}
