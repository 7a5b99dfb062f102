//! `sdconvert extract`: a LoRA from the difference of two models.

use std::path::PathBuf;
use std::time::Instant;

use sd_converter::extract::{Options, Rank, extract};
use sd_converter::output::StagedFile;
use sd_converter::save::work_bytes;
use sd_converter::weights::Weights;
use sd_ui::{Ui, UsageError};

use super::safetensors_file;

/// Part of the energy below which the user is told that the rank is low.
const LOW: f64 = 0.5;

/// Extract a LoRA from the difference of two models
#[derive(Debug, clap::Args)]
pub(crate) struct ExtractArgs {
    /// Model that the LoRA will be used on
    #[arg(long, value_name = "FILE")]
    base: PathBuf,
    /// Model that the LoRA shall turn it into
    #[arg(long, value_name = "FILE")]
    tuned: PathBuf,
    /// Rank of every layer
    #[arg(long, value_name = "N", conflicts_with_all = ["energy", "threshold"], default_value_t = 32)]
    rank: usize,
    /// Least rank that keeps this part of each layer's energy, 0..1
    #[arg(long, value_name = "F", conflicts_with = "threshold")]
    energy: Option<f64>,
    /// Keep singular values above this
    #[arg(long, value_name = "F")]
    threshold: Option<f64>,
    /// Extract convolutions of residual blocks too, with this rank (LoCon)
    #[arg(long, value_name = "N")]
    conv_rank: Option<usize>,
    /// Leave the text encoders out unless some value of their weights differs by more than this; 0 keeps all that changed
    #[arg(long, value_name = "X", default_value_t = 0.01)]
    min_diff: f32,
    /// Clamp values to this quantile of themselves, 0..1 (lossy; sd-scripts uses 0.99)
    #[arg(long, value_name = "F")]
    clamp_quantile: Option<f64>,
    /// File to write; `-` is standard output
    #[arg(short, long, value_name = "FILE", value_parser = safetensors_file())]
    output: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &ExtractArgs, ui: &Ui) -> anyhow::Result<()> {
    let start = Instant::now();
    let part = |name, value: Option<f64>| match value {
        Some(x) if !(x > 0.0 && x <= 1.0) => Err(UsageError(format!(
            "{name} {x}: above 0 and at most 1 expected"
        ))),
        _ => Ok(()),
    };
    part("--energy", args.energy)?;
    part("--clamp-quantile", args.clamp_quantile)?;
    anyhow::ensure!(
        args.rank > 0 && args.conv_rank != Some(0),
        UsageError("a rank of at least 1 expected".to_owned())
    );
    anyhow::ensure!(
        args.min_diff.is_finite() && args.min_diff >= 0.0,
        UsageError(format!("--min-diff {}: 0 or more expected", args.min_diff))
    );
    let options = Options {
        rank: match (args.energy, args.threshold) {
            (Some(part), _) => Rank::Energy(part),
            (None, Some(least)) => Rank::Threshold(least),
            (None, None) => Rank::Fixed(args.rank),
        },
        min_difference: args.min_diff,
        conv_rank: args.conv_rank,
        clamp_quantile: args.clamp_quantile,
    };
    let file = StagedFile::create(&args.output, args.force)?;
    let base = Weights::open(&args.base, None)?;
    let tuned = Weights::open(&args.tuned, None)?;
    let bar = ui.bytes("extracting", work_bytes(&base));
    let extracted = extract(&base, &tuned, &options, &bar)?;
    extracted.write(file, &bar)?;
    drop(bar);
    let report = &extracted.report;
    ui.note(report.to_string());
    if let Some(largest) = report.text_left_out {
        ui.warn(format!(
            "the text encoders are left out: no value of theirs differs by more than {} (--min-diff), the largest \
             difference is {largest:.1e}; `--min-diff 0` keeps them",
            args.min_diff
        ));
    }
    if report.kept < LOW {
        ui.warn(format!(
            "this rank keeps only {:.0} % of the difference; try `--energy 0.9`",
            100.0 * report.kept
        ));
    }
    let (output, seconds) = (args.output.display(), start.elapsed().as_secs_f64());
    let text = format!("{output}: {} layers in {seconds:.1} s", report.modules);
    Ok(ui.written(&args.output, text)?)
}
