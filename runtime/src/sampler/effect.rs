//! Whether options act on a run at all. It is tried out: a solver takes a model of one number through the run's own schedule, with
//! an option and without.

use super::{Method, Options, Run, Schedule};
use crate::denoise::{DenoiseError, Denoiser, Latents, Level};

impl Method {
    /// Whether two sets of options lead to the same result over this schedule.
    #[must_use]
    pub fn is_alike(&self, schedule: &Schedule, a: &Options, b: &Options) -> bool {
        let result = |options| self.try_out(schedule, options, 1.0);
        result(a).is_some_and(|a| result(b) == Some(a))
    }

    /// Whether what is drawn with [`Run::noise`] acts on the result.
    #[must_use]
    pub fn hears_noise(&self, schedule: &Schedule, options: &Options) -> bool {
        let result = |noise| self.try_out(schedule, options, noise);
        result(1.0).is_none_or(|loud| result(0.0) != Some(loud))
    }

    /// What a model of one number comes to, where every draw is `noise`. None if the solver fails on it.
    fn try_out(&self, schedule: &Schedule, options: &Options, noise: f32) -> Option<f32> {
        let first = schedule.steps.first()?;
        let x = one(schedule.initial_scale.max(first.from.sigma) as f32);
        let run = &mut Constant(noise);
        let x = (self.solve)(&mut Formula, x, schedule, options, run).ok()?;
        x.first().copied().filter(|x| x.is_finite())
    }
}

fn one(x: f32) -> Latents {
    Latents::from_elem((1, 1, 1, 1), x)
}

/// The model `(x + sin(sigma)) / (1 + sigma^2)`.
struct Formula;

impl Denoiser for Formula {
    fn denoise(&mut self, x: &Latents, level: Level) -> Result<Latents, DenoiseError> {
        let sigma = level.sigma;
        Ok(x.mapv(|x| ((f64::from(x) + sigma.sin()) / (1.0 + sigma * sigma)) as f32))
    }
}

/// Draws that are always the same number. A Brownian motion is not among them: its increments are 1.
struct Constant(f32);

impl Run for Constant {
    fn noise(&mut self, noise: &mut Latents) {
        noise.fill(self.0);
    }

    fn brownian(&mut self, _: f64, _: f64, noise: &mut Latents) {
        noise.fill(1.0);
    }

    fn step(&mut self, _: usize, _: &Latents) -> Result<(), DenoiseError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sd_models::diffusers::{self, Pipeline};

    use super::super::*;
    use crate::profile::{A1111, Trained};

    /// A1111's schedule of a method over Stable Diffusion 1's levels.
    fn schedule(method: Sampler, steps: usize) -> Schedule {
        let config = diffusers::scheduler(Pipeline::SD1);
        let trained = Trained {
            config: &config,
            xl: false,
        };
        let spread = (A1111.spreads)(method)
            .first()
            .map(|_| (A1111.automatic)(method, &trained).unwrap());
        (A1111.schedule)(method, spread, steps, &trained).unwrap()
    }

    #[test]
    fn noise_acts_on_solvers_that_add_it_and_on_no_others() {
        let options = |method, options| (A1111.options)(method, options);
        let hears = |method: Sampler, given| {
            method.hears_noise(&schedule(method, 20), &options(method, given))
        };
        let default = Options::default();
        for method in [
            &EULER_ANCESTRAL,
            &DPM2_ANCESTRAL,
            &DPMPP_2S_ANCESTRAL,
            &LCM,
            &RESTART,
            &DPM_FAST,
            &DPM_ADAPTIVE,
        ] {
            assert!(hears(method, default), "{method}");
        }
        // k-diffusion draws for Euler and DDIM, too, and adds nothing of it; those with "SDE" have a Brownian motion.
        for method in [
            &EULER,
            &HEUN,
            &DPM2,
            &DDIM,
            &PLMS,
            &LMS,
            &UNIPC,
            &DPMPP_2M,
            &DPMPP_SDE,
            &DPMPP_2M_SDE,
            &DPMPP_3M_SDE,
        ] {
            assert!(!hears(method, default), "{method}");
        }
        let eta = |eta| Options {
            eta: Some(eta),
            ..default
        };
        assert!(hears(&DDIM, eta(0.5)) && !hears(&EULER_ANCESTRAL, eta(0.0)));
        let churn = Options {
            s_churn: 2.0,
            ..default
        };
        assert!(hears(&EULER, churn));
    }

    #[test]
    fn options_act_where_their_formulas_have_them() {
        let louder = |options| Options {
            s_noise: 1.1,
            ..options
        };
        let acts = |method: Sampler, options: Options| {
            !method.is_alike(&schedule(method, 8), &options, &louder(options))
        };
        let default = Options::default();
        let churn = Options {
            s_churn: 2.0,
            ..default
        };
        assert!(acts(&EULER_ANCESTRAL, default) && acts(&DPMPP_2M_SDE, default));
        assert!(!acts(&EULER, default) && acts(&EULER, churn));
        let out_of_reach = Options {
            s_tmin: 1e3,
            ..churn
        };
        let schedule = schedule(&EULER, 8);
        assert!(EULER.is_alike(&schedule, &out_of_reach, &default));
        assert!(!EULER.is_alike(&schedule, &churn, &default));
    }
}
