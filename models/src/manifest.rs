//! `sdrt.json`: what a model directory holds beyond the files that diffusers and optimum define.
//!
//! The contract between `sdconvert`, which writes it, and `sdrun`, which reads it. Fields may be added; `schema` changes
//! when a reader of the old one would go wrong.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::defaults::Defaults;
use crate::family::{ModelFamily, Purpose};

/// File name of the manifest, at the top of the model directory.
pub const FILE_NAME: &str = "sdrt.json";

/// Version of this schema.
pub const SCHEMA: u32 = 1;

/// External data beside each `model.onnx`.
pub const DATA_FILE: &str = "model.onnx_data";

/// Folder of textual inversions that LoRAs brought along.
pub const EMBEDDINGS: &str = "embeddings";

/// What a model directory holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// Name and version of the program that wrote the directory.
    pub converter: String,
    /// Family the weights were recognised as; directories without a pipeline have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<ModelFamily>,
    /// Name of the UNet's structure, if it has one (`sd15`, `ssd-1b`, ..).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// What the UNet's input channels are for.
    #[serde(default)]
    pub purpose: Purpose,
    /// What the UNet predicts.
    pub prediction_type: PredictionType,
    /// The latent space.
    pub latent: Latent,
    /// Width and height in pixels that the model makes by default.
    pub default_size: [usize; 2],
    /// What it is run with, if that is not the usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<Defaults>,
    /// By folder name: `text_encoder`, `unet`, `vae_encoder`, `vae_decoder`.
    pub components: BTreeMap<String, Component>,
    /// Every file that weights were taken from.
    pub sources: Vec<Source>,
    /// LoRAs baked into the weights, in the order of application.
    pub loras: Vec<Lora>,
    /// Licence that the source declares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Name that the source declares, or its file name.
    pub title: String,
}

impl Manifest {
    /// The first name of a component or a file that is no name of an entry of a folder: who follows it leaves the directory.
    #[must_use]
    pub fn stray_name(&self) -> Option<&str> {
        let components = self.components.iter();
        let mut names = components.flat_map(|(folder, component)| {
            let variants = &component.variants;
            let needs = variants.values().flat_map(|variant| &variant.needs);
            let files = component.files.keys().chain(variants.keys()).chain(needs);
            std::iter::once(folder).chain(files)
        });
        names.find(|name| !is_entry(name)).map(String::as_str)
    }
}

/// Whether a name is that of an entry of a folder: no path, and nothing that leads out of it.
#[must_use]
pub fn is_entry(name: &str) -> bool {
    !["", ".", ".."].contains(&name) && !name.contains(['/', '\\', '\0'])
}

/// What a UNet's output is an estimate of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// Velocity (Salimans and Ho 2022).
    VPrediction,
    /// The clean sample.
    Sample,
}

/// The autoencoder's latent space.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latent {
    /// Channels.
    pub channels: usize,
    /// Pixels per latent, in each direction.
    pub downscale: usize,
    /// What the encoder's output is multiplied by.
    pub scaling_factor: f64,
}

/// One network's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Type the weights are computed in.
    pub precision: String,
    /// Type or types the weights are stored in.
    pub storage: Vec<String>,
    /// Graph variants, by file name in the component's folder, and what each needs to run.
    pub variants: BTreeMap<String, Variant>,
    /// Every file of the folder, by name.
    pub files: BTreeMap<String, File>,
}

/// What it takes to run a graph variant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// ONNX operator set of the default domain.
    pub opset: i64,
    /// Operator domains other than ONNX's own, with their versions: `sdrt:1`.
    pub custom_domains: Vec<String>,
    /// Variants of the component whose outputs are inputs of this one. They run first: `native.prompt.onnx` once per prompt,
    /// `native.time.onnx` once per noise level.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// What its linear layers and convolutions multiply, if it is not single precision: `int8`, unsigned activations times signed
    /// weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplies: Option<String>,
    /// Where it has the ranges of the activations from that it multiplies as whole numbers: `dynamic`, it looks for them when it runs;
    /// `norms`, the model's norms tell them; `runs`, a calibration does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<String>,
}

