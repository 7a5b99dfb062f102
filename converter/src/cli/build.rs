//! `sdconvert build`: checkpoint to model directory.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use sd_converter::ConvertError;
use sd_converter::build::{BuildOptions, BuildPlan, Precision, Ranges};
use sd_converter::calibrated::Calibrated;
use sd_converter::checkpoint::CheckpointError;
use sd_converter::control::{ControlOnBase, needs_base};
use sd_converter::lora::{self, LoraBlockWeights, LoraSpec, WithLoras};
use sd_converter::merge::Recipe;
use sd_converter::model::Model;
use sd_converter::output::StagedFile;
use sd_converter::replace::Replaced;
use sd_converter::weights::Weights;
use sd_models::diffusers::prediction_type;
use sd_models::family::Purpose;
use sd_models::keys::Component;
use sd_models::manifest::PredictionType;
use sd_ui::{Ui, UsageError, is_stdout};

/// Convert a checkpoint into an ONNX model directory
#[derive(Debug, clap::Args)]
pub(crate) struct BuildArgs {
    /// Model: a `.safetensors` or `.ckpt` file, or a folder in diffusers' layout
    #[arg(required_unless_present = "recipe", conflicts_with = "recipe")]
    checkpoint: Option<PathBuf>,
    /// Convert the merge that this TOML file describes
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Directory to write; it appears when it is complete
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// LoRA to add to the weights (a file, or a folder that PEFT saved), and its strength; repeat for several, which act
    /// in this order. Further options behind the colon: `unet=U`, `te=T` (unet is te, and te 1, if left out),
    /// `lbw=BLOCKS`, `dyn=RANK` (the first components of a DyLoRA). As in A1111, `FILE:TE:UNET` are two strengths
    #[arg(long = "lora", value_name = "FILE[:SCALE|:unet=U,te=T]", value_parser = LoraSpec::parse)]
    loras: Vec<LoraSpec>,
    /// Factors of the LoRAs' strength by block: 17 or 26 numbers (SDXL: 12 or 20), a preset (INS, MIDD, ..),
    /// BLOCK=NUMBER pairs, or a file with one of these; once for all LoRAs, or once for each
    #[arg(
        long,
        value_name = "LIST|PRESET|FILE",
        requires = "loras",
        allow_hyphen_values = true
    )]
    lora_block_weights: Vec<String>,
    /// Take the VAE from this file (a VAE or a whole checkpoint)
    #[arg(long, value_name = "FILE")]
    vae: Option<PathBuf>,
    /// Take the UNet's running averages (EMA) instead of its final weights
    #[arg(long, conflicts_with_all = ["recipe", "base"])]
    ema: bool,
    /// Model that a Control-LoRA or difference ControlNet is made for
    #[arg(long, value_name = "FILE", conflicts_with = "recipe")]
    base: Option<PathBuf>,
    /// Of a folder's variants of weights (`fp16`, ..), take this one
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// What the UNet predicts, if the file does not tell: `epsilon`, `v_prediction` or `sample`
    #[arg(long, value_name = "TYPE", value_parser = prediction)]
    prediction_type: Option<PredictionType>,
    /// What weights are stored in: `published` for the types they have in the file, `fp32`, `fp16`, or `int8` for those of
    /// linear layers and convolutions, which makes files little more than half as large as fp16 does and pictures a little
    /// different. Norms, embeddings, shortcuts, and first and last convolutions have 16 bits then
    #[arg(long, value_name = "NAME", value_parser = precision, default_value = "published")]
    precision: Precision,
    /// With `--precision int8`: the portable graph of the UNet, `model.onnx`, multiplies whole numbers. `dynamic` looks for the ranges
    /// of activations when it runs, for ONNX Runtime's own CPU provider; `static` takes them from the norms before, for
    /// OpenVINO, and is no faster than fp16 on ONNX Runtime's own. `sdrun` on a processor computes what it did without.
    /// Activations are rounded, so that pictures differ more
    #[arg(
        long,
        value_name = "RANGES",
        value_parser = ranges,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "dynamic"
    )]
    portable: Option<Ranges>,
    /// With `--portable=static`: ranges that `sdrun calibrate` saw in the same model. Layers that no norm is before have whole numbers
    /// then, too
    #[arg(long, value_name = "JSON", requires = "portable")]
    ranges: Option<PathBuf>,
    /// Convert only these networks: `unet`, `te` for the text encoders with their tokenizers, or `vae`; repeat for several.
    /// A UNet or a VAE may be a file of its own; text encoders need the UNet beside them, which tells the family
    #[arg(long, value_name = "unet|te|vae", value_parser = networks)]
    only: Vec<Networks>,
    /// Convert even if some tensors belong to nothing that is converted, and add what fits of LoRAs that do not fit in
    /// every module
    #[arg(long)]
    allow_partial: bool,
    /// NaN or infinity in the weights is an error
    #[arg(long)]
    strict: bool,
    /// Replace the model directory if it exists
    #[arg(long)]
    force: bool,
    /// Write what was done with every tensor to this JSON file; `-` is standard output
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

