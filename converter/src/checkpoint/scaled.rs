//! Quantized weights. Those with scales, in 8-bit floats, are multiplied when they are read; others are refused by name.
//!
//! A scale is one number or one per row. `MODULE.scale_weight` with a marker `scaled_fp8` is the older spelling of ComfyUI;
//! `MODULE.weight_scale` is that of diffusers and of newer ComfyUI, which adds `MODULE.comfy_quant` (JSON). Scales of
//! activations are for programs that compute in 8 bits. As in ComfyUI, a weight that only the marker speaks of has the scale
//! 1, and one of another type than 8-bit floats is multiplied all the same; both are told.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::{CheckpointError, Dtype, TensorInfo, TensorSource, to_f32};
use crate::error::some_of;

/// Parts of names that only weights of other programs have, and those programs or their formats.
const UNREADABLE: &[(&str, &str)] = &[
    (".quant_state.", "bitsandbytes"),
    (".quant_map", "bitsandbytes"),
    (".absmax", "bitsandbytes"),
    (".nested_absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".weight_format", "bitsandbytes"),
    (".weight_scale_2", "NVFP4"),
    (".weight_scale_inv", "fp8 in blocks"),
    (".weight_zero_point", "integers with zero points"),
    (".weight_packed", "packed integers"),
    (".weight._data", "optimum-quanto"),
    (".weight._scale", "optimum-quanto"),
    (".weight_quantizer.", "NVIDIA ModelOpt"),
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".wscales", "SVDQuant"),
];

/// Ends of the names of weights' scales.
const SCALES: [&str; 2] = [".weight_scale", ".scale_weight"];
/// Ends of the names of activations' scales.
const OF_ACTIVATIONS: [&str; 4] = [
    ".input_scale",
    ".scale_input",
    ".output_scale",
    ".scale_output",
];
/// End of the name of a tensor that says that a file has scales.
const MARKER: &str = "scaled_fp8";
/// End of the name of a tensor that says how a weight is quantized.
const DESCRIPTION: &str = ".comfy_quant";
/// The ways of quantizing that scales undo.
const READABLE: [&str; 2] = ["float8_e4m3fn", "float8_e5m2"];

/// A file some of whose weights are to be multiplied by scales: it is as if it held the products in single precision, and
/// no scales.
struct Scaled {
    source: Box<dyn TensorSource>,
    tensors: BTreeMap<String, TensorInfo>,
    /// One number, or one per row, by weight.
    scales: BTreeMap<String, Vec<f32>>,
    notes: Vec<String>,
}

/// The file as if it were not quantized.
///
/// # Errors
/// It is quantized in a way that cannot be read, or a scale is missing, does not fit its weight, or is no positive number.
pub(super) fn dequantized(
    source: Box<dyn TensorSource>,
) -> Result<Box<dyn TensorSource>, CheckpointError> {
    let (mut scales, mut hidden) = (BTreeMap::new(), BTreeSet::new());
    let (mut marked, mut described) = (Vec::new(), Vec::new());
    for name in source.tensors().keys() {
        if let Some((_, scheme)) = UNREADABLE.iter().find(|(part, _)| name.contains(part)) {
            return Err(quantized(source.path(), scheme, name));
        }
        if let Some(module) = module_of_scale(name) {
            let weight = format!("{module}.weight");
            let scale = read_scale(&*source, name, &weight)?;
            scales.insert(weight, scale);
            let of_activations = OF_ACTIVATIONS.map(|end| format!("{module}{end}"));
            hidden.extend(of_activations);
            hidden.insert(name.clone());
        } else if let Some(networks) = name.strip_suffix(MARKER) {
            marked.push(networks.to_owned());
            hidden.insert(name.clone());
        } else if let Some(module) = name.strip_suffix(DESCRIPTION) {
            check_description(&*source, name)?;
            described.push((format!("{module}.weight"), name.clone()));
            hidden.insert(name.clone());
        }
    }
    let unscaled = described
        .into_iter()
        .find(|(weight, _)| source.tensors().contains_key(weight) && !scales.contains_key(weight));
    if let Some((weight, evidence)) = unscaled {
        return Err(CheckpointError::ScaleMissing {
            path: source.path().to_owned(),
            weight,
            evidence,
        });
    }
    if hidden.is_empty() {
        return Ok(source);
    }
    let notes = notes(&*source, &scales, &marked);
    let mut tensors = source.tensors().clone();
    tensors.retain(|name, _| !hidden.contains(name));
    for weight in scales.keys() {
        if let Some(info) = tensors.get_mut(weight) {
            info.dtype = Dtype::F32;
        }
    }
    Ok(Box::new(Scaled {
        source,
        tensors,
        scales,
        notes,
    }))
}

