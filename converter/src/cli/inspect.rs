//! `sdconvert inspect`: what is in a file or directory.

use std::path::PathBuf;

use sd_converter::inspect::{describe, inspect_dir, inspect_file};
use sd_converter::ui::Ui;
use sd_models::manifest;

/// Say what a file or a model directory holds, and whether it can be converted
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Checkpoint file or folder, or model directory
    file: PathBuf,
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
    let report = inspect_file(&args.file)?;
    let text = if args.json {
        serde_json::to_string(&report)?
    } else {
        report.to_string()
    };
    Ok(ui.result(text)?)
}
