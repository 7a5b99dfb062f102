//! Makes a picture and records its inside; if there is a reference, also what this way makes of the reference's numbers.

use std::num::NonZero;
use std::path::PathBuf;

use anyhow::{Context, bail};
use ndarray::{Array, Array3, Array4, Axis, concatenate};
use sd_kernels::Isa;
use sd_runtime::denoise::Latents;
use sd_runtime::engine::measured::processor;
use sd_runtime::engine::{Cancel, Engine, memory};
use sd_runtime::pipeline::{Picture, Replay, Request, Trajectory};
use sd_runtime::text::{Condition, Guides};
use serde::{Deserialize, Serialize};

use super::identity::{Identity, check_request, settled};
use super::recording::{About, Followed, LAYOUT, Machine, Recording, Told};
use super::way::Way;

/// What a process of its own is asked to record.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) way: Way,
    pub(crate) request: Request,
    /// Recording of the reference.
    pub(crate) reference: Option<PathBuf>,
    /// Where the recording goes.
    pub(crate) output: PathBuf,
}

impl Order {
    /// Records.
    pub(crate) fn fulfil(&self, cancel: &Cancel) -> anyhow::Result<Recording> {
        let Self { way, request, .. } = self;
        if let Some(instructions) = way.instructions()? {
            instructions.limit();
        }
        let reference = self.reference.as_deref().map(Recording::read).transpose()?;
        let models = way.models()?;
        let plan = way.plan(request, &models, way.rng()?)?;
        let model = Identity::of(&models.base)?;
        let request = settled(request, &plan)?;
        if let (Some(reference), Some(path)) = (&reference, &self.reference) {
            let same = reference.about.model.check(&model);
            let same = same.and_then(|()| check_request(&reference.about.request, &request));
            same.with_context(|| path.display().to_string())?;
        }
        let engine = Engine::start(&way.engine()?)?;
        let pool = engine.pool();
        pool.set_budget(memory::limit() / 2);
        let replay = Replay {
            plan: &plan,
            models: &models,
            engine: &engine,
            cancel,
        };
        let conditions = replay.encode()?;
        let noise = replay.first_noise()?;
        let run = replay.denoise(&conditions, noise.clone())?;
        let decoded = replay.decode(&run.clean)?;
        let probe = run.calls.get(run.calls.len() / 2);
        let probe = probe.context("the solver calls the model")?;
        let unet = replay.predict(&conditions, &probe.x, probe.level)?;
        let wish = (plan.graph, plan.compute);
        let (key, graph) = models.base.key("unet", &[], engine.ep(), wish)?;
        let mut recording = Recording {
            about: About {
                layout: LAYOUT,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                request,
                model,
                way: way.clone(),
                machine: machine(&engine),
                graph: graph.dialect().to_owned(),
                compute: key.compute.name().to_owned(),
                storage: models
                    .base
                    .recorded("unet")
                    .map_or_else(Vec::new, |unet| unet.storage.clone()),
                latent_shape: plan.latent_shape,
                size: plan.size,
                calls: run.calls.len(),
                steps: run.states.len(),
                prompts: unet.len(),
                follows: reference.is_some(),
            },
            noise,
            told: told(&conditions),
            levels: run.calls.iter().map(|call| call.level).collect(),
            x: stacked(run.calls.iter().map(|call| &call.x))?,
            denoised: stacked(run.calls.iter().map(|call| &call.denoised))?,
            states: states(&run, plan.latent_shape)?,
            clean: run.clean,
            unet: stacked(&unet)?,
            picture: rounded(&decoded, plan.profile.pixel),
            decoded,
            followed: None,
        };
        if let Some(reference) = reference {
            // Later noise of runs that begin with the reference's is the reference's, too.
            let plan = way.plan(&self.request, &models, reference.about.way.rng()?)?;
            let replay = Replay {
                plan: &plan,
                ..replay
            };
            let followed = follow(replay, &recording, &reference, conditions)?;
            recording.followed = Some(followed);
        }
        Ok(recording)
    }
}

