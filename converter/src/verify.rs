//! Checks model directories: hashes, graph structure, external data, names at the boundary.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use sd_models::diffusers::COMPONENTS;
use sd_models::graph::custom;
use sd_models::manifest::{self, Component, DATA_FILE, Manifest, Variant};

use crate::ConvertError;
use crate::build::hash_file;
use crate::onnx::Stored;
use crate::onnx::proto::{EXTERNAL, GraphProto, ModelProto, TensorProto, data_type};
use crate::progress::Progress;

/// Largest `model.onnx` that is read: weights belong into external data.
const MAX_GRAPH_BYTES: u64 = 256 << 20;

/// What was checked.
#[derive(Debug)]
pub struct VerifyReport {
    /// The manifest; folders made by other programs have none.
    pub manifest: Option<Manifest>,
    /// Graphs whose structure was checked, and their number of nodes.
    pub graphs: Vec<(String, usize)>,
    /// Bytes whose hash was compared.
    pub hashed: u64,
}

/// Reads a directory's manifest, if it has one.
///
/// # Errors
/// It cannot be read or is of another schema.
pub fn read_manifest(dir: &Path) -> Result<Option<Manifest>, ConvertError> {
    let path = dir.join(manifest::FILE_NAME);
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).map_err(ConvertError::read(&path))?;
    let manifest: Manifest =
        serde_json::from_str(&text).map_err(|e| damaged(&path, format!("not a manifest: {e}")))?;
    if manifest.schema != manifest::SCHEMA {
        let problem = format!(
            "its schema is {}, this program reads {}",
            manifest.schema,
            manifest::SCHEMA
        );
        return Err(damaged(&path, problem));
    }
    if let Some(name) = manifest.stray_name() {
        let problem = format!("it lists `{name}`, which is no file of the directory");
        return Err(damaged(&path, problem));
    }
    Ok(Some(manifest))
}

/// Bytes that [`verify_dir`] reads.
#[must_use]
pub fn work_bytes(manifest: Option<&Manifest>) -> u64 {
    let components = manifest.into_iter().flat_map(|m| m.components.values());
    components
        .flat_map(|c| c.files.values())
        .map(|f| f.size)
        .sum()
}

/// Checks a model directory.
///
/// # Errors
/// Whatever is wrong with it first.
pub fn verify_dir(dir: &Path, progress: &dyn Progress) -> Result<VerifyReport, ConvertError> {
    let manifest = read_manifest(dir)?;
    let mut report = VerifyReport {
        manifest,
        graphs: Vec::new(),
        hashed: 0,
    };
    for (folder, component) in report.manifest.iter().flat_map(|m| &m.components) {
        for (name, expected) in &component.files {
            let path = dir.join(folder).join(name);
            let size = fs::metadata(&path)
                .map_err(ConvertError::read(&path))?
                .len();
            if size != expected.size {
                return Err(damaged(
                    &path,
                    format!(
                        "it has {size} bytes, but the manifest says {}",
                        expected.size
                    ),
                ));
            }
            let (sha256, _) = hash_file(&path, progress)?;
            if sha256 != expected.sha256 {
                let problem = format!(
                    "its SHA-256 is {sha256}, but the manifest says {}",
                    expected.sha256
                );
                return Err(damaged(&path, problem));
            }
            report.hashed += size;
        }
    }
    for folder in COMPONENTS {
        let components = report.manifest.as_ref().map(|m| &m.components);
        let component = components.and_then(|c| c.get(folder));
        let mut graphs = BTreeMap::new();
        for name in graphs_in(&dir.join(folder)) {
            let path = dir.join(folder).join(&name);
            let label = format!("{folder}/{name}");
            let boundary = verify_graph(&path)?;
            report.graphs.push((label, boundary.nodes));
            graphs.insert(name, boundary);
        }
        if components.is_some() && component.is_none() && !graphs.is_empty() {
            let problem = format!("it does not list `{folder}`, which has graphs");
            return Err(damaged(&dir.join(manifest::FILE_NAME), problem));
        }
        for (name, variant) in component.iter().flat_map(|c| &c.variants) {
            verify_variant(&dir.join(folder), name, variant, &graphs)?;
        }
        if let Some(component) = component {
            verify_types(component, &graphs).map_err(|problem| {
                damaged(
                    &dir.join(manifest::FILE_NAME),
                    format!("{folder}: {problem}"),
                )
            })?;
        }
    }
    if report.graphs.is_empty() {
        return Err(damaged(dir, "it holds no graph".to_owned()));
    }
    Ok(report)
}