fn prediction(name: &str) -> Result<PredictionType, String> {
    prediction_type(name).ok_or_else(|| "epsilon, v_prediction or sample expected".to_owned())
}

fn precision(name: &str) -> Result<Precision, String> {
    match name {
        "published" => Ok(Precision::Published),
        "fp32" => Ok(Precision::Fp32),
        "fp16" => Ok(Precision::Fp16),
        "int8" => Ok(Precision::Int8),
        _ => Err("published, fp32, fp16 or int8 expected".to_owned()),
    }
}

/// Components that are asked for by one name.
type Networks = &'static [Component];

fn networks(name: &str) -> Result<Networks, String> {
    match name {
        "unet" => Ok(&[Component::UNet]),
        "te" => Ok(&[Component::TextEncoder, Component::TextEncoder2]),
        "vae" => Ok(&[Component::Vae, Component::Taesd]),
        _ => Err("unet, te or vae expected".to_owned()),
    }
}

fn ranges(name: &str) -> Result<Ranges, String> {
    match name {
        "dynamic" => Ok(Ranges::Dynamic),
        "static" => Ok(Ranges::Static),
        _ => Err("dynamic or static expected".to_owned()),
    }
}

/// What weights are stored in, and what portable graphs multiply.
fn chosen_precision(args: &BuildArgs) -> Result<Precision, UsageError> {
    match (args.precision, args.portable) {
        (precision, None) => Ok(precision),
        (Precision::Int8 | Precision::Int8Portable(_), Some(ranges)) => {
            Ok(Precision::Int8Portable(ranges))
        }
        (_, Some(_)) => Err(UsageError(
            "--portable makes portable graphs multiply whole numbers, which needs weights of whole numbers: add --precision int8"
                .to_owned(),
        )),
    }
}

/// That options about networks are not given where `--only` leaves these out.
fn check_only(args: &BuildArgs) -> Result<(), UsageError> {
    let only = args.only.concat();
    let leaves_out = |component| !only.is_empty() && !only.contains(&component);
    if args.portable.is_some() && leaves_out(Component::UNet) {
        return Err(UsageError(
            "--portable is for the UNet, which --only leaves out".to_owned(),
        ));
    }
    if args.vae.is_some() && leaves_out(Component::Vae) {
        return Err(UsageError(
            "--vae brings a VAE, which --only leaves out".to_owned(),
        ));
    }
    Ok(())
}

/// Ranges of activations, for graphs that need them when they are written.
fn calibrated(args: &BuildArgs, ui: &Ui) -> anyhow::Result<Option<Calibrated>> {
    let Some(path) = &args.ranges else {
        return Ok(None);
    };
    anyhow::ensure!(
        args.portable == Some(Ranges::Static),
        UsageError(
            "--ranges is for --portable=static; dynamic ranges are looked for when the graph runs"
                .to_owned()
        )
    );
    Ok(Some(Calibrated::read(&ui.read_text(path)?, path)?))
}

fn checkpoint(args: &BuildArgs, ui: &Ui) -> anyhow::Result<Box<dyn Model>> {
    let path = args.checkpoint.as_ref().context("no model given")?;
    if let Some(base) = &args.base {
        let base = Box::new(open_beside(base, args, ui)?);
        let source = sd_converter::checkpoint::open(path)?;
        anyhow::ensure!(
            needs_base(&*source),
            UsageError(format!("{}: it needs no --base", path.display()))
        );
        return Ok(Box::new(ControlOnBase::new(source, base)?));
    }
    let mut weights = Weights::open(path, args.variant.as_deref())?;
    if args.ema {
        weights.use_ema()?;
    } else if weights.has_ema() {
        ui.note("the file also holds running averages (EMA) of its UNet; `--ema` takes those");
    }
    Ok(Box::new(weights))
}

/// Opens a model that is used beside a folder: if only one of the two has the wanted variant, that is what was meant.
fn open_beside(path: &Path, args: &BuildArgs, ui: &Ui) -> anyhow::Result<Weights> {
    let beside_folder = args.checkpoint.as_ref().is_some_and(|main| main.is_dir());
    match Weights::open(path, args.variant.as_deref()) {
        Err(ConvertError::Checkpoint(e @ CheckpointError::NoVariant { .. })) if beside_folder => {
            ui.note(e);
            Ok(Weights::open(path, None)?)
        }
        opened => Ok(opened?),
    }
}

