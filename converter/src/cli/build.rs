//! `sdconvert build`: checkpoint to model directory.

use std::path::PathBuf;
use std::time::Instant;

use sd_converter::build::{BuildOptions, BuildPlan};
use sd_converter::checkpoint::{SafetensorsFile, TensorSource};
use sd_converter::ui::Ui;

/// Convert a checkpoint into an ONNX model directory
#[derive(Debug, clap::Args)]
pub(crate) struct BuildArgs {
    /// Checkpoint: one `.safetensors` file of the Stable Diffusion 1.x family
    checkpoint: PathBuf,
    /// Directory to write; it appears when it is complete
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Take the VAE from this file (a VAE or a whole checkpoint)
    #[arg(long, value_name = "FILE")]
    vae: Option<PathBuf>,
    /// Take the UNet's running averages (EMA) instead of its final weights
    #[arg(long)]
    ema: bool,
    /// Convert even if some tensors belong to nothing that is converted
    #[arg(long)]
    allow_partial: bool,
    /// NaN or infinity in the weights is an error
    #[arg(long)]
    strict: bool,
    /// Replace the model directory if it exists
    #[arg(long)]
    force: bool,
    /// Write what was done with every tensor to this JSON file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &BuildArgs, ui: &Ui) -> anyhow::Result<()> {
    let start = Instant::now();
    let checkpoint: Box<dyn TensorSource> = Box::new(SafetensorsFile::open(&args.checkpoint)?);
    let vae = match &args.vae {
        Some(path) => Some(Box::new(SafetensorsFile::open(path)?) as Box<dyn TensorSource>),
        None => None,
    };
    let options = BuildOptions {
        allow_partial: args.allow_partial,
        force: args.force,
        ema: args.ema,
        strict: args.strict,
    };
    let plan = BuildPlan::new(checkpoint, vae, options)?;
    ui.note(plan.evidence());
    let bar = ui.bytes("writing", plan.work_bytes());
    let report = plan.write(&args.output, &bar)?;
    drop(bar);
    for warning in &report.warnings {
        ui.warn(warning);
    }
    let json = report.to_json(&args.output);
    if let Some(path) = &args.report {
        sd_converter::output::write_text(path, &format!("{json:#}\n"))?;
    }
    if args.json {
        return Ok(ui.result(json)?);
    }
    let (output, megabytes) = (args.output.display(), report.written as f64 / 1e6);
    ui.note(report.residue.summary());
    ui.result(format!(
        "{output}: {}, {megabytes:.0} MB in {:.1} s",
        report.manifest.family,
        start.elapsed().as_secs_f64()
    ))?;
    ui.note(format!(
        "next: sdrun txt2img -m {output} -p \"a photo of a cat\""
    ));
    Ok(())
}
