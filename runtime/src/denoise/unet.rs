//! The network that all this is about, and what goes into it.

use ndarray::{Array2, ArrayD, ArrayView4, Axis, Ix4, arr0, concatenate};
use sd_models::manifest::PredictionType;

use super::{DenoiseError, Latents};
use crate::engine::{Cancel, Input, Lease};
use crate::text::Condition;

/// Numbers of the guidance embedding of latent consistency models.
const GUIDANCE_WIDTH: usize = 256;

/// A UNet.
#[derive(Debug)]
pub struct Unet {
    network: Lease,
    /// What it predicts.
    pub prediction: PredictionType,
}

impl Unet {
    /// Takes a `unet`.
    #[must_use]
    pub fn new(network: Lease, prediction: PredictionType) -> Self {
        Self {
            network,
            prediction,
        }
    }

    /// Whether guidance is an input (latent consistency models), not a second call.
    #[must_use]
    pub fn embeds_guidance(&self) -> bool {
        self.network.has_input("timestep_cond")
    }

    /// The network's outputs for latents [1, C, h, w] at timestep `t` under each condition. `guidance` is for networks that
    /// embed it.
    ///
    /// A portable graph is run for one condition after the other: it gains nothing from batches, and memory stays small. A
    /// native one is run for two at once: what does not depend on the prompt is computed once, and weights are read once. More
    /// than two would take more memory than a prompt and a negative prompt, for which it was planned.
    ///
    /// # Errors
    /// The network fails, or returns another shape or numbers that are none.
    pub fn predict(
        &mut self,
        x: &Latents,
        t: f64,
        conditions: &[&Condition],
        guidance: f64,
        cancel: &Cancel,
    ) -> Result<Vec<Latents>, DenoiseError> {
        let mut outputs = Vec::with_capacity(conditions.len());
        for pair in conditions.chunks(2) {
            outputs.extend(self.predict_pair(x, t, pair, guidance, cancel)?);
        }
        Ok(outputs)
    }

    /// [`Self::predict`] under one or two conditions.
    fn predict_pair(
        &mut self,
        x: &Latents,
        t: f64,
        conditions: &[&Condition],
        guidance: f64,
        cancel: &Cancel,
    ) -> Result<Vec<Latents>, DenoiseError> {
        let together = match self.network.batch("sample")? {
            // Graphs of other exporters may be made for prompt and negative prompt at once.
            Some(batch) => batch == conditions.len(),
            None => self.network.repeats_single_inputs(),
        };
        let joined = match conditions.len() {
            2.. if together => join(conditions),
            _ => None,
        };
        let Some(joined) = joined else {
            let one = |condition: &&Condition| self.run(x, t, condition, guidance, cancel);
            return conditions.iter().map(one).collect();
        };
        let output = if self.network.repeats_single_inputs() {
            self.run(x, t, &joined, guidance, cancel)?
        } else {
            let images = vec![x.view(); conditions.len()];
            let images = concatenate(Axis(0), &images).expect("the same image");
            self.run(&images, t, &joined, guidance, cancel)?
        };
        let one = |image: ArrayView4<'_, f32>| image.to_owned();
        Ok(output.axis_chunks_iter(Axis(0), 1).map(one).collect())
    }

    fn run(
        &mut self,
        x: &Latents,
        t: f64,
        condition: &Condition,
        guidance: f64,
        cancel: &Cancel,
    ) -> Result<Latents, DenoiseError> {
        let inputs = Self::inputs(x, t, condition, self.embeds_guidance().then_some(guidance));
        let inputs = inputs.iter().map(|(name, x)| (*name, Input::F32(x.view())));
        let inputs: Vec<_> = inputs.collect();
        let output = self
            .network
            .run(&inputs, &["out_sample"], cancel)?
            .remove(0);
        let (found, mut expected) = (output.shape().to_vec(), x.shape().to_vec());
        expected[0] = condition.context.shape()[0].max(expected[0]);
        let output: Latents = match output.into_dimensionality::<Ix4>() {
            Ok(output) if found == expected => output,
            _ => return Err(DenoiseError::Shape { found, expected }),
        };
        let count = output.iter().filter(|x| !x.is_finite()).count();
        if count > 0 {
            return Err(DenoiseError::NonFinite { count, t });
        }
        Ok(output)
    }

    /// Inputs of a `unet` by name, for latents [N, C, h, w] at timestep `t`. `guidance` is for networks that embed it.
    #[must_use]
    pub fn inputs(
        x: &Latents,
        t: f64,
        condition: &Condition,
        guidance: Option<f64>,
    ) -> Vec<(&'static str, ArrayD<f32>)> {
        let mut inputs = vec![
            ("sample", x.to_owned().into_dyn()),
            ("timestep", arr0(t as f32).into_dyn()),
            (
                "encoder_hidden_states",
                condition.context.to_owned().into_dyn(),
            ),
        ];
        let embedded = guidance.map(|guidance| guidance_embedding(guidance, GUIDANCE_WIDTH));
        for (name, value) in [
            ("text_embeds", &condition.pooled),
            ("time_ids", &condition.time_ids),
            ("timestep_cond", &embedded),
        ] {
            if let Some(value) = value {
                inputs.push((name, value.to_owned().into_dyn()));
            }
        }
        inputs
    }
}

/// Conditions as one batch, if their shapes allow it.
fn join(conditions: &[&Condition]) -> Option<Condition> {
    let contexts: Vec<_> = conditions.iter().map(|c| c.context.view()).collect();
    let rows = |of: fn(&Condition) -> &Option<Array2<f32>>| {
        let rows: Vec<_> = conditions.iter().filter_map(|c| of(c).as_ref()).collect();
        let views: Vec<_> = rows.iter().map(|row| row.view()).collect();
        concatenate(Axis(0), &views).ok()
    };
    Some(Condition {
        context: concatenate(Axis(0), &contexts).ok()?,
        pooled: rows(|c| &c.pooled),
        time_ids: rows(|c| &c.time_ids),
    })
}

/// Guidance as latent consistency models take it (Luo et al. 2023, arXiv:2310.04378; diffusers'
/// `get_guidance_scale_embedding`): sines, then cosines, of `1000 (guidance - 1)` times falling frequencies. [1, width].
fn guidance_embedding(guidance: f64, width: usize) -> Array2<f32> {
    let half = width / 2;
    let argument = |i: usize| {
        let frequency = (-(i as f64) * 10_000f64.ln() / (half as f64 - 1.0)).exp();
        1000.0 * (guidance - 1.0) * frequency
    };
    Array2::from_shape_fn((1, width), |(_, i)| {
        let value = if i < half {
            argument(i).sin()
        } else {
            argument(i - half).cos()
        };
        value as f32
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_is_embedded_as_published() {
        let none = guidance_embedding(1.0, 256);
        assert!(none.iter().take(128).all(|&x| x == 0.0));
        assert!(none.iter().skip(128).all(|&x| x == 1.0));
        let embedded = guidance_embedding(7.5, 256);
        for (i, expected) in [
            (0, -0.044_784_7),
            (127, 0.605_186_3),
            (128, -0.998_996_7),
            (255, 0.796_083_9),
        ] {
            assert!((embedded[[0, i]] - expected).abs() < 1e-5, "{i}");
        }
    }
}