/// The LoRAs, with their block weights.
fn lora_specs(args: &BuildArgs) -> anyhow::Result<Vec<LoraSpec>> {
    let mut loras = args.loras.clone();
    let lists = args.lora_block_weights.iter();
    let lists: Vec<LoraBlockWeights> = lists
        .map(|text| block_weights(text))
        .collect::<Result<_, _>>()?;
    anyhow::ensure!(
        [0, 1, loras.len()].contains(&lists.len()),
        UsageError(format!(
            "--lora-block-weights is given {} times for {} LoRAs: once for all, or once for each expected",
            lists.len(),
            loras.len()
        ))
    );
    for (lora, weights) in loras.iter_mut().zip(lists.iter().cycle()) {
        anyhow::ensure!(
            lora.block_weights.is_none(),
            UsageError(format!(
                "{}: block weights are given twice, by lbw and by --lora-block-weights",
                lora.path.display()
            ))
        );
        lora.block_weights = Some(weights.clone());
    }
    Ok(loras)
}

/// A list, a preset, pairs, or the name of a file with one of these.
fn block_weights(text: &str) -> anyhow::Result<LoraBlockWeights> {
    let usage = |problem: String| UsageError(format!("--lora-block-weights {text}: {problem}"));
    match LoraBlockWeights::parse(text, None) {
        Ok(weights) => Ok(weights),
        Err(_) if Path::new(text).is_file() => {
            let content = std::fs::read_to_string(text);
            let content = content.with_context(|| format!("cannot read {text}"))?;
            Ok(LoraBlockWeights::parse(&content, None).map_err(usage)?)
        }
        Err(problem) => Err(usage(problem).into()),
    }
}

pub(crate) fn run(args: &BuildArgs, ui: &Ui) -> anyhow::Result<()> {
    let start = Instant::now();
    anyhow::ensure!(
        !is_stdout(&args.output),
        UsageError("a model directory cannot go to standard output".to_owned())
    );
    let given = [&args.checkpoint, &args.base, &args.vae]
        .into_iter()
        .flatten();
    anyhow::ensure!(
        args.variant.is_none() || !given.clone().all(|path| path.is_file()),
        UsageError("--variant chooses from a folder's weights, and no folder is given".to_owned())
    );
    check_only(args)?;
    let report_file = match &args.report {
        Some(path) => Some(StagedFile::create(path, true)?),
        None => None,
    };
    let loras = lora_specs(args)?;
    let mut model = match &args.recipe {
        Some(path) => Recipe::of_file(&ui.read_text(path)?, path)?.model()?,
        None => checkpoint(args, ui)?,
    };
    if let Some(path) = &args.vae {
        let donor = Box::new(open_beside(path, args, ui)?);
        model = Box::new(Replaced::new(model, donor, &[Component::Vae])?);
    }
    if !loras.is_empty() {
        let options = lora::Options {
            allow_partial: args.allow_partial,
            storage: None,
        };
        model = Box::new(WithLoras::new(model, &loras, options)?);
    }
    let options = BuildOptions {
        allow_partial: args.allow_partial,
        force: args.force,
        strict: args.strict,
        prediction: args.prediction_type,
        precision: chosen_precision(args)?,
        calibrated: calibrated(args, ui)?,
        only: args.only.concat(),
    };
    let precision = options.precision;
    let plan = BuildPlan::new(model, options)?;
    ui.note(plan.evidence());
    let bar = ui.bytes("writing", plan.work_bytes());
    let report = plan.write(&args.output, &bar)?;
    drop(bar);
    for warning in &report.warnings {
        ui.warn(warning);
    }
    for lora in &report.manifest.loras {
        ui.note(lora::summary(lora));
    }
    for line in report.rounding_lines() {
        ui.note(line);
    }
    if precision == Precision::Int8Portable(Ranges::Static) {
        ui.note(
            "model.onnx of the UNet is for OpenVINO: ONNX Runtime's own CPU provider runs it no faster than the published weights",
        );
    }
    if let Some(defaults) = &report.manifest.defaults {
        ui.note(format!("sdrun will use {defaults}, unless told otherwise"));
    }
    let json = report.to_json(&args.output);
    if let Some(file) = report_file {
        let bar = ui.spinner("writing the report");
        let written = file.write_text(&format!("{json:#}\n"), &bar);
        let model = args.output.display();
        written
            .with_context(|| format!("the model {model} is complete, only its report failed"))?;
    }
    if args.json {
        return Ok(ui.result(json)?);
    }
    let (output, megabytes) = (args.output.display(), report.written as f64 / 1e6);
    ui.note(report.residue.summary());
    let text = format!(
        "{output}: {}, {megabytes:.0} MB in {:.1} s",
        report.kind,
        start.elapsed().as_secs_f64()
    );
    match &args.report {
        Some(path) => ui.written(path, text)?,
        None => ui.result(text)?,
    }
    let manifest = &report.manifest;
    let has = |name| manifest.components.contains_key(name);
    let is_whole = ["unet", "text_encoder", "vae_decoder"].into_iter().all(has);
    if is_whole && manifest.purpose == Purpose::TextToImage {
        ui.note(format!(
            "next: sdrun txt2img -m {output} -p \"a photo of a cat\""
        ));
    }
    Ok(())
}
