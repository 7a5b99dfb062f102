//! Folders in diffusers' layout: one folder per component with `config.json` and weights, whole or in parts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use sd_models::keys::Component;
use sd_models::manifest;
use sd_models::tokenizer::folder::{self as tokenizer, Parts};
use serde_json::Value;

use super::scaled::dequantized;
use super::{CheckpointError, IndexError, TensorSource, open, open_stored};
use crate::Remedy;

/// Largest file of text that is read.
const MAX_TEXT: u64 = 64 << 20;

/// Names without extension of the files that hold weights.
const STEMS: [&str; 3] = ["diffusion_pytorch_model", "model", "pytorch_model"];

/// A configuration file.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub json: Value,
}

/// The folder of a text encoder's tokenizer.
#[derive(Clone, Debug)]
pub struct TokenizerFolder {
    /// Where it is.
    pub path: PathBuf,
    /// What its files hold.
    pub files: tokenizer::Files,
}

impl TokenizerFolder {
    fn open(path: PathBuf) -> Result<Self, CheckpointError> {
        let mut files = tokenizer::Files::new();
        for name in tokenizer::FILES {
            if let Some(text) = read_text(&path.join(name))? {
                files.insert(name, text);
            }
        }
        Ok(Self { path, files })
    }

    /// What the files say, and the files with a vocabulary in the form that every reader takes.
    ///
    /// # Errors
    /// They are not those of a CLIP tokenizer.
    pub fn read(&self) -> Result<(Parts, tokenizer::Files), CheckpointError> {
        let both = Parts::read(&self.files)
            .and_then(|parts| Ok((parts, tokenizer::completed(self.files.clone())?)));
        both.map_err(|e| CheckpointError::Config {
            path: self.path.join(e.file),
            problem: e.problem,
        })
    }
}

/// One component of a folder.
pub struct ComponentFolder {
    /// Which.
    pub component: Component,
    /// Its `config.json`, if there is one.
    pub config: Option<ConfigFile>,
    /// Its files of weights.
    pub files: Vec<Box<dyn TensorSource>>,
}

/// What a folder holds.
pub struct Folder {
    /// Its components.
    pub components: Vec<ComponentFolder>,
    /// The tokenizers of its text encoders.
    pub tokenizers: BTreeMap<Component, TokenizerFolder>,
    /// Its `scheduler/scheduler_config.json`.
    pub scheduler: Option<Value>,
    /// Its `model_index.json`.
    pub index: Option<Value>,
    /// What the user should know of the choice of files.
    pub notes: Vec<String>,
}

/// Opens a pipeline's folder, or one component's.
///
/// # Errors
/// Nothing to convert in it, no part of it with this variant, parts that are missing, or files that cannot be read.
pub fn open_folder(path: &Path, variant: Option<&str>) -> Result<Folder, CheckpointError> {
    match components(path, variant) {
        Err(CheckpointError::Folder { .. }) if is_converted(path) => Err(CheckpointError::Format {
            path: path.to_owned(),
            kind: "a folder of ONNX graphs",
            remedy: Remedy::RunIt,
        }),
        opened => opened,
    }
}

/// Opens every component of a folder.
fn components(path: &Path, variant: Option<&str>) -> Result<Folder, CheckpointError> {
    let mut folder = Folder {
        components: Vec::new(),
        tokenizers: BTreeMap::new(),
        scheduler: read_json(&path.join("scheduler/scheduler_config.json"))?,
        index: read_json(&path.join("model_index.json"))?,
        notes: Vec::new(),
    };
    let mut variants = BTreeSet::new();
    for (name, component) in [
        ("text_encoder", Component::TextEncoder),
        ("text_encoder_2", Component::TextEncoder2),
        ("unet", Component::UNet),
        ("vae", Component::Vae),
        ("controlnet", Component::ControlNet),
    ] {
        let path = path.join(name);
        if path.is_dir() {
            variants.extend(folder.add(&path, component, variant)?);
        }
    }
    for (name, component) in [
        ("tokenizer", Component::TextEncoder),
        ("tokenizer_2", Component::TextEncoder2),
    ] {
        let tokenizer = path.join(name);
        if tokenizer.is_dir() {
            folder
                .tokenizers
                .insert(component, TokenizerFolder::open(tokenizer)?);
        } else if folder.components.iter().any(|c| c.component == component) {
            let missing = tokenizer.display();
            folder
                .notes
                .push(format!("{missing}: there is no tokenizer; taking CLIP's"));
        }
    }
    if folder.components.is_empty() {
        let config = read_json(&path.join("config.json"))?;
        let component = config.as_ref().and_then(component_of).ok_or_else(|| {
            let problem = "it holds no component of a pipeline".to_owned();
            CheckpointError::Folder {
                path: path.to_owned(),
                problem,
            }
        })?;
        variants.extend(folder.add(path, component, variant)?);
    }
    match variant {
        Some(wanted) if !variants.contains(wanted) => Err(CheckpointError::NoVariant {
            path: path.to_owned(),
            wanted: wanted.to_owned(),
            variants: variants.into_iter().collect(),
        }),
        _ => Ok(folder),
    }
}

