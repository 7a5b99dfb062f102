//! `sdbench run`: the networks of a model directory one after the other, as a run uses them.

use std::num::NonZero;
use std::path::PathBuf;
use std::time::Instant;

use ndarray::{Array, ArrayD, IxDyn, arr0};
use sd_runtime::engine::{Cancel, Engine, EngineOptions, Ep, Input, Key};
use sd_runtime::noise::Rng;
use sd_runtime::pipeline::ModelDir;
use sd_runtime::text::chunks::truncated;
use sd_ui::Ui;
use serde_json::{Value, json};

use crate::memory::{peak_during, status_bytes};
use crate::spread;

/// Time loading and passes of the text encoder, the UNet and the VAE decoder
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Model directory
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,
    /// Side of the picture in pixels; the model's own if left out
    #[arg(long, value_name = "N")]
    size: Option<usize>,
    /// Passes that are timed, after one that is not
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Who computes
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    ep: Ep,
    /// Threads; as many as there are processors if left out
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// ONNX Runtime library
    #[arg(long, value_name = "FILE")]
    lib: Option<PathBuf>,
}

pub(crate) fn run(args: &RunArgs, ui: &Ui) -> anyhow::Result<()> {
    let model = ModelDir::open(&args.model)?;
    let options = EngineOptions {
        library: args.lib.clone(),
        ep: args.ep,
        threads: args.threads,
    };
    let engine = Engine::start(&options)?;
    let side = args.size.unwrap_or(model.default_size[0]) / model.latent.downscale;
    let (chunk, _) = truncated("a lighthouse at dusk", &model.texts[0].tokenizer)?;
    let ids =
        Array::from_shape_fn((1, chunk.ids.len()), |(_, i)| i64::from(chunk.ids[i])).into_dyn();
    let mut latents = ArrayD::zeros(IxDyn(&[1, model.latent.channels, side, side]));
    Rng::TorchCpu
        .source(0)
        .normal(latents.as_slice_mut().expect("a new array is contiguous"));
    let timestep = arr0(500.0f32).into_dyn();

    let inputs = [("input_ids", Input::Ids(ids.view()))];
    let (text, context) = measure(
        args,
        &engine,
        ui,
        &model,
        "text_encoder",
        &inputs,
        "last_hidden_state",
    )?;
    let inputs = [
        ("sample", Input::F32(latents.view())),
        ("timestep", Input::F32(timestep.view())),
        ("encoder_hidden_states", Input::F32(context.view())),
    ];
    let (unet, _) = measure(args, &engine, ui, &model, "unet", &inputs, "out_sample")?;
    let inputs = [("latent_sample", Input::F32(latents.view()))];
    let (decoder, _) = measure(args, &engine, ui, &model, "vae_decoder", &inputs, "sample")?;
    Ok(ui.result(json!({
        "model": args.model,
        "size": side * model.latent.downscale,
        "ep": engine.ep().name(),
        "threads": engine.threads(),
        "onnxruntime": engine.build_info(),
        "text_encoder": text,
        "unet": unet,
        "vae_decoder": decoder,
        "peak_bytes": status_bytes("VmHWM"),
    }))?)
}

/// Loads a network, runs it, and returns figures and its output.
fn measure(
    args: &RunArgs,
    engine: &Engine,
    ui: &Ui,
    model: &ModelDir,
    component: &str,
    inputs: &[(&str, Input<'_>)],
    output: &str,
) -> anyhow::Result<(Value, ArrayD<f32>)> {
    let side = args.size.unwrap_or(model.default_size[0]) / model.latent.downscale;
    let dims = [("batch", 1), ("height", side), ("width", side)];
    let start = Instant::now();
    let cancel = Cancel::new();
    let job = cancel.clone();
    ui.on_interrupt(move || job.cancel());
    let key = Key::new(&model.path, component, &dims);
    let load = || engine.lease(&key, model.manifest.as_ref(), &cancel);
    let (network, load_peak) = peak_during("VmRSS", load);
    let (mut network, load) = (network?, start.elapsed().as_secs_f64());
    let passes = || {
        let mut result = network.run(inputs, &[output], &cancel)?;
        let mut seconds = Vec::new();
        for _ in 0..args.runs {
            let start = Instant::now();
            result = network.run(inputs, &[output], &cancel)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        anyhow::Ok((seconds, result.remove(0)))
    };
    let (result, run_peak) = peak_during("VmRSS", passes);
    let (seconds, result) = result?;
    let figures = json!({"load_s": load, "load_peak_bytes": load_peak, "pass_s": spread(seconds), "pass_peak_bytes": run_peak});
    Ok((figures, result))
}
