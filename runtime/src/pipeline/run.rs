//! Plans to pictures. One network is leased at a time: all plans pass a stage before the next one begins.

use std::time::{Duration, Instant};

use sd_kernels::Compute;

use super::event::{Event, Listener, Stage};
use super::stages::{self, Watched};
use super::{Dump, ModelDir, Models, Picture, PipelineError, Plan, Plans};
use crate::denoise::{Latents, Networks, Relay, Unet};
use crate::engine::{Cancel, Engine, EngineError, Lease};
use crate::text::{Condition, Encoded, TextEncoder, chunks};

/// How long the stages took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Text encoder, with its loading.
    pub encode: Duration,
    /// Loading of the UNet.
    pub load: Duration,
    /// The sampler.
    pub denoise: Duration,
    /// VAE decoder, with its loading.
    pub decode: Duration,
}

/// What a run made.
#[derive(Debug)]
pub struct Outcome {
    /// Pictures, one per plan.
    pub pictures: Vec<Picture>,
    /// Calls of the UNet's denoiser that each of them took.
    pub calls: Vec<usize>,
    /// How long it took.
    pub timing: Timing,
    /// Dialect of the base model's UNet.
    pub graph: &'static str,
    /// What products were computed in.
    pub compute: Compute,
}

impl Outcome {
    /// What no plan leads to.
    fn of_nothing() -> Self {
        Self {
            pictures: Vec::new(),
            calls: Vec::new(),
            timing: Timing::default(),
            graph: "none",
            compute: Compute::F32,
        }
    }
}

/// Makes the pictures of plans. `dump`, if given, gets the inside of the run. The crate's page has an example.
///
/// # Errors
/// Whatever goes wrong first; `EngineError::Interrupted` inside after [`Cancel::cancel`].
pub fn run(
    plans: &Plans,
    models: &Models,
    engine: &Engine,
    cancel: &Cancel,
    listener: &mut Listener<'_>,
    mut dump: Option<&mut Dump>,
) -> Result<Outcome, PipelineError> {
    for note in &plans.notes {
        listener(Event::Note(note));
    }
    for warning in &plans.warnings {
        listener(Event::Warning(warning));
    }
    let plans = &plans.plans;
    let Some(first) = plans.first() else {
        return Ok(Outcome::of_nothing());
    };
    let model = &models.base;
    let wish = (first.graph, first.compute);
    let lease = |model: &ModelDir, component: &str, dims: &[(&str, usize)]| {
        let (key, _) = model.key(component, dims, engine.ep(), wish)?;
        engine.lease(&key, model.manifest.as_ref(), cancel)
    };
    let (unet, graph) = model.key("unet", &[], engine.ep(), wish)?;
    if let Some(reason) = graph.reason {
        let note = format!("the portable graph is run, not the faster native one: {reason}");
        listener(Event::Note(&note));
    }
    let mut timing = Timing::default();

    listener(Event::Stage(Stage::Encode));
    let start = Instant::now();
    if let Some(dump) = dump.as_deref_mut() {
        dump.set_all(first);
    }
    let conditions = encode(first, models, &lease, cancel, listener, dump.as_deref_mut())?;
    timing.encode = start.elapsed();

    listener(Event::Stage(Stage::Load));
    let start = Instant::now();
    let [_, _, height, width] = first.latent_shape;
    let dims = [("batch", 1), ("height", height), ("width", width)];
    let lease_unet = |number: usize| {
        let model = models
            .all()
            .nth(number)
            .expect("what is called was planned");
        Ok(Unet::new(lease(model, "unet", &dims)?, model.prediction))
    };
    let mut networks = Networks::new(&lease_unet);
    networks.get(0)?;
    timing.load = start.elapsed();

    listener(Event::Stage(Stage::Denoise {
        calls: first.calls,
        pictures: plans.len(),
    }));
    let start = Instant::now();
    let (mut latents, mut calls) = (Vec::new(), Vec::new());
    for (picture, plan) in plans.iter().enumerate() {
        let (noise, mut source) = stages::first_noise(plan)?;
        if let Some(dump) = dump.as_deref_mut() {
            dump.append("initial_noise", &noise.view());
        }
        if let Some(more) = plan.profile.step_seed {
            source = plan.origin.source(plan.seed.wrapping_add(more));
        }
        let mut relay = Relay {
            networks: &mut networks,
            conditions: &conditions,
            refiner_below: plan.refiner_below,
            asked_scale: plan.guidance_scale,
            scale: (plan.profile.guidance_scale)(plan.guidance_scale),
            rescale: plan.guidance_rescale,
            cancel,
        };
        let watched = Watched {
            picture,
            listener,
            dump: dump.as_deref_mut(),
            cancel,
        };
        let (clean, called) = stages::denoise(plan, noise, &mut *source, &mut relay, watched)?;
        if let Some(dump) = dump.as_deref_mut() {
            dump.append("final_latents", &clean.view());
        }
        latents.push(clean);
        calls.push(called);
    }
    drop(networks);
    timing.denoise = start.elapsed();

    listener(Event::Stage(Stage::Decode));
    let start = Instant::now();
    let mut decoder = lease(model, "vae_decoder", &dims)?;
    let decode =
        |plan: &Plan, latents: &Latents| stages::decode(plan, latents, model, &mut decoder, cancel);
    let pictures = decoded(plans, &latents, decode, listener)?;
    timing.decode = start.elapsed();
    Ok(Outcome {
        pictures,
        calls,
        timing,
        graph: graph.dialect(),
        compute: unet.compute,
    })
}

