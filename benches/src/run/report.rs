//! What `sdbench run` writes, as types. Figures of two reports are compared under the names that are here.
//!
//! Version 1 had the networks of one model directory at its top, measured in one process. From version 2 on there is a list of
//! configurations; every round measures each of them once in a process of its own, and what is compared are the rounds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::case::{Case, names};
use crate::machine::Machine;
use crate::memory::Memory;
use crate::report::Spread;

/// Name of this report among those of `sdbench`.
pub(crate) const COMMAND: &str = "run";

/// Rounds at most. The time that a comparison takes grows with their fourth power.
pub(crate) const MOST_ROUNDS: u32 = 100;

/// Figures of several configurations, and where they were taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunReport {
    /// [`crate::report::SCHEMA`]
    pub(crate) schema: u32,
    /// [`COMMAND`]
    pub(crate) command: String,
    /// Version of these programs.
    pub(crate) version: String,
    /// What the user calls the measurement.
    pub(crate) label: Option<String>,
    /// Seconds since 1970 when it ended.
    pub(crate) unix_time: u64,
    pub(crate) machine: Machine,
    pub(crate) settings: Settings,
    pub(crate) configurations: Vec<Configuration>,
}

/// How often was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Rounds before the others, with one pass a network and one step a picture; they are not counted.
    pub(crate) warm_up: u32,
    /// Rounds that count. Each measures all configurations in turns.
    pub(crate) rounds: u32,
    /// Passes of a network in a round, after one that is not counted. Their median is the round's figure.
    pub(crate) runs: u32,
}

/// A configuration, and what came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Configuration {
    pub(crate) case: Case,
    /// None where no round was finished.
    pub(crate) measured: Option<Measured>,
    /// Why it failed; rounds before that count.
    pub(crate) failed: Option<String>,
}

/// Figures of all rounds of a configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// What ONNX Runtime says of its build.
    pub(crate) onnxruntime: String,
    /// Name of its library's file, and of OpenVINO's beside it, which end in their versions on Linux.
    pub(crate) libraries: Vec<String>,
    /// Opening the model directory and starting ONNX Runtime.
    pub(crate) start_s: Spread,
    /// Networks by name: `text_encoder`, `unet`, `vae_decoder`, those of a refiner with `_refiner` behind it. Empty if they
    /// were not asked for.
    pub(crate) networks: BTreeMap<String, Network>,
    /// A whole picture, if it was asked for.
    pub(crate) picture: Option<Picture>,
    /// Most memory of the process, if the system tells.
    pub(crate) peak: Option<Memory>,
}

/// Loading and passes of one network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Network {
    /// Dialect of its graph: `portable` or `native`.
    pub(crate) graph: String,
    /// What its products are computed in: `f32`, `bf16`, `i16` or `i8`.
    pub(crate) compute: String,
    pub(crate) load_s: Spread,
    /// Medians of the rounds.
    pub(crate) pass_s: Spread,
    /// Every pass, by rounds.
    pub(crate) passes_s: Vec<Vec<f64>>,
    /// Most memory of the process while it loaded.
    pub(crate) load_memory: Option<Memory>,
    /// Most memory of the process during the passes.
    pub(crate) pass_memory: Option<Memory>,
    /// Operations of the matrix products and convolutions of a pass by their definition, if they could be counted.
    pub(crate) flop: Option<f64>,
    /// Operations per second of the median pass as a share of what the threads reach in single precision. Products of other
    /// numbers, and algorithms that need fewer, may exceed it.
    pub(crate) peak_percent: Option<f64>,
}

/// Pictures from their prompts to their files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Picture {
    /// Calls of the denoiser for one picture.
    pub(crate) calls: usize,
    /// All of it, for all pictures of the batch: networks are loaded for it, and go.
    pub(crate) total_s: Spread,
    /// Text encoders, with their loading.
    pub(crate) encode_s: Spread,
    /// Loading of the UNet.
    pub(crate) load_s: Spread,
    /// A call of the denoiser, which is two passes of the UNet with guidance.
    pub(crate) step_s: Spread,
    /// The VAE decoder, with its loading.
    pub(crate) decode_s: Spread,
    /// Writing PNG files.
    pub(crate) write_s: Spread,
    /// By the median of `total_s`.
    pub(crate) pictures_per_hour: f64,
    /// Energy for one picture, of the whole processor, where it counts that.
    pub(crate) joules: Option<Spread>,
    pub(crate) memory: Option<Memory>,
}

/// What one process measured: a configuration in one round.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) onnxruntime: String,
    pub(crate) libraries: Vec<String>,
    pub(crate) start_s: f64,
    pub(crate) networks: BTreeMap<String, NetworkRound>,
    pub(crate) picture: Option<PictureRound>,
    pub(crate) peak: Option<Memory>,
}

/// Loading and passes of one network in one process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NetworkRound {
    pub(crate) graph: String,
    pub(crate) compute: String,
    pub(crate) load_s: f64,
    pub(crate) load_memory: Option<Memory>,
    pub(crate) passes_s: Vec<f64>,
    pub(crate) pass_memory: Option<Memory>,
}

/// Pictures in one process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PictureRound {
    pub(crate) pictures: usize,
    /// Of one picture.
    pub(crate) calls: usize,
    pub(crate) total_s: f64,
    pub(crate) encode_s: f64,
    pub(crate) load_s: f64,
    /// Of all pictures.
    pub(crate) denoise_s: f64,
    pub(crate) decode_s: f64,
    pub(crate) write_s: f64,
    /// Of all pictures.
    pub(crate) joules: Option<f64>,
    pub(crate) memory: Option<Memory>,
}

