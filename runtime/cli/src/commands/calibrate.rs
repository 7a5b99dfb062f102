//! `sdrun calibrate`: ranges of what a UNet's layers are given, for graphs that need to know them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use sd_converter::output::StagedFile;
use sd_models::calibration::{COMPONENT, Calibration, Range, SCHEMA};
use sd_models::manifest::DATA_FILE;
use sd_runtime::engine::{Compute, Dialect, Engine, Observed, memory};
use sd_runtime::pipeline::{ModelDir, Models, Plans, Request, run as make};
use sd_ui::{Ui, UsageError};

use super::{EngineArgs, cancel_with};
use crate::progress::Terminal;

/// Find the ranges of what a UNet's layers are given, for `sdconvert build --portable=static --ranges`
///
/// Makes pictures in f32 and notes the least and the largest number that each layer multiplies. The model's weights are whole numbers
/// (`sdconvert build --precision int8`): ranges go with those weights.
#[derive(Debug, clap::Args)]
pub(crate) struct CalibrateArgs {
    /// Model directory
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,
    /// What a picture should show; repeat for several
    #[arg(
        short,
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        required_unless_present = "prompts"
    )]
    prompt: Vec<String>,
    /// Text file with a prompt a line. Lines that begin with # are remarks
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Go on without the LoRAs that prompts ask for (`<lora:..>`) and the model does not hold
    #[arg(long)]
    ignore_lora_tags: bool,
    /// Steps of the sampler for each
    #[arg(long, value_name = "N", default_value = "8")]
    steps: usize,
    /// Width in pixels; the model's own if left out
    #[arg(short = 'W', long, value_name = "N")]
    width: Option<usize>,
    /// Height in pixels; the model's own if left out
    #[arg(short = 'H', long, value_name = "N")]
    height: Option<usize>,
    /// JSON file to write, which may exist; - is standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(crate) fn run(args: &CalibrateArgs, ui: &Ui) -> anyhow::Result<()> {
    let prompts = prompts(args, ui)?;
    let models = Models::one(ModelDir::open(&args.model)?);
    let weights = weights(&models.base)?;
    let requests = prompts.into_iter().zip(0..).map(|(prompt, seed)| Request {
        prompt,
        seed,
        steps: Some(args.steps),
        width: args.width,
        height: args.height,
        graph: Dialect::Native,
        compute: Compute::F32,
        ignore_lora_tags: args.ignore_lora_tags,
        ..Request::default()
    });
    let plans = requests.map(|request| Plans::resolve(&request, &models, memory::limit()));
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    let file = StagedFile::create(&args.output, true)?;
    let mut engine = args.engine.start(ui)?;
    let observed = engine.observe(COMPONENT);
    watch(&plans, &models, &engine, ui)?;
    let calibration = Calibration {
        schema: SCHEMA,
        program: format!("sdrun {}", env!("CARGO_PKG_VERSION")),
        title: models
            .base
            .manifest
            .as_ref()
            .map_or_else(String::new, |m| m.title.clone()),
        weights,
        pictures: plans.len(),
        steps: args.steps,
        layers: layers(&observed)?,
    };
    let text = serde_json::to_string_pretty(&calibration)? + "\n";
    let bar = ui.spinner("writing the ranges");
    file.write_text(&text, &bar)?;
    drop(bar);
    ui.written(
        &args.output,
        format!(
            "{}: ranges of {} layers in {} pictures of {} steps",
            args.output.display(),
            calibration.layers.len(),
            calibration.pictures,
            calibration.steps
        ),
    )?;
    Ok(())
}

/// Makes pictures, of which nothing is kept.
fn watch(plans: &[Plans], models: &Models, engine: &Engine, ui: &Ui) -> anyhow::Result<()> {
    let cancel = cancel_with(ui);
    for plans in plans {
        let mut terminal = Terminal::new(ui);
        let mut follow = |event: sd_runtime::pipeline::Event<'_>| terminal.follow(event);
        make(plans, models, engine, &cancel, &mut follow, None)?;
    }
    Ok(())
}

/// Prompts of the command line and of the file.
fn prompts(args: &CalibrateArgs, ui: &Ui) -> anyhow::Result<Vec<String>> {
    let mut prompts = args.prompt.clone();
    if let Some(path) = &args.prompts {
        let text = ui.read_text(path)?;
        let lines = text.lines().map(str::trim);
        let told = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        prompts.extend(told.map(str::to_owned));
        anyhow::ensure!(!prompts.is_empty(), "{}: it has no prompts", path.display());
    }
    Ok(prompts)
}

/// SHA-256 of the UNet's weights, if they are whole numbers.
fn weights(model: &ModelDir) -> anyhow::Result<String> {
    let unet = model.recorded(COMPONENT);
    let whole = unet.filter(|unet| unet.storage.iter().any(|stored| stored == "I8"));
    let data = whole.and_then(|unet| unet.files.get(DATA_FILE));
    let data = data.with_context(|| {
        UsageError(format!(
            "{}: ranges go with weights of whole numbers, and its UNet has none\nhint: `sdconvert build CHECKPOINT --precision int8 -o DIR` makes such a model",
            model.path.display()
        ))
    })?;
    Ok(data.sha256.clone())
}

/// Ranges of all layers.
fn layers(observed: &Observed) -> anyhow::Result<BTreeMap<String, Range>> {
    let ranges = observed.ranges().into_iter();
    let layers = ranges.map(|(layer, range)| {
        let range = range.with_context(|| {
            format!("what layer `{layer}` is given is not finite, so it has no range: the model may be damaged")
        })?;
        Ok((layer, range))
    });
    layers.collect()
}
