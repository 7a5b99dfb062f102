//! The stages of a picture: encode the prompts, draw the first noise, denoise, decode.

use std::borrow::Cow;
use std::cell::RefCell;
use std::path::Path;

use ndarray::{Array3, Array4, Axis, Ix4};

use super::event::{Event, Listener};
use super::preview::Previews;
use super::{Dump, Models, Picture, PipelineError, Plan, Told};
use crate::denoise::{
    DenoiseError, Denoiser, Latents, Level, Networks, Relay, Thresholded, is_refined,
};
use crate::engine::{Cancel, EngineError, Ep, Input, Network};
use crate::noise::{BrownianTree, NoiseSource};
use crate::sampler::{Run, Schedule, Step};
use crate::text::{Chunk, Condition, Emphasis, Encoded, Guides, Layer, TextEncoder, TextError};

/// What a text encoder makes of prompts, beside what those before it made of them. `layers` are those of prompts and negative
/// prompts.
pub(super) fn encode(
    tokens: &Guides<Vec<Chunk>>,
    layers: [Layer; 2],
    weighting: (Emphasis, &Chunk),
    encoder: &mut TextEncoder,
    said: &mut Guides<Vec<Encoded>>,
    cancel: &Cancel,
) -> Result<(), TextError> {
    for ((chunks, negative), (said, _)) in tokens.values().zip(said.values_mut()) {
        let layer = layers[usize::from(negative)];
        said.push(encoder.encode(chunks, weighting, layer, cancel)?);
    }
    Ok(())
}

/// What a UNet is told, by what all text encoders say.
pub(super) fn conditions(
    told: &Told,
    said: &Guides<Vec<Encoded>>,
) -> Result<Guides<Condition>, TextError> {
    let mut conditions = said.try_map(|line, negative| {
        let time_ids = told.time_ids[usize::from(negative)].as_deref();
        line.try_map(|encoded| Condition::join(encoded, time_ids))
    })?;
    let lengths = conditions.values().filter(|(_, negative)| !negative);
    let longest = lengths.map(|(cond, _)| cond.tokens()).max().unwrap_or(0);
    for (condition, negative) in conditions.values_mut() {
        match negative {
            true if told.zero_negative => condition.clear_text(),
            true => {}
            false => condition.extend_to(longest),
        }
    }
    Ok(conditions)
}

/// The first noise, as the plan draws it or the user gives it, and the generator of later noise.
pub(super) fn first_noise(
    plan: &Plan,
) -> Result<(Latents, Box<dyn NoiseSource + Send>), PipelineError> {
    let [_, channels, height, width] = plan.latent_shape;
    let shape = [channels, height, width];
    let (drawn, mut source) = plan.first_noise.draw(plan.origin, plan.seed, shape);
    if let Some(more) = plan.profile.step_seed {
        source = plan.origin.source(plan.seed.wrapping_add(more));
    }
    let noise = match &plan.initial_noise {
        Some((path, place)) => given_noise(path, *place, shape)?,
        None => drawn.insert_axis(Axis(0)),
    };
    Ok((noise, source))
}

/// Noise number `place` of a file.
pub(super) fn given_noise(
    path: &Path,
    place: usize,
    needed: [usize; 3],
) -> Result<Latents, PipelineError> {
    let given = super::dump::read_initial_noise(path)?;
    match given.into_dimensionality::<Ix4>() {
        Ok(given) if given.shape()[1..] == needed && given.shape()[0] > place => {
            let one = given.index_axis(Axis(0), place);
            Ok(one.insert_axis(Axis(0)).to_owned())
        }
        other => {
            let found = other.map_or_else(|_| Vec::new(), |given| given.shape().to_vec());
            let problem = format!(
                "`initial_noise` has shape {found:?}; this run needs at least {} of {needed:?}",
                place + 1
            );
            Err(PipelineError::InitNoise {
                path: path.to_owned(),
                problem,
            })
        }
    }
}

/// Noise to clean latents, and how many calls of the denoiser it took.
pub(super) fn denoise(
    plan: &Plan,
    noise: Latents,
    source: &mut dyn NoiseSource,
    relay: &mut Relay<'_, '_>,
    watched: Watched<'_, '_>,
) -> Result<(Latents, usize), PipelineError> {
    let size = format!("{}x{}", plan.size[0], plan.size[1]);
    let _span =
        tracing::info_span!("denoise", steps = plan.steps, size, seed = plan.seed).entered();
    let watched = RefCell::new(watched);
    let solved = solve(plan, noise, source, relay, &watched);
    solved.map_err(|source| match source {
        DenoiseError::NonFinite { .. } | DenoiseError::Overflow { .. } => {
            let watched = watched.borrow();
            PipelineError::Denoising {
                source,
                step: watched.steps + 1,
                sampler: plan.sampler.name,
                compute: watched.by.0,
                ep: watched.by.1,
            }
        }
        other => other.into(),
    })
}