/// Whether a folder is, or is of, a pipeline of ONNX graphs.
fn is_converted(path: &Path) -> bool {
    let has_graph = |path: &Path| path.join("model.onnx").is_file();
    let inside = fs::read_dir(path).into_iter().flatten().flatten();
    path.join(manifest::FILE_NAME).is_file()
        || has_graph(path)
        || inside
            .map(|entry| entry.path())
            .any(|path| has_graph(&path))
}

/// Which component a `config.json` describes.
fn component_of(config: &Value) -> Option<Component> {
    let class = config["_class_name"]
        .as_str()
        .or_else(|| config["architectures"][0].as_str())?;
    match class {
        "UNet2DConditionModel" => Some(Component::UNet),
        "AutoencoderKL" => Some(Component::Vae),
        "AutoencoderTiny" => Some(Component::Taesd),
        "ControlNetModel" => Some(Component::ControlNet),
        "CLIPTextModel" => Some(Component::TextEncoder),
        "CLIPTextModelWithProjection" => Some(Component::TextEncoder2),
        _ => None,
    }
}

impl Folder {
    /// Opens a component; returns the variants that there are of it.
    fn add(
        &mut self,
        path: &Path,
        component: Component,
        variant: Option<&str>,
    ) -> Result<Vec<String>, CheckpointError> {
        let found = weight_files(path)?;
        let chosen = choose(&found, variant);
        let Some(chosen) = chosen else {
            return Err(CheckpointError::Folder {
                path: path.to_owned(),
                problem: "it holds no weights".to_owned(),
            });
        };
        if chosen.variant.as_deref() != variant {
            let has = match &chosen.variant {
                Some(name) => format!("only the variant `{name}`"),
                None => "no such variant".to_owned(),
            };
            self.notes.push(format!(
                "{}: {has}; taking `{}`",
                path.display(),
                chosen.name
            ));
        }
        let file = path.join(&chosen.name);
        let config = path.join("config.json");
        self.components.push(ComponentFolder {
            component,
            config: read_json(&config)?.map(|json| ConfigFile { path: config, json }),
            files: match chosen.index {
                true => open_parts(path, &file)?,
                false => vec![open(&file)?],
            },
        });
        Ok(found.into_iter().filter_map(|file| file.variant).collect())
    }
}

/// A file of weights or an index of such files, by what its name says.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct WeightFile {
    variant: Option<String>,
    pickled: bool,
    index: bool,
    name: String,
}

impl WeightFile {
    /// Reads `STEM[.VARIANT].safetensors`, `STEM.safetensors.index[.VARIANT].json` and their relatives. Parts of a
    /// larger file, and anything else, are none.
    fn of(name: &str) -> Option<Self> {
        let mut words = name.split('.');
        if !STEMS.contains(&words.next()?) {
            return None;
        }
        let mut words: Vec<&str> = words.collect();
        let mut remove = |word: &str| {
            let at = words.iter().position(|w| *w == word);
            at.map(|at| words.remove(at)).is_some()
        };
        let index = remove("index");
        if index != remove("json") {
            return None;
        }
        let (safetensors, bin) = (remove("safetensors"), remove("bin"));
        let variant = match words[..] {
            [] => None,
            [variant] if !variant.contains("-of-") => Some(variant.to_owned()),
            _ => return None,
        };
        (safetensors != bin).then(|| Self {
            variant,
            pickled: bin,
            index,
            name: name.to_owned(),
        })
    }
}

fn weight_files(folder: &Path) -> Result<Vec<WeightFile>, CheckpointError> {
    let io = |source| CheckpointError::Io {
        path: folder.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        files.extend(name.to_str().and_then(WeightFile::of));
    }
    files.sort();
    Ok(files)
}

/// The wanted variant, else the file without one, else whatever there is; safetensors before pickles.
fn choose<'a>(files: &'a [WeightFile], variant: Option<&str>) -> Option<&'a WeightFile> {
    let of_variant =
        |variant: Option<&str>| files.iter().find(|file| file.variant.as_deref() == variant);
    of_variant(variant)
        .or_else(|| of_variant(None))
        .or_else(|| files.first())
}

