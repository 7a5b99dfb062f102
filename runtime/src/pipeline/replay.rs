//! The stages of a picture one by one, on what the caller gives them: how two ways of computing are compared stage by stage.

use ndarray::Array3;

use super::leases::Leases;
use super::run::encode;
use super::stages::{self, Inside, Watched};
use super::{Models, PipelineError, Plan};
use crate::denoise::{Denoiser, Latents, Level, Networks, Unet};
use crate::engine::{Cancel, Engine, EngineError};
use crate::text::{Condition, Guides};

/// A plan, and who computes it.
#[derive(Clone, Copy, Debug)]
pub struct Replay<'a> {
    /// What is made.
    pub plan: &'a Plan,
    /// By these models.
    pub models: &'a Models,
    /// By this engine.
    pub engine: &'a Engine,
    /// Ends it.
    pub cancel: &'a Cancel,
}

/// A call of the denoiser. Latents are [1, C, h, w].
#[derive(Clone, Debug)]
pub struct Call {
    /// The noisy latents that it was given.
    pub x: Latents,
    /// Their noise level.
    pub level: Level,
    /// The clean latents that it estimated, before any threshold.
    pub denoised: Latents,
}

/// How noise became clean latents.
#[derive(Clone, Debug)]
pub struct Trajectory {
    /// Every call of the denoiser, one or more for each step.
    pub calls: Vec<Call>,
    /// The state after each step.
    pub states: Vec<Latents>,
    /// The clean latents.
    pub clean: Latents,
}

impl Replay<'_> {
    /// What the text encoders say of the prompts, for each model.
    ///
    /// # Errors
    /// A network cannot be leased, or fails.
    pub fn encode(&self) -> Result<Vec<Guides<Condition>>, PipelineError> {
        encode(&self.leases(), self.models, None)
    }

    /// The first noise, [1, C, h, w].
    ///
    /// # Errors
    /// It comes from a file, which does not fit.
    pub fn first_noise(&self) -> Result<Latents, PipelineError> {
        Ok(stages::first_noise(self.plan)?.0)
    }

    /// The solver's way from `noise`, told `conditions`. Noise of later steps is the plan's.
    ///
    /// # Errors
    /// A network cannot be leased, or fails.
    pub fn denoise(
        &self,
        conditions: &[Guides<Condition>],
        noise: Latents,
    ) -> Result<Trajectory, PipelineError> {
        let plan = self.plan;
        let (_, mut source) = stages::first_noise(plan)?;
        let lease = |number: usize| self.unet(number, conditions);
        let mut networks = Networks::new(&lease);
        let mut relay = stages::relay(plan, &mut networks, conditions, self.cancel);
        let mut seen = Seen::default();
        let wish = (plan.graph, plan.compute);
        let (key, _) = self.models.base.key("unet", &[], self.engine.ep(), wish)?;
        let compute = key.compute;
        let watched = Watched {
            picture: 0,
            listener: &mut |_| {},
            inside: Some(&mut seen),
            previews: None,
            by: (compute, self.engine.ep()),
            steps: 0,
            cancel: self.cancel,
        };
        let (clean, _) = stages::denoise(plan, noise, &mut *source, &mut relay, watched)?;
        Ok(Trajectory {
            calls: seen.calls,
            states: seen.states,
            clean,
        })
    }

    /// The clean latents that are estimated of given states, call by call, told `conditions`: no call sees what another one made.
    ///
    /// # Errors
    /// A network cannot be leased, or fails.
    pub fn estimate(
        &self,
        conditions: &[Guides<Condition>],
        states: &[(Latents, Level)],
    ) -> Result<Vec<Latents>, PipelineError> {
        let lease = |number: usize| self.unet(number, conditions);
        let mut networks = Networks::new(&lease);
        let mut relay = stages::relay(self.plan, &mut networks, conditions, self.cancel);
        let calls = states.iter();
        let calls = calls.map(|(x, level)| {
            let denoised = relay.denoise(x, *level)?;
            match self.cancel.is_cancelled() {
                true => Err(EngineError::Interrupted.into()),
                false => Ok(denoised),
            }
        });
        calls.collect()
    }

    /// The base model's UNet's outputs for noisy latents at a level under each condition, the negative prompt's last: no guidance and
    /// no other factor.
    ///
    /// # Errors
    /// A network cannot be leased, or fails.
    pub fn predict(
        &self,
        conditions: &[Guides<Condition>],
        x: &Latents,
        level: Level,
    ) -> Result<Vec<Latents>, PipelineError> {
        let told: Vec<&Condition> = conditions[0].values().map(|(value, _)| value).collect();
        let input = x * (1.0 / (level.sigma * level.sigma + 1.0).sqrt()) as f32;
        let mut unet = self.unet(0, conditions)?;
        let scale = self.plan.guidance_scale;
        Ok(unet.predict(&input, level.t, &told, scale, self.cancel)?)
    }

    /// What the decoder makes of clean latents, [3, height, width]; colours are -1 to 1.
    ///
    /// # Errors
    /// A network cannot be leased, or fails.
    pub fn decode(&self, latents: &Latents) -> Result<Array3<f32>, PipelineError> {
        let mut decoder = self.leases().decoder(self.models)?;
        stages::decoded(self.plan, latents, self.models, &mut decoder, self.cancel)
    }

    fn unet(&self, number: usize, conditions: &[Guides<Condition>]) -> Result<Unet, EngineError> {
        let model = self.models.all().nth(number);
        let model = model.expect("what is called was planned");
        self.leases().unet(model, &conditions[number])
    }

    fn leases(&self) -> Leases<'_> {
        Leases {
            plan: self.plan,
            engine: self.engine,
            cancel: self.cancel,
        }
    }
}

/// What happened inside.
#[derive(Default)]
struct Seen {
    calls: Vec<Call>,
    states: Vec<Latents>,
}

impl Inside for Seen {
    fn called(&mut self, _: usize, x: &Latents, level: Level, denoised: &Latents) {
        self.calls.push(Call {
            x: x.clone(),
            level,
            denoised: denoised.clone(),
        });
    }

    fn stepped(&mut self, _: usize, x: &Latents) {
        self.states.push(x.clone());
    }
}
