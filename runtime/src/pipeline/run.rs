//! Plans to pictures. One network is leased at a time: all plans pass a stage before the next one begins.

use std::time::{Duration, Instant};

use sd_kernels::{Compute, Isa};

use super::decode::{Decoded, Decoder};
use super::event::{Event, Listener, Stage};
use super::leases::{self, Leases};
use super::preview::{Linear, Previews, Show};
use super::stages::{self, Inside, Watched};
use super::{Dump, ModelDir, Models, Picture, PipelineError, Plan, Plans};
use crate::denoise::Networks;
use crate::engine::{Cancel, Chosen, Engine, EngineError, Ep};
use crate::text::{Condition, Guides, TextEncoder, TextError, Timeline, chunks};

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
    /// Which pictures were decoded in single precision by the processor, since values of the decoder as it was asked for are NaN or
    /// infinite.
    pub decoded_again: Vec<bool>,
    /// What else decides the last bits of all pictures; [`Self::settings`] has what is known of each.
    pub computed: Vec<(&'static str, String)>,
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
            decoded_again: Vec::new(),
            computed: Vec::new(),
        }
    }

    /// Settings of a picture that are known once it is made, for [`super::infotext::Infotext::with`].
    #[must_use]
    pub fn settings(&self, picture: usize) -> Vec<(&'static str, String)> {
        let mut settings = self.computed.clone();
        settings.extend(self.retry(picture).map(|how| ("VAE retry", how)));
        settings
    }

    /// How a picture was decoded once more, if it was; see [`Self::decoded_again`].
    #[must_use]
    pub fn retry(&self, picture: usize) -> Option<String> {
        let again = self.decoded_again.get(picture) == Some(&true);
        again.then(|| "f32 on the processor".to_owned())
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
    let every = plans.preview;
    let plans = &plans.plans;
    let Some(first) = plans.first() else {
        return Ok(Outcome::of_nothing());
    };
    let model = &models.base;
    let leases = Leases {
        plan: first,
        engine,
        cancel,
    };
    let mut show = every.map(|_| show(leases, models)).transpose()?;
    let previews = every.zip(show.as_deref_mut());
    let mut previews = previews.map(|(every, show)| Previews::new(every, show));
    let wish = (first.graph, first.compute);
    let (unet, graph) = model.key("unet", &[], engine.ep(), wish)?;
    // What cannot be is found out before the work.
    leases::check(first, models, engine.ep())?;
    note_portable(first, models, engine.ep(), listener)?;
    let mut timing = Timing::default();

    listener(Event::Stage(Stage::Encode));
    let start = Instant::now();
    if let Some(dump) = dump.as_deref_mut() {
        dump.set_all(first);
    }
    let conditions = encode(&leases, models, dump.as_deref_mut())?;
    timing.encode = start.elapsed();

    listener(Event::Stage(Stage::Load));
    let start = Instant::now();
    let lease_unet = |number: usize| {
        let model = models.all().nth(number);
        let model = model.expect("what is called was planned");
        leases.unet(model, &conditions[number])
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
        let mut relay = stages::relay(plan, &mut networks, &conditions, cancel);
        let watched = Watched {
            picture,
            listener,
            inside: dump.as_deref_mut().map(|dump| dump as &mut dyn Inside),
            previews: previews.as_mut(),
            by: (unet.compute, engine.ep()),
            steps: 0,
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
    if previews.is_some_and(|previews| previews.made == 0) {
        listener(Event::Note(
            "there are no previews: pictures have fewer steps than lie between two",
        ));
    }

    listener(Event::Stage(Stage::Decode));
    let start = Instant::now();
    let mut decoder = Decoder::new(leases, models)?;
    let (mut pictures, mut decoded_again) = (Vec::new(), Vec::new());
    for (plan, latents) in plans.iter().zip(&latents) {
        let Decoded { picture, again } = decoder.picture(plan, latents, listener)?;
        pictures.push(picture);
        decoded_again.push(again);
    }
    timing.decode = start.elapsed();
    Ok(Outcome {
        pictures,
        calls,
        timing,
        graph: graph.dialect(),
        compute: unet.compute,
        decoded_again,
        computed: computed(model, &graph, unet.compute, engine),
    })
}

/// How latents are shown: by the tiny decoder, if there is one. It is leased for each preview, so that nobody waits for it
/// meanwhile.
fn show<'a>(leases: Leases<'a>, models: &'a Models) -> Result<Box<Show<'a>>, PipelineError> {
    if models.vae_approx.is_some() {
        return Ok(Box::new(move |clean| {
            let mut decoder = leases.decoder(models)?;
            stages::decode(leases.plan, clean, models, &mut decoder, leases.cancel)
        }));
    }
    let model = &models.base;
    let channels = model.latent.channels;
    let linear = Linear::of(model.family, channels).ok_or_else(|| PipelineError::NoPreview {
        path: model.path.clone(),
        channels,
    })?;
    Ok(Box::new(move |clean| Ok(linear.picture(clean))))
}

/// Settings of a run that are known once it is: numbers, and who computed, or the processor's graph, of which there are two;
/// instructions where our kernels use them, and the form of a portable graph that has several.
fn computed(
    model: &ModelDir,
    graph: &Chosen,
    compute: Compute,
    engine: &Engine,
) -> Vec<(&'static str, String)> {
    let mut pairs = Vec::new();
    if compute != Compute::F32 {
        pairs.push(("Compute", compute.name().to_owned()));
    }
    match engine.ep() {
        Ep::Cpu => pairs.push(("Graph", graph.dialect().to_owned())),
        ep => pairs.push(("EP", ep.name().to_owned())),
    }
    if let Some(plugin) = engine.plugin() {
        pairs.push(("Plugin", plugin.to_owned()));
    }
    if graph.is_native() {
        pairs.push(("Instructions", Isa::detect().name().to_owned()));
    } else if let Some(form) = model.portable_form() {
        pairs.push(("Portable graph", form));
    }
    pairs
}

/// Prompts for every model, through its text encoders. Plans of a request differ in their seeds only, so the first speaks for
/// all.
pub(super) fn encode(
    leases: &Leases<'_>,
    models: &Models,
    mut dump: Option<&mut Dump>,
) -> Result<Vec<Guides<Condition>>, PipelineError> {
    let _span = tracing::info_span!("encode").entered();
    let Leases { plan, cancel, .. } = *leases;
    let mut conditions = Vec::new();
    let of_models = models.all().zip(&plan.told).zip(&*plan.tokens);
    for (((model, told), tokens), suffix) in of_models.zip(["", "_refiner"]) {
        let nothing = |line: &Timeline<String>, _| line.try_map(|_| Ok::<_, TextError>(Vec::new()));
        let mut said = plan.texts.try_map(nothing)?;
        for (text, tokens) in model.texts.iter().zip(tokens) {
            let mut chunks = tokens.values().flat_map(|(chunks, _)| chunks);
            let takes_vectors = chunks.any(|chunk| !chunk.vectors.is_empty());
            let empty = chunks::empty(&text.tokenizer);
            let dims = [("batch", 1), ("sequence", empty.ids.len())];
            let network = leases.network(model.folder(), text.component, &dims, takes_vectors)?;
            let mut encoder = TextEncoder::new(network);
            let weighting = (plan.emphasis, &empty);
            stages::encode(
                tokens,
                told.layers,
                weighting,
                &mut encoder,
                &mut said,
                cancel,
            )?;
        }
        let of_model = stages::conditions(told, &said)?;
        if let Some(dump) = dump.as_deref_mut() {
            dump.add_text(plan.calls, &of_model, suffix);
            // A refiner's tokens are the same.
            if suffix.is_empty() {
                let encoders = tokens.iter().zip(["", "_2"]);
                encoders.for_each(|(tokens, number)| dump.add_tokens(plan.calls, tokens, number));
            }
        }
        conditions.push(of_model);
    }
    Ok(conditions)
}

impl Dump {
    /// Notes the settings of a run.
    fn set_all(&mut self, plan: &Plan) {
        self.set("convention", plan.sampler.space.name());
        for (key, value) in &plan.infotext.pairs {
            self.set(key, value);
        }
        self.set("prompt", &plan.prompt);
        self.set("negative_prompt", &plan.negative_prompt);
        self.set("profile", plan.profile.name);
    }
}

/// Tells which networks run slower graphs than they could.
fn note_portable(
    plan: &Plan,
    models: &Models,
    ep: Ep,
    listener: &mut Listener<'_>,
) -> Result<(), EngineError> {
    for model in models.all() {
        for (reason, components) in model.portable(ep, (plan.graph, plan.compute))? {
            let note = format!(
                "{} of {}: the portable graph is run, not the faster native one: {reason}",
                components.join(", "),
                model.path.display()
            );
            listener(Event::Note(&note));
        }
    }
    Ok(())
}
