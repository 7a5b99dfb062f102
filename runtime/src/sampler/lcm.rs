//! Latent consistency models: Luo et al. 2023 (arXiv:2310.04378). Every step goes to the clean latent and adds fresh noise
//! of the next level. One model call per step; one draw per step except where the target is 0.

use super::math::{Vp, axpby};
use super::{Knob, Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// Multistep consistency sampling, for models distilled for it.
pub static LCM: Method = Method {
    name: "LCM",
    aliases: &["lcm", "k_lcm"],
    class: Some("LCMScheduler"),
    space: Space::Ve,
    knobs: &[Knob::Noise],
    calls: one_call,
    solve: lcm,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn lcm(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let mut noise = Latents::zeros(x.raw_dim());
    for (i, step) in schedule.steps.iter().enumerate() {
        let denoised = model.denoise(&x, step.from)?;
        let (skip, out) = boundary(schedule.setup.timestep_scaling, step.from.t);
        // As in training, the state that is kept is the variance-preserving one.
        let kept = skip * Vp::new(step.from.sigma).signal;
        axpby(&mut x, kept, &denoised, out);
        if step.to.sigma > 0.0 {
            run.noise(&mut noise);
            x.scaled_add((step.to.sigma * options.s_noise) as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}

/// Shares of the state and of the estimate in the consistency function: the state itself at timestep 0.
fn boundary(scaling: Option<f64>, t: f64) -> (f64, f64) {
    const DATA: f64 = 0.5; // the data's standard deviation
    let Some(scaling) = scaling else {
        return (0.0, 1.0);
    };
    let scaled = t * scaling;
    let variance = scaled * scaled + DATA * DATA;
    (DATA * DATA / variance, scaled / variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boundary_condition_is_the_published_one() {
        for (t, expected) in [(999.0, 2.505e-9), (19.0, 6.925e-6)] {
            let (skip, out) = boundary(Some(10.0), t);
            assert!((skip / expected - 1.0).abs() < 1e-3, "{skip}");
            assert!((out - 1.0).abs() < 1e-5, "{out}");
        }
        assert_eq!(boundary(Some(10.0), 0.0), (1.0, 0.0));
        assert_eq!(boundary(None, 0.0), (0.0, 1.0));
    }
}
