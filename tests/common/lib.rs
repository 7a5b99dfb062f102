//! What end-to-end tests share: an engine, converted models, reference tensors, and measures of difference.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ndarray::ArrayD;
use safetensors::tensor::{Dtype, SafeTensors};
use sd_converter::build::{BuildOptions, BuildPlan, Precision};
use sd_converter::checkpoint::{SafetensorsFile, TensorSource};
use sd_converter::progress::Unwatched;
use sd_converter::synth::{Kind, Synth};
use sd_converter::weights::Weights;
use sd_models::demo;
use sd_runtime::engine::{Cancel, Engine, EngineError, EngineOptions, Ep, setup};
use sd_runtime::pipeline::{
    self, Destination, Dump, Event, ModelDir, Models, Picture, PipelineError, Plan, Plans, Request,
};
use tempfile::TempDir;

/// ONNX Runtime; fetched as `sdrun setup` does it if this machine has none.
///
/// # Panics
/// There is none to be had.
pub fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let start = || Engine::start(&EngineOptions::default());
        match start() {
            Err(EngineError::NoLibrary { .. }) => {
                setup::fetch(Ep::Cpu, |_| {}).expect("ONNX Runtime can be fetched");
                start().expect("the fetched library works")
            }
            other => other.expect("the installed library works"),
        }
    })
}

/// The demo model, converted.
///
/// # Panics
/// It cannot be converted.
pub fn demo_model() -> &'static Path {
    static MODEL: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = MODEL.get_or_init(|| {
        let source = SafetensorsFile::from_static(demo::FILE_NAME, demo::CHECKPOINT)
            .expect("it ships with us");
        converted(source)
    });
    path
}

/// The tiny synthetic SD 1.5 with seed 0, converted once.
///
/// # Panics
/// It cannot be made or converted.
pub fn synthetic_model() -> &'static Path {
    static MODEL: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = MODEL.get_or_init(|| synthetic("sd15"));
    path
}

/// A family's tiny synthetic model with seed 0, converted.
///
/// # Panics
/// It cannot be made or converted.
#[must_use]
pub fn synthetic(family: &str) -> (TempDir, PathBuf) {
    synthetic_as(family, Precision::Published)
}

/// [`synthetic`] with weights of any precision.
///
/// # Panics
/// It cannot be made or converted.
#[must_use]
pub fn synthetic_as(family: &str, precision: Precision) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("tiny.safetensors");
    let synth = Synth {
        kind: Kind::named(family).expect("a known family"),
        tiny: true,
        seed: 0,
    };
    synth
        .write(&file, false, &Unwatched)
        .expect("the folder can be written");
    let source = SafetensorsFile::open(&file).expect("it was just written");
    converted_as(source, precision)
}

/// Converts a checkpoint into a temporary folder.
///
/// # Panics
/// It cannot be converted.
pub fn converted(source: impl TensorSource + 'static) -> (TempDir, PathBuf) {
    converted_as(source, Precision::Published)
}

/// [`converted`] to weights of any precision.
///
/// # Panics
/// It cannot be converted.
pub fn converted_as(
    source: impl TensorSource + 'static,
    precision: Precision,
) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model");
    let weights = Weights::from_source(Box::new(source)).expect("a checkpoint");
    let options = BuildOptions {
        precision,
        ..BuildOptions::default()
    };
    let plan = BuildPlan::new(Box::new(weights), options).expect("a whole checkpoint");
    plan.write(&path, &Unwatched)
        .expect("the folder can be written");
    (dir, path)
}

/// A file of the repository, from its root.
#[must_use]
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The tensors of a reference file.
pub struct Reference {
    bytes: Vec<u8>,
}

impl Reference {
    /// Reads a safetensors file.
    ///
    /// # Panics
    /// It cannot be read.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        Self {
            bytes: std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
        }
    }

    /// The demo model's outputs in diffusers.
    #[must_use]
    pub fn demo() -> Self {
        Self::open(&repository("models/demo/tiny-shapes/reference.safetensors"))
    }

    /// A tensor of numbers.
    ///
    /// # Panics
    /// There is none of the name.
    #[must_use]
    pub fn get(&self, name: &str) -> ArrayD<f32> {
        self.read(name, Dtype::F32, |b| f32::from_le_bytes(*b))
    }

    /// [`Self::get`], if there is such a tensor.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<ArrayD<f32>> {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        file.tensor(name).ok()?;
        Some(self.get(name))
    }

    /// Inputs of a family's UNet or ControlNet, by name.
    #[must_use]
    pub fn unet_inputs(&self, family: &str) -> Vec<(String, ArrayD<f32>)> {
        let names = [
            "sample",
            "timestep",
            "encoder_hidden_states",
            "text_embeds",
            "time_ids",
            "timestep_cond",
        ];
        let get = |name: &str| {
            let value = self.find(&format!("{family}.unet.{name}"))?;
            Some((name.to_owned(), value))
        };
        names.into_iter().filter_map(get).collect()
    }

    /// A tensor of token ids.
    ///
    /// # Panics
    /// There is none of the name.
    #[must_use]
    pub fn ids(&self, name: &str) -> ArrayD<i64> {
        self.read(name, Dtype::I64, |b| i64::from_le_bytes(*b))
    }

    /// The bytes of a picture.
    ///
    /// # Panics
    /// There is none of the name.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let bytes = self.read(name, Dtype::U8, |b: &[u8; 1]| b[0]);
        bytes.into_raw_vec_and_offset().0
    }

    fn read<T, const N: usize>(
        &self,
        name: &str,
        dtype: Dtype,
        decode: impl Fn(&[u8; N]) -> T,
    ) -> ArrayD<T> {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let tensor = file
            .tensor(name)
            .unwrap_or_else(|e| panic!("`{name}`: {e}"));
        assert_eq!(tensor.dtype(), dtype, "`{name}`");
        let values = tensor.data().as_chunks().0.iter().map(decode).collect();
        ArrayD::from_shape_vec(tensor.shape(), values).expect("data and shape belong together")
    }
}

