//! From a base model to its refiner: two networks that share a latent space take turns. One is leased at a time.

use super::{DenoiseError, Denoiser, Guided, Latents, Level, Unet};
use crate::engine::{Cancel, EngineError};
use crate::text::{Condition, Guides};

/// Leases a network by its number: 0 is the base model, 1 the refiner.
pub type LeaseUnet<'a> = dyn Fn(usize) -> Result<Unet, EngineError> + 'a;

/// Networks of which one is leased.
pub struct Networks<'a> {
    lease: &'a LeaseUnet<'a>,
    held: Option<(usize, Unet)>,
}

impl<'a> Networks<'a> {
    /// None is leased yet.
    #[must_use]
    pub fn new(lease: &'a LeaseUnet<'a>) -> Self {
        Self { lease, held: None }
    }

    /// The network of a number; another one that is held is given back first.
    ///
    /// # Errors
    /// It cannot be leased.
    pub fn get(&mut self, number: usize) -> Result<&mut Unet, EngineError> {
        let held = self.held.take().filter(|(held, _)| *held == number);
        let network = match held {
            Some(network) => network,
            None => (number, (self.lease)(number)?),
        };
        Ok(&mut self.held.insert(network).1)
    }
}

/// A base model that follows a prompt down to a timestep, and a refiner from there.
pub struct Relay<'a, 'n> {
    /// Base model and refiner.
    pub networks: &'a mut Networks<'n>,
    /// Prompt and negative prompt for each of them.
    pub conditions: &'a [Guides<Condition>],
    /// Calls so far, by which prompts change.
    pub calls: usize,
    /// The refiner is called below this timestep.
    pub refiner_below: Option<f64>,
    /// How strongly the prompt is followed, as it was asked for.
    pub asked_scale: f64,
    /// The same as the program that is followed applies it. Networks that embed it are told what was asked for.
    pub scale: f64,
    /// As [`Guided::rescale`].
    pub rescale: f64,
    /// Ends the calls.
    pub cancel: &'a Cancel,
}

/// Whether a call at timestep `t` is the refiner's. Programs compare whole timesteps.
#[must_use]
pub fn is_refined(t: f64, refiner_below: Option<f64>) -> bool {
    refiner_below.is_some_and(|below| t.round() < below)
}

impl Relay<'_, '_> {
    /// The network whose turn it is at a level, and the prompts that hold for this call.
    fn runner(&mut self, level: Level) -> Result<Guided<'_>, EngineError> {
        let number = usize::from(is_refined(level.t, self.refiner_below));
        let Guides { cond, uncond } = &self.conditions[number];
        let call = self.calls;
        self.calls += 1;
        let unet = self.networks.get(number)?;
        let scale = match unet.embeds_guidance() {
            true => self.asked_scale,
            false => self.scale,
        };
        Ok(Guided {
            unet,
            conds: cond
                .iter()
                .map(|(cond, weight)| (cond.at(call), *weight))
                .collect(),
            uncond: uncond.at(call),
            scale,
            rescale: self.rescale,
            cancel: self.cancel,
        })
    }
}

impl Denoiser for Relay<'_, '_> {
    fn denoise(&mut self, x: &Latents, level: Level) -> Result<Latents, DenoiseError> {
        self.runner(level)?.denoise(x, level)
    }

    fn denoise_both(&mut self, x: &Latents, level: Level) -> Result<[Latents; 2], DenoiseError> {
        self.runner(level)?.denoise_both(x, level)
    }
}
