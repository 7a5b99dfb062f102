//! What a file or model directory holds, without converting anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use sd_models::family::ADAPTER;
use sd_models::keys::Key;
use sd_models::keys::layout::Layout;
use sd_models::manifest::{Manifest, Variant};
use serde::Serialize;

use crate::build::{BuildOptions, BuildPlan};
use crate::checkpoint::folder::open_folder;
use crate::checkpoint::{TensorSource, open};
use crate::embedding::{Embedding, Vectors};
use crate::lora::{self, Description};
use crate::verify::read_manifest;
use crate::weights::Weights;
use crate::{ConvertError, Remedy};

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
    /// Why a conversion would refuse it; absent where it would not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What can be done about that.
    #[serde(skip)]
    pub remedy: Option<Remedy>,
    /// What is in it, by part: the networks, running averages, things without influence, things unknown.
    pub parts: BTreeMap<String, Part>,
    /// What it adds to models, if it is a LoRA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Description>,
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

/// Reads the headers of a file of tensors, or of the files of a folder.
///
/// # Errors
/// It cannot be read, or is damaged.
pub fn inspect_file(path: &Path) -> Result<FileReport, ConvertError> {
    let sources = if path.is_dir() {
        let folder = open_folder(path, None)?;
        let components = folder.components.into_iter();
        components
            .flat_map(|c| {
                c.files
                    .into_iter()
                    .map(move |file| (Some(c.component), file))
            })
            .collect()
    } else {
        vec![(None, open(path)?)]
    };
    let mut parts: BTreeMap<String, Part> = BTreeMap::new();
    for (component, source) in &sources {
        let names: BTreeSet<&str> = source.tensors().keys().map(String::as_str).collect();
        let layout = match component {
            Some(component) => Layout::of_component(*component, &names),
            None => Layout::detect(&names),
        };
        count_parts(&**source, &layout, &mut parts);
    }
    let name = path.file_name();
    let name = name.map(|n| n.to_string_lossy().into_owned());
    let mut report = FileReport {
        schema: SCHEMA,
        name: name.unwrap_or_default(),
        size_bytes: sources.iter().map(|(_, source)| source.size_bytes()).sum(),
        kind: String::new(),
        evidence: String::new(),
        refused: None,
        remedy: None,
        parts,
        lora: None,
        metadata: sources[0].1.metadata().clone(),
    };
    let one = match &sources[..] {
        [(None, source)] => Some(&**source),
        _ => None,
    };
    let embedding = one.map(Embedding::read).transpose()?.flatten();
    if let Some(embedding) = embedding {
        "a textual inversion".clone_into(&mut report.kind);
        report.evidence = describe_embedding(&embedding);
        report.refused = Some("it is a word for prompts, not a model".to_owned());
        return Ok(report);
    }
    if let Some((source, key)) = one.and_then(|source| Some((source, lora::adapter_key(source)?))) {
        if let Some(part) = report.parts.remove("unknown") {
            report.parts.insert("lora".to_owned(), part);
        }
        report.evidence = format!("it holds `{key}`");
        match lora::describe(source) {
            Ok(lora) => {
                report.kind = lora.title();
                report.refused = Some("it is no model of its own".to_owned());
                report.remedy = Some(Remedy::AsLora);
                report.lora = Some(lora);
            }
            Err(e) => {
                ADAPTER.clone_into(&mut report.kind);
                report.refuse(&e, e.hint());
            }
        }
        return Ok(report);
    }
    let options = BuildOptions {
        allow_partial: true,
        ..BuildOptions::default()
    };
    match Weights::open(path, None).and_then(|w| BuildPlan::new(Box::new(w), options)) {
        Ok(plan) => {
            plan.kind().clone_into(&mut report.kind);
            plan.basis().clone_into(&mut report.evidence);
            if let Some(e) = ConvertError::leftover(path, &plan.residue().unknown) {
                report.refuse(&e, e.hint());
            }
        }
        Err(ConvertError::UnsupportedFamily { kind, evidence, .. }) => {
            report.kind = kind;
            report.evidence = format!("it holds `{evidence}`");
            report.refused = Some("not supported".to_owned());
        }
        Err(e) => {
            "no complete model".clone_into(&mut report.kind);
            "its names and shapes".clone_into(&mut report.evidence);
            report.refuse(&e, e.hint());
        }
    }
    Ok(report)
}

impl FileReport {
    /// Notes why a conversion would refuse it.
    fn refuse(&mut self, error: &dyn fmt::Display, remedy: Option<Remedy>) {
        self.refused = Some(error.to_string());
        self.remedy = remedy;
    }
}

fn describe_embedding(embedding: &Embedding) -> String {
    let describe = |v: &Vectors| {
        let (tokens, width) = (v.tokens(), v.width);
        format!("{tokens} vectors of width {width}, for {}", v.made_for())
    };
    let vectors: Vec<String> = embedding.vectors.iter().map(describe).collect();
    match &embedding.name {
        Some(name) => format!("`{name}`: {}", vectors.join("; ")),
        None => vectors.join("; "),
    }
}

fn count_parts(source: &dyn TensorSource, layout: &Layout, parts: &mut BTreeMap<String, Part>) {
    for (name, info) in source.tensors() {
        let part = match layout.classify(name) {
            Key::Weight(component, _) => component.name(),
            Key::Ema => "ema",
            Key::Ignorable => "without influence",
            Key::Unknown => "unknown",
        };
        let part = parts.entry(part.to_owned()).or_default();
        part.tensors += 1;
        part.parameters += info.shape.iter().product::<usize>() as u64;
        let dtype = match source.published(name) {
            Some(stored) if stored != info.dtype => format!("{stored} with scales"),
            _ => info.dtype.to_string(),
        };
        *part.dtypes.entry(dtype).or_default() += 1;
    }
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
        if let Some(lora) = &self.lora {
            write!(f, "{lora}")?;
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

/// What a directory holds, by its manifest.
fn kind_of(manifest: &Manifest) -> String {
    match (&manifest.family, &manifest.architecture) {
        (Some(family), Some(architecture)) => format!("{family} ({architecture})"),
        (Some(family), None) => family.to_string(),
        (None, _) => "an autoencoder".to_owned(),
    }
}

/// What a variant needs beyond ONNX, and what it multiplies.
fn requirements(variant: &Variant) -> String {
    let operators = variant.custom_domains.iter();
    let operators = operators.map(|domain| format!("operators {domain}"));
    let needs: Vec<String> = operators.chain(variant.needs.iter().cloned()).collect();
    let with = match needs.is_empty() {
        true => String::new(),
        false => format!(" with {}", needs.join(", ")),
    };
    match &variant.multiplies {
        Some(numbers) => format!("{with}, multiplies {numbers}"),
        None => with,
    }
}

/// A model directory's manifest in lines for people.
#[must_use]
pub fn describe(manifest: &Manifest) -> String {
    let mut lines = vec![format!(
        "{}: {}, converted by {}",
        manifest.title,
        kind_of(manifest),
        manifest.converter
    )];
    for (name, component) in &manifest.components {
        let size: u64 = component.files.values().map(|file| file.size).sum();
        let storage = component.storage.join(" and ");
        lines.push(format!(
            "  {name}: {} over {storage} weights, {:.1} MB",
            component.precision,
            size as f64 / 1e6
        ));
        for (file, variant) in &component.variants {
            lines.push(format!("    {file}{}", requirements(variant)));
        }
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