fn solve(
    plan: &Plan,
    noise: Latents,
    source: &mut dyn NoiseSource,
    relay: &mut Relay<'_, '_>,
    watched: &RefCell<Watched<'_, '_>>,
) -> Result<(Latents, usize), DenoiseError> {
    let mut x = noise * plan.schedule.initial_scale as f32;
    let mut model = WatchedDenoiser {
        inner: relay,
        watched,
        calls: 0,
    };
    let mut run = WatchedRun {
        source,
        plan,
        tree: None,
        watched,
        before: 0,
    };
    let mut thresholded = Thresholded {
        inner: &mut model,
        threshold: plan.schedule.setup.threshold,
    };
    for part in parts(plan) {
        x = (plan.sampler.solve)(&mut thresholded, x, &part, &plan.options, &mut run)?;
        run.before += part.steps.len();
    }
    if plan.schedule.final_scale != 1.0 {
        x *= plan.schedule.final_scale as f32;
    }
    Ok((x, model.calls))
}

/// The schedule, in two parts where the solver forgets what was before the refiner.
fn parts(plan: &Plan) -> Vec<Cow<'_, Schedule>> {
    let schedule = &*plan.schedule;
    let refined = |step: &Step| is_refined(step.from.t, plan.refiner_below);
    let at = schedule.steps.iter().position(refined);
    match at.filter(|&at| at > 0 && plan.profile.refiner_is_apart) {
        None => vec![Cow::Borrowed(schedule)],
        Some(at) => {
            let (before, after) = schedule.steps.split_at(at);
            let orders = &schedule.setup.orders;
            let (first, second) = orders.split_at(at.min(orders.len()));
            let part = |steps: &[Step], orders: &[usize]| {
                let mut part = schedule.clone();
                part.steps = steps.to_vec();
                part.setup.orders = orders.to_vec();
                Cow::Owned(part)
            };
            vec![part(before, first), part(after, second)]
        }
    }
}

/// What a plan calls: its base model, and from some level on its refiner.
pub(super) fn relay<'a, 'n>(
    plan: &Plan,
    networks: &'a mut Networks<'n>,
    conditions: &'a [Guides<Condition>],
    cancel: &'a Cancel,
) -> Relay<'a, 'n> {
    Relay {
        networks,
        conditions,
        calls: 0,
        refiner_below: plan.refiner_below,
        asked_scale: plan.guidance_scale,
        scale: (plan.profile.guidance_scale)(plan.guidance_scale),
        rescale: plan.guidance_rescale,
        cancel,
    }
}

/// Who sees the inside of a picture's denoising. Calls and steps count from 0.
pub(super) trait Inside {
    /// The denoiser was called.
    fn called(&mut self, call: usize, x: &Latents, level: Level, denoised: &Latents);

    /// A step ended in this state.
    fn stepped(&mut self, step: usize, x: &Latents);
}

impl Inside for Dump {
    fn called(&mut self, call: usize, _: &Latents, _: Level, denoised: &Latents) {
        self.append(&format!("denoised.{call:03}"), &denoised.view());
    }

    fn stepped(&mut self, step: usize, x: &Latents) {
        self.append(&format!("latents.{step:03}"), &x.view());
    }
}

/// Who looks on while a picture is denoised.
pub(super) struct Watched<'a, 'l> {
    pub(super) picture: usize,
    pub(super) listener: &'a mut Listener<'l>,
    pub(super) inside: Option<&'a mut dyn Inside>,
    pub(super) previews: Option<&'a mut Previews<'l>>,
    /// Numbers and provider of the UNet.
    pub(super) by: (sd_kernels::Compute, Ep),
    /// Steps so far.
    pub(super) steps: usize,
    pub(super) cancel: &'a Cancel,
}

/// A denoiser whose calls are counted and seen, and end when the user wants.
struct WatchedDenoiser<'a, 'b, 'l, D> {
    inner: &'a mut D,
    watched: &'a RefCell<Watched<'b, 'l>>,
    calls: usize,
}

impl<D: Denoiser> Denoiser for WatchedDenoiser<'_, '_, '_, D> {
    fn denoise(&mut self, x: &Latents, level: Level) -> Result<Latents, DenoiseError> {
        let denoised = self.inner.denoise(x, level)?;
        self.called(x, level, &denoised)?;
        Ok(denoised)
    }

    fn denoise_both(&mut self, x: &Latents, level: Level) -> Result<[Latents; 2], DenoiseError> {
        let both = self.inner.denoise_both(x, level)?;
        self.called(x, level, &both[0])?;
        Ok(both)
    }
}

