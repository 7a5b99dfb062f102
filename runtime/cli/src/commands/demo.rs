//! `sdrun demo`: the first command to run.

use std::path::PathBuf;

use sd_models::demo::PROMPT;
use sd_runtime::engine::{EngineError, library, memory};
use sd_runtime::pipeline::{Models, Plans, Request};
use sd_ui::Ui;

use super::txt2img::{Job, generate};
use super::{EngineArgs, setup};
use crate::estimate::Estimate;
use crate::output::Output;
use crate::{auto, demo_model};

/// Fetch what is needed, convert the model that ships with this program, make a picture
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Picture to write
    #[arg(short, long, default_value = "demo.png", value_name = "PNG")]
    output: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(crate) fn run(args: &DemoArgs, ui: &Ui) -> anyhow::Result<()> {
    let output = Output::find(Some(&args.output), 1, None, false)?;
    let mut request = Request {
        prompt: PROMPT.to_owned(),
        guidance_scale: Some(5.0),
        seed: 1,
        ..Request::default()
    };
    args.engine.apply(&mut request)?;
    let wanted = args.engine.least();
    let found = library::find(args.engine.lib.as_deref(), wanted);
    if let Err(EngineError::NoLibrary { .. }) = found {
        ui.note("no ONNX Runtime here yet");
        setup::fetch(wanted, ui)?;
    }
    let models = Models::one(demo_model::directory(ui)?);
    let (chosen, choice) = auto::resolve(&args.engine, &request, &models, ui)?;
    chosen.apply(&mut request)?;
    let engine = chosen.start(ui)?;
    let plans = Plans::resolve(&request, &models, memory::limit())?;
    let estimate = Estimate::of(&chosen, &request, &plans, &models, &engine);
    let job = Job {
        plans,
        vae_decoder: models.decoder_name(),
        choice,
        not_carried: Vec::new(),
        ceiling: None,
    };
    generate(&job, &engine, &models, output, estimate, ui)?;
    ui.note(format!(
        "made with: sdrun txt2img -p \"{PROMPT}\" --cfg 5 --seed 1 -o {}",
        args.output.display()
    ));
    ui.note("next: sdrun txt2img -p \"a small yellow star on a purple background\" --cfg 5");
    ui.note("your own model: sdconvert build CHECKPOINT.safetensors -o DIR; sdrun txt2img -m DIR -p \"..\"");
    Ok(())
}
