//! `sdbench measure`, which `sdbench run` calls: one configuration once, in this process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ndarray::ArrayD;
use sd_runtime::engine::memory;
use sd_runtime::pipeline::{Destination, Dump, Format, Plans, Request, run as make};
use sd_runtime::sampler;
use sd_runtime::sensors::{Energy, Sensors};
use sd_ui::Ui;

use super::report::{NetworkRound, Operations, PictureRound, Round};
use crate::classify::classify;
use crate::memory::{Memory, status_bytes};
use crate::networks::{Networks, NetworksArgs, Place, Said, Tensor};

/// Measure one configuration once
#[derive(Debug, clap::Args)]
pub(crate) struct MeasureArgs {
    #[command(flatten)]
    networks: NetworksArgs,
    /// Passes of every network, after one that is not timed; 0 leaves the networks out
    #[arg(long, default_value_t = 0)]
    runs: u32,
    /// Write inputs and outputs of every network's first pass to this file
    #[arg(long)]
    dump: Option<PathBuf>,
    /// Pictures to make
    #[arg(long, default_value_t = 0)]
    batch: usize,
    /// Their solver
    #[arg(long)]
    sampler: Option<String>,
    /// Their steps
    #[arg(long)]
    steps: Option<usize>,
    /// Count operations instead of timing anything
    #[arg(long)]
    operations: bool,
}

pub(crate) fn run(args: &MeasureArgs, ui: &Ui) -> anyhow::Result<()> {
    let start = Instant::now();
    let networks = Networks::open(&args.networks, ui)?;
    let start_s = start.elapsed().as_secs_f64();
    if args.operations {
        let operations = count(networks)?;
        return Ok(ui.result(serde_json::to_string(&operations)?)?);
    }
    let (mut dump, mut said) = (Dump::default(), Said::default());
    let mut measured = BTreeMap::new();
    if args.runs > 0 {
        for place in networks.places() {
            let (passes, outputs) = measure(&networks, &place, &said, args.runs, &mut dump)?;
            said.hear(&place, outputs)?;
            measured.insert(place.name, passes);
        }
    }
    if let Some(to) = &args.dump {
        dump.write(&Dump::place(to)?, &networks.cancel)?;
    }
    let picture = match args.batch {
        0 => None,
        _ => Some(pictures(&networks, &args.request()?)?),
    };
    let peak = Memory::most([
        picture.as_ref().and_then(|p| p.memory),
        Memory::most(measured.values().map(|p: &NetworkRound| p.load_memory)),
        Memory::most(measured.values().map(|p| p.pass_memory)),
    ]);
    let round = Round {
        onnxruntime: networks.engine.build_info().to_owned(),
        libraries: libraries(&networks.engine.library().path),
        start_s,
        networks: measured,
        picture,
        // The system's own count misses nothing between two looks.
        peak: peak.map(|peak| Memory {
            resident_bytes: status_bytes("VmHWM").unwrap_or(peak.resident_bytes),
            ..peak
        }),
    };
    Ok(ui.result(serde_json::to_string(&round)?)?)
}

impl MeasureArgs {
    fn request(&self) -> anyhow::Result<Request> {
        wanted(
            self.networks.request()?,
            self.sampler.as_deref(),
            self.steps,
            self.batch,
        )
    }
}

/// A request for pictures.
pub(super) fn wanted(
    request: Request,
    solver: Option<&str>,
    steps: Option<usize>,
    batch: usize,
) -> anyhow::Result<Request> {
    let (sampler, spread) = solver.map(sampler::parse).transpose()?.unzip();
    Ok(Request {
        sampler,
        spread: spread.flatten(),
        steps,
        batch,
        ..request
    })
}

/// Loads a network and passes through it, once and then as often as asked for. Returns figures, and what came out first.
fn measure(
    networks: &Networks,
    place: &Place,
    said: &Said,
    runs: u32,
    dump: &mut Dump,
) -> anyhow::Result<(NetworkRound, Vec<ArrayD<f32>>)> {
    let start = Instant::now();
    let (loaded, load_memory) = Memory::during(|| networks.load(place, said));
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
    let (result, pass_memory) = Memory::during(passes);
    let (passes_s, outputs) = result?;
    for (name, output) in loaded.outputs.iter().zip(&outputs) {
        dump.append(&add(name), &output.view());
    }
    let passes = NetworkRound {
        graph: loaded.graph.to_owned(),
        compute: loaded.compute.to_owned(),
        load_s,
        load_memory,
        passes_s,
        pass_memory,
    };
    Ok((passes, outputs))
}

/// Makes pictures as `sdrun txt2img` does, with their files.
fn pictures(networks: &Networks, request: &Request) -> anyhow::Result<PictureRound> {
    let Networks {
        models,
        engine,
        cancel,
        ..
    } = networks;
    let plans = Plans::resolve(request, models, memory::limit())?;
    let folder = tempfile::tempdir()?;
    let energy = Energy::read(&Sensors::default());
    let start = Instant::now();
    let work = || {
        let outcome = make(&plans, models, engine, cancel, &mut |_| {}, None)?;
        let writing = Instant::now();
        for (number, (picture, plan)) in outcome.pictures.iter().zip(&plans.plans).enumerate() {
            let to = Destination::find(&folder.path().join(format!("{number}.png")))?;
            let infotext = plan.infotext.with(&outcome.settings(number)).to_string();
            picture.write(&to, Format::Png, &infotext, cancel)?;
        }
        anyhow::Ok((outcome, writing.elapsed()))
    };
    let (result, memory) = Memory::during(work);
    let (outcome, written) = result?;
    let total = start.elapsed();
    let timing = outcome.timing;
    let calls: usize = outcome.calls.iter().sum();
    Ok(PictureRound {
        pictures: outcome.pictures.len(),
        calls: calls / outcome.pictures.len().max(1),
        total_s: total.as_secs_f64(),
        encode_s: timing.encode.as_secs_f64(),
        load_s: timing.load.as_secs_f64(),
        denoise_s: timing.denoise.as_secs_f64(),
        decode_s: timing.decode.as_secs_f64(),
        write_s: written.as_secs_f64(),
        joules: energy.and_then(|energy| energy.joules_since()),
        memory,
    })
}

/// Operations of a pass of every network. What depends on the prompt alone runs in the first pass only, and is not counted.
fn count(mut networks: Networks) -> anyhow::Result<Operations> {
    networks.engine.start_profiling()?;
    let (mut said, mut operations) = (Said::default(), Operations::new());
    for place in networks.places() {
        let mut loaded = networks.load(&place, &said)?;
        let outputs = loaded.pass(&networks.cancel)?;
        loaded.step();
        loaded.pass(&networks.cancel)?;
        let profiles = loaded.network.end_profiling()?;
        let second = profiles.iter().filter_map(|profile| profile.runs.get(1));
        let flop = second.flatten().map(|node| classify(node).1).sum();
        operations.insert(place.name.clone(), flop);
        said.hear(&place, outputs)?;
    }
    Ok(operations)
}

/// Names of ONNX Runtime's library and of OpenVINO's beside it, `libopenvino.so.2025.4.1` for example.
fn libraries(library: &Path) -> Vec<String> {
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let real = library.canonicalize().unwrap_or(library.to_owned());
    let entries = real.parent().and_then(|folder| folder.read_dir().ok());
    let paths = entries.into_iter().flatten().flatten();
    let beside = paths.filter_map(|entry| name(&entry.path()));
    let mut found: Vec<String> = beside
        .filter(|name| name.starts_with("libopenvino.so."))
        .collect();
    found.sort();
    name(&real).into_iter().chain(found).collect()
}
