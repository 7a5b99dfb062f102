//! From a request to plans: every check, default, seed, size and call count, before any weight is read.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;

use sd_models::diffusers::prediction_name;
use sd_models::family::ModelFamily;

use super::infotext::{self, Infotext};
use super::model::lacks_none;
use super::prompts::Words;
use super::request::check_side;
use super::{Micro, ModelDir, Models, PipelineError, Request, idle, leases, stages};
use crate::Remedy;
use crate::engine::memory::Needs;
use crate::engine::{Compute, Dialect, Ep};
use crate::noise::{BrownianTree, FirstNoise, Origin, Variation};
use crate::profile::Profile;
use crate::sampler::{self, Options, Sampler, Schedule};
use crate::sigmas::Spread;
use crate::text::{Chunk, Emphasis, Guides, Layer};

/// One picture, with nothing left open.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What should be seen, without tags of LoRAs.
    pub prompt: String,
    /// What should not be seen, without tags of LoRAs.
    pub negative_prompt: String,
    /// The texts that these are over the run.
    pub texts: Arc<Guides<String>>,
    /// Their tokens, for every model's text encoders.
    pub tokens: Arc<Vec<Vec<Guides<Vec<Chunk>>>>>,
    /// Width and height in pixels.
    pub size: [usize; 2],
    /// Its latents: 1, channels, height, width.
    pub latent_shape: [usize; 4],
    /// Seed of its noise.
    pub seed: u64,
    /// Where noise comes from.
    pub origin: Origin,
    /// How its first noise is drawn.
    pub first_noise: FirstNoise,
    /// The file that holds its first noise instead, and its place in there.
    pub initial_noise: Option<(PathBuf, usize)>,
    /// The solver, by the name under which the profile's program has it.
    pub sampler: Sampler,
    /// How its noise levels are spread; none if it has levels of its own.
    pub spread: Option<Spread>,
    /// What it runs over.
    pub schedule: Arc<Schedule>,
    /// Steps as they are counted in settings.
    pub steps: usize,
    /// Its options.
    pub options: Options,
    /// How many calls of the denoiser it takes; none where the picture decides.
    pub calls: Option<usize>,
    /// How strongly the prompt is followed, as asked for; 1 is without guidance.
    pub guidance_scale: f64,
    /// How much of the prompt's spread guidance gives back.
    pub guidance_rescale: f64,
    /// How weights in prompts act.
    pub emphasis: Emphasis,
    /// What each network is told: the base model, then a refiner.
    pub told: Vec<Told>,
    /// The refiner is called below this timestep.
    pub refiner_below: Option<f64>,
    /// Whose rules are followed.
    pub profile: Profile,
    /// Which of a network's graphs is run.
    pub graph: Dialect,
    /// What products are computed in.
    pub compute: Compute,
    /// Whether it is decoded in bands of rows.
    pub tile: bool,
    /// What goes into the picture's file, but for what it was computed with; see [`super::Outcome::computed`].
    pub infotext: Infotext,
}

/// What a network is told beside the words of the prompts.
#[derive(Clone, Debug)]
pub struct Told {
    /// Which states of its text encoders are used for prompt and negative prompt.
    pub layers: [Layer; 2],
    /// Whether the negative prompt has no text, not even an empty one.
    pub zero_negative: bool,
    /// Sizes, crop and scores of prompt and negative prompt, of families that take them.
    pub time_ids: [Option<Vec<f32>>; 2],
}

impl Told {
    fn of(request: &Request, model: &ModelDir, size: [usize; 2], notes: &mut Vec<String>) -> Self {
        let negative = request.negative_prompt.as_deref();
        let zero = (request.profile.zero_negative)(negative, model.force_zeros);
        let [positive, low] = request.aesthetic;
        let mut negative_micro = request.micro;
        if model.family == ModelFamily::SdxlRefiner && request.profile.refiner_is_apart {
            negative_micro.crop = [0, 0];
        }
        Self {
            layers: layers(request, model, notes),
            zero_negative: zero && model.family.time_ids().is_some(),
            time_ids: [
                request.micro.time_ids(model.family, size, positive),
                negative_micro.time_ids(model.family, size, low),
            ],
        }
    }
}

