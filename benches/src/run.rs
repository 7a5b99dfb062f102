//! `sdbench run`: the networks of a model directory one after the other, as a run uses them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ndarray::ArrayD;
use sd_runtime::pipeline::Dump;
use sd_ui::{Ui, UsageError};

use crate::memory::peak_during;
use crate::networks::{Networks, NetworksArgs, Place, Said, Tensor};
use crate::report::{Figures, Network, Spread};

/// Time loading and passes of the text encoders, the UNet and the VAE decoder
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    networks: NetworksArgs,
    /// Passes that are timed, after one that is not
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Write inputs and outputs of every network's first pass to this safetensors file, to give them to other programs
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
}

pub(crate) fn run(args: &RunArgs, ui: &Ui) -> anyhow::Result<()> {
    if args.dump.as_deref() == Some(Path::new("-")) {
        let text = "--dump: the result goes to standard output; a dump needs a file";
        return Err(UsageError(text.to_owned()).into());
    }
    let dump_to = args.dump.as_deref().map(Dump::place).transpose()?;
    let networks = Networks::open(&args.networks, ui)?;
    let (mut dump, mut said) = (Dump::default(), Said::default());
    let mut figures = BTreeMap::new();
    for place in networks.places() {
        let (measured, outputs) = measure(&networks, &place, &said, args.runs, &mut dump)?;
        said.hear(&place, outputs)?;
        figures.insert(place.name, measured);
    }
    if let Some(to) = &dump_to {
        dump.write(to, &networks.cancel)?;
    }
    let report = networks.report(Figures::Run(figures));
    Ok(ui.result(serde_json::to_string(&report)?)?)
}

/// Loads a network and passes through it, once and then as often as asked for. Returns figures, and what came out first.
fn measure(
    networks: &Networks,
    place: &Place,
    said: &Said,
    runs: u32,
    dump: &mut Dump,
) -> anyhow::Result<(Network, Vec<ArrayD<f32>>)> {
    let start = Instant::now();
    let (loaded, load_peak_bytes) = peak_during("VmRSS", || networks.load(place, said));
    let (mut loaded, load_s) = (loaded?, start.elapsed().as_secs_f64());
    let add = |name: &str| format!("{}.{name}", place.name);
    for (name, tensor) in &loaded.inputs {
        match tensor {
            Tensor::F32(x) => dump.append(&add(name), &x.view()),
            Tensor::Ids(x) => dump.add_ids(add(name), &x.view()),
        }
    }
    let passes = || {
        let outputs = loaded.pass(&networks.cancel)?;
        let mut seconds = Vec::new();
        for _ in 0..runs {
            loaded.step();
            let start = Instant::now();
            loaded.pass(&networks.cancel)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        anyhow::Ok((seconds, outputs))
    };
    let (result, pass_peak_bytes) = peak_during("VmRSS", passes);
    let (seconds, outputs) = result?;
    for (name, output) in loaded.outputs.iter().zip(&outputs) {
        dump.append(&add(name), &output.view());
    }
    let figures = Network {
        graph: loaded.graph.to_owned(),
        compute: loaded.compute.to_owned(),
        load_s,
        load_peak_bytes,
        pass_s: Spread::of(seconds),
        pass_peak_bytes,
    };
    Ok((figures, outputs))
}
