//! `sdbench convert`: conversion against copying the bytes it reads and writes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use sd_converter::build::{BuildOptions, BuildPlan};
use sd_converter::progress::Unwatched;
use sd_converter::ui::Ui;
use sd_converter::weights::Weights;

use crate::memory::peak_during;
use crate::spread;

/// Time a conversion against copying the checkpoint, in turn and on the same disk
#[derive(Debug, clap::Args)]
pub(crate) struct ConvertArgs {
    /// Checkpoint to convert
    checkpoint: PathBuf,
    /// Folder in which copies and model directories are made and removed
    #[arg(long, default_value = ".")]
    scratch: PathBuf,
    /// How often
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

pub(crate) fn run(args: &ConvertArgs, ui: &Ui) -> anyhow::Result<()> {
    let (mut copies, mut conversions, mut anonymous) = (Vec::new(), Vec::new(), 0);
    for _ in 0..args.runs {
        let scratch = tempfile::tempdir_in(&args.scratch)?;
        let start = Instant::now();
        copy(&args.checkpoint, &scratch.path().join("copy"))?;
        copies.push(start.elapsed().as_secs_f64());
        fs::remove_file(scratch.path().join("copy"))?;
        let start = Instant::now();
        let (result, peak) = peak_during("RssAnon", || {
            convert(&args.checkpoint, &scratch.path().join("model"))
        });
        result?;
        conversions.push(start.elapsed().as_secs_f64());
        anonymous = anonymous.max(peak);
    }
    Ok(ui.result(serde_json::json!({
        "checkpoint_bytes": fs::metadata(&args.checkpoint)?.len(),
        "copy_s": spread(copies),
        "convert_s": spread(conversions),
        "convert_peak_anonymous_bytes": anonymous,
    }))?)
}

/// Reads every byte and writes it to the disk, not only to its cache: what a conversion does.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut target = File::create(to)?;
    // Through memory: file systems may copy without reading or writing anything.
    let mut reader = io::BufReader::with_capacity(1 << 20, File::open(from)?);
    io::copy(
        &mut reader,
        &mut io::BufWriter::with_capacity(1 << 20, &mut target),
    )?;
    target.sync_all()
}

fn convert(checkpoint: &Path, to: &Path) -> anyhow::Result<()> {
    let weights = Weights::open(checkpoint, None)?;
    let plan = BuildPlan::new(Box::new(weights), BuildOptions::default())?;
    plan.write(to, &Unwatched)?;
    Ok(())
}