/// A file's size and content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub sha256: String,
}

/// A file that weights were taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// What was taken: `checkpoint` or `vae`.
    pub role: String,
    /// File name, without its folder.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 of the file, in hexadecimal: what model sites list.
    pub sha256: String,
}

/// A LoRA, or a relative of one, baked into the weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// File name, without its folder.
    pub name: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Strength in the UNet.
    pub unet: f64,
    /// Strength in the text encoder.
    pub text_encoder: f64,
    /// Factors of the strength by block, if there are any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub block_weights: BTreeMap<String, f64>,
    /// Name that its trainer gave it, by which prompts may call it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Words for prompts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trigger_words: Vec<String>,
    /// How it was trained, as far as its file says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub training: BTreeMap<String, String>,
    /// Textual inversions that it brought, in the folder `embeddings`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embeddings: Vec<String>,
    /// What it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<LoraReport>,
}

/// What a LoRA did to the weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoraReport {
    /// Family that it is made for, by its modules' names and shapes or by its metadata.
    pub made_for: Option<String>,
    /// Modules by kind: `LoRA`, `LoHa`, ..
    pub kinds: BTreeMap<String, usize>,
    /// Smallest and largest rank.
    pub ranks: Option<[usize; 2]>,
    /// What became of its modules.
    pub modules: LoraModules,
    /// Norm of the change over the norm of the changed weights, by text encoder (`TE1`, `TE2`) and block of the UNet.
    pub change: Vec<(String, f64)>,
}

/// Modules of a LoRA, by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoraModules {
    /// They changed weights.
    pub applied: usize,
    /// The strength is 0.
    pub off: usize,
    /// The weight of their block is 0.
    pub silenced: usize,
    /// Their numbers are zero.
    pub zero: usize,
    /// The model has no such layer.
    pub no_target: Vec<String>,
    /// The model's layer has another shape.
    pub other_shape: Vec<String>,
    /// The network does not run that layer.
    pub unused_layer: Vec<String>,
}

/// Bytes of a hash as manifests write them: lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_names_without_a_way() {
        assert!(
            ["model.onnx", "..data", "a b", ".x"]
                .into_iter()
                .all(is_entry)
        );
        let ways = ["", ".", "..", "../x", "/x", "a/b", "a\\b", "x/"];
        assert!(!ways.into_iter().any(is_entry));
    }

    #[test]
    fn a_manifest_survives_json() {
        let manifest = Manifest {
            schema: SCHEMA,
            converter: "sdconvert 0.1.0".into(),
            family: Some(ModelFamily::Sd15),
            architecture: Some("sd15".into()),
            purpose: Purpose::TextToImage,
            prediction_type: PredictionType::Epsilon,
            latent: Latent {
                channels: 4,
                downscale: 8,
                scaling_factor: 0.18215,
            },
            default_size: [512, 512],
            defaults: None,
            components: BTreeMap::from([(
                "unet".to_owned(),
                Component {
                    precision: "f32".into(),
                    storage: vec!["F16".into()],
                    variants: BTreeMap::from([(
                        "model.onnx".to_owned(),
                        Variant {
                            opset: 17,
                            ..Variant::default()
                        },
                    )]),
                    files: BTreeMap::from([(
                        "model.onnx".to_owned(),
                        File {
                            size: 3,
                            sha256: "00".into(),
                        },
                    )]),
                },
            )]),
            sources: vec![Source {
                role: "checkpoint".into(),
                name: "a.safetensors".into(),
                size: 1,
                sha256: "11".into(),
            }],
            loras: vec![],
            license: None,
            title: "a".into(),
        };
        let json = serde_json::to_string_pretty(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
        insta::assert_snapshot!(json);
    }
}