/// `|found - expected| / |expected|`.
///
/// # Panics
/// The shapes differ.
#[must_use]
pub fn relative_l2(found: &ArrayD<f32>, expected: &ArrayD<f32>) -> f64 {
    assert_eq!(found.shape(), expected.shape());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(
        &mut found
            .iter()
            .zip(expected)
            .map(|(a, b)| f64::from(*a) - f64::from(*b)),
    );
    difference / norm(&mut expected.iter().map(|x| f64::from(*x)))
}

/// Peak signal-to-noise ratio of two pictures with 8 bits per channel, in dB.
///
/// # Panics
/// The sizes differ.
#[must_use]
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = a
        .iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    10.0 * (255.0f64.powi(2) * a.len() as f64 / squares.sum::<f64>()).log10()
}

/// What a run made and said.
#[derive(Debug)]
pub struct Made {
    /// Its plans.
    pub plans: Vec<Plan>,
    /// Its pictures.
    pub pictures: Vec<Picture>,
    /// What the user would have been told.
    pub warnings: Vec<String>,
    /// Good to know.
    pub notes: Vec<String>,
    /// Model calls of the last picture.
    pub calls: usize,
    /// Settings that are known after the run.
    pub computed: Vec<(&'static str, String)>,
}

impl Made {
    /// What would go into the file of the first picture.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn infotext(&self) -> String {
        self.plans[0].infotext.with(&self.computed).to_string()
    }
}

/// Makes a request's pictures with the model in a folder.
///
/// # Errors
/// As [`pipeline::run`] and what comes before.
pub fn make(
    path: &Path,
    request: &Request,
    dump: Option<&mut Dump>,
) -> Result<Made, PipelineError> {
    make_with(&Models::one(ModelDir::open(path)?), request, dump)
}

/// Makes a request's pictures with models.
///
/// # Errors
/// As [`pipeline::run`] and what comes before.
pub fn make_with(
    models: &Models,
    request: &Request,
    dump: Option<&mut Dump>,
) -> Result<Made, PipelineError> {
    let plans = Plans::resolve(request, models, u64::MAX)?;
    let (mut warnings, mut notes, mut last) = (Vec::new(), Vec::new(), 0);
    let mut listener = |event: Event<'_>| match event {
        Event::Note(text) => notes.push(text.to_owned()),
        Event::Warning(text) => warnings.push(text.to_owned()),
        Event::Called { calls, .. } => last = calls,
        Event::Stage(_) | Event::Preview { .. } => {}
    };
    let cancel = Cancel::new();
    let outcome = pipeline::run(&plans, models, engine(), &cancel, &mut listener, dump)?;
    let computed = outcome.settings(0);
    Ok(Made {
        plans: plans.plans,
        pictures: outcome.pictures,
        warnings,
        notes,
        calls: last,
        computed,
    })
}

/// Makes the picture, and reads the inside of the run.
///
/// # Panics
///
/// The run fails, or there is no room for its tensors.
pub fn dumped(models: &Models, request: &Request) -> (Made, Reference) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("dump.safetensors");
    let mut dump = Dump::default();
    let made = make_with(models, request, Some(&mut dump)).expect("the picture is made");
    let to = Destination::find(&file).expect("the folder is there");
    dump.write(&to, &Cancel::new())
        .expect("the dump is written");
    (made, Reference::open(&file))
}

/// A request that the demo model fulfils well in few steps.
#[must_use]
pub fn circle() -> Request {
    Request {
        prompt: "a large red circle on a blue background".to_owned(),
        guidance_scale: Some(5.0),
        seed: 1,
        steps: Some(8),
        ..Request::default()
    }
}

/// Copies a folder with everything in it.
///
/// # Panics
/// It cannot be read or written.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a folder that can be copied");
    for entry in std::fs::read_dir(from).expect("a folder that can be copied") {
        let entry = entry.expect("a folder that can be copied");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a folder that can be copied");
        }
    }
}
