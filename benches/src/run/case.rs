//! One configuration: which model, who computes, how, and what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A configuration. What is not said by the user is resolved, but for what the provider decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Case {
    /// The model's name for people: the end of its path, or all of it where several end alike.
    pub(crate) model: String,
    /// Model directory. Where it lies is nobody else's business.
    #[serde(skip)]
    pub(crate) path: PathBuf,
    /// SHA-256 of its manifest, which holds every file's, or of its UNet's graph.
    pub(crate) hash: String,
    /// Model directory of its refiner.
    pub(crate) refiner: Option<PathBuf>,
    /// Which build of `sdbench` measured: `this`, or another one's path as the user gives it.
    pub(crate) program: String,
    /// Execution provider.
    pub(crate) ep: String,
    /// Its options, `KEY=VALUE`.
    pub(crate) ep_options: Vec<String>,
    /// Which graphs were asked for.
    pub(crate) graph: String,
    /// What products were asked to be computed in.
    pub(crate) compute: String,
    /// The best vector instructions that native graphs may use, if not all.
    pub(crate) instructions: Option<String>,
    /// Width and height of the picture in pixels.
    pub(crate) size: [usize; 2],
    /// Threads.
    pub(crate) threads: usize,
    /// Whole pictures, if they are made.
    pub(crate) picture: Option<Wish>,
}

/// What pictures are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wish {
    /// Solver and spread of the noise levels.
    pub(crate) sampler: String,
    pub(crate) steps: usize,
    /// How many, one after the other with the same networks.
    pub(crate) batch: usize,
    pub(crate) guidance_scale: f64,
}

/// What configurations differ in.
pub(crate) const AXES: [&str; 13] = [
    "model",
    "refiner",
    "program",
    "ep",
    "graph",
    "compute",
    "instructions",
    "size",
    "threads",
    "sampler",
    "steps",
    "batch",
    "guidance",
];

impl Case {
    /// Its place on each axis. Without pictures, the last four are empty. A refiner is its folder's name, wherever it lies.
    pub(crate) fn places(&self) -> BTreeMap<&'static str, String> {
        let [width, height] = self.size;
        let mut ep = vec![self.ep.clone()];
        ep.extend(self.ep_options.iter().cloned());
        let wish = self.picture.as_ref();
        let of_picture = |value: &dyn Fn(&Wish) -> String| wish.map(value).unwrap_or_default();
        let places = [
            self.model.clone(),
            self.refiner.as_deref().map(folder).unwrap_or_default(),
            self.program.clone(),
            ep.join(" "),
            self.graph.clone(),
            self.compute.clone(),
            self.instructions.clone().unwrap_or("all".to_owned()),
            format!("{width}x{height}"),
            self.threads.to_string(),
            of_picture(&|wish| wish.sampler.clone()),
            of_picture(&|wish| wish.steps.to_string()),
            of_picture(&|wish| wish.batch.to_string()),
            of_picture(&|wish| wish.guidance_scale.to_string()),
        ];
        AXES.into_iter().zip(places).collect()
    }
}

/// The name of a model's folder.
fn folder(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// A place on an axis in words.
fn words(axis: &str, place: &str) -> String {
    match axis {
        "refiner" if place.is_empty() => "no refiner".to_owned(),
        "refiner" => format!("refiner {place}"),
        _ if place.is_empty() => String::new(),
        "graph" if place == "auto" => "any graph".to_owned(),
        "compute" if place == "auto" => "computed as is fastest".to_owned(),
        "graph" => format!("{place} graph"),
        "threads" | "steps" => format!("{place} {axis}"),
        "instructions" => format!("{place} instructions"),
        "program" if place == "this" => "this program".to_owned(),
        "batch" => format!("batch of {place}"),
        "guidance" => format!("guidance {place}"),
        _ => place.to_owned(),
    }
}

/// Names of configurations: what is not the same for all of them.
pub(crate) fn names(cases: &[&Case]) -> Vec<String> {
    let places: Vec<_> = cases.iter().map(|case| case.places()).collect();
    let differs = |axis: &&str| {
        let mut found = places.iter().map(|places| &places[axis]);
        let first = found.next();
        found.any(|place| Some(place) != first)
    };
    let mut axes: Vec<&str> = AXES.into_iter().filter(differs).collect();
    if axes.is_empty() {
        axes = vec!["model", "ep"];
    }
    let name = |places: &BTreeMap<&str, String>| {
        let all = axes.iter().map(|axis| words(axis, &places[axis]));
        all.filter(|words| !words.is_empty())
            .collect::<Vec<_>>()
            .join(", ")
    };
    places.iter().map(name).collect()
}

/// What is the same for all configurations, in words.
pub(crate) fn common(cases: &[&Case]) -> String {
    let places: Vec<_> = cases.iter().map(|case| case.places()).collect();
    let Some(first) = places.first() else {
        return String::new();
    };
    let same = |axis: &&str| places.iter().all(|places| places[axis] == first[axis]);
    let default = |axis: &&str| {
        matches!(
            (*axis, &*first[axis]),
            ("instructions", "all") | ("program", "this") | ("refiner", "")
        )
    };
    let axes = AXES.into_iter().filter(same).filter(|axis| !default(axis));
    let all = axes.map(|axis| words(axis, &first[axis]));
    all.filter(|words| !words.is_empty())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A configuration of a test.
    pub(crate) fn case(ep: &str, steps: usize) -> Case {
        Case {
            model: "sd15".to_owned(),
            path: "models/sd15".into(),
            hash: "abc".to_owned(),
            refiner: None,
            program: "this".to_owned(),
            ep: ep.to_owned(),
            ep_options: Vec::new(),
            graph: "auto".to_owned(),
            compute: "f32".to_owned(),
            instructions: None,
            size: [512, 768],
            threads: 2,
            picture: Some(Wish {
                sampler: "Euler".to_owned(),
                steps,
                batch: 1,
                guidance_scale: 7.0,
            }),
        }
    }

    #[test]
    fn names_are_what_differs() {
        let (a, mut b) = (case("cpu", 20), case("cpu", 22));
        assert_eq!(names(&[&a, &b]), ["20 steps", "22 steps"]);
        b.ep = "openvino".to_owned();
        b.ep_options = vec!["num_streams=1".to_owned()];
        assert_eq!(
            names(&[&a, &b]),
            ["cpu, 20 steps", "openvino num_streams=1, 22 steps"]
        );
        assert_eq!(names(&[&a]), ["sd15, cpu"]);
        assert_eq!(
            common(&[&a, &b]),
            "sd15, any graph, f32, 512x768, 2 threads, Euler, batch of 1, guidance 7"
        );
        assert_eq!(names(&[]), Vec::<String>::new());
        let (a, mut b) = (case("cpu", 20), case("cpu", 20));
        b.refiner = Some("models/xl-refiner".into());
        assert_eq!(names(&[&a, &b]), ["no refiner", "refiner xl-refiner"]);
        b.refiner = None;
        if let Some(wish) = &mut b.picture {
            wish.guidance_scale = 1.5;
        }
        assert_eq!(names(&[&a, &b]), ["guidance 7", "guidance 1.5"]);
    }
}
