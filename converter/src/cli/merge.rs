//! `sdconvert merge`: models to one model file.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use sd_converter::ConvertError;
use sd_converter::checkpoint::Dtype;
use sd_converter::merge::{
    BlockWeights, Merged, Method, Missing, PRESETS, Plan, Policy, Recipe, storage_named,
};
use sd_converter::model::Model;
use sd_converter::replace::Replaced;
use sd_converter::save::{save, work_bytes};
use sd_converter::weights::Weights;
use sd_models::family::ModelFamily;
use sd_models::keys::Component;
use sd_ui::{Ui, UsageError};

use super::safetensors_file;

/// How far to go from A where nothing is said.
const ALPHA: f64 = 0.5;

/// Merge models of one family into one file
#[derive(Debug, clap::Args)]
pub(crate) struct MergeArgs {
    /// Models to merge: A, B, and C where the method takes one
    #[arg(required_unless_present = "recipe", conflicts_with = "recipe")]
    models: Vec<PathBuf>,
    /// Merges of merges, described in a TOML file, which then says all about how
    #[arg(long, value_name = "FILE", conflicts_with_all = ["method", "alpha", "beta", "block_weights", "density", "seed",
        "vae_from", "te_from", "missing", "storage", "vae"])]
    recipe: Option<PathBuf>,
    #[arg(long, value_name = "NAME", value_parser = method, default_value = "weighted-sum", help = method_help())]
    method: Method,
    /// How far to go from A: 0 is A [default: 0.5]
    #[arg(long, value_name = "X")]
    alpha: Option<f64>,
    /// The third model's part, in sum-twice and triple-sum [default: 0]
    #[arg(long, value_name = "X")]
    beta: Option<f64>,
    /// Alpha by block: numbers (26 for SD 1 and 2, 20 for SDXL; one less without BASE), a preset's name, or a file of them
    #[arg(long, value_name = "LIST|PRESET|FILE")]
    block_weights: Option<String>,
    /// Part of each difference that ties and dare keep [default: 0.2]
    #[arg(long, value_name = "X")]
    density: Option<f64>,
    /// What dare drops [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Where the VAE comes from: a, b or merge
    #[arg(long, value_name = "MODEL", value_parser = policy, default_value = "a")]
    vae_from: Policy,
    /// Take the VAE from this file
    #[arg(long, value_name = "FILE", conflicts_with = "vae_from")]
    vae: Option<PathBuf>,
    /// Where the text encoders come from: a, b or merge
    #[arg(long, value_name = "MODEL", value_parser = policy, default_value = "merge")]
    te_from: Policy,
    /// Weights that not every model has: refuse or keep-a
    #[arg(long, value_name = "WHAT", value_parser = missing, default_value = "refuse")]
    missing: Missing,
    /// Type of the result: f32, f16 or bf16; A's, if not given
    #[arg(long, value_name = "TYPE", value_parser = storage)]
    storage: Option<Dtype>,
    /// Merge even if some tensors belong to nothing that is known; they are not in the result
    #[arg(long)]
    allow_partial: bool,
    /// File to write; `-` is standard output
    #[arg(short, long, value_name = "FILE", value_parser = safetensors_file())]
    output: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

fn method_help() -> String {
    format!("How: {}", Method::NAMES.map(|(name, _)| name).join(", "))
}

fn method(name: &str) -> Result<Method, String> {
    Method::named(name).ok_or_else(|| method_help().replace("How", "methods"))
}

fn policy(name: &str) -> Result<Policy, String> {
    Policy::named(name).ok_or_else(|| "a, b or merge expected".to_owned())
}

fn missing(name: &str) -> Result<Missing, String> {
    Missing::named(name).ok_or_else(|| "refuse or keep-a expected".to_owned())
}

fn storage(name: &str) -> Result<Dtype, String> {
    storage_named(name).ok_or_else(|| "f32, f16 or bf16 expected".to_owned())
}

pub(crate) fn run(args: &MergeArgs, ui: &Ui) -> anyhow::Result<()> {
    let start = Instant::now();
    let recipe = args.recipe.as_deref().map(|path| ui.read_text(path));
    let recipe = recipe.transpose()?;
    let model: Box<dyn Model> = match args.recipe.as_deref().zip(recipe.as_deref()) {
        Some((path, text)) => Recipe::of_file(text, path)?.model()?,
        None => merged(args)?,
    };
    for note in &model.hints().notes {
        ui.note(note);
    }
    let residue = model.residue();
    if let Some(error) = ConvertError::leftover(model.path(), &residue.unknown) {
        anyhow::ensure!(args.allow_partial, error);
        ui.warn(residue.unknown_summary());
    }
    for text in absent(&*model)? {
        ui.warn(text);
    }
    for folder in model.hints().tokenizers.values() {
        if !folder.read().is_ok_and(|(parts, _)| parts.is_clip()) {
            let path = folder.path.display();
            ui.warn(format!(
                "{path}: a single file holds no tokenizer, and this one is not CLIP's"
            ));
        }
    }
    let bar = ui.bytes("merging", work_bytes(&*model));
    let non_finite = save(
        &*model,
        &args.output,
        Some(record(args, recipe.as_deref())),
        args.force,
        &bar,
    )?;
    drop(bar);
    for (name, count) in non_finite {
        ui.warn(format!(
            "{count} values of tensor `{name}` are NaN or infinite; it will spoil every picture"
        ));
    }
    let (output, seconds) = (args.output.display(), start.elapsed().as_secs_f64());
    let text = format!(
        "{output}: {} weights in {seconds:.1} s",
        model.entries().len()
    );
    Ok(ui.written(&args.output, text)?)
}

