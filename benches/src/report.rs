//! What `sdbench` prints, as types: whoever compares figures of two versions reads these.

use std::path::PathBuf;

use sd_kernels::Isa;
use sd_runtime::engine::Engine;
use sd_runtime::engine::measured::processor;
use sd_runtime::pipeline::Models;
use serde::{Deserialize, Serialize};

use crate::quality::Difference;

/// Version of the layouts: changes when a name goes or means something else. Version 1 had the networks of `run` at the top of its
/// report (`run/report.rs`), and measurements in order of size.
pub(crate) const SCHEMA: u32 = 2;

/// Figures of a model directory, and where they were taken.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// [`SCHEMA`]
    pub(crate) schema: u32,
    /// Version of these programs.
    pub(crate) version: String,
    /// Name of the processor.
    pub(crate) processor: String,
    /// Its instruction level, of which native graphs make use.
    pub(crate) instructions: String,
    /// Execution provider.
    pub(crate) ep: String,
    /// Threads of its pool.
    pub(crate) threads: usize,
    /// What ONNX Runtime says of its build.
    pub(crate) onnxruntime: String,
    /// Model directory.
    pub(crate) model: PathBuf,
    /// That of its refiner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refiner: Option<PathBuf>,
    /// Width and height of the picture in pixels.
    pub(crate) size: [usize; 2],
    /// Most memory that the process had, if the system tells.
    pub(crate) peak_bytes: Option<u64>,
    #[serde(flatten)]
    pub(crate) figures: Figures,
}

/// What was measured.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub(crate) enum Figures {
    Ops(Ops),
    Quality(Quality),
}

/// Pictures of several ways of storing and computing a model, against those of the reference.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Quality {
    pub(crate) prompts: Vec<String>,
    /// Every prompt has a picture of each.
    pub(crate) seeds: Vec<u64>,
    /// The solver's name.
    pub(crate) sampler: String,
    pub(crate) steps: usize,
    pub(crate) guidance_scale: f64,
    pub(crate) reference: Way,
    /// In the order in which they were made. Whoever is interrupted has those that were finished.
    pub(crate) variants: Vec<Variant>,
}

/// A model directory and what it was computed in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Way {
    /// Model directory.
    pub(crate) model: PathBuf,
    /// What products are computed in: `f32`, `bf16`, `i16` or `i8`.
    pub(crate) compute: String,
    /// Dialect of its graph: `portable` or `native`.
    pub(crate) graph: String,
    /// Median over the prompts, with text encoders and decoder; loading counts in the first prompt's alone where networks stay.
    pub(crate) seconds_per_picture: f64,
    /// How often wishes came true, where the demo model's pixel rules can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hits: Option<Hits>,
    /// Folder of its pictures beside the report, called `PROMPT-SEED.png`, and `PROMPT-SEED-difference.png` for what differs from the
    /// reference; prompts count from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) folder: Option<String>,
}

/// A way, and how far its pictures are from the reference's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Variant {
    #[serde(flatten)]
    pub(crate) way: Way,
    /// Pictures that are equal to the reference's.
    pub(crate) equal: usize,
    /// Mean over those that are not; none if there are none.
    pub(crate) psnr_mean_db: Option<f64>,
    pub(crate) psnr_worst_db: Option<f64>,
    pub(crate) ssim_mean: f64,
    pub(crate) ssim_worst: f64,
    /// Mean share of pixels with a channel that is more than 8 levels off.
    pub(crate) off_percent: f64,
    /// By prompts, and by seeds within them.
    pub(crate) pictures: Vec<Pair>,
}

/// A picture against the reference's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pair {
    /// Number of the prompt.
    pub(crate) prompt: usize,
    pub(crate) seed: u64,
    #[serde(flatten)]
    pub(crate) difference: Difference,
}

/// Shares of pictures that show what was asked for, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hits {
    /// Pictures that were judged.
    pub(crate) judged: usize,
    pub(crate) background_percent: f64,
    pub(crate) colour_percent: f64,
    pub(crate) shape_percent: f64,
    pub(crate) position_percent: f64,
    pub(crate) size_percent: f64,
}

/// Several measurements of the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) runs: usize,
    pub(crate) min: Option<f64>,
    pub(crate) median: Option<f64>,
    pub(crate) max: Option<f64>,
    /// All of them, in the order in which they were taken.
    pub(crate) all: Vec<f64>,
}

impl Spread {
    pub(crate) fn of(all: Vec<f64>) -> Self {
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        Self {
            runs: sorted.len(),
            min: sorted.first().copied(),
            median: median(&sorted),
            max: sorted.last().copied(),
            all,
        }
    }

