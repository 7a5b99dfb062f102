//! What providers took for pictures on this machine, so that the faster one can be chosen without measuring every time.
//!
//! The record is a JSON file in the user's data folder: `schema` and `measurements`. One that cannot be read, or has another
//! schema, is as good as none: its content is measured again.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use sd_models::manifest;
use serde::{Deserialize, Serialize};

use super::library::data_dir;
use super::network::sha256;
use super::{Compute, Dialect, EngineError, Key};

/// Version of the layout: changes when a name goes or means something else.
const SCHEMA: u32 = 1;

/// Most cases that a record holds. The oldest go first.
const MOST: usize = 500;

/// What is measured, and on what: figures hold for the same only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Name of the processor.
    pub processor: String,
    /// Instruction level that kernels may use.
    pub instructions: String,
    /// Threads, of all workers together.
    pub threads: usize,
    /// How many workers share them, each with a picture of its own.
    #[serde(default = "one_worker")]
    pub workers: usize,
    /// Hash of the model's manifest, or of its UNet's graph.
    pub model: String,
    /// Width and height of the picture.
    pub size: [usize; 2],
    /// What products are asked to be computed in.
    pub compute: Compute,
    /// Which graphs are asked for.
    pub graph: Dialect,
    /// Whether the decoder works in bands of rows.
    #[serde(default)]
    pub tile: bool,
    /// The provider's name.
    pub ep: String,
    /// Its options, as they are written.
    pub options: Vec<String>,
    /// The library, or the plugin that computes: its path and its size in bytes.
    pub library: (PathBuf, u64),
}

/// Of records from before there were several.
fn one_worker() -> usize {
    1
}

impl Case {
    /// A model directory as cases name it: its manifest holds every file's hash, and folders without one are known by their UNet's
    /// graph.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn model(dir: &Path) -> Result<String, EngineError> {
        let manifest = dir.join(manifest::FILE_NAME);
        let path = match manifest.is_file() {
            true => manifest,
            false => dir.join("unet").join(Key::PLAIN),
        };
        sha256(&path).map_err(|source| EngineError::Read { path, source })
    }

    /// A library as cases name it.
    #[must_use]
    pub fn library(path: &Path) -> (PathBuf, u64) {
        let size = path.metadata().map_or(0, |file| file.len());
        (path.to_owned(), size)
    }
}

/// Seconds that the parts of a picture took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Prompts, with loading of the text encoders.
    pub encode: f64,
    /// Loading of the UNet.
    pub load: f64,
    /// One call of the denoiser.
    pub per_step: f64,
    /// The VAE decoder, with its loading.
    pub decode: f64,
}

impl Seconds {
    /// What a picture of so many calls takes.
    #[must_use]
    pub fn picture(&self, calls: usize) -> f64 {
        self.encode + self.load + self.per_step * calls as f64 + self.decode
    }
}

/// How a measurement ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measured {
    /// A picture was made.
    Took(Seconds),
    /// The provider cannot make it.
    Failed(String),
}