/// What a pipeline needs and the result does not have.
fn absent(model: &dyn Model) -> anyhow::Result<Vec<String>> {
    let family = ModelFamily::of(&model.unet_config()?);
    let encoders = family.text_encoders(false).into_iter();
    let needed = encoders.map(|(component, _)| component);
    let absent = needed.chain([Component::Vae]).filter(|c| !model.has(*c));
    let told = absent.map(|component| {
        let hint = match component {
            Component::Vae => "`--vae-from b` takes that of B, `--vae FILE` another one",
            _ => "`--te-from b` takes that of B",
        };
        format!("the result has no {component}, as the first model has none\nhint: {hint}")
    });
    Ok(told.collect())
}

fn merged(args: &MergeArgs) -> anyhow::Result<Box<dyn Model>> {
    let usage = |text: String| Err(UsageError(text));
    if let Some(density) = args.density
        && !(density > 0.0 && density <= 1.0)
    {
        usage(format!(
            "--density {density}: above 0 and at most 1 expected"
        ))?;
    }
    let numbers = [args.alpha, args.beta].into_iter().flatten();
    if !numbers.clone().all(f64::is_finite) {
        usage("--alpha and --beta must be numbers".to_owned())?;
    }
    let method = args.method;
    for (option, given, taken) in [
        ("--alpha", args.alpha.is_some(), method.has_alpha()),
        (
            "--block-weights",
            args.block_weights.is_some(),
            method.has_alpha(),
        ),
        (
            "--beta",
            args.beta.is_some_and(|beta| beta != 0.0),
            method.has_beta(),
        ),
        ("--density", args.density.is_some(), method.has_density()),
        ("--seed", args.seed.is_some(), method.has_seed()),
    ] {
        if given && !taken {
            usage(format!("method {} takes no {option}", method.name()))?;
        }
    }
    let inputs = method.check_inputs(args.models.len());
    inputs.map_err(|e| UsageError(e.to_string()))?;
    let (base, beta) = (args.alpha.unwrap_or(ALPHA), args.beta.unwrap_or_default());
    let alpha = match &args.block_weights {
        Some(text) => block_weights(text)?,
        None => BlockWeights::Uniform(base),
    };
    let mut plan = Plan::new(method, alpha);
    plan.base = base;
    plan.beta = BlockWeights::Uniform(beta);
    plan.density = args.density.unwrap_or(plan.density);
    plan.seed = args.seed.unwrap_or(plan.seed);
    plan.weights = vec![1.0; args.models.len()];
    (plan.vae, plan.text_encoders) = (args.vae_from, args.te_from);
    (plan.missing, plan.storage) = (args.missing, args.storage);
    let open = |path: &PathBuf| Ok(Box::new(Weights::open(path, None)?) as Box<dyn Model>);
    let inputs = args
        .models
        .iter()
        .map(open)
        .collect::<anyhow::Result<_>>()?;
    let mut model: Box<dyn Model> = Box::new(Merged::new(inputs, plan)?);
    if let Some(path) = &args.vae {
        let donor = Box::new(Weights::open(path, None)?);
        model = Box::new(Replaced::new(model, donor, &[Component::Vae])?);
    }
    Ok(model)
}

/// A list or preset, or the name of a file with one.
fn block_weights(text: &str) -> anyhow::Result<BlockWeights> {
    if let Some(weights) = BlockWeights::parse(text) {
        return Ok(weights);
    }
    let path = Path::new(text);
    anyhow::ensure!(
        path.is_file(),
        UsageError(format!(
            "--block-weights {text}: no list of numbers, no file and no preset ({})",
            PRESETS.join(", ")
        ))
    );
    let content = std::fs::read_to_string(path).with_context(|| format!("cannot read {text}"))?;
    BlockWeights::parse(&content).with_context(|| format!("{text}: no list of numbers"))
}

/// What the result's metadata says of its making.
fn record(args: &MergeArgs, recipe: Option<&str>) -> String {
    if let Some(recipe) = recipe {
        return serde_json::json!({"type": "sdrt", "recipe": recipe}).to_string();
    }
    let name = |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned());
    let models: Vec<_> = args.models.iter().filter_map(name).collect();
    let record = serde_json::json!({
        "type": "sdrt",
        "method": args.method.name(),
        "models": models,
        "alpha": args.alpha.unwrap_or(ALPHA),
        "beta": args.beta.unwrap_or_default(),
        "block_weights": args.block_weights,
        "vae": args.vae.as_ref().and_then(name),
    });
    record.to_string()
}
