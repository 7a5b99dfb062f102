//! `sdbench convert`: conversion against copying the bytes it reads and writes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use sd_converter::build::{BuildOptions, BuildPlan};
use sd_converter::lora::{LoraSpec, Options, WithLoras};
use sd_converter::model::Model;
use sd_converter::progress::Unwatched;
use sd_converter::weights::Weights;
use sd_ui::Ui;

use crate::memory::Memory;
use crate::report::Spread;

/// Time a conversion against copying the checkpoint, in turn and on the same disk
#[derive(Debug, clap::Args)]
pub(crate) struct ConvertArgs {
    /// Checkpoint to convert
    checkpoint: PathBuf,
    /// Folder in which copies and model directories are made and removed
    #[arg(long, default_value = ".")]
    scratch: PathBuf,
    /// Also time the conversion with these LoRAs
    #[arg(long = "lora", value_name = "FILE[:SCALE]", value_parser = LoraSpec::parse)]
    loras: Vec<LoraSpec>,
    /// How often
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

pub(crate) fn run(args: &ConvertArgs, ui: &Ui) -> anyhow::Result<()> {
    let mut copies = Vec::new();
    let mut conversions: [Timed; 2] = Default::default();
    for _ in 0..args.runs {
        let scratch = tempfile::tempdir_in(&args.scratch)?;
        let start = Instant::now();
        copy(&args.checkpoint, &scratch.path().join("copy"))?;
        copies.push(start.elapsed().as_secs_f64());
        fs::remove_file(scratch.path().join("copy"))?;
        let target = scratch.path().join("model");
        let kinds = [&[][..], &args.loras].into_iter().zip(&mut conversions);
        for (loras, timed) in kinds.take(1 + usize::from(!args.loras.is_empty())) {
            let start = Instant::now();
            let (result, peak) = Memory::during(|| convert(&args.checkpoint, loras, &target));
            result?;
            timed.seconds.push(start.elapsed().as_secs_f64());
            timed.peak = Memory::most([timed.peak, peak]);
            fs::remove_dir_all(&target)?;
        }
    }
    let [plain, with_loras] = conversions;
    let mut result = serde_json::json!({
        "checkpoint_bytes": fs::metadata(&args.checkpoint)?.len(),
        "copy_s": Spread::of(copies),
        "convert_peak_anonymous_bytes": plain.anonymous_bytes(),
        "convert_s": Spread::of(plain.seconds),
    });
    if !args.loras.is_empty() {
        result["loras"] = args.loras.len().into();
        result["with_loras_peak_anonymous_bytes"] = with_loras.anonymous_bytes().into();
        result["with_loras_s"] = serde_json::to_value(Spread::of(with_loras.seconds))?;
    }
    Ok(ui.result(result)?)
}

/// Runs of one kind.
#[derive(Default)]
struct Timed {
    seconds: Vec<f64>,
    peak: Option<Memory>,
}

impl Timed {
    fn anonymous_bytes(&self) -> Option<u64> {
        self.peak.map(|peak| peak.anonymous_bytes)
    }
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

fn convert(checkpoint: &Path, loras: &[LoraSpec], to: &Path) -> anyhow::Result<()> {
    let mut model: Box<dyn Model> = Box::new(Weights::open(checkpoint, None)?);
    if !loras.is_empty() {
        model = Box::new(WithLoras::new(model, loras, Options::default())?);
    }
    let plan = BuildPlan::new(model, BuildOptions::default())?;
    plan.write(to, &Unwatched)?;
    Ok(())
}
