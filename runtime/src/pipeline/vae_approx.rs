//! A tiny autoencoder beside a model, whose decoder takes the place of the model's own: TAESD, by Ollin Boer Bohan
//! (`madebyollin/taesd`).
//!
//! Its latents are those that the UNet sees, so they are not unscaled; its graph squeezes outliers and rescales colours itself.

use std::path::{Path, PathBuf};

use sd_models::manifest::{self, Latent, Manifest};

use super::folder::Folder;
use super::model::read_json;
use super::{ModelDir, PipelineError};
use crate::Remedy;
use crate::engine::memory::Needs;
use crate::engine::{Dialect, Ep};

/// A directory that `sdconvert` made of a TAESD file.
#[derive(Debug)]
pub struct VaeApprox {
    /// The directory.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

/// How pictures name it, as A1111 does.
pub(super) const NAME: &str = "TAESD";

/// How they name a model's own decoder.
pub(super) const FULL: &str = "Full";

impl VaeApprox {
    /// Opens a directory; weights are not read yet.
    ///
    /// # Errors
    /// It is no directory with a TAESD's decoder, or one of a newer schema.
    ///
    /// ```no_run
    /// use std::path::Path;
    ///
    /// use sd_runtime::pipeline::{ModelDir, Models, VaeApprox};
    ///
    /// let models = Models {
    ///     vae_approx: Some(VaeApprox::open(Path::new("taesd"))?),
    ///     ..Models::one(ModelDir::open(Path::new("model"))?)
    /// };
    /// # Ok::<_, sd_runtime::pipeline::PipelineError>(())
    /// ```
    pub fn open(path: &Path) -> Result<Self, PipelineError> {
        let wrong = |problem: String| PipelineError::NotAModel {
            path: path.to_owned(),
            problem,
            remedy: Remedy::ConvertTaesd,
        };
        if !path.is_dir() {
            let problem = match path.exists() {
                true => "it is a file, not a folder",
                false => "there is no such folder",
            };
            return Err(wrong(problem.to_owned()));
        }
        let json = match path.join(manifest::FILE_NAME) {
            file if file.is_file() => read_json(&file)?,
            _ => return Err(wrong(format!("it has no {}", manifest::FILE_NAME))),
        };
        if json["schema"] != manifest::SCHEMA {
            return Err(wrong(format!(
                "the schema of its {} is {}, this program reads {}",
                manifest::FILE_NAME,
                json["schema"],
                manifest::SCHEMA
            )));
        }
        let manifest: Manifest = serde_json::from_value(json)
            .map_err(|e| wrong(format!("its {}: {e}", manifest::FILE_NAME)))?;
        if let Some(name) = manifest.stray_name() {
            let file = manifest::FILE_NAME;
            return Err(wrong(format!(
                "its {file} lists `{name}`, which is no file of the directory"
            )));
        }
        let config = path.join("vae_decoder/config.json");
        if !manifest.components.contains_key("vae_decoder") || !config.is_file() {
            return Err(wrong("it has no decoder".to_owned()));
        }
        let config = read_json(&config)?;
        if config["_class_name"] != "AutoencoderTiny" {
            return Err(wrong("its decoder is no TAESD".to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            manifest,
        })
    }

    /// The latent space that it decodes.
    #[must_use]
    pub fn latent(&self) -> Latent {
        self.manifest.latent
    }

    /// The first digits of a SHA-256 of all its weights.
    #[must_use]
    pub fn weights_hash(&self) -> Option<String> {
        self.folder().weights_hash()
    }

    pub(super) fn folder(&self) -> Folder<'_> {
        Folder {
            path: &self.path,
            manifest: Some(&self.manifest),
        }
    }

    /// Bytes that it takes for pictures of so many latent pixels.
    pub(super) fn memory(&self, pixels: usize, dialect: Dialect, ep: Ep) -> Needs {
        // Measured at 512x512 with 64 channels: bytes per latent pixel beside weights.
        const DECODER: u64 = 90_000;
        let activations = DECODER * pixels as u64;
        self.folder()
            .needs("vae_decoder", dialect, ep, [0, activations])
    }

    /// Whether the latents are those of SDXL, by the names of its files: nothing else tells.
    fn is_for_sdxl(&self) -> Option<bool> {
        let manifest = &self.manifest;
        let names = manifest.sources.iter().map(|source| source.name.as_str());
        let mut names = names
            .chain([manifest.title.as_str()])
            .map(str::to_lowercase);
        names.find_map(|name| {
            let at = name.find("taesd")?;
            Some(name[at..].starts_with("taesdxl"))
        })
    }

    /// Whether it decodes a model's latents, as far as can be told.
    #[must_use]
    pub fn is_for(&self, model: &ModelDir) -> bool {
        self.check(model).is_ok()
    }

    /// Checks that it decodes a model's latents, as far as that can be told; returns what cannot.
    pub(super) fn check(&self, model: &ModelDir) -> Result<Option<String>, PipelineError> {
        let other = |found: String, expected: String| PipelineError::OtherLatents {
            path: self.path.clone(),
            base: model.path.clone(),
            found,
            expected,
        };
        let [own, of_model] = [self.latent(), model.latent].map(|it| (it.channels, it.downscale));
        if own != of_model {
            let [found, expected] = [own, of_model].map(|(channels, downscale)| {
                format!("have {channels} channels and {downscale} pixels each")
            });
            return Err(other(found, expected));
        }
        let is_sdxl = model.family.time_ids().is_some();
        match self.is_for_sdxl() {
            Some(for_sdxl) if for_sdxl != is_sdxl => {
                let name = |is_sdxl| match is_sdxl {
                    true => "are SDXL's, by the name of its file",
                    false => "are those of Stable Diffusion 1 and 2, by the name of its file",
                };
                let of_model = format!("are those of {}", model.family);
                Err(other(name(for_sdxl).to_owned(), of_model))
            }
            Some(_) => Ok(None),
            None => Ok(Some(format!(
                "{}: whether it is for {} cannot be told from its files; colours are wrong if it is not",
                self.path.display(),
                model.family
            ))),
        }
    }
}