/// What a graph takes, makes and needs.
struct Boundary {
    nodes: usize,
    inputs: BTreeSet<String>,
    outputs: BTreeSet<String>,
    /// Domains of its operators other than ONNX's own, as manifests write them.
    domains: BTreeSet<String>,
    /// What its weights are stored in.
    storage: BTreeSet<&'static str>,
    /// What it computes in, by the numbers that come out.
    precision: BTreeSet<&'static str>,
}

/// Checks that a component's graphs have numbers of the types that the manifest says.
fn verify_types(component: &Component, graphs: &BTreeMap<String, Boundary>) -> Result<(), String> {
    let listed = graphs
        .iter()
        .filter(|(name, _)| component.files.contains_key(*name));
    let listed: Vec<&Boundary> = listed.map(|(_, graph)| graph).collect();
    let all = |of: fn(&Boundary) -> &BTreeSet<&'static str>| -> BTreeSet<&str> {
        listed.iter().flat_map(|graph| of(graph)).copied().collect()
    };
    let (storage, precision) = (all(|g| &g.storage), all(|g| &g.precision));
    let said: BTreeSet<&str> = component.storage.iter().map(String::as_str).collect();
    if storage != said {
        return Err(format!(
            "it says that weights are stored in {said:?}, but those of the graphs are in {storage:?}"
        ));
    }
    let said = BTreeSet::from([&*component.precision]);
    if precision != said {
        return Err(format!(
            "it says that {said:?} is computed in, but the graphs return {precision:?}"
        ));
    }
    Ok(())
}

/// Names of the types that weights are stored in, as manifests write them. Small weights and constants, which lie in the graph, do
/// not count, but for whole numbers.
fn storage(graph: &GraphProto) -> BTreeSet<&'static str> {
    let tensors = graph.initializer.iter();
    let weights = tensors.filter(|t| t.data_location == EXTERNAL || t.data_type == data_type::INT8);
    let stored = weights.filter_map(|tensor| Stored::of_onnx(tensor.data_type));
    stored.map(Stored::name).collect()
}

/// Names of the types that a graph returns, as manifests write them.
fn precision(graph: &GraphProto) -> BTreeSet<&'static str> {
    let types = graph
        .output
        .iter()
        .filter_map(|output| output.r#type.as_ref());
    let types = types.filter_map(|it| it.tensor_type.as_ref());
    types
        .map(|it| match it.elem_type {
            data_type::FLOAT => "fp32",
            data_type::FLOAT16 => "fp16",
            data_type::BFLOAT16 => "bf16",
            _ => "another type",
        })
        .collect()
}

/// Checks that a variant needs what the manifest says, and that the graphs that belong to it are there.
fn verify_variant(
    folder: &Path,
    name: &str,
    variant: &Variant,
    graphs: &BTreeMap<String, Boundary>,
) -> Result<(), ConvertError> {
    let path = folder.join(name);
    let graph_of = |name: &String| {
        let missing = || damaged(&path, format!("`{name}` is not beside it"));
        graphs.get(name).ok_or_else(missing)
    };
    let graph = graph_of(&name.to_owned())?;
    let listed: BTreeSet<String> = variant.custom_domains.iter().cloned().collect();
    if graph.domains != listed {
        let problem = format!(
            "it has operators of {:?}, but the manifest says {listed:?}",
            graph.domains
        );
        return Err(damaged(&path, problem));
    }
    for needed in &variant.needs {
        let outputs = &graph_of(needed)?.outputs;
        if let Some(output) = outputs.difference(&graph.inputs).next() {
            let problem = format!("it does not read `{output}`, which `{needed}` makes for it");
            return Err(damaged(&path, problem));
        }
    }
    Ok(())
}

/// Names of the graphs in a component's folder.
fn graphs_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".onnx")).collect();
    names.sort();
    names
}