impl<D> WatchedDenoiser<'_, '_, '_, D> {
    /// Counts and shows a call, and ends the run if the user wants.
    fn called(
        &mut self,
        x: &Latents,
        level: Level,
        denoised: &Latents,
    ) -> Result<(), DenoiseError> {
        let mut watched = self.watched.borrow_mut();
        if let Some(inside) = watched.inside.as_deref_mut() {
            inside.called(self.calls, x, level, denoised);
        }
        if let Some(previews) = watched.previews.as_deref_mut() {
            previews.estimated(denoised);
        }
        self.calls += 1;
        let (picture, calls) = (watched.picture, self.calls);
        (watched.listener)(Event::Called { picture, calls });
        if watched.cancel.is_cancelled() {
            return Err(EngineError::Interrupted.into());
        }
        Ok(())
    }
}

/// A picture's noise, and the states after steps.
struct WatchedRun<'a, 'b, 'l> {
    source: &'a mut dyn NoiseSource,
    plan: &'a Plan,
    /// Grown once a solver asks for it.
    tree: Option<BrownianTree>,
    watched: &'a RefCell<Watched<'b, 'l>>,
    /// Steps of parts of the schedule that are done.
    before: usize,
}

impl Run for WatchedRun<'_, '_, '_> {
    fn noise(&mut self, noise: &mut Latents) {
        draw(noise, self.source);
    }

    fn brownian(&mut self, from: f64, to: f64, noise: &mut Latents) {
        let tree = self.tree.get_or_insert_with(|| self.plan.brownian_tree());
        let values = noise.as_slice_mut();
        tree.increment(from, to, values.expect("new arrays are contiguous"));
    }

    fn step(&mut self, i: usize, x: &Latents) -> Result<(), DenoiseError> {
        let watched = &mut *self.watched.borrow_mut();
        let step = self.before + i;
        watched.steps = step;
        let count = x.iter().filter(|x| !x.is_finite()).count();
        if count > 0 {
            return Err(DenoiseError::Overflow { count });
        }
        watched.steps += 1;
        if let Some(inside) = watched.inside.as_deref_mut() {
            inside.stepped(step, x);
        }
        let previews = watched.previews.as_deref_mut();
        let (picture, steps) = (watched.picture, step + 1);
        match previews.and_then(|previews| previews.after(steps)) {
            Some(Ok(image)) => (watched.listener)(Event::Preview {
                picture,
                steps,
                image: &image,
            }),
            // The picture is what was asked for.
            Some(Err(error)) if !watched.cancel.is_cancelled() => {
                let text = format!("no preview after step {steps}: {error}");
                (watched.listener)(Event::Warning(&text));
            }
            Some(Err(_)) | None => {}
        }
        Ok(())
    }
}

fn draw(noise: &mut Latents, source: &mut dyn NoiseSource) {
    let values = noise.as_slice_mut();
    source.normal(values.expect("new arrays are contiguous"));
}

/// Clean latents to a picture.
pub(super) fn decode(
    plan: &Plan,
    latents: &Latents,
    models: &Models,
    decoder: &mut Network,
    cancel: &Cancel,
) -> Result<Picture, PipelineError> {
    let decoded = decoded(plan, latents, models, decoder, cancel)?;
    Ok(Picture::from_decoded(&decoded.view(), plan.profile.pixel))
}

/// Clean latents to what the decoder makes of them, [3, height, width]; colours are -1 to 1.
pub(super) fn decoded(
    plan: &Plan,
    latents: &Latents,
    models: &Models,
    decoder: &mut Network,
    cancel: &Cancel,
) -> Result<Array3<f32>, PipelineError> {
    let size = format!("{}x{}", plan.size[0], plan.size[1]);
    let _span = tracing::info_span!("decode", size, seed = plan.seed).entered();
    let (_, scaling_factor) = models.decoder();
    let unscaled = latents / scaling_factor as f32;
    let input = [("latent_sample", Input::F32(unscaled.view().into_dyn()))];
    let decoded = decoder.run(&input, &["sample"], cancel)?.remove(0);
    let [width, height] = plan.size;
    let expected = vec![1, 3, height, width];
    let found = decoded.shape().to_vec();
    let decoded: Array4<f32> = match decoded.into_dimensionality() {
        Ok(decoded) if found == expected => decoded,
        _ => return Err(PipelineError::Shape { found, expected }),
    };
    let count = decoded.iter().filter(|x| !x.is_finite()).count();
    if count > 0 {
        let (folder, _) = models.decoder();
        return Err(PipelineError::NonFinite {
            count,
            is_ours: folder.manifest.is_some(),
        });
    }
    Ok(decoded.index_axis_move(Axis(0), 0))
}