/// The parts that an index lists, each with exactly the tensors it should have.
fn open_parts(folder: &Path, index: &Path) -> Result<Vec<Box<dyn TensorSource>>, CheckpointError> {
    let wrong = |problem| CheckpointError::Index {
        path: index.to_owned(),
        problem,
    };
    let json = read_json(index)?.unwrap_or_default();
    let Some(map) = json["weight_map"].as_object() else {
        return Err(wrong(IndexError::Format(
            "it has no `weight_map`".to_owned(),
        )));
    };
    let mut parts: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, part) in map {
        let Some(part) = part.as_str() else {
            let problem = format!("the part of `{tensor}` is no text");
            return Err(wrong(IndexError::Format(problem)));
        };
        let plain = !part.contains(['/', '\\', ':', '\0']) && ![".", "..", ""].contains(&part);
        if !plain {
            return Err(wrong(IndexError::PathUnsafe(part.to_owned())));
        }
        parts.entry(part).or_default().insert(tensor);
    }
    let mut files = Vec::new();
    for (part, tensors) in parts {
        let path: PathBuf = folder.join(part);
        if !path.is_file() {
            return Err(wrong(IndexError::Missing(part.to_owned())));
        }
        let file = open_stored(&path)?;
        if let Some(tensor) = tensors.iter().find(|t| !file.tensors().contains_key(**t)) {
            return Err(wrong(IndexError::Absent {
                tensor: (*tensor).to_owned(),
                part: part.to_owned(),
            }));
        }
        if let Some(tensor) = file
            .tensors()
            .keys()
            .find(|t| !tensors.contains(t.as_str()))
        {
            return Err(wrong(IndexError::Unlisted {
                tensor: tensor.clone(),
                part: part.to_owned(),
            }));
        }
        files.push(dequantized(file)?);
    }
    Ok(files)
}

/// A JSON file's content, or nothing where there is no such file.
fn read_json(path: &Path) -> Result<Option<Value>, CheckpointError> {
    let parse = |text: String| serde_json::from_str(&text);
    let json = read_text(path)?.map(parse).transpose();
    json.map_err(|e| CheckpointError::Config {
        path: path.to_owned(),
        problem: format!("not JSON: {e}"),
    })
}

/// A small file's content, or nothing where there is no such file.
fn read_text(path: &Path) -> Result<Option<String>, CheckpointError> {
    let config = |problem: String| CheckpointError::Config {
        path: path.to_owned(),
        problem,
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_TEXT => {
            Err(config(format!("it has {} bytes", metadata.len())))
        }
        Ok(metadata) if !metadata.is_file() => Err(config("it is no file".to_owned())),
        Ok(_) => {
            let text = fs::read_to_string(path);
            text.map(Some).map_err(|e| config(e.to_string()))
        }
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_weight_files_are_understood_whichever_version_wrote_them() {
        let of = |name: &str| WeightFile::of(name).map(|f| (f.variant, f.pickled, f.index));
        let fp16 = || Some("fp16".to_owned());
        assert_eq!(of("model.safetensors"), Some((None, false, false)));
        assert_eq!(of("model.fp16.safetensors"), Some((fp16(), false, false)));
        assert_eq!(of("pytorch_model.bin"), Some((None, true, false)));
        let index = "diffusion_pytorch_model.safetensors.index";
        assert_eq!(of(&format!("{index}.json")), Some((None, false, true)));
        assert_eq!(
            of(&format!("{index}.fp16.json")),
            Some((fp16(), false, true))
        );
        let newer = "diffusion_pytorch_model.fp16.safetensors.index.json";
        assert_eq!(of(newer), Some((fp16(), false, true)));
        for other in [
            "config.json",
            "model.onnx",
            "diffusion_pytorch_model-00001-of-00002.safetensors",
            "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
            "diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
            "openvino_model.bin",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_variant_that_no_component_has_is_an_error_and_one_that_some_have_is_taken_there() {
        let pipeline = tempfile::tempdir().unwrap();
        let view = |bytes| {
            let dtype = safetensors::Dtype::F32;
            safetensors::tensor::TensorView::new(dtype, vec![1], bytes).unwrap()
        };
        for name in [
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ] {
            let path = pipeline.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            safetensors::serialize_to_file([("x", view(&[0; 4]))], None, &path).unwrap();
        }
        let open = |variant| open_folder(pipeline.path(), variant);
        assert!(open(None).is_ok());
        let some = open(Some("fp16")).unwrap();
        assert!(some.components.len() == 2 && some.notes.len() == 1);
        let Err(error) = open(Some("nope")) else {
            panic!("it was accepted")
        };
        assert!(error.to_string().contains("`nope`"), "{error}");
        let hint = error.hint().map(|hint| hint.to_string());
        assert_eq!(hint.as_deref(), Some("it has fp16"));
    }

    #[test]
    fn the_wanted_variant_comes_first_and_safetensors_before_pickles() {
        let files = |names: &[&str]| {
            let mut files: Vec<WeightFile> =
                names.iter().filter_map(|n| WeightFile::of(n)).collect();
            files.sort();
            files
        };
        let all = files(&[
            "model.fp16.safetensors",
            "pytorch_model.bin",
            "model.safetensors",
        ]);
        let name = |files: &[WeightFile], variant| choose(files, variant).unwrap().name.clone();
        assert_eq!(name(&all, None), "model.safetensors");
        assert_eq!(name(&all, Some("fp16")), "model.fp16.safetensors");
        assert_eq!(name(&all, Some("bf16")), "model.safetensors");
        let one = files(&["model.fp16.safetensors"]);
        assert_eq!(name(&one, None), "model.fp16.safetensors");
        assert_eq!(choose(&[], None), None);
    }
}
