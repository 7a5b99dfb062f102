//! Textual inversions that a file has beside its modules (`bundle_emb.NAME...`), for the words of its prompts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sd_models::keys::Component;

use super::{Adapter, LoraError};
use crate::ConvertError;
use crate::checkpoint::{CheckpointError, TensorInfo, TensorSource};
use crate::embedding::Embedding;
use crate::error::some_of;
use crate::model::Model;
use crate::output::write_file;
use crate::progress::Unwatched;

/// How their keys begin.
pub(super) const PREFIX: &str = "bundle_emb.";

/// How the keys end of vectors that `OneTrainer` adds to what text encoders put out.
const OUTPUT: &str = "_out";

/// A textual inversion, and the word that it is called by.
#[derive(Clone, Debug)]
pub(super) struct Bundled {
    pub(super) name: String,
    pub(super) embedding: Embedding,
}

/// The textual inversions of a file, checked against a model's text encoders.
pub(super) fn bundled(
    source: &dyn TensorSource,
    base: &dyn Model,
) -> Result<Vec<Bundled>, LoraError> {
    let width = |component| {
        let table = "text_model.embeddings.token_embedding.weight".to_owned();
        base.entries()
            .get(&(component, table))
            .map(|entry| entry.shape[1])
    };
    let encoders = [Component::TextEncoder, Component::TextEncoder2];
    let expected: Vec<usize> = encoders.into_iter().filter_map(width).collect();
    let all = read(source)?;
    for bundled in &all {
        let found: Vec<usize> = bundled.embedding.vectors.iter().map(|v| v.width).collect();
        if !found.iter().all(|width| expected.contains(width)) {
            return Err(LoraError::EmbeddingWidth {
                name: bundled.name.clone(),
                found,
                expected,
            });
        }
    }
    Ok(all)
}

/// Keys of vectors for which there is no place in a text encoder's input.
pub(super) fn output_vectors(source: &dyn TensorSource) -> Vec<&String> {
    let keys = source.tensors().keys();
    keys.filter(|key| key.starts_with(PREFIX) && key.ends_with(OUTPUT))
        .collect()
}

/// What is said of [`output_vectors`] that are left out.
pub(super) fn without_output(source: &dyn TensorSource) -> Option<String> {
    let keys = output_vectors(source);
    (!keys.is_empty()).then(|| {
        format!(
            "vectors for what text encoders put out are not supported: {}",
            some_of(&keys)
        )
    })
}

/// The textual inversions of a file, but for [`output_vectors`].
pub(super) fn read(source: &dyn TensorSource) -> Result<Vec<Bundled>, LoraError> {
    let mut bundles: BTreeMap<&str, BTreeMap<String, TensorInfo>> = BTreeMap::new();
    for (key, info) in source.tensors() {
        let Some(rest) = key.strip_prefix(PREFIX).filter(|_| !key.ends_with(OUTPUT)) else {
            continue;
        };
        let bad = |problem: &str| LoraError::Tensor {
            key: key.clone(),
            problem: problem.to_owned(),
        };
        let (name, part) = rest
            .split_once('.')
            .ok_or_else(|| bad("it has no name and part"))?;
        if name.is_empty() || name.contains(['/', '\\', ':', '\0']) {
            return Err(bad("its name cannot be that of a file"));
        }
        bundles
            .entry(name)
            .or_default()
            .insert(part.to_owned(), info.clone());
    }
    let embeddings = bundles.into_iter().map(|(name, tensors)| {
        let failed = |problem: String| LoraError::Tensor {
            key: format!("{PREFIX}{name}"),
            problem,
        };
        let bundle = Bundle {
            source,
            prefix: format!("{PREFIX}{name}."),
            tensors,
            metadata: BTreeMap::new(),
        };
        let embedding = Embedding::read(&bundle).map_err(|e| failed(e.to_string()))?;
        let embedding = embedding.ok_or_else(|| failed("it is no textual inversion".to_owned()))?;
        Ok(Bundled {
            name: name.to_owned(),
            embedding,
        })
    });
    embeddings.collect()
}

impl Adapter {
    /// Writes its textual inversions, one file each, in the layouts that other programs read.
    ///
    /// # Errors
    /// The folder cannot be written, or has a file of that name already.
    pub fn write_embeddings(&self, folder: &Path) -> Result<(), ConvertError> {
        for bundled in &self.embeddings {
            fs::create_dir_all(folder).map_err(ConvertError::write(folder))?;
            let path = folder.join(format!("{}.safetensors", bundled.name));
            write_file(&path, false, &Unwatched, |file| {
                let written = bundled.embedding.write(file);
                written.map_err(ConvertError::write(&path))
            })?;
        }
        Ok(())
    }
}

/// Some tensors of a file, as if they were alone.
struct Bundle<'a> {
    source: &'a dyn TensorSource,
    prefix: String,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl TensorSource for Bundle<'_> {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        self.source.bytes(&format!("{}{name}", self.prefix))
    }

    fn file_bytes(&self) -> &[u8] {
        self.source.file_bytes()
    }
}
