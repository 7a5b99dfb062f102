//! What a file or model directory holds, without converting anything.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use sd_models::family;
use sd_models::keys::ldm::Layout;
use sd_models::keys::{Component, Key};
use sd_models::manifest::Manifest;
use serde::Serialize;

use crate::ConvertError;
use crate::build::{BuildOptions, BuildPlan};
use crate::checkpoint::{SafetensorsFile, TensorSource};
use crate::verify::read_manifest;

/// Version of [`FileReport`]'s JSON form.
pub const SCHEMA: u32 = 1;

/// What is in a file of tensors.
#[derive(Debug, Serialize)]
pub struct FileReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// File name.
    pub name: String,
    /// Length of the file.
    pub size_bytes: u64,
    /// What it is: a family, or another kind of file.
    pub kind: String,
    /// Names or shapes that show it.
    pub evidence: String,
    /// Why `sdconvert build` would refuse it; absent where it would not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What is in it, by part: the networks, running averages, things without influence, things unknown.
    pub parts: BTreeMap<String, Part>,
    /// Text that its writer left.
    pub metadata: BTreeMap<String, String>,
}

/// Some of a file's tensors.
#[derive(Debug, Default, Serialize)]
pub struct Part {
    /// How many tensors.
    pub tensors: usize,
    /// How many numbers.
    pub parameters: u64,
    /// Tensors by element type.
    pub dtypes: BTreeMap<String, usize>,
}

/// Reads the header of a file of tensors.
///
/// # Errors
/// It is no safetensors file, or a damaged one.
pub fn inspect_file(path: &Path) -> Result<FileReport, ConvertError> {
    let source = SafetensorsFile::open(path)?;
    let mut parts: BTreeMap<String, Part> = BTreeMap::new();
    for (name, info) in source.tensors() {
        let part = match Layout::SD.classify(name) {
            Key::Weight(Component::UNet, _) => "unet",
            Key::Weight(Component::Vae, _) => "vae",
            Key::Weight(Component::TextEncoder, _) => "text_encoder",
            Key::Ema => "ema",
            Key::Ignorable => "without influence",
            Key::Unknown => "unknown",
        };
        let part = parts.entry(part.to_owned()).or_default();
        part.tensors += 1;
        part.parameters += info.shape.iter().product::<usize>() as u64;
        *part.dtypes.entry(info.dtype.to_string()).or_default() += 1;
    }
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let (size_bytes, metadata) = (source.size_bytes(), source.metadata().clone());
    let foreign = family::foreign(source.tensors().keys().map(String::as_str));
    let foreign =
        foreign.map(|(kind, evidence)| (kind.to_owned(), format!("it holds `{evidence}`")));
    let options = BuildOptions {
        allow_partial: true,
        ..BuildOptions::default()
    };
    let (kind, evidence, refused) = match (foreign, BuildPlan::new(Box::new(source), None, options))
    {
        (_, Ok(plan)) => (plan.family().to_string(), plan.evidence(), None),
        (Some((kind, evidence)), Err(_)) => (kind, evidence, Some("not supported yet".to_owned())),
        (None, Err(e)) => (
            "no complete SD 1.x checkpoint".to_owned(),
            "its names and shapes".to_owned(),
            Some(e.to_string()),
        ),
    };
    Ok(FileReport {
        schema: SCHEMA,
        name,
        size_bytes,
        kind,
        evidence,
        refused,
        parts,
        metadata,
    })
}

impl fmt::Display for FileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} ({:.1} MB)",
            self.name,
            self.kind,
            self.size_bytes as f64 / 1e6
        )?;
        writeln!(f, "  because: {}", self.evidence)?;
        if let Some(reason) = &self.refused {
            writeln!(f, "  cannot be converted: {}", reason.replace('\n', "\n  "))?;
        }
        for (name, part) in &self.parts {
            let dtypes: Vec<String> = part
                .dtypes
                .iter()
                .map(|(dtype, n)| format!("{n} {dtype}"))
                .collect();
            let millions = part.parameters as f64 / 1e6;
            writeln!(
                f,
                "  {name}: {} tensors, {millions:.1} M numbers ({})",
                part.tensors,
                dtypes.join(", ")
            )?;
        }
        for (key, value) in &self.metadata {
            let short: String = value.chars().take(100).collect();
            let dots = if short.len() < value.len() { ".." } else { "" };
            writeln!(f, "  {key}: {short}{dots}")?;
        }
        Ok(())
    }
}

/// Reads the manifest of a model directory.
///
/// # Errors
/// It has none, or one of another schema.
pub fn inspect_dir(path: &Path) -> Result<Manifest, ConvertError> {
    read_manifest(path)?.ok_or_else(|| ConvertError::NotADirectory {
        path: path.to_owned(),
    })
}

/// A model directory's manifest in lines for people.
#[must_use]
pub fn describe(manifest: &Manifest) -> String {
    let mut lines = vec![format!(
        "{}: {}, converted by {}",
        manifest.title, manifest.family, manifest.converter
    )];
    for (name, component) in &manifest.components {
        let size: u64 = component.files.values().map(|file| file.size).sum();
        let storage = component.storage.join(" and ");
        lines.push(format!(
            "  {name}: {} over {storage} weights, {:.1} MB",
            component.precision,
            size as f64 / 1e6
        ));
    }
    for source in &manifest.sources {
        lines.push(format!(
            "  {} from {} (SHA-256 {})",
            source.role, source.name, source.sha256
        ));
    }
    if let Some(license) = &manifest.license {
        lines.push(format!("  licence: {license}"));
    }
    lines.join("\n") + "\n"
}