impl Plan {
    /// How often a call of the denoiser evaluates the network: for each prompt that is followed at once, and the negative prompt if it
    /// has an effect. Networks that embed guidance do with less.
    #[must_use]
    pub fn evaluations(&self) -> usize {
        let scale = (self.profile.guidance_scale)(self.guidance_scale);
        let prompts = self.texts.cond.len();
        prompts + usize::from(!is_unguided(&self.texts, scale, self.sampler))
    }

    /// The noise between noise levels that solvers of stochastic differential equations take.
    #[must_use]
    pub fn brownian_tree(&self) -> BrownianTree {
        let levels = self
            .schedule
            .steps
            .iter()
            .flat_map(|step| [step.from, step.to]);
        let sigmas = levels.map(|level| level.sigma).filter(|&sigma| sigma > 0.0);
        let [min, max] = sigmas.fold([f64::INFINITY, 0.0], |[min, max], sigma| {
            [sigma.min(min), sigma.max(max)]
        });
        let count = self.latent_shape.iter().product();
        let seed = self.schedule.setup.brownian_seed.unwrap_or(self.seed);
        BrownianTree::new(seed, self.origin, count, min, max)
    }
}

/// The pictures of a request, and what the user should know of them.
#[derive(Clone, Debug)]
pub struct Plans {
    /// One per picture.
    pub plans: Vec<Plan>,
    /// Memory that they take at most with processors: they are made one after the other.
    pub memory: Needs,
    /// After every so many steps, [`super::Event::Preview`] shows what a picture looks like. None are made unless somebody sets
    /// this; they change nothing else.
    pub preview: Option<NonZero<usize>>,
    /// Good to know.
    pub notes: Vec<String>,
    /// What may be wrong.
    pub warnings: Vec<String>,
}

impl Plans {
    /// [`Self::memory`] with a provider, which may run other graphs than processors do, and with previews.
    #[must_use]
    pub fn memory_with(&self, ep: Ep, models: &Models) -> Needs {
        let previews = self.preview.is_some();
        self.most(|pixels, plan| models.memory(pixels, (plan.graph, plan.tile), ep, previews))
    }

    /// [`Self::memory_with`] before latents are decoded.
    #[must_use]
    pub fn memory_of_denoising(&self, ep: Ep, models: &Models) -> Needs {
        self.most(|pixels, plan| models.unet_memory(pixels, plan.graph, ep))
    }

    /// The most that a picture takes, by its latent pixels and plan.
    fn most(&self, of: impl Fn(usize, &Plan) -> Needs) -> Needs {
        let needs = self.plans.iter().map(|plan| {
            let [_, _, height, width] = plan.latent_shape;
            of(height * width, plan)
        });
        needs.fold(Needs::default(), Needs::max)
    }

