//! Textual inversions for prompts: found by the runtime, read by the converter.

use std::path::{Path, PathBuf};

use ndarray::Array2;
use sd_converter::embedding::Embedding;
use sd_models::manifest;
use sd_runtime::pipeline::ModelDir;
use sd_runtime::text::{Embeddings, TextError};

/// Those of folders, then those that LoRAs brought into a model.
pub(crate) fn of(folders: &[PathBuf], model: &ModelDir) -> Result<Embeddings, TextError> {
    let own = model.path.join(manifest::EMBEDDINGS);
    let own = own.is_dir().then_some(own);
    let folders: Vec<PathBuf> = folders.iter().cloned().chain(own).collect();
    let read = |path: &Path| {
        let vectors = Embedding::open_any(path)?.vectors.into_iter();
        let rows = vectors.map(|v| Array2::from_shape_vec((v.tokens(), v.width), v.values));
        Ok(rows.collect::<Result<_, _>>()?)
    };
    Embeddings::list(&folders, Box::new(read))
}
