//! What the network's output says about the clean latent.

use sd_models::manifest::PredictionType;

use super::Latents;

/// Clean latents from noisy ones `x` at noise level `sigma` and the network's output for them.
///
/// epsilon: `x - sigma o`; velocity (Salimans and Ho 2022, arXiv:2202.00512): `x / (sigma^2 + 1) - o sigma / sqrt(sigma^2 + 1)`;
/// sample: `o`.
#[must_use]
pub fn denoised(prediction: PredictionType, x: &Latents, output: &Latents, sigma: f64) -> Latents {
    let (of_x, of_output) = match prediction {
        PredictionType::Epsilon => (1.0, -sigma),
        PredictionType::VPrediction => {
            let variance = sigma * sigma + 1.0;
            (1.0 / variance, -sigma / variance.sqrt())
        }
        PredictionType::Sample => (0.0, 1.0),
    };
    let (of_x, of_output) = (of_x as f32, of_output as f32);
    let mut result = output * of_output;
    result.scaled_add(of_x, x);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_gives_back_the_clean_latent() {
        let clean = Latents::from_shape_fn((1, 1, 1, 5), |(.., i)| i as f32 - 1.7);
        let noise = Latents::from_shape_fn((1, 1, 1, 5), |(.., i)| (i as f32).sin());
        for sigma in [0.03f64, 0.3, 1.0, 4.0, 14.6] {
            let abar = 1.0 / (1.0 + sigma * sigma);
            let (signal, noisy) = (abar.sqrt() as f32, (1.0 - abar).sqrt() as f32);
            let x = &clean + &(&noise * sigma as f32);
            let velocity = &noise * signal - &clean * noisy;
            for (prediction, output) in [
                (PredictionType::Epsilon, &noise),
                (PredictionType::VPrediction, &velocity),
                (PredictionType::Sample, &clean),
            ] {
                let found = denoised(prediction, &x, output, sigma);
                // x is up to 14.6 and rounded to 2^-20 of itself.
                assert!(
                    (&found - &clean).iter().all(|d| d.abs() < 1e-5),
                    "{prediction:?} {sigma}"
                );
            }
        }
    }
}
