//! Cold Diffusion's improved rule ("transformation agnostic cold sampling", Bansal et al. 2022, arXiv:2208.09392, algorithm 2),
//! as an experiment: `x <- x - G(x0, s) + G(x0, s')` with the degradation `G(z, s) = sqrt(abar) z + sqrt(1 - abar) n`, where `n` is
//! the first noise, kept for the whole run. With the noise that the model estimates instead, the rule is DDIM. One model call
//! per step, no draw.
//!
//! Degradations other than noise need a model that was trained to undo them.

use super::math::Vp;
use super::{Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// Cold Diffusion's rule with fixed noise.
pub static COLD: Method = Method {
    name: "Cold (experimental)",
    aliases: &["cold", "tacos"],
    class: None,
    space: Space::Vp,
    knobs: &[],
    calls: one_call,
    solve: cold,
};

/// `x`: variance-preserving latents [N, C, h, w] at the first step's noise level, which are noise.
fn cold(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    _: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let noise = x.clone();
    for (i, step) in schedule.steps.iter().enumerate() {
        let (now, next) = (Vp::new(step.from.sigma), Vp::new(step.to.sigma));
        let denoised = model.denoise(&(&x * (1.0 / now.signal) as f32), step.from)?;
        degrade(&mut x, &denoised, &noise, now, next);
        run.step(i, &x)?;
    }
    Ok(x)
}

/// `x <- x - G(x0, now) + G(x0, next)`.
fn degrade(x: &mut Latents, denoised: &Latents, noise: &Latents, now: Vp, next: Vp) {
    x.scaled_add((next.signal - now.signal) as f32, denoised);
    x.scaled_add((next.noise - now.noise) as f32, noise);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(a: f32, b: f32) -> Latents {
        Latents::from_shape_vec((1, 1, 1, 2), vec![a, b]).unwrap()
    }

    #[test]
    fn the_rule_is_the_papers() {
        // R(x) = 0.8 x + 0.1, G(z, s) = (1 - s) z + s n.
        let noise = pair(2.0, -1.0);
        let mut x = noise.clone();
        let share = |s: f64| Vp {
            signal: 1.0 - s,
            noise: s,
        };
        for pair in [1.0, 0.75, 0.5, 0.25, 0.0].windows(2) {
            let restored = x.mapv(|x| 0.8 * x + 0.1);
            degrade(&mut x, &restored, &noise, share(pair[0]), share(pair[1]));
        }
        for (found, expected) in x.iter().zip([1.5974, -0.5974]) {
            assert!((found - expected).abs() < 1e-6, "{x}");
        }
    }

    #[test]
    fn a_degradation_that_adds_is_undone_whatever_the_model_says() {
        let (clean, noise) = (pair(1.0, 2.0), pair(0.3, -0.2));
        let share = |s: f64| Vp {
            signal: 1.0,
            noise: s,
        };
        let mut x = &clean + &(&noise * 4.0);
        for (i, pair) in [4.0, 3.0, 2.0, 1.0, 0.0].windows(2).enumerate() {
            let garbage = x.mapv(|x| (x * 37.0 + i as f32).sin() * 9.0);
            degrade(&mut x, &garbage, &noise, share(pair[0]), share(pair[1]));
        }
        assert!((&x - &clean).iter().all(|d| d.abs() < 1e-6), "{x}");
    }
}
