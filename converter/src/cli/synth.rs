//! `sdconvert synth`: a checkpoint of random weights.

use std::path::PathBuf;

use sd_converter::synth::Synth;
use sd_converter::ui::Ui;
use sd_models::family::ModelFamily;

/// Write a checkpoint of random weights, so that a family can be tried and timed without owning one
#[derive(Debug, clap::Args)]
pub(crate) struct SynthArgs {
    /// Family whose layout and widths to use
    #[arg(long, value_parser = family)]
    family: ModelFamily,
    /// A narrow model of the same structure
    #[arg(long)]
    tiny: bool,
    /// Other seeds give other weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

fn family(name: &str) -> Result<ModelFamily, String> {
    let known = || ModelFamily::ALL.map(ModelFamily::name).join(", ");
    ModelFamily::ALL
        .into_iter()
        .find(|f| f.name() == name)
        .ok_or_else(|| format!("known families: {}", known()))
}

pub(crate) fn run(args: &SynthArgs, ui: &Ui) -> anyhow::Result<()> {
    let synth = Synth {
        family: args.family,
        tiny: args.tiny,
        seed: args.seed,
    };
    let bytes = synth.size_bytes()?;
    let bar = ui.bytes("writing", bytes);
    synth.write(&args.output, args.force, &bar)?;
    drop(bar);
    let output = args.output.display();
    Ok(ui.result(format!(
        "{output}: {} with random weights, {:.0} MB",
        args.family,
        bytes as f64 / 1e6
    ))?)
}
