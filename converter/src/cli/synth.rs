//! `sdconvert synth`: a checkpoint of random weights.

use std::path::PathBuf;

use sd_converter::synth::{Kind, Synth};
use sd_ui::Ui;

use super::safetensors_file;

/// Write a checkpoint of random weights, so that a family can be tried and timed without owning one
#[derive(Debug, clap::Args)]
pub(crate) struct SynthArgs {
    #[arg(long = "family", value_name = "FAMILY", value_parser = kind, help = help())]
    kind: Kind,
    /// A narrow model of the same structure
    #[arg(long)]
    tiny: bool,
    /// Other seeds give other weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File to write; `-` is standard output
    #[arg(short, long, value_name = "FILE", value_parser = safetensors_file())]
    output: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

fn help() -> String {
    format!(
        "Family whose layout and widths to use: {}",
        Kind::names().join(", ")
    )
}

fn kind(name: &str) -> Result<Kind, String> {
    Kind::named(name).ok_or_else(|| format!("known families: {}", Kind::names().join(", ")))
}

pub(crate) fn run(args: &SynthArgs, ui: &Ui) -> anyhow::Result<()> {
    let synth = Synth {
        kind: args.kind,
        tiny: args.tiny,
        seed: args.seed,
    };
    let bytes = synth.size_bytes()?;
    let bar = ui.bytes("writing", bytes);
    synth.write(&args.output, args.force, &bar)?;
    drop(bar);
    let output = args.output.display();
    let text = format!("{output}: random weights, {:.0} MB", bytes as f64 / 1e6);
    Ok(ui.written(&args.output, text)?)
}