/// What is unusual about a file's scales: `marked` are the beginnings of names for which a marker promises some.
fn notes(
    source: &dyn TensorSource,
    scales: &BTreeMap<String, Vec<f32>>,
    marked: &[String],
) -> Vec<String> {
    let is_8_bit = |dtype| matches!(dtype, Dtype::F8E4M3 | Dtype::F8E5M2);
    let (mut without, mut wide) = (Vec::new(), Vec::new());
    for (name, info) in source.tensors() {
        let promised = || marked.iter().any(|networks| name.starts_with(networks));
        match (scales.contains_key(name), is_8_bit(info.dtype)) {
            (true, false) => wide.push(name),
            (false, true) if name.ends_with(".weight") && promised() => without.push(name),
            _ => {}
        }
    }
    let path = source.path().display();
    let told = [
        (without, "8-bit weights have no scale; taking 1"),
        (
            wide,
            "weights that are not in 8 bits are multiplied by their scales",
        ),
    ];
    let told = told.iter().filter(|(names, _)| !names.is_empty());
    told.map(|(names, what)| format!("{path}: {} {what}: {}", names.len(), some_of(names)))
        .collect()
}

fn module_of_scale(name: &str) -> Option<&str> {
    SCALES.iter().find_map(|end| name.strip_suffix(end))
}

fn quantized(path: &Path, scheme: &str, evidence: &str) -> CheckpointError {
    CheckpointError::Quantized {
        path: path.to_owned(),
        scheme: scheme.to_owned(),
        evidence: evidence.to_owned(),
    }
}

/// The numbers of a scale, which fit its weight. Zero is the scale of zeros alone.
fn read_scale(
    source: &dyn TensorSource,
    name: &str,
    weight: &str,
) -> Result<Vec<f32>, CheckpointError> {
    let path = source.path();
    let Some(of) = source.tensors().get(weight) else {
        return Err(CheckpointError::ScaleAlone {
            path: path.to_owned(),
            scale: name.to_owned(),
            weight: weight.to_owned(),
        });
    };
    if !of.dtype.is_float() {
        return Err(quantized(path, &format!("{} with scales", of.dtype), name));
    }
    let info = &source.tensors()[name];
    let rows = of.shape.first().copied().unwrap_or(1);
    let count: usize = info.shape.iter().product();
    let per_row = info.shape.first() == Some(&rows) && count == rows;
    if count != 1 && !per_row {
        return Err(CheckpointError::Shape {
            path: path.to_owned(),
            name: name.to_owned(),
            found: info.shape.clone(),
            expected: format!("one scale for `{weight}`, or one for each of its {rows} rows"),
        });
    }
    let scale = values(source, name)?;
    let wrong = |value: &&f32| !(value.is_finite() && **value >= 0.0);
    let mut bad = scale.iter().find(wrong).copied();
    if bad.is_none() && scale.contains(&0.0) {
        let of = values(source, weight)?;
        let rows = of.chunks((of.len() / scale.len()).max(1)).zip(&scale);
        let mut nulled =
            rows.filter(|(row, scale)| **scale == 0.0 && row.iter().any(|x| *x != 0.0));
        bad = nulled.next().map(|(_, scale)| *scale);
    }
    match bad {
        None => Ok(scale),
        Some(value) => Err(CheckpointError::BadScale {
            path: path.to_owned(),
            scale: name.to_owned(),
            weight: weight.to_owned(),
            value,
        }),
    }
}

/// A tensor in single precision.
fn values(source: &dyn TensorSource, name: &str) -> Result<Vec<f32>, CheckpointError> {
    let dtype = source.tensors()[name].dtype;
    to_f32(dtype, &source.bytes(name)?).map_err(|problem| CheckpointError::Convert {
        path: source.path().to_owned(),
        name: name.to_owned(),
        problem,
    })
}

/// ComfyUI's description of a weight must be one that a scale is enough for.
fn check_description(source: &dyn TensorSource, name: &str) -> Result<(), CheckpointError> {
    let json: Option<Value> = serde_json::from_slice(&source.bytes(name)?).ok();
    let format = json.as_ref().and_then(|json| json["format"].as_str());
    match format {
        Some(format) if READABLE.contains(&format) => Ok(()),
        Some(format) => Err(quantized(source.path(), format, name)),
        None => Err(quantized(source.path(), "an unknown format", name)),
    }
}

impl TensorSource for Scaled {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        self.source.metadata()
    }

    fn published(&self, name: &str) -> Option<Dtype> {
        self.source.published(name)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let Some(scales) = self.scales.get(name) else {
            return self.source.bytes(name);
        };
        let mut values = values(&*self.source, name)?;
        let row = values.len() / scales.len().max(1);
        for (row, scale) in values.chunks_mut(row.max(1)).zip(scales) {
            row.iter_mut().for_each(|value| *value *= scale);
        }
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        Ok(Cow::Owned(bytes.collect()))
    }

    fn file_bytes(&self) -> &[u8] {
        self.source.file_bytes()
    }

    fn check(&self) -> Result<(), CheckpointError> {
        self.source.check()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}