impl Measured {
    /// What a picture of so many calls takes, if it can be made.
    #[must_use]
    pub fn picture(&self, calls: usize) -> Option<f64> {
        match self {
            Self::Took(seconds) => Some(seconds.picture(calls)),
            Self::Failed(_) => None,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    case: Case,
    result: Measured,
}

#[derive(Debug, Serialize, Deserialize)]
struct Layout {
    schema: u32,
    measurements: Vec<Entry>,
}

/// The record in a file.
#[derive(Debug)]
pub struct Record {
    file: PathBuf,
}

impl Default for Record {
    fn default() -> Self {
        Self::at(data_dir().join("providers.json"))
    }
}

impl Record {
    /// The record in this file, which need not be there.
    #[must_use]
    pub fn at(file: PathBuf) -> Self {
        Self { file }
    }

    /// What several workers took. Their networks were loaded already, so these figures do not go with the others.
    #[must_use]
    pub fn of_workers() -> Self {
        Self::at(data_dir().join("workers.json"))
    }

    /// What whole runs took. Their `per_step` is one evaluation of the network, of which prompt and negative prompt take one each.
    #[must_use]
    pub fn of_runs() -> Self {
        Self::at(data_dir().join("runs.json"))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// What is known of a case.
    #[must_use]
    pub fn find(&self, case: &Case) -> Option<Measured> {
        let mut entries = self.read().into_iter();
        let entry = entries.find(|entry| entry.case == *case)?;
        Some(entry.result)
    }

    /// Adds what was measured.
    ///
    /// # Errors
    /// The file cannot be written; it is then what it was.
    pub fn add(&self, case: &Case, result: &Measured) -> std::io::Result<()> {
        // Other processes may have added theirs meanwhile.
        let mut measurements = self.read();
        measurements.retain(|entry| entry.case != *case);
        measurements.push(Entry {
            case: case.clone(),
            result: result.clone(),
        });
        let surplus = measurements.len().saturating_sub(MOST);
        measurements.drain(..surplus);
        let layout = Layout {
            schema: SCHEMA,
            measurements,
        };
        let folder = self.file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(&layout)?)?;
        file.persist(&self.file).map(drop).map_err(|e| e.error)
    }

    fn read(&self) -> Vec<Entry> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let layout = serde_json::from_str::<Layout>(&text).ok();
        let known = layout.filter(|layout| layout.schema == SCHEMA);
        known.map_or_else(Vec::new, |layout| layout.measurements)
    }
}

/// The processor's name, where Linux tells it.
#[must_use]
pub fn processor() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = cpus.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':'));
    name.map_or("unknown", |(_, name)| name.trim()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(ep: &str) -> Case {
        Case {
            processor: "a processor".to_owned(),
            instructions: "avx2".to_owned(),
            threads: 2,
            workers: 1,
            model: "abc".to_owned(),
            size: [512, 768],
            compute: Compute::F32,
            graph: Dialect::Auto,
            tile: false,
            ep: ep.to_owned(),
            options: vec!["num_streams=1".to_owned()],
            library: ("libonnxruntime.so".into(), 3),
        }
    }

    const SECONDS: Seconds = Seconds {
        encode: 0.5,
        load: 2.0,
        per_step: 0.25,
        decode: 1.0,
    };

    #[test]
    fn what_was_measured_is_found_for_the_same_case_only() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::at(dir.path().join("data/providers.json"));
        assert_eq!(record.find(&case("cpu")), None);
        let (took, failed) = (
            Measured::Took(SECONDS),
            Measured::Failed("no such file".to_owned()),
        );
        record.add(&case("cpu"), &failed).unwrap();
        record.add(&case("openvino"), &failed).unwrap();
        record.add(&case("cpu"), &took).unwrap();
        assert_eq!(record.find(&case("cpu")), Some(took));
        assert_eq!(record.find(&case("openvino")), Some(failed));
        let changes: [fn(&mut Case); 6] = [
            |case| case.threads = 1,
            |case| case.workers = 2,
            |case| case.size = [512, 512],
            |case| case.model = "abd".to_owned(),
            |case| case.compute = Compute::Bf16,
            |case| case.library.1 = 4,
        ];
        for change in changes {
            let mut other = case("cpu");
            change(&mut other);
            assert_eq!(record.find(&other), None, "{other:?}");
        }
        // Nothing else lies beside it.
        assert_eq!(fs::read_dir(dir.path().join("data")).unwrap().count(), 1);
    }

    #[test]
    fn a_record_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::at(dir.path().join("runs.json"));
        let of = |side| Case {
            size: [side, side],
            ..case("cpu")
        };
        for side in 0..=MOST {
            record.add(&of(side), &Measured::Took(SECONDS)).unwrap();
        }
        assert_eq!(record.find(&of(0)), None);
        assert!(record.find(&of(1)).is_some() && record.find(&of(MOST)).is_some());
    }

    #[test]
    fn a_broken_or_foreign_record_is_as_good_as_none_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::at(dir.path().join("providers.json"));
        let foreign = r#"{"schema": 2, "measurements": []}"#;
        for text in ["", "{", "[1, 2]", foreign, "\0\u{1}"] {
            fs::write(record.path(), text).unwrap();
            assert_eq!(record.find(&case("cpu")), None);
            record.add(&case("cpu"), &Measured::Took(SECONDS)).unwrap();
            assert_eq!(record.find(&case("cpu")), Some(Measured::Took(SECONDS)));
        }
    }

    #[test]
    fn a_picture_takes_all_its_parts() {
        assert_eq!(SECONDS.picture(8), 5.5);
        assert_eq!(Measured::Took(SECONDS).picture(0), Some(3.5));
        assert_eq!(Measured::Failed(String::new()).picture(1), None);
    }
}
