//! Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) around a UNet.

use ndarray::{Array3, ArrayView4, Axis, Ix4, arr0, concatenate};
use sd_models::manifest::PredictionType;

use super::{DenoiseError, Denoiser, Latents, Level, denoised};
use crate::engine::{Cancel, Input, Network};

/// `uncond + scale (cond - uncond)`.
#[must_use]
pub fn guide(cond: &Latents, uncond: &Latents, scale: f32) -> Latents {
    let mut guided = cond - uncond;
    guided *= scale;
    guided += uncond;
    guided
}

/// A UNet that follows a prompt.
#[derive(Debug)]
pub struct Guided<'a> {
    /// The network.
    pub unet: &'a mut Network,
    /// What it predicts.
    pub prediction: PredictionType,
    /// Embeddings of the prompt, [1, tokens, width].
    pub cond: &'a Array3<f32>,
    /// Embeddings of the negative prompt.
    pub uncond: &'a Array3<f32>,
    /// How strongly the prompt is followed; at 1 the negative prompt has no influence and is not run.
    pub scale: f64,
    /// Ends the calls.
    pub cancel: &'a Cancel,
}

impl Guided<'_> {
    /// The network's outputs for an image under one context after the other: a CPU gains nothing from batches, and memory
    /// stays small.
    fn predict(
        &mut self,
        image: &Latents,
        t: f64,
        contexts: &[&Array3<f32>],
    ) -> Result<Vec<Latents>, DenoiseError> {
        // Graphs of other exporters may be made for prompt and negative prompt at once.
        let together = self.unet.batch("sample")? == Some(contexts.len())
            && contexts.iter().all(|c| c.dim() == contexts[0].dim());
        if !together {
            let one = |context: &&Array3<f32>| self.run(image, t, context);
            return contexts.iter().map(one).collect();
        }
        let views: Vec<_> = contexts.iter().map(|context| context.view()).collect();
        let context = concatenate(Axis(0), &views).expect("contexts of one shape");
        let images = vec![image.view(); contexts.len()];
        let images = concatenate(Axis(0), &images).expect("the same image");
        let output = self.run(&images, t, &context)?;
        let one = |image: ArrayView4<'_, f32>| image.to_owned();
        Ok(output.axis_chunks_iter(Axis(0), 1).map(one).collect())
    }

    fn run(
        &mut self,
        input: &Latents,
        t: f64,
        context: &Array3<f32>,
    ) -> Result<Latents, DenoiseError> {
        let timestep = arr0(t as f32);
        let inputs = [
            ("sample", Input::F32(input.view().into_dyn())),
            ("timestep", Input::F32(timestep.view().into_dyn())),
            (
                "encoder_hidden_states",
                Input::F32(context.view().into_dyn()),
            ),
        ];
        let output = self
            .unet
            .run(&inputs, &["out_sample"], self.cancel)?
            .remove(0);
        let found = output.shape().to_vec();
        if found != input.shape() {
            return Err(DenoiseError::Shape {
                found,
                expected: input.shape().to_vec(),
            });
        }
        let count = output.iter().filter(|x| !x.is_finite()).count();
        if count > 0 {
            return Err(DenoiseError::NonFinite { count, t });
        }
        Ok(output
            .into_dimensionality::<Ix4>()
            .expect("the input's shape has four dimensions"))
    }
}

impl Denoiser for Guided<'_> {
    fn denoise(&mut self, x: &Latents, level: Level) -> Result<Latents, DenoiseError> {
        let input = x * (1.0 / (level.sigma * level.sigma + 1.0).sqrt()) as f32;
        let contexts: &[_] = if self.scale == 1.0 {
            &[self.cond]
        } else {
            &[self.cond, self.uncond]
        };
        let mut predicted = self.predict(&input, level.t, contexts)?.into_iter();
        let output = match (predicted.next(), predicted.next()) {
            (Some(with), Some(without)) => guide(&with, &without, self.scale as f32),
            (with, _) => with.expect("a prediction for every context"),
        };
        Ok(denoised(self.prediction, x, &output, level.sigma))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_extrapolates() {
        let latents =
            |values: [f32; 4]| Latents::from_shape_vec((1, 1, 1, 4), values.to_vec()).unwrap();
        let guided = guide(
            &latents([1.0, 2.0, 3.0, 4.0]),
            &latents([0.0, 1.0, 0.0, 1.0]),
            7.5,
        );
        assert_eq!(guided, latents([7.5, 8.5, 22.5, 23.5]));
    }
}
