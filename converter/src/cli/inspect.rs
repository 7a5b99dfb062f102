//! `sdconvert inspect`: what is in a file or directory.

use std::path::{Path, PathBuf};

use sd_converter::against::compare;
use sd_converter::checkpoint::open;
use sd_converter::embedding::Embedding;
use sd_converter::inspect::{describe, inspect_dir, inspect_file};
use sd_converter::lora;
use sd_converter::model::Model;
use sd_converter::save::work_bytes;
use sd_converter::ui::Ui;
use sd_converter::weights::Weights;
use sd_models::family;
use sd_models::keys::Component;
use sd_models::manifest;

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
        let manifest = inspect_dir(&args.file)?;
        let text = if args.json {
            serde_json::to_string(&manifest)?
        } else {
            describe(&manifest)
        };
        return Ok(ui.result(text)?);
    }
    if let Some(base) = &args.against {
        return compare_with(args, base, ui);
    }
    let report = inspect_file(&args.file)?;
    let text = if args.json {
        serde_json::to_string(&report)?
    } else {
        report.to_string()
    };
    Ok(ui.result(text)?)
}

fn compare_with(args: &InspectArgs, base: &Path, ui: &Ui) -> anyhow::Result<()> {
    let base = Weights::open(base, None)?;
    if let Ok(embedding) = Embedding::open(&args.file) {
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
    if !args.file.is_dir() {
        let source = open(&args.file)?;
        let keys = source.tensors().keys().map(String::as_str);
        if family::foreign(keys).is_some_and(|(kind, _)| family::ADAPTERS.contains(&kind)) {
            let file = args.file.display();
            let told = match lora::check(&*source, &base) {
                Ok(modules) => format!("{file}: a LoRA whose {modules} modules all fit"),
                Err(problem) => format!("{file}: {problem}"),
            };
            return Ok(ui.result(told)?);
        }
    }
    let model = Weights::open(&args.file, None)?;
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
