//! `sdconvert inspect`: what is in a file or directory.

use std::borrow::Cow;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use sd_converter::Remedy;
use sd_converter::against::compare;
use sd_converter::checkpoint::open;
use sd_converter::embedding::Embedding;
use sd_converter::inspect::{self, describe, inspect_dir, inspect_file};
use sd_converter::lora::{self, LoraSpec, WithLoras};
use sd_converter::model::{Model, Name};
use sd_converter::progress::Progress;
use sd_converter::save::work_bytes;
use sd_converter::weights::Weights;
use sd_models::keys::Component;
use sd_models::manifest::{self, hex};
use sd_ui::{Interrupted, Ui, UsageError};
use sha2::{Digest, Sha256};

use super::hint::words;

/// Say what a file or a model directory holds, and whether it can be converted
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Checkpoint file or folder, or model directory
    file: PathBuf,
    /// Say what the file would change in this model
    #[arg(long, value_name = "BASE")]
    against: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &InspectArgs, ui: &Ui) -> anyhow::Result<()> {
    if args.file.join(manifest::FILE_NAME).is_file() {
        anyhow::ensure!(
            args.against.is_none(),
            UsageError(format!(
                "{}: --against compares checkpoints and LoRAs, and this is a converted model",
                args.file.display()
            ))
        );
        let manifest = inspect_dir(&args.file)?;
        let text = if args.json {
            serde_json::to_string(&manifest)?
        } else {
            describe(&manifest)
        };
        return Ok(ui.result(text)?);
    }
    // A LoRA may be a folder, but so may a model.
    let file = lora::file(&args.file).unwrap_or(Cow::Borrowed(&args.file));
    if let Some(base) = &args.against {
        return compare_with(args, &file, base, ui);
    }
    let mut report = inspect_file(&file)?;
    if let (Some(refused), Some(remedy)) = (&mut report.refused, &report.remedy) {
        let _ = write!(refused, "\nhint: {}", words(remedy));
        if matches!(remedy, Remedy::AsLora) {
            *refused += "; `--against MODEL` tells whether it fits";
        }
    }
    let text = if args.json {
        serde_json::to_string(&report)?
    } else {
        report.to_string()
    };
    Ok(ui.result(text)?)
}

fn compare_with(args: &InspectArgs, file: &Path, base: &Path, ui: &Ui) -> anyhow::Result<()> {
    let base = Weights::open(base, None)?;
    if let Ok(embedding) = Embedding::open(file) {
        let widths = [Component::TextEncoder, Component::TextEncoder2].map(|encoder| {
            let table = "text_model.embeddings.token_embedding.weight".to_owned();
            base.entries().get(&(encoder, table)).map(|e| e.shape[1])
        });
        let known: Vec<usize> = widths.into_iter().flatten().collect();
        let wanted: Vec<usize> = embedding.vectors.iter().map(|v| v.width).collect();
        let fits = !wanted.is_empty() && wanted.iter().all(|width| known.contains(width));
        let verdict = if fits { "fits" } else { "does not fit" };
        return Ok(ui.result(format!(
            "a textual inversion of width {wanted:?} {verdict} text encoders of width {known:?}"
        ))?);
    }
    if !file.is_dir() && lora::adapter_key(&*open(file)?).is_some() {
        return fit(args, base, ui);
    }
    let model = Weights::open(file, None)?;
    let bar = ui.bytes("comparing", work_bytes(&model));
    let comparison = compare(&model, &base, &bar)?;
    drop(bar);
    let text = if args.json {
        serde_json::to_string(&comparison)?
    } else {
        comparison.to_string()
    };
    Ok(ui.result(text)?)
}

/// Says what a LoRA would do to a model, by computing every weight that it changes.
fn fit(args: &InspectArgs, base: Weights, ui: &Ui) -> anyhow::Result<()> {
    let options = lora::Options {
        allow_partial: true,
        storage: None,
    };
    let spec = LoraSpec::new(&args.file, 1.0);
    let model = WithLoras::new(Box::new(base), &[spec], options)?;
    let adapter = model.adapters()[0];
    let names: Vec<Name> = adapter.weights().collect();
    let bytes = |name: &Name| model.entries()[name].byte_len() as u64;
    let bar = ui.bytes("comparing", names.iter().map(bytes).sum());
    for name in &names {
        anyhow::ensure!(!bar.cancelled(), Interrupted);
        model.read(name)?;
        bar.advance(bytes(name));
    }
    drop(bar);
    let hash = hex(&Sha256::digest(adapter.source().file_bytes()));
    let lora = adapter.manifest(&hash);
    if args.json {
        let modules = adapter.module_reports();
        let json = serde_json::json!({"schema": inspect::SCHEMA, "lora": lora, "modules": modules});
        return Ok(ui.result(json)?);
    }
    let mut text = lora::summary(&lora);
    for note in adapter.notes() {
        let _ = write!(text, "\n  {note}");
    }
    let misfits = lora.report.map(|report| report.modules).unwrap_or_default();
    for (list, what) in [
        (misfits.no_target, "no target"),
        (misfits.other_shape, "another shape"),
    ] {
        for module in list.iter().take(5) {
            let _ = write!(text, "\n  {what}: {module}");
        }
    }
    Ok(ui.result(text)?)
}
