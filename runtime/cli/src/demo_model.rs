//! The model that ships with the program: converted on first use into the user's data folder.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sd_converter::build::{BuildOptions, BuildPlan};
use sd_converter::checkpoint::SafetensorsFile;
use sd_converter::weights::Weights;
use sd_models::demo;
use sd_runtime::engine::library::data_dir;
use sd_runtime::pipeline::ModelDir;
use sd_ui::Ui;

/// Opens the demo model, converting it if this version has not done so yet.
pub(crate) fn directory(ui: &Ui) -> anyhow::Result<ModelDir> {
    // A new version of the program may write directories differently.
    let path: PathBuf = data_dir()
        .join("models")
        .join(concat!("tiny-shapes-", env!("CARGO_PKG_VERSION")));
    if let Some(model) = converted(&path) {
        return Ok(model);
    }
    ui.note(format!(
        "converting the demo model into {} ..",
        path.display()
    ));
    let checkpoint = SafetensorsFile::from_static(demo::FILE_NAME, demo::CHECKPOINT)?;
    let options = BuildOptions {
        force: true,
        ..BuildOptions::default()
    };
    let weights = Weights::from_source(Box::new(checkpoint))?;
    let plan = BuildPlan::new(Box::new(weights), options)?;
    let bar = ui.bytes("converting", plan.work_bytes());
    let written = plan.write(&path, &bar);
    drop(bar);
    match converted(&path) {
        // Another run may have been faster.
        Some(model) => Ok(model),
        None => {
            written.context("cannot convert the demo model")?;
            Ok(ModelDir::open(&path)?)
        }
    }
}

/// The directory, if it is there and has all the graphs that this program writes.
fn converted(path: &Path) -> Option<ModelDir> {
    let model = ModelDir::open(path).ok()?;
    let unet = model.recorded("unet")?;
    unet.variants.contains_key("native.onnx").then_some(model)
}