    /// Half of the range between the quartiles, which are between neighbours in proportion.
    pub(crate) fn half_range_of_middle(&self) -> Option<f64> {
        let mut sorted = self.all.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (sorted.len() - 1) as f64;
            let (below, above) = (place.floor() as usize, place.ceil() as usize);
            sorted[below] + (sorted[above] - sorted[below]) * place.fract()
        };
        (!sorted.is_empty()).then(|| (at(0.75) - at(0.25)) / 2.0)
    }
}

/// The middle of sorted numbers, or the mean of the two there.
pub(crate) fn median(sorted: &[f64]) -> Option<f64> {
    let above = *sorted.get(sorted.len() / 2)?;
    match sorted.len() % 2 {
        1 => Some(above),
        _ => Some(f64::midpoint(sorted[sorted.len() / 2 - 1], above)),
    }
}

/// Where the time of a network's pass goes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ops {
    /// The network's name.
    pub(crate) component: String,
    /// Dialect of its graph.
    pub(crate) graph: String,
    /// What its products are computed in.
    pub(crate) compute: String,
    /// Passes that figures are means of.
    pub(crate) runs: usize,
    /// Most operations per second that the same threads reach, with fused multiply-adds of single precision. Products of
    /// other numbers may exceed it.
    pub(crate) peak_flops: f64,
    /// Whole passes, which profiling makes a little slower.
    pub(crate) pass_s: Spread,
    /// The graphs that it consists of.
    pub(crate) graphs: Vec<Graph>,
}

/// Where the time of a graph's run goes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Graph {
    /// Its file name.
    pub(crate) file: String,
    /// Runs that figures are means of. A graph that depends on the prompt alone has one, the first.
    pub(crate) runs: usize,
    /// Classes of operators, those that took longest first.
    pub(crate) classes: Vec<Row>,
    /// Operators in classes, those that took longest first.
    pub(crate) operators: Vec<Row>,
}

/// A class, or an operator within one; figures are of one run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) class: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) operator: Option<String>,
    pub(crate) calls: usize,
    pub(crate) seconds: f64,
    /// Share of the time of all nodes.
    pub(crate) time_percent: f64,
    /// Operations of matrix products and convolutions by their definition, a multiplication and an addition being two. An
    /// algorithm that needs fewer reaches more than the peak.
    pub(crate) flop: f64,
    /// Operations per second as a share of the peak.
    pub(crate) peak_percent: f64,
    /// What nodes read and write, without weights that were packed before.
    pub(crate) bytes: u64,
}

impl Report {
    pub(crate) fn new(
        engine: &Engine,
        models: &Models,
        size: [usize; 2],
        figures: Figures,
    ) -> Self {
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            processor: processor(),
            instructions: Isa::detect().name().to_owned(),
            ep: engine.ep().name().to_owned(),
            threads: engine.threads(),
            onnxruntime: engine.build_info().to_owned(),
            model: models.base.path.clone(),
            refiner: models.refiner.as_ref().map(|model| model.path.clone()),
            size,
            peak_bytes: crate::memory::status_bytes("VmHWM"),
            figures,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_of_version_2() {
        let ops = Ops {
            component: "unet".to_owned(),
            graph: "native".to_owned(),
            compute: "bf16".to_owned(),
            runs: 3,
            peak_flops: 1e11,
            pass_s: Spread::of(vec![0.3, 0.1, 0.2]),
            graphs: Vec::new(),
        };
        let report = Report {
            schema: SCHEMA,
            version: "0.1.0".to_owned(),
            processor: "a processor".to_owned(),
            instructions: "avx2".to_owned(),
            ep: "cpu".to_owned(),
            threads: 2,
            onnxruntime: "a build".to_owned(),
            model: "sd15".into(),
            refiner: None,
            size: [512, 512],
            peak_bytes: Some(3000),
            figures: Figures::Ops(ops),
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["schema"], 2);
        assert_eq!(json["command"], "ops");
        let pass = serde_json::json!({"runs": 3, "min": 0.1, "median": 0.2, "max": 0.3, "all": [0.3, 0.1, 0.2]});
        assert_eq!(json["pass_s"], pass);
        let read: Report = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), json);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).median, Some(2.5));
        assert_eq!(Spread::of(Vec::new()).median, None);
    }

    #[test]
    fn quartiles_lie_between_neighbours() {
        let half = |all: &[f64]| Spread::of(all.to_vec()).half_range_of_middle();
        assert_eq!(half(&[5.0, 1.0, 4.0, 2.0, 3.0]), Some(1.0));
        assert_eq!(half(&[1.0, 2.0]), Some(0.25));
        assert_eq!(half(&[1.0]), Some(0.0));
        assert_eq!(half(&[]), None);
    }
}
