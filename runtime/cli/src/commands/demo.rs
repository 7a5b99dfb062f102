//! `sdrun demo`: the first command to run.

use std::path::PathBuf;

use sd_models::demo::PROMPT;
use sd_runtime::engine::{EngineError, setup};
use sd_runtime::pipeline::{Models, Request};
use sd_ui::Ui;

use super::EngineArgs;
use super::txt2img::{Output, generate};
use crate::demo_model;

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
    let engine = match args.engine.start(ui) {
        Err(EngineError::NoLibrary { .. }) => {
            ui.note(format!(
                "no ONNX Runtime here yet: fetching {} with pip ..",
                setup::VERSION
            ));
            setup::fetch()?;
            args.engine.start(ui)?
        }
        other => other?,
    };
    let models = Models::one(demo_model::directory(ui)?);
    let request = Request {
        prompt: PROMPT.to_owned(),
        guidance_scale: Some(5.0),
        seed: 1,
        ..Request::default()
    };
    generate(&request, &engine, &models, &output, ui)?;
    ui.note(format!(
        "made with: sdrun txt2img -p \"{PROMPT}\" --cfg 5 --seed 1 -o {}",
        args.output.display()
    ));
    ui.note("next: sdrun txt2img -p \"a small yellow star on a purple background\" --cfg 5");
    ui.note("your own model: sdconvert build CHECKPOINT.safetensors -o DIR; sdrun txt2img -m DIR -p \"..\"");
    Ok(())
}