    /// Resolves a request for a model and perhaps its refiner; `limit` is how many bytes of memory there are.
    ///
    /// # Errors
    /// What cannot be, is out of range, does not fit into memory or is not in the model, or a refiner of another family.
    ///
    /// ```no_run
    /// use std::path::Path;
    ///
    /// use sd_runtime::engine::memory;
    /// use sd_runtime::pipeline::{ModelDir, Models, Plans, Request};
    ///
    /// let models = Models::one(ModelDir::open(Path::new("model"))?);
    /// let request = Request::from_json(r#"{"prompt": "a lighthouse", "batch": 2}"#)?;
    /// let plans = Plans::resolve(&request, &models, memory::limit())?;
    /// for plan in &plans.plans {
    ///     println!("{} with {} steps, seed {}", plan.sampler, plan.steps, plan.seed);
    /// }
    /// # Ok::<_, sd_runtime::pipeline::PipelineError>(())
    /// ```
    pub fn resolve(request: &Request, models: &Models, limit: u64) -> Result<Self, PipelineError> {
        let model = &models.base;
        request.check()?;
        check_base(models)?;
        let profile = request.profile;
        let (mut notes, mut warnings) = (model.notes.clone(), Vec::new());
        let choice = Choice::of(request, model, &mut notes)?;
        let (size, memory) = size_and_memory(request, models, limit)?;
        if let Some(approx) = &models.vae_approx {
            notes.extend(approx.check(model)?);
            let text = "bands of rows have no effect: a tiny decoder does not work in them";
            notes.extend(request.tile.then(|| text.to_owned()));
        }
        let texture = request.noise.open()?;
        notes.extend(idle::options(request, choice.sampler, &choice.schedule));
        notes.extend(idle::refiner(request, models));
        if request.micro != Micro::default() && model.family.time_ids().is_none() {
            let text = "original size, target size and crop have no effect: the model is no SDXL";
            warnings.push(text.to_owned());
        }
        let told: Vec<Told> = models
            .all()
            .map(|model| Told::of(request, model, size, &mut notes))
            .collect();
        // diffusers' `denoising_end` and A1111's `refiner_switch_at`, which count alike.
        let refiner_below = models
            .refiner
            .as_ref()
            .map(|_| (1000.0 - 1000.0 * request.refiner_start).round());
        let words = Words::of(request, models, choice.sampler, choice.steps)?;
        notes.extend_from_slice(&words.notes);
        notes.extend(without_effect(request, &choice, &words.texts));
        warnings.extend_from_slice(&words.warnings);

        let noise_file = infotext::NoiseFile::of(request)?;
        let plan = |i: usize| {
            let factor = model.latent.downscale;
            let (seed, variation, origin) = draws(request, i);
            let first_noise = FirstNoise {
                variation,
                resized_from: request
                    .seed_resize
                    .map(|[width, height]| [height / factor, width / factor]),
                ensd: request.ensd,
                texture: texture.clone(),
            };
            let picture = infotext::Picture {
                size,
                seed,
                variation,
                origin,
            };
            let pairs = infotext::settings(
                request,
                models,
                &choice,
                &words,
                &picture,
                noise_file.as_ref(),
            );
            Plan {
                prompt: words.prompt.clone(),
                negative_prompt: words.negative_prompt.clone(),
                texts: Arc::clone(&words.texts),
                tokens: Arc::clone(&words.tokens),
                size,
                latent_shape: [1, model.latent.channels, size[1] / factor, size[0] / factor],
                seed,
                origin,
                first_noise,
                initial_noise: request.initial_noise.clone().map(|path| (path, i)),
                sampler: choice.sampler,
                spread: choice.spread,
                schedule: Arc::clone(&choice.schedule),
                steps: choice.steps,
                options: (profile.options)(choice.sampler, request.options),
                calls: (choice.sampler.calls)(&choice.schedule),
                guidance_scale: choice.guidance_scale,
                guidance_rescale: request.guidance_rescale,
                emphasis: words.emphasis,
                told: told.clone(),
                refiner_below,
                profile,
                graph: request.graph,
                compute: request.compute,
                tile: models.tiles(request),
                infotext: Infotext {
                    prompt: request.prompt.clone(),
                    negative_prompt: infotext::negative(request, model),
                    pairs,
                },
            }
        };
        Ok(Self {
            plans: (0..request.batch).map(plan).collect(),
            memory,
            preview: None,
            notes,
            warnings,
        })
    }
}

impl Plans {
    /// Finds out whether a provider runs graphs of these models as the plans want them, and whether files of first noise fit, before
    /// anything is loaded.
    ///
    /// # Errors
    /// A graph that is asked for, or that numbers or bands of rows need, cannot be run; or a file lacks a plan's noise.
    pub fn check(&self, models: &Models, ep: Ep) -> Result<(), PipelineError> {
        // Plans of a request have the same graphs.
        if let Some(first) = self.plans.first() {
            leases::check(first, models, ep)?;
        }
        // A request's plans have theirs one after the other in one file.
        if let Some(last) = self.plans.last() {
            let [_, channels, height, width] = last.latent_shape;
            if let Some((path, place)) = &last.initial_noise {
                stages::given_noise(path, *place, [channels, height, width])?;
            }
        }
        Ok(())
    }

    /// How much work the pictures are, in latent pixels that denoisers compute; each step counts as one call where the picture
    /// decides how many there are.
    #[must_use]
    pub fn work(&self) -> u64 {
        let work = |plan: &Plan| {
            let pixels = plan.latent_shape[2] * plan.latent_shape[3];
            (pixels * plan.calls.unwrap_or(plan.steps)) as u64
        };
        self.plans.iter().map(work).sum()
    }
}

