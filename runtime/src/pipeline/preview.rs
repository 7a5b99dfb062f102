//! Pictures of what denoising has so far: of the clean latents that the denoiser estimates, not of the noisy ones.
//!
//! The cheap way is a product with a small matrix, one pixel for each latent one: colours are nearly linear in latents.

use std::num::NonZero;

use ndarray::{Array3, Axis};
use sd_models::family::ModelFamily;

use super::{Picture, PipelineError};
use crate::denoise::Latents;

/// What the colours of a latent pixel are, in -1..=1: a matrix of channels by colours, and what is added.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    factors: [[f32; 3]; 4],
    bias: [f32; 3],
}

/// `ComfyUI`'s factors (`comfy/latent_formats.py`, `SD15`).
const SD: Linear = Linear {
    factors: [
        [0.3512, 0.2297, 0.3227],
        [0.3250, 0.4974, 0.2350],
        [-0.2829, 0.1762, 0.2721],
        [-0.2120, -0.2616, -0.7177],
    ],
    bias: [0.0; 3],
};

/// `ComfyUI`'s factors (`comfy/latent_formats.py`, `SDXL`).
const SDXL: Linear = Linear {
    factors: [
        [0.3651, 0.4232, 0.4341],
        [-0.2533, -0.0042, 0.1068],
        [0.1076, 0.1111, -0.0362],
        [-0.3165, -0.2492, -0.2188],
    ],
    bias: [0.1084, -0.0175, -0.0011],
};

impl Linear {
    /// That of a family whose latents have so many channels; none is known for other than 4.
    pub(super) fn of(family: ModelFamily, channels: usize) -> Option<Self> {
        let known = match family.time_ids() {
            Some(_) => SDXL,
            None => SD,
        };
        (channels == known.factors.len()).then_some(known)
    }

    /// Clean latents as the UNet sees them, [1, 4, h, w], to a picture of w x h pixels.
    pub(super) fn picture(&self, latents: &Latents) -> Picture {
        // As in ComfyUI, whatever the profile: fractions are cut off.
        Picture::from_decoded(&self.colours(latents).view(), |x| x as u8)
    }

    /// [3, h, w].
    fn colours(&self, latents: &Latents) -> Array3<f32> {
        let latents = latents.index_axis(Axis(0), 0);
        let (_, height, width) = latents.dim();
        Array3::from_shape_fn((3, height, width), |(colour, y, x)| {
            let terms = self.factors.iter().zip(latents.axis_iter(Axis(0)));
            let terms = terms.map(|(factors, channel)| factors[colour] * channel[[y, x]]);
            terms.sum::<f32>() + self.bias[colour]
        })
    }
}

/// How estimates become pictures.
pub(super) type Show<'a> = dyn FnMut(&Latents) -> Result<Picture, PipelineError> + 'a;

/// Previews of a run, every so many steps.
pub(super) struct Previews<'a> {
    every: NonZero<usize>,
    show: &'a mut Show<'a>,
    /// The latest estimate.
    estimate: Option<Latents>,
    /// How many were made.
    pub(super) made: usize,
}

impl<'a> Previews<'a> {
    pub(super) fn new(every: NonZero<usize>, show: &'a mut Show<'a>) -> Self {
        Self {
            every,
            show,
            estimate: None,
            made: 0,
        }
    }

    /// The denoiser thinks that these clean latents will come out.
    pub(super) fn estimated(&mut self, clean: &Latents) {
        self.estimate = Some(clean.clone());
    }

    /// The preview after so many steps, if it is time for one.
    pub(super) fn after(&mut self, steps: usize) -> Option<Result<Picture, PipelineError>> {
        let estimate = self.estimate.as_ref()?;
        if !steps.is_multiple_of(self.every.get()) {
            return None;
        }
        self.made += 1;
        Some((self.show)(estimate))
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        shape: [usize; 3],
        latents: Vec<f32>,
        sd: Expected,
        sdxl: Expected,
    }

    #[derive(Deserialize)]
    struct Expected {
        colours: Vec<f32>,
        bytes: Vec<u8>,
    }

    /// Against torch (`tests/golden/previews.py`). Sums go in another order there.
    #[test]
    fn colours_are_those_of_comfyui() {
        let golden = include_str!("../../../tests/golden/previews.json");
        let golden: Golden = serde_json::from_str(golden).unwrap();
        let [channels, height, width] = golden.shape;
        let shape = (1, channels, height, width);
        let latents = Array4::from_shape_vec(shape, golden.latents).unwrap();
        for (family, expected) in [
            (ModelFamily::Sd15, &golden.sd),
            (ModelFamily::Sd21, &golden.sd),
            (ModelFamily::Sdxl, &golden.sdxl),
            (ModelFamily::SdxlRefiner, &golden.sdxl),
        ] {
            let linear = Linear::of(family, channels).unwrap();
            let colours = linear.colours(&latents).permuted_axes([1, 2, 0]);
            assert_eq!(colours.len(), expected.colours.len());
            for (found, expected) in colours.iter().zip(&expected.colours) {
                assert!((found - expected).abs() < 1e-6, "{found} {expected}");
            }
            let picture = linear.picture(&latents);
            assert_eq!((picture.width, picture.height), (width, height));
            assert_eq!(picture.rgb, expected.bytes);
        }
        assert!(Linear::of(ModelFamily::Sd15, 16).is_none());
    }

    #[test]
    fn a_preview_comes_every_so_many_steps_and_shows_the_latest_estimate() {
        let pixel = |value: f32| Array4::from_elem((1, 4, 1, 1), value);
        let mut show = |latents: &Latents| {
            Ok(Picture {
                width: 1,
                height: 1,
                rgb: vec![latents[[0, 0, 0, 0]] as u8; 3],
            })
        };
        let mut previews = Previews::new(NonZero::new(2).unwrap(), &mut show);
        assert!(previews.after(2).is_none(), "there is nothing to show");
        let mut shown = Vec::new();
        for steps in 1..=5 {
            previews.estimated(&pixel(steps as f32));
            if let Some(picture) = previews.after(steps) {
                shown.push((steps, picture.unwrap().rgb[0]));
            }
        }
        assert_eq!(shown, [(2, 2), (4, 4)]);
        assert_eq!(previews.made, 2);
    }
}