/// Replaces one part after the other by the reference's numbers.
fn follow(
    replay: Replay<'_>,
    own: &Recording,
    reference: &Recording,
    conditions: Vec<Guides<Condition>>,
) -> anyhow::Result<Followed> {
    let shape = replay.plan.latent_shape;
    let noise = &reference.noise;
    if noise.shape() != shape {
        bail!(
            "the reference's latents have shape {:?}; this run needs {shape:?}",
            noise.shape()
        );
    }
    let same_noise = own.about.way.rng == reference.about.way.rng && own.noise == *noise;
    let same_text = own.told == reference.told;
    let decoded_told = match same_noise {
        true => own.decoded.clone(),
        false => replay.decode(&replay.denoise(&conditions, noise.clone())?.clean)?,
    };
    let conditions = retold(conditions, &reference.told)?;
    let (states, decoded_closed) = if same_noise && same_text {
        (own.states.clone(), own.decoded.clone())
    } else {
        let run = replay.denoise(&conditions, noise.clone())?;
        (states(&run, shape)?, replay.decode(&run.clean)?)
    };
    let calls = (0..reference.levels.len()).map(|i| (reference.input(i), reference.levels[i]));
    let calls: Vec<_> = calls.collect();
    let (x, level) = &calls[reference.probe()];
    Ok(Followed {
        unet: stacked(&replay.predict(&conditions, x, *level)?)?,
        denoised: stacked(&replay.estimate(&conditions, &calls)?)?,
        states,
        decoded: replay.decode(&reference.clean)?,
        decoded_closed,
        decoded_told,
    })
}

/// What the UNet is told, prompt by prompt.
fn told(conditions: &[Guides<Condition>]) -> Vec<Told> {
    let values = conditions.iter().flat_map(Guides::values);
    let told = values.map(|(condition, _)| Told {
        context: condition.context.clone(),
        pooled: condition.pooled.clone(),
    });
    told.collect()
}

/// The same prompts in a reference's numbers.
fn retold(
    mut conditions: Vec<Guides<Condition>>,
    reference: &[Told],
) -> anyhow::Result<Vec<Guides<Condition>>> {
    let own = conditions.iter_mut().flat_map(Guides::values_mut);
    let own: Vec<_> = own.map(|(condition, _)| condition).collect();
    if own.len() != reference.len() {
        bail!(
            "the reference has {} prompts; this run has {}",
            reference.len(),
            own.len()
        );
    }
    for (i, (own, told)) in own.into_iter().zip(reference).enumerate() {
        let shapes = |context: &Array3<f32>, pooled: &Option<ndarray::Array2<f32>>| {
            let pooled = pooled.as_ref().map(|pooled| pooled.shape().to_vec());
            (context.shape().to_vec(), pooled)
        };
        let expected = shapes(&own.context, &own.pooled);
        let found = shapes(&told.context, &told.pooled);
        if found != expected {
            bail!(
                "the reference's `context.{i}` and `pooled.{i}` have shapes {found:?}; this run needs {expected:?}"
            );
        }
        own.context.clone_from(&told.context);
        own.pooled.clone_from(&told.pooled);
    }
    Ok(conditions)
}

/// States after steps, [steps, C, h, w]; solvers that decide on their steps by themselves may tell of none.
fn states(run: &Trajectory, [_, c, h, w]: [usize; 4]) -> anyhow::Result<Array4<f32>> {
    match run.states.is_empty() {
        true => Ok(Array::zeros((0, c, h, w))),
        false => stacked(&run.states),
    }
}

fn stacked<'a>(latents: impl IntoIterator<Item = &'a Latents>) -> anyhow::Result<Array4<f32>> {
    let views: Vec<_> = latents.into_iter().map(|x| x.view()).collect();
    Ok(concatenate(Axis(0), &views)?)
}

/// A picture of 8 bits, [height, width, 3].
fn rounded(decoded: &Array3<f32>, pixel: fn(f32) -> u8) -> Array3<u8> {
    let Picture { width, height, rgb } = Picture::from_decoded(&decoded.view(), pixel);
    Array::from_shape_vec((height, width, 3), rgb).expect("three bytes for every pixel")
}

fn machine(engine: &Engine) -> Machine {
    Machine {
        processor: processor(),
        instructions: Isa::detect().name().to_owned(),
        threads: engine.threads(),
        onnxruntime: engine.build_info().to_owned(),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
    }
}

/// Threads that a process may use.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}
