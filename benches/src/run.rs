//! `sdbench run`: the networks of a model directory one after the other, as a run uses them.

use std::num::NonZero;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use sd_runtime::denoise::Unet;
use sd_runtime::engine::{
    Cancel, Compute, Dialect, Engine, EngineOptions, Ep, Input, Key, Lease, memory,
};
use sd_runtime::pipeline::{ModelDir, Models, Plan, Plans, Request, Told};
use sd_runtime::text::chunks::{empty, truncated};
use sd_runtime::text::{Condition, Emphasis, TextEncoder};
use sd_ui::Ui;
use serde_json::{Map, Value, json};

use crate::memory::{peak_during, status_bytes};
use crate::spread;

/// Time loading and passes of the text encoder, the UNet and the VAE decoder
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Model directory
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,
    /// Model directory of its refiner, whose networks are timed, too
    #[arg(long, value_name = "DIR")]
    refiner: Option<PathBuf>,
    /// Side of the picture in pixels; the model's own if left out
    #[arg(long, value_name = "N")]
    size: Option<usize>,
    /// Passes that are timed, after one that is not
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Who computes
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    ep: Ep,
    /// Which graphs to run
    #[arg(long, value_name = "portable|native|auto", default_value = "auto")]
    graph: Dialect,
    /// What products are computed in
    #[arg(long, value_name = "f32|bf16|auto", default_value = "f32")]
    compute: Compute,
    /// Threads; as many as there are processors if left out
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// ONNX Runtime library
    #[arg(long, value_name = "FILE")]
    lib: Option<PathBuf>,
}

/// What every network is timed with.
struct Bench<'a> {
    args: &'a RunArgs,
    engine: Engine,
    plan: Plan,
    cancel: Cancel,
}

pub(crate) fn run(args: &RunArgs, ui: &Ui) -> anyhow::Result<()> {
    let refiner = args.refiner.as_deref().map(ModelDir::open).transpose()?;
    let models = Models {
        base: ModelDir::open(&args.model)?,
        refiner,
    };
    let request = Request {
        prompt: "a lighthouse at dusk".to_owned(),
        width: args.size,
        height: args.size,
        graph: args.graph,
        compute: args.compute,
        ..Request::default()
    };
    let mut plans = Plans::resolve(&request, &models, memory::limit())?.plans;
    let options = EngineOptions {
        library: args.lib.clone(),
        ep: args.ep,
        threads: args.threads,
    };
    let cancel = Cancel::new();
    let job = cancel.clone();
    ui.on_interrupt(move || job.cancel());
    let bench = Bench {
        args,
        engine: Engine::start(&options)?,
        plan: plans.pop().context("a request is for a picture")?,
        cancel,
    };

    let mut figures = Map::new();
    let told = &bench.plan.told;
    for ((model, told), suffix) in models.all().zip(told).zip(["", "_refiner"]) {
        let condition = bench.text_encoders(model, told, suffix, &mut figures)?;
        let unet = bench.unet(model, &condition)?;
        figures.insert(format!("unet{suffix}"), unet);
    }
    figures.insert("vae_decoder".to_owned(), bench.decoder(&models.base)?);
    let mut result = json!({
        "model": args.model,
        "size": bench.plan.size,
        "ep": bench.engine.ep().name(),
        "threads": bench.engine.threads(),
        "onnxruntime": bench.engine.build_info(),
        "peak_bytes": status_bytes("VmHWM"),
    });
    if let Some(result) = result.as_object_mut() {
        result.append(&mut figures);
    }
    Ok(ui.result(result)?)
}

impl Bench<'_> {
    /// Times a model's text encoders, and returns what they say of the prompt.
    fn text_encoders(
        &self,
        model: &ModelDir,
        told: &Told,
        suffix: &str,
        figures: &mut Map<String, Value>,
    ) -> anyhow::Result<Condition> {
        let mut encoded = Vec::new();
        for text in &model.texts {
            let (chunk, _) = truncated(&self.plan.prompt, &text.tokenizer)?;
            let chunks = [chunk];
            let load = |network| TextEncoder::new(network);
            let (timed, states) = self.measure(model, text.component, load, |encoder| {
                let empty = empty(&text.tokenizer);
                let weighting = (Emphasis::Original, &empty);
                Ok(encoder.encode(&chunks, weighting, told.layers[0], &self.cancel)?)
            })?;
            figures.insert(format!("{}{suffix}", text.component), timed);
            encoded.push(states);
        }
        Ok(Condition::join(&encoded, told.time_ids[0].as_deref())?)
    }

    /// Times the UNet at a level with much noise.
    fn unet(&self, model: &ModelDir, condition: &Condition) -> anyhow::Result<Value> {
        const TIMESTEP: f64 = 500.0;
        let [_, channels, height, width] = self.plan.latent_shape;
        let (noise, _) =
            self.plan
                .first_noise
                .draw(self.plan.origin, self.plan.seed, [channels, height, width]);
        let latents = noise.insert_axis(ndarray::Axis(0));
        let load = |network| Unet::new(network, model.prediction);
        let (timed, _) = self.measure(model, "unet", load, |unet| {
            let guidance = self.plan.guidance_scale;
            Ok(unet.predict(&latents, TIMESTEP, &[condition], guidance, &self.cancel)?)
        })?;
        Ok(timed)
    }

    /// Times the VAE's decoder.
    fn decoder(&self, model: &ModelDir) -> anyhow::Result<Value> {
        let latents = ndarray::ArrayD::<f32>::zeros(&self.plan.latent_shape[..]);
        let inputs = [("latent_sample", Input::F32(latents.view()))];
        let load = |network: Lease| network;
        let (timed, _) = self.measure(model, "vae_decoder", load, |decoder| {
            Ok(decoder.run(&inputs, &["sample"], &self.cancel)?)
        })?;
        Ok(timed)
    }

    /// Loads a network and passes through it, once and then as often as asked for. Returns figures, and what came out.
    fn measure<N, T>(
        &self,
        model: &ModelDir,
        component: &str,
        wrap: impl FnOnce(Lease) -> N,
        mut pass: impl FnMut(&mut N) -> anyhow::Result<T>,
    ) -> anyhow::Result<(Value, T)> {
        let [_, _, height, width] = self.plan.latent_shape;
        let dims = [("batch", 1), ("height", height), ("width", width)];
        let manifest = model.manifest.as_ref();
        let recorded = manifest.and_then(|manifest| manifest.components.get(component));
        let graph = self
            .engine
            .choose(recorded, self.args.graph, self.args.compute)?;
        let compute = self.args.compute.on(sd_kernels::Isa::detect());
        let key = Key::new(&model.path, component, &dims);
        let key = key.variant(graph.file).compute(compute.unwrap_or_default());
        let start = Instant::now();
        let load = || self.engine.lease(&key, manifest, &self.cancel);
        let (network, load_peak) = peak_during("VmRSS", load);
        let (network, load) = (network?, start.elapsed().as_secs_f64());
        let mut network = wrap(network);
        let passes = || {
            let mut result = pass(&mut network)?;
            let mut seconds = Vec::new();
            for _ in 0..self.args.runs {
                let start = Instant::now();
                result = pass(&mut network)?;
                seconds.push(start.elapsed().as_secs_f64());
            }
            anyhow::Ok((seconds, result))
        };
        let (result, run_peak) = peak_during("VmRSS", passes);
        let (seconds, result) = result?;
        let figures = json!({"graph": graph.dialect(), "load_s": load, "load_peak_bytes": load_peak, "pass_s": spread(seconds), "pass_peak_bytes": run_peak});
        Ok((figures, result))
    }
}
