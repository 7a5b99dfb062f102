//! Which files a picture was made with, and which of them a run lacks.

use std::path::Path;

use super::{Infotext, NotCarried};
use crate::pipeline::{ModelDir, Models, VaeApprox, vae_approx};
use crate::text::Embedding;

/// Files of a picture, by name and hash as its settings tell them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The model's name.
    pub model: Option<String>,
    /// First digits of its checkpoint's SHA-256.
    pub model_hash: Option<String>,
    /// First digits of the SHA-256 of all its weights, as this program writes it.
    pub weights_hash: Option<String>,
    /// A VAE of its own, its name and hash.
    pub vae: Option<(String, String)>,
    /// A tiny decoder, by the hash of its weights, which other programs do not tell.
    pub vae_approx: Option<String>,
    /// The refiner: its name, hash and hash of all weights.
    pub refiner: Option<(String, String, String)>,
    /// LoRAs by name and hash.
    pub loras: Vec<(String, String)>,
    /// Textual inversions by name and hash.
    pub embeddings: Vec<(String, String)>,
    /// A file that is or becomes the first noise, by its hash.
    pub noise: Option<String>,
    /// The form of the portable graph that was run, where there are several over the same weights.
    pub portable: Option<String>,
    /// Whether hashes are those of whole files: A1111 leaves out the header of LoRAs.
    of_whole_files: bool,
}

/// A file that a picture cannot be made without.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("missing: {kind} {hash}")]
pub struct Missing {
    /// `model`, `weights`, `vae`, `vae-approx`, `lora`, `embedding`, `refiner` or `noise`.
    pub kind: &'static str,
    /// Its hash, or its name if that is all that is known.
    pub hash: String,
}

impl Wanted {
    /// What a text names.
    pub(super) fn of(text: &Infotext, of_whole_files: bool) -> Self {
        let get = |key| {
            text.get(key)
                .filter(|value| !value.is_empty())
                .map(ToOwned::to_owned)
        };
        let hash_of = |key| get(key).unwrap_or_default();
        let vae = get("VAE").or_else(|| get("VAE hash").map(|_| String::new()));
        Self {
            model: get("Model"),
            model_hash: get("Model hash"),
            weights_hash: get("Weights hash"),
            vae: vae.map(|name| (name, hash_of("VAE hash"))),
            vae_approx: get("VAE Decoder")
                .filter(|name| name == vae_approx::NAME)
                .map(|_| hash_of("VAE Decoder hash")),
            refiner: get("Refiner").map(|refiner| {
                let (name, hash) = refiner.rsplit_once(" [").unwrap_or((&refiner, ""));
                (
                    name.to_owned(),
                    hash.trim_end_matches(']').to_owned(),
                    hash_of("Refiner weights hash"),
                )
            }),
            loras: named_hashes(text.get("Lora hashes")),
            embeddings: named_hashes(text.get("TI hashes")),
            noise: get("Noise hash"),
            portable: get("Portable graph").filter(|_| of_whole_files),
            of_whole_files,
        }
    }

    /// The first thing that a model directory is not, or does not hold.
    #[must_use]
    pub fn lacks(&self, model: &ModelDir) -> Option<Missing> {
        let missing = |kind, hash: &str| {
            Some(Missing {
                kind,
                hash: hash.to_owned(),
            })
        };
        if let Some(hash) = &self.model_hash
            && model.hash() != Some(hash)
        {
            return missing("model", hash);
        }
        if let (None, Some(name)) = (&self.model_hash, &self.model)
            && stem(name) != model.title()
        {
            return missing("model", name);
        }
        if let Some((name, hash)) = &self.vae
            && !has_vae(model, name, hash)
        {
            return missing("vae", if hash.is_empty() { name } else { hash });
        }
        if let Some((_, hash)) = self.loras.iter().find(|lora| !self.has_lora(model, lora)) {
            return missing("lora", hash);
        }
        match &self.weights_hash {
            Some(hash) if model.weights_hash().as_ref() != Some(hash) => missing("weights", hash),
            _ => None,
        }
    }

    /// The model, where there is none at all.
    #[must_use]
    pub fn nothing(&self) -> Missing {
        let known = self.model_hash.as_ref().or(self.model.as_ref());
        Missing {
            kind: "model",
            hash: known.cloned().unwrap_or_default(),
        }
    }

    /// The first thing that a run lacks beside its base model.
    #[must_use]
    pub fn lacks_beside(&self, models: &Models) -> Option<Missing> {
        let missing = |kind, hash: &str| {
            Some(Missing {
                kind,
                hash: hash.to_owned(),
            })
        };
        for (name, hash) in &self.embeddings {
            if !self.has_embedding(models, name, hash) {
                return missing("embedding", hash);
            }
        }
        if let Some((name, hash, _)) = &self.refiner {
            let given = models.refiner.as_ref();
            if !given.is_some_and(|refiner| self.is_refiner(refiner)) {
                return missing("refiner", if hash.is_empty() { name } else { hash });
            }
        }
        if let Some(hash) = self.lacks_vae_approx(models) {
            let is_known = !hash.is_empty();
            return missing("vae-approx", if is_known { hash } else { vae_approx::NAME });
        }
        self.noise.as_ref().and_then(|hash| missing("noise", hash))
    }

    /// The hash of the tiny decoder that a run lacks.
    fn lacks_vae_approx(&self, models: &Models) -> Option<&String> {
        let given = models.vae_approx.as_ref();
        let is_it = given.is_some_and(|approx| self.is_vae_approx(approx));
        self.vae_approx.as_ref().filter(|_| !is_it)
    }

