//! The model that ships with the program: converted on first use into the user's data folder.

use std::path::PathBuf;

use anyhow::Context;
use sd_converter::build::{BuildOptions, BuildPlan};
use sd_converter::weights::Weights;
use sd_runtime::engine::library::data_dir;
use sd_runtime::pipeline::ModelDir;
use sd_ui::Ui;

/// Opens the demo model, converting it if this version has not done so yet.
pub(crate) fn directory(ui: &Ui) -> anyhow::Result<ModelDir> {
    // A new version of the program may write directories differently.
    let path: PathBuf = data_dir()
        .join("models")
        .join(concat!("tiny-shapes-", env!("CARGO_PKG_VERSION")));
    if let Some(model) = ModelDir::kept(&path) {
        return Ok(model);
    }
    ui.note(format!(
        "converting the demo model into {} ..",
        path.display()
    ));
    let options = BuildOptions {
        force: true,
        ..BuildOptions::default()
    };
    let plan = BuildPlan::new(Box::new(Weights::demo()?), options)?;
    let bar = ui.bytes("converting", plan.work_bytes());
    let written = plan.write(&path, &bar);
    drop(bar);
    match ModelDir::kept(&path) {
        // Another run may have been faster.
        Some(model) => Ok(model),
        None => {
            written.context("cannot convert the demo model")?;
            Ok(ModelDir::open(&path)?)
        }
    }
}
