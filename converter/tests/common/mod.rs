//! What the converter's tests share: the program, and synthetic checkpoints.

#![allow(dead_code, reason = "each test file uses some of it")]

pub(crate) mod lora;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sd_converter::Remedy;
use sd_converter::build::{BuildOptions, BuildPlan};
use sd_converter::checkpoint::{TensorSource, open, to_f32};
use sd_converter::progress::Unwatched;
use sd_converter::synth::{Kind, Synth};
use sd_converter::weights::Weights;

/// Runs `sdconvert`.
pub(crate) fn sdconvert(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_sdconvert");
    let mut command = Command::new(program);
    command.args(args).env("NO_COLOR", "1").output().unwrap()
}

/// What a program printed.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A family's tiny checkpoint, `FAMILY-SEED.safetensors` in a folder.
pub(crate) fn synthetic(dir: &Path, family: &str, seed: u64) -> PathBuf {
    let path = dir.join(format!("{family}-{seed}.safetensors"));
    let synth = Synth {
        kind: Kind::named(family).unwrap(),
        tiny: true,
        seed,
    };
    synth.write(&path, true, &Unwatched).unwrap();
    path
}

/// A tensor of a file, in single precision.
pub(crate) fn values(source: &dyn TensorSource, name: &str) -> Vec<f32> {
    let dtype = source.tensors()[name].dtype;
    to_f32(dtype, &source.bytes(name).unwrap()).unwrap()
}

/// Why a file is not opened.
pub(crate) fn error_of(path: &Path) -> String {
    match open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(e) => with_hint(&e, e.hint()),
    }
}

/// An error, and what can be done about it.
pub(crate) fn with_hint(error: &dyn Display, hint: Option<Remedy>) -> String {
    match hint {
        Some(hint) => format!("{error}\nhint: {hint}"),
        None => error.to_string(),
    }
}

/// The external data of every network, by folder.
pub(crate) fn converted(input: &Path, target: &Path) -> BTreeMap<String, Vec<u8>> {
    let weights = Weights::open(input, None).unwrap();
    let plan = BuildPlan::new(Box::new(weights), BuildOptions::default()).unwrap();
    let report = plan.write(target, &Unwatched).unwrap();
    let folders = report.manifest.components.keys();
    let data = |folder: &String| fs::read(target.join(folder).join("model.onnx_data")).unwrap();
    folders
        .map(|folder| (folder.clone(), data(folder)))
        .collect()
}

/// A tensor of a file to be written: type, shape, data.
pub(crate) type Raw = (safetensors::Dtype, Vec<usize>, Vec<u8>);

/// Writes a safetensors file.
pub(crate) fn write_raw(path: &Path, tensors: &BTreeMap<String, Raw>) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), data);
        (name, view.unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A tensor as it is.
pub(crate) fn raw(dtype: safetensors::Dtype, shape: &[usize], data: &[u8]) -> Raw {
    (dtype, shape.to_vec(), data.to_vec())
}

/// A number, or a column of them, in single precision.
pub(crate) fn floats(values: &[f32]) -> Raw {
    let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let shape: &[usize] = if values.len() == 1 {
        &[]
    } else {
        &[values.len(), 1]
    };
    raw(safetensors::Dtype::F32, shape, &data)
}