/// That a model makes pictures from noise, and that something decodes them.
fn check_base(models: &Models) -> Result<(), PipelineError> {
    let model = &models.base;
    if model.family == ModelFamily::SdxlRefiner {
        return Err(PipelineError::Unsupported {
            path: model.path.clone(),
            kind: "SDXL's refiner".to_owned(),
            remedy: Remedy::words("it goes on with what an SDXL base model began"),
        });
    }
    let decoder = models.vae_approx.is_none().then_some("vae_decoder");
    lacks_none(&model.path, model.manifest.as_ref(), decoder.into_iter())
}

/// Whether the negative prompt has no effect: one prompt is followed as it is.
fn is_unguided(texts: &Guides<String>, scale: f64, sampler: Sampler) -> bool {
    let is_alone = matches!(texts.cond[..], [(_, weight)] if weight * scale == 1.0);
    is_alone && !sampler.needs_uncond()
}

/// What is asked for and does nothing with what runs.
fn without_effect(request: &Request, choice: &Choice, texts: &Guides<String>) -> Vec<String> {
    let profile = request.profile;
    let scale = (profile.guidance_scale)(choice.guidance_scale);
    let unguided = is_unguided(texts, scale, choice.sampler);
    let negative = request.negative_prompt.as_deref();
    let name = profile.name;
    let mut notes = Vec::new();
    if request.ensd != 0 && profile.step_seed.is_some() {
        notes.push(format!(
            "another seed for later noise has no effect under {name}'s rules, which have one of their own"
        ));
    }
    if unguided && negative.is_some_and(|negative| !negative.is_empty()) {
        notes.push("the negative prompt has no effect without guidance".to_owned());
    }
    if unguided && request.guidance_rescale > 0.0 {
        notes.push("guidance rescale has no effect without guidance".to_owned());
    }
    notes
}

/// The seed of picture `i`, its variation, and what it draws from. The pictures of a batch are those of successive seeds, or
/// parts of one draw; with variations, which only A1111 has, successive variations of one seed.
fn draws(request: &Request, i: usize) -> (u64, Option<Variation>, Origin) {
    let alone = Origin::from(request.rng);
    let next = |seed: u64| seed.wrapping_add(i as u64);
    match request.subseed {
        Some(subseed) if request.subseed_strength > 0.0 => {
            let variation = Variation {
                seed: next(subseed),
                strength: request.subseed_strength,
            };
            (request.seed, Some(variation), alone)
        }
        _ if request.profile.batch_is_one_draw => {
            let part = Origin {
                index: i,
                count: request.batch,
                ..alone
            };
            (request.seed, None, part)
        }
        _ => (next(request.seed), None, alone),
    }
}

/// Width and height, and the memory that they take in whatever network takes most.
fn size_and_memory(
    request: &Request,
    models: &Models,
    limit: u64,
) -> Result<([usize; 2], Needs), PipelineError> {
    let model = &models.base;
    let size = [
        request.width.unwrap_or(model.default_size[0]),
        request.height.unwrap_or(model.default_size[1]),
    ];
    check_side("width", size[0])?;
    check_side("height", size[1])?;
    if let Some(refiner) = &models.refiner {
        check_refiner(model, refiner)?;
    }
    Ok((
        size,
        models.memory_within(size, (request.graph, request.tile), limit)?,
    ))
}

/// What runs, with the gaps of the request filled: by what the model is made for, then by the profile.
pub(super) struct Choice {
    pub(super) sampler: Sampler,
    pub(super) spread: Option<Spread>,
    pub(super) steps: usize,
    pub(super) guidance_scale: f64,
    pub(super) schedule: Arc<Schedule>,
}

