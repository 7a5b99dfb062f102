//! `sdconvert verify`: is a model directory whole?

use std::path::PathBuf;

use sd_converter::checkpoint::open;
use sd_converter::inspect::inspect_file;
use sd_converter::verify::{read_manifest, verify_dir, work_bytes};
use sd_ui::Ui;

/// Check a model directory (hashes, graphs, weights), or a checkpoint (its header; a `.ckpt` file's checksums too)
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Model directory or checkpoint
    path: PathBuf,
}

pub(crate) fn run(args: &VerifyArgs, ui: &Ui) -> anyhow::Result<()> {
    let path = args.path.display();
    if !args.path.is_dir() {
        let report = inspect_file(&args.path)?;
        anyhow::ensure!(
            report.refused.is_none(),
            "{path}: {}",
            report.refused.unwrap_or_default()
        );
        let bar = ui.spinner("checking");
        open(&args.path)?.check()?;
        drop(bar);
        return Ok(ui.result(format!("{path}: a complete checkpoint, {}", report.kind))?);
    }
    let bar = ui.bytes("hashing", work_bytes(read_manifest(&args.path)?.as_ref()));
    let report = verify_dir(&args.path, &bar)?;
    drop(bar);
    for (name, nodes) in &report.graphs {
        ui.note(format!("{name}: {nodes} nodes"));
    }
    match &report.manifest {
        Some(manifest) => {
            for source in &manifest.sources {
                ui.note(format!(
                    "{}: {} (SHA-256 {})",
                    source.role, source.name, source.sha256
                ));
            }
            ui.result(format!(
                "{path}: whole, {:.0} MB hashed",
                report.hashed as f64 / 1e6
            ))?;
        }
        None => {
            ui.warn("it has no `sdrt.json`, so there are no hashes to compare");
            ui.result(format!("{path}: its graphs are whole"))?;
        }
    }
    Ok(())
}
