//! `sdconvert lora-merge`: one LoRA of several.

use std::path::PathBuf;
use std::time::Instant;

use sd_converter::lora::LoraSpec;
use sd_converter::lora::merge::merge;
use sd_converter::output::StagedFile;
use sd_ui::Ui;

use super::safetensors_file;

/// Make one LoRA of several: exactly, or with the best factors of a lower rank
#[derive(Debug, clap::Args)]
pub(crate) struct LoraMergeArgs {
    /// LoRAs, and how strongly each is in the result
    #[arg(required = true, value_name = "FILE[:SCALE|:unet=U,te=T]", value_parser = LoraSpec::parse)]
    loras: Vec<LoraSpec>,
    /// Largest rank of a module; if left out, ranks add up and only rounding is lost
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rank: Option<u32>,
    /// File to write; `-` is standard output
    #[arg(short, long, value_name = "FILE", value_parser = safetensors_file())]
    output: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &LoraMergeArgs, ui: &Ui) -> anyhow::Result<()> {
    let start = Instant::now();
    let file = StagedFile::create(&args.output, args.force)?;
    let bar = ui.spinner("merging");
    let merged = merge(&args.loras, args.rank.map(|rank| rank as usize))?;
    merged.write(file, &bar)?;
    drop(bar);
    for note in &merged.notes {
        ui.note(note);
    }
    if args.rank.is_some() {
        ui.note(format!("energy kept: {:.1} %", 100.0 * merged.kept));
    }
    let (output, seconds) = (args.output.display(), start.elapsed().as_secs_f64());
    let ranks = merged.ranks;
    let ranks = ranks.map(|(least, most)| format!(" of rank {least} to {most}"));
    let text = format!(
        "{output}: {} modules{} in {seconds:.1} s",
        merged.modules(),
        ranks.unwrap_or_default()
    );
    Ok(ui.written(&args.output, text)?)
}