/// Operations of a pass by network, as one process counts them.
pub(crate) type Operations = BTreeMap<String, f64>;

impl RunReport {
    /// Names of the configurations.
    pub(crate) fn names(&self) -> Vec<String> {
        names(&self.cases())
    }

    pub(crate) fn cases(&self) -> Vec<&Case> {
        self.configurations.iter().map(|c| &c.case).collect()
    }
}

impl Measured {
    /// Sums rounds up; none if there are none. `flop` are operations of passes, `peak_flops` what the threads reach.
    pub(crate) fn of(rounds: &[Round], flop: &Operations, peak_flops: f64) -> Option<Self> {
        let first = rounds.first()?;
        let spread = |value: &dyn Fn(&Round) -> Option<f64>| {
            Spread::of(rounds.iter().filter_map(value).collect())
        };
        let network = |name: &String| {
            let all = || rounds.iter().filter_map(|round| round.networks.get(name));
            let one = all().next()?;
            let passes_s: Vec<_> = all().map(|passes| passes.passes_s.clone()).collect();
            let medians = passes_s
                .iter()
                .filter_map(|passes| Spread::of(passes.clone()).median);
            let pass_s = Spread::of(medians.collect());
            let flop = flop.get(name).copied();
            let rate = flop.zip(pass_s.median).map(|(flop, s)| flop / s);
            Some(Network {
                graph: one.graph.clone(),
                compute: one.compute.clone(),
                load_s: Spread::of(all().map(|passes| passes.load_s).collect()),
                load_memory: Memory::most(all().map(|passes| passes.load_memory)),
                pass_memory: Memory::most(all().map(|passes| passes.pass_memory)),
                peak_percent: rate.map(|rate| 100.0 * rate / peak_flops),
                pass_s,
                passes_s,
                flop,
            })
        };
        let networks = first.networks.keys();
        Some(Self {
            onnxruntime: first.onnxruntime.clone(),
            libraries: first.libraries.clone(),
            start_s: spread(&|round| Some(round.start_s)),
            networks: networks
                .filter_map(|name| Some((name.clone(), network(name)?)))
                .collect(),
            picture: Picture::of(rounds),
            peak: Memory::most(rounds.iter().map(|round| round.peak)),
        })
    }

    /// All that is compared. What matters most comes first.
    pub(crate) fn figures(&self) -> Vec<Figure<'_>> {
        let seconds = |name: &str, spread| Figure {
            name: name.to_owned(),
            unit: Unit::Seconds,
            spread,
        };
        let mut figures = Vec::new();
        if let Some(picture) = &self.picture {
            figures.extend([
                seconds("picture", &picture.total_s),
                seconds("picture: encode", &picture.encode_s),
                seconds("picture: load", &picture.load_s),
                seconds("picture: step", &picture.step_s),
                seconds("picture: decode", &picture.decode_s),
                seconds("picture: write", &picture.write_s),
            ]);
            figures.extend(picture.joules.as_ref().map(|spread| Figure {
                name: "picture: energy".to_owned(),
                unit: Unit::Joules,
                spread,
            }));
        }
        // Most of a picture's time is the UNet's.
        let mut networks: Vec<_> = self.networks.iter().collect();
        networks.sort_by_key(|(name, _)| !name.starts_with("unet"));
        for (name, network) in networks {
            figures.push(seconds(&format!("{name}: pass"), &network.pass_s));
            figures.push(seconds(&format!("{name}: load"), &network.load_s));
        }
        figures.push(seconds("start", &self.start_s));
        figures
    }
}

/// Several measurements of the same, under the name that people see.
#[derive(Clone, Debug)]
pub(crate) struct Figure<'a> {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) spread: &'a Spread,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    Seconds,
    Joules,
}

impl Unit {
    /// A number with three digits.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Joules => format!("{value:.1} J"),
            Self::Seconds if value < 1e-3 => format!("{:.0} µs", value * 1e6),
            Self::Seconds if value < 0.1 => format!("{:.2} ms", value * 1e3),
            Self::Seconds if value < 1.0 => format!("{:.1} ms", value * 1e3),
            Self::Seconds => format!("{value:.2} s"),
        }
    }
}

impl Picture {
    fn of(rounds: &[Round]) -> Option<Self> {
        let all: Vec<&PictureRound> = rounds
            .iter()
            .filter_map(|round| round.picture.as_ref())
            .collect();
        let first = all.first()?;
        let spread =
            |value: fn(&PictureRound) -> f64| Spread::of(all.iter().map(|s| value(s)).collect());
        let pictures = first.pictures as f64;
        let total_s = spread(|s| s.total_s);
        let joules: Option<Vec<f64>> = all.iter().map(|s| Some(s.joules? / pictures)).collect();
        Some(Self {
            calls: first.calls,
            encode_s: spread(|s| s.encode_s),
            load_s: spread(|s| s.load_s),
            step_s: spread(|s| s.denoise_s / (s.calls * s.pictures).max(1) as f64),
            decode_s: spread(|s| s.decode_s),
            write_s: spread(|s| s.write_s),
            pictures_per_hour: 3600.0 * pictures / total_s.median?,
            total_s,
            joules: joules.map(Spread::of),
            memory: Memory::most(all.iter().map(|s| s.memory)),
        })
    }
}