/// Checks one graph and where it expects its weights.
fn verify_graph(path: &Path) -> Result<Boundary, ConvertError> {
    let size = fs::metadata(path).map_err(ConvertError::read(path))?.len();
    if size > MAX_GRAPH_BYTES {
        return Err(damaged(
            path,
            format!("it has {size} bytes, at most {MAX_GRAPH_BYTES} are read"),
        ));
    }
    let bytes = fs::read(path).map_err(ConvertError::read(path))?;
    let model = ModelProto::decode(&*bytes)
        .map_err(|e| damaged(path, format!("not an ONNX model: {e}")))?;
    let graph = model
        .graph
        .ok_or_else(|| damaged(path, "it has no graph".to_owned()))?;
    verify_external_data(path, &graph)?;
    verify_scales(path, &graph)?;
    let imported = model.opset_import.iter().filter(|o| !o.domain.is_empty());
    let imported: BTreeMap<&str, i64> = imported.map(|o| (&*o.domain, o.version)).collect();
    let mut domains = BTreeSet::new();
    let mut known: HashSet<&str> = HashSet::from([""]);
    known.extend(graph.input.iter().map(|v| v.name.as_str()));
    known.extend(graph.initializer.iter().map(|t| t.name.as_str()));
    for node in &graph.node {
        if !matches!(&*node.domain, "" | "ai.onnx") {
            let Some(version) = imported.get(&*node.domain) else {
                let (name, domain) = (&node.name, &node.domain);
                let problem = format!(
                    "node `{name}` is of the domain `{domain}`, which the graph does not import"
                );
                return Err(damaged(path, problem));
            };
            domains.insert(format!("{}:{version}", node.domain));
        }
        if let Some(input) = node.input.iter().find(|i| !known.contains(i.as_str())) {
            return Err(damaged(
                path,
                format!(
                    "node `{}` reads `{input}`, which nothing before it makes",
                    node.name
                ),
            ));
        }
        for output in &node.output {
            if !output.is_empty() && !known.insert(output) {
                return Err(damaged(path, format!("value `{output}` is made twice")));
            }
        }
    }
    match graph
        .output
        .iter()
        .find(|o| !known.contains(o.name.as_str()))
    {
        Some(output) => Err(damaged(
            path,
            format!("nothing makes the output `{}`", output.name),
        )),
        None => Ok(Boundary {
            nodes: graph.node.len(),
            inputs: graph.input.iter().map(|v| v.name.clone()).collect(),
            outputs: graph.output.iter().map(|v| v.name.clone()).collect(),
            storage: storage(&graph),
            precision: precision(&graph),
            domains,
        }),
    }
}

fn verify_external_data(path: &Path, graph: &GraphProto) -> Result<(), ConvertError> {
    let folder = path.parent().expect("a model file lies in a folder");
    for tensor in graph
        .initializer
        .iter()
        .filter(|t| t.data_location == EXTERNAL)
    {
        let entry = |key: &str| {
            tensor
                .external_data
                .iter()
                .find(|e| e.key == key)
                .map(|e| e.value.as_str())
        };
        let number = |key: &str| entry(key).map_or(Some(0), |v| v.parse::<u64>().ok());
        let location = entry("location").unwrap_or(DATA_FILE);
        if !manifest::is_entry(location) {
            return Err(damaged(
                path,
                format!(
                    "tensor `{}` lies outside the folder, in `{location}`",
                    tensor.name
                ),
            ));
        }
        let data = folder.join(location);
        let size = fs::metadata(&data)
            .map_err(ConvertError::read(&data))?
            .len();
        let (Some(offset), Some(length)) = (number("offset"), number("length")) else {
            return Err(damaged(
                path,
                format!("tensor `{}` has no readable offset and length", tensor.name),
            ));
        };
        if offset.checked_add(length).is_none_or(|end| end > size) {
            let problem = format!(
                "it has {size} bytes, but tensor `{}` ends beyond them",
                tensor.name
            );
            return Err(damaged(&data, problem));
        }
    }
    Ok(())
}

/// Checks that weights of whole numbers have a scale for each output.
fn verify_scales(path: &Path, graph: &GraphProto) -> Result<(), ConvertError> {
    let tensors = graph.initializer.iter().map(|t| (t.name.as_str(), t));
    let tensors: HashMap<&str, &TensorProto> = tensors.collect();
    for node in &graph.node {
        let number = |name: &str| {
            let attribute = node.attribute.iter().find(|a| a.name == name);
            attribute.and_then(|a| a.i)
        };
        let (operands, axis) = match (&*node.domain, &*node.op_type) {
            ("" | "ai.onnx", "DequantizeLinear") => {
                (node.input.get(..2), number("axis").unwrap_or(1))
            }
            (custom::DOMAIN, _) if number("scales") == Some(1) => {
                (node.input.get(1..3), number("transposed").unwrap_or(0))
            }
            _ => continue,
        };
        let Some([weight, scales]) = operands else {
            let problem = format!("node `{}` has no scales", node.name);
            return Err(damaged(path, problem));
        };
        let of = |name: &String| tensors.get(name.as_str());
        let (Some(weight), Some(scales)) = (of(weight), of(scales)) else {
            continue;
        };
        let outputs = usize::try_from(axis).ok().and_then(|i| weight.dims.get(i));
        // One scale, or scales of blocks, are as right elsewhere.
        if let (Some(&outputs), &[count]) = (outputs, &scales.dims[..])
            && count != outputs
            && count != 1
        {
            let (name, of) = (&scales.name, &weight.name);
            let problem =
                format!("tensor `{name}` has {count} scales, but `{of}` has {outputs} outputs");
            return Err(damaged(path, problem));
        }
    }
    Ok(())
}

fn damaged(path: &Path, problem: String) -> ConvertError {
    ConvertError::Damaged {
        path: PathBuf::from(path),
        problem,
    }
}
