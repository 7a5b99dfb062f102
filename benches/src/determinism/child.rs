//! Recordings made in processes of their own: a process has one ONNX Runtime and one thread pool.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use sd_runtime::engine::Cancel;
use sd_ui::Ui;
use sd_ui::child::output;

use super::record::Order;
use super::recording::Recording;

/// The subcommand that such a process is started with; not for people.
pub(crate) const COMMAND: &str = "determinism-record";

/// Record one way of making a picture, as a file says
#[derive(Debug, clap::Args)]
pub(crate) struct RecordArgs {
    /// JSON that `sdbench determinism` wrote
    order: PathBuf,
}

/// What such a process does.
pub(crate) fn run(args: &RecordArgs, ui: &Ui) -> anyhow::Result<()> {
    let path = args.order.display();
    let json = std::fs::read_to_string(&args.order);
    let json = json.with_context(|| format!("cannot read {path}"))?;
    let order: Order = serde_json::from_str(&json).with_context(|| path.to_string())?;
    let cancel = Cancel::new();
    let job = cancel.clone();
    ui.on_interrupt(move || job.cancel());
    let bytes = order.fulfil(&cancel)?.to_bytes()?;
    let output = &order.output;
    std::fs::write(output, bytes).with_context(|| format!("cannot write {}", output.display()))
}

/// Has an order fulfilled; `scratch` is a folder for its files.
pub(crate) fn record(order: &Order, scratch: &Path, cancel: &Cancel) -> anyhow::Result<Recording> {
    let json = scratch.join("order.json");
    std::fs::write(&json, serde_json::to_vec(order)?)?;
    let mut command = Command::new(std::env::current_exe().context("where is this program?")?);
    command
        .args([COMMAND, "-q"])
        .arg(&json)
        .env("NO_COLOR", "1");
    output(&mut command, || cancel.is_cancelled())??;
    Recording::read(&order.output)
}