/// The pictures of plans, and a word on those that are none.
fn decoded(
    plans: &[Plan],
    latents: &[Latents],
    mut decode: impl FnMut(&Plan, &Latents) -> Result<Picture, PipelineError>,
    listener: &mut Listener<'_>,
) -> Result<Vec<Picture>, PipelineError> {
    let mut pictures = Vec::new();
    for (plan, latents) in plans.iter().zip(latents) {
        let picture = decode(plan, latents)?;
        if picture.is_constant() {
            let text = "the picture has one colour only: the model may be damaged";
            listener(Event::Warning(text));
        }
        pictures.push(picture);
    }
    Ok(pictures)
}

/// Leases a model's network with fixed dimensions.
type LeaseOf<'a> = dyn Fn(&ModelDir, &str, &[(&str, usize)]) -> Result<Lease, EngineError> + 'a;

/// Prompt and negative prompt for every model, through its text encoders. Plans of a request differ in their seeds only, so
/// the first speaks for all.
fn encode(
    plan: &Plan,
    models: &Models,
    lease: &LeaseOf<'_>,
    cancel: &Cancel,
    listener: &mut Listener<'_>,
    mut dump: Option<&mut Dump>,
) -> Result<Vec<[Condition; 2]>, PipelineError> {
    let _span = tracing::info_span!("encode").entered();
    let mut conditions = Vec::new();
    for ((model, told), suffix) in models.all().zip(&plan.told).zip(["", "_refiner"]) {
        let mut encoded = Vec::new();
        for text in &model.texts {
            // What there is to say of a prompt is said once.
            let mut silent = |_: Event<'_>| ();
            let words = match conditions.is_empty() && encoded.is_empty() {
                true => stages::read_prompts(plan, &text.tokenizer, listener)?,
                false => stages::read_prompts(plan, &text.tokenizer, &mut silent)?,
            };
            let mut encoder = TextEncoder::new(lease(model, text.component, &[("batch", 1)])?);
            let empty = chunks::empty(&text.tokenizer);
            let weighting = (plan.emphasis, &empty);
            encoded.push(stages::encode(
                told,
                &words,
                weighting,
                &mut encoder,
                cancel,
            )?);
        }
        let both = stages::conditions(told, &encoded)?;
        if let Some(dump) = dump.as_deref_mut() {
            dump.add_text(&encoded, &both, suffix);
        }
        conditions.push(both);
    }
    Ok(conditions)
}

impl Dump {
    /// Notes the settings of a run.
    fn set_all(&mut self, plan: &Plan) {
        self.set("convention", plan.sampler.space.name());
        for (key, value) in &plan.settings {
            self.set(key, value);
        }
        self.set("prompt", &plan.prompt);
        self.set("negative_prompt", &plan.negative_prompt);
        self.set("profile", plan.profile.name);
    }

    /// Adds tokens and embeddings of prompt and negative prompt. `suffix` is for a refiner's, whose tokens are the same.
    fn add_text(&mut self, encoded: &[[Encoded; 2]], conditions: &[Condition; 2], suffix: &str) {
        for (i, of) in ["", "_uncond"].into_iter().enumerate() {
            for (both, number) in encoded.iter().zip(["", "_2"]) {
                if suffix.is_empty() {
                    let name = format!("token_ids{of}{number}");
                    self.add_ids(name, &both[i].token_ids.view());
                }
            }
            let condition = &conditions[i];
            let name = format!("text_embeddings{of}{suffix}");
            self.append(&name, &condition.context.view());
            if let Some(pooled) = &condition.pooled {
                self.append(&format!("pooled{of}{suffix}"), &pooled.view());
            }
        }
        if let Some(time_ids) = &conditions[0].time_ids {
            self.append(&format!("time_ids{suffix}"), &time_ids.view());
        }
    }
}