    /// Whether a directory is the tiny decoder that is named; of other programs' pictures any is.
    #[must_use]
    pub fn is_vae_approx(&self, approx: &VaeApprox) -> bool {
        self.vae_approx
            .as_ref()
            .is_some_and(|hash| hash.is_empty() || approx.weights_hash().as_ref() == Some(hash))
    }

    /// Whether a model's portable graph has the form of the one that was run, as far as that is told.
    #[must_use]
    pub fn has_form(&self, model: &ModelDir) -> bool {
        self.portable.is_none() || self.portable == model.portable_form()
    }

    /// Whether a directory is the refiner that is named.
    #[must_use]
    pub fn is_refiner(&self, model: &ModelDir) -> bool {
        self.refiner.as_ref().is_some_and(|(name, hash, weights)| {
            let is_same = match hash.as_str() {
                "" => stem(name) == model.title(),
                hash => model.hash() == Some(hash),
            };
            is_same && (weights.is_empty() || model.weights_hash().as_ref() == Some(weights))
        })
    }

    /// What the models of a run are not, in the words of the text.
    #[must_use]
    pub fn not_carried(&self, models: &Models) -> Vec<NotCarried> {
        let model = &models.base;
        let mut lacking = Vec::new();
        let mut add = |field: &str, value: &str| lacking.push(NotCarried::new(field, value));
        match &self.model_hash {
            Some(hash) if model.hash() != Some(hash) => {
                if let Some(name) = &self.model {
                    add("Model", name);
                }
                add("Model hash", hash);
            }
            None if self
                .model
                .as_ref()
                .is_some_and(|name| stem(name) != model.title()) =>
            {
                add("Model", self.model.as_deref().unwrap_or_default());
            }
            Some(_) | None => match &self.weights_hash {
                Some(hash) if model.weights_hash().as_ref() != Some(hash) => {
                    add("Weights hash", hash);
                }
                _ => {}
            },
        }
        if let Some(form) = self.portable.as_ref().filter(|_| !self.has_form(model)) {
            add("Portable graph", form);
        }
        if let Some((name, hash)) = &self.vae
            && !has_vae(model, name, hash)
        {
            for (field, value) in [("VAE", name), ("VAE hash", hash)] {
                if !value.is_empty() {
                    add(field, value);
                }
            }
        }
        if self.vae_approx.is_none() && models.vae_approx.is_some() {
            add("VAE Decoder", vae_approx::FULL);
        }
        if let Some(hash) = self.lacks_vae_approx(models) {
            add("VAE Decoder", vae_approx::NAME);
            if !hash.is_empty() {
                add("VAE Decoder hash", hash);
            }
        }
        for lora in self.loras.iter().filter(|lora| !self.has_lora(model, lora)) {
            add("Lora hashes", &format!("{}: {}", lora.0, lora.1));
        }
        for (name, hash) in &self.embeddings {
            if !self.has_embedding(models, name, hash) {
                add("TI hashes", &format!("{name}: {hash}"));
            }
        }
        if let Some((name, hash, _)) = &self.refiner {
            let given = models.refiner.as_ref();
            if !given.is_some_and(|refiner| self.is_refiner(refiner)) {
                match hash.as_str() {
                    "" => add("Refiner", name),
                    hash => add("Refiner", &format!("{name} [{hash}]")),
                }
            }
        }
        lacking
    }

    fn has_lora(&self, model: &ModelDir, (name, hash): &(String, String)) -> bool {
        let mut loras = model.manifest.iter().flat_map(|manifest| &manifest.loras);
        loras.any(|lora| match self.of_whole_files {
            true => lora.sha256.starts_with(hash),
            false => stem(&lora.name) == name || lora.title.as_ref() == Some(name),
        })
    }

    fn has_embedding(&self, models: &Models, name: &str, hash: &str) -> bool {
        let is_it = |found: &Embedding| !self.of_whole_files || found.sha256.starts_with(hash);
        let mut names = models.embeddings.names();
        let found = names.find(|known| listed_name(known) == name);
        let found = found.and_then(|name| models.embeddings.get(name)?.ok());
        found.is_some_and(|found| is_it(&found))
    }
}

/// Whether a VAE is the model's own; one that was baked in is known by its file.
fn has_vae(model: &ModelDir, name: &str, hash: &str) -> bool {
    model.vae().is_some_and(|vae| match hash {
        "" => stem(&vae.name) == stem(name),
        hash => vae.sha256.starts_with(hash),
    })
}

/// A file's name without its ending.
fn stem(name: &str) -> &str {
    let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str());
    let is_file = [".safetensors", ".ckpt", ".pt", ".bin"]
        .iter()
        .any(|end| name.ends_with(end));
    stem.filter(|_| is_file).unwrap_or(name)
}

/// A name in a list of names and hashes, where commas and colons mean something.
pub(super) fn listed_name(name: &str) -> String {
    name.replace([':', ','], "")
}

/// `name: hash, name: hash`.
fn named_hashes(value: Option<&str>) -> Vec<(String, String)> {
    let pairs = value.unwrap_or_default().split(',');
    let pairs = pairs.filter_map(|pair| pair.rsplit_once(':'));
    let trimmed = |text: &str| text.trim().to_owned();
    pairs
        .map(|(name, hash)| (trimmed(name), trimmed(hash)))
        .collect()
}