impl Choice {
    fn of(
        request: &Request,
        model: &ModelDir,
        notes: &mut Vec<String>,
    ) -> Result<Self, PipelineError> {
        const STEPS: usize = 20;
        const GUIDANCE: f64 = 7.0;
        let (profile, trained) = (request.profile, model.trained());
        let in_config = |source| model.scheduler_error(source);
        let made_for = model.defaults.as_ref();
        let is_open = request.sampler.is_none()
            || request.steps.is_none()
            || request.guidance_scale.is_none();
        notes.extend(
            made_for
                .filter(|_| is_open)
                .map(|defaults| format!("this model is made for {defaults}")),
        );
        // Who chooses a solver chooses its spread, too.
        let of_solver = made_for.filter(|_| request.sampler.is_none());
        let usual = of_solver.and_then(|d| Some(sampler::parse(&d.sampler).ok()?.0));
        let usual_spread = of_solver.and_then(|d| d.schedule.as_ref()?.parse().ok());
        let sampler = match request.sampler.or(usual) {
            Some(sampler) => sampler,
            None => (profile.sampler)(&trained).map_err(in_config)?,
        };
        let asked = sampler;
        let sampler = request.solver(asked)?;
        if sampler != asked {
            notes.push(format!("{}'s {asked} is {sampler}", profile.name));
        }
        let known = (profile.spreads)(sampler);
        let usual_spread = usual_spread.filter(|spread| known.contains(spread));
        let spread = match request.spread.or(usual_spread) {
            _ if known.is_empty() => None,
            Some(spread) => Some(spread),
            None => Some((profile.automatic)(sampler, &trained).map_err(in_config)?),
        };
        let steps = request.steps.or(made_for.map(|d| d.steps)).unwrap_or(STEPS);
        let guidance = request
            .guidance_scale
            .or(made_for.map(|d| d.guidance_scale));
        let guidance_scale = guidance.unwrap_or(GUIDANCE);
        if (profile.guidance_scale)(guidance_scale) == 0.0 {
            notes.push("guidance 0 follows the negative prompt only".to_owned());
        }
        let schedule = (profile.schedule)(sampler, spread, steps, &trained);
        let schedule = Arc::new(schedule.map_err(in_config)?);
        notes.extend((profile.notes)(sampler, &trained));
        let done = schedule.steps.len();
        if steps != done {
            let name = profile.name;
            notes.push(format!("under {name}'s rules {steps} steps are {done}"));
        }
        Ok(Self {
            sampler,
            spread,
            steps,
            guidance_scale,
            schedule,
        })
    }
}

/// A refiner goes on with the base model's latents and follows the same prompt.
fn check_refiner(model: &ModelDir, refiner: &ModelDir) -> Result<(), PipelineError> {
    let differs = |what, found: String, expected: String| PipelineError::Refiner {
        path: refiner.path.clone(),
        base: model.path.clone(),
        what,
        found,
        expected,
    };
    let families = match model.family {
        ModelFamily::Sdxl => vec![ModelFamily::SdxlRefiner, ModelFamily::Sdxl],
        family => vec![family],
    };
    if !families.contains(&refiner.family) {
        let expected: Vec<String> = families.iter().map(ToString::to_string).collect();
        let found = refiner.family.to_string();
        return Err(differs("family", found, expected.join(" or ")));
    }
    if model.prediction != refiner.prediction {
        let [found, expected] = [refiner, model].map(|m| prediction_name(m.prediction).to_owned());
        return Err(differs("prediction type", found, expected));
    }
    if model.latent != refiner.latent {
        let [found, expected] = [refiner, model].map(|model| {
            let latent = model.latent;
            format!(
                "{} channels of {} pixels, scaled by {}",
                latent.channels, latent.downscale, latent.scaling_factor
            )
        });
        return Err(differs("latent space", found, expected));
    }
    Ok(())
}

/// Which states are used for prompt and negative prompt.
fn layers(request: &Request, model: &ModelDir, notes: &mut Vec<String>) -> [Layer; 2] {
    let (profile, skip) = (request.profile, request.clip_skip);
    let (family, acts) = match model.family {
        ModelFamily::Sd21 => ("Stable Diffusion 2", profile.clip_skip_open_clip),
        ModelFamily::Sdxl | ModelFamily::SdxlRefiner => {
            let layer = profile.clip_skip_xl;
            ("SDXL", layer(skip) != layer(1))
        }
        _ => ("Stable Diffusion 1", true),
    };
    if skip > 1 && !acts {
        let name = profile.name;
        notes.push(format!(
            "clip skip has no effect on {family} under {name}'s rules"
        ));
    }
    let skip = if acts { skip } else { 1 };
    let negative = if profile.clip_skip_negative { skip } else { 1 };
    let layer = |skip| match model.family.time_ids() {
        Some(_) => Layer::Raw((profile.clip_skip_xl)(skip)),
        None => Layer::Normed(skip),
    };
    [layer(skip), layer(negative)]
}
