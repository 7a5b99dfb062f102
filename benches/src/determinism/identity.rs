//! What must be the same for two recordings to be of one picture: the model that was converted, and the request.

use std::collections::BTreeMap;

use anyhow::bail;
use sd_models::diffusers::prediction_name;
use sd_runtime::engine::measured::Case;
use sd_runtime::pipeline::{ModelDir, Plan, Request};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A model, whatever its weights are stored in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) family: String,
    /// What the UNet predicts.
    pub(crate) prediction: String,
    /// Channels, downscale and scaling factor of the latent space.
    pub(crate) latent: String,
    /// Files that the weights were taken from, with their SHA-256. Folders of other programs are known by their UNet's graph.
    pub(crate) sources: Vec<String>,
    /// LoRAs in the weights, with their strength and SHA-256.
    pub(crate) loras: Vec<String>,
    /// SHA-256 of the files with weights, which differ between precisions.
    pub(crate) weights: BTreeMap<String, String>,
}

impl Identity {
    pub(crate) fn of(model: &ModelDir) -> anyhow::Result<Self> {
        let latent = &model.latent;
        let manifest = model.manifest.as_ref();
        let sources = match manifest {
            Some(manifest) => {
                let sources = manifest.sources.iter();
                let said = sources.map(|source| format!("{} {}", source.role, source.sha256));
                said.collect()
            }
            None => vec![format!("unet/model.onnx {}", Case::model(&model.path)?)],
        };
        let loras = manifest.iter().flat_map(|manifest| &manifest.loras);
        let loras = loras.map(|lora| {
            let strengths = [lora.unet, lora.text_encoder];
            format!("{} at {strengths:?}", lora.sha256)
        });
        let components = manifest.iter().flat_map(|manifest| &manifest.components);
        let weights = components.flat_map(|(name, component)| {
            let data = component.files.iter();
            let data = data.filter(|(file, _)| file.ends_with("_data"));
            data.map(move |(file, of)| (format!("{name}/{file}"), of.sha256.clone()))
        });
        Ok(Self {
            family: model.family.to_string(),
            prediction: prediction_name(model.prediction).to_owned(),
            latent: format!(
                "{} channels of 1/{} of the size, scaled by {}",
                latent.channels, latent.downscale, latent.scaling_factor
            ),
            sources,
            loras: loras.collect(),
            weights: weights.collect(),
        })
    }

    /// Refuses another model. Other weights of the same checkpoint are what is compared.
    ///
    /// # Errors
    /// What differs.
    pub(crate) fn check(&self, found: &Self) -> anyhow::Result<()> {
        let list = |names: &[String]| match names {
            [] => "none".to_owned(),
            names => names.join(", "),
        };
        for (what, expected, found) in [
            ("family", self.family.clone(), found.family.clone()),
            (
                "prediction type",
                self.prediction.clone(),
                found.prediction.clone(),
            ),
            ("latent space", self.latent.clone(), found.latent.clone()),
            ("checkpoint", list(&self.sources), list(&found.sources)),
            ("list of LoRAs", list(&self.loras), list(&found.loras)),
        ] {
            if expected != found {
                bail!("it is another model: its {what} is {found}; expected {expected}");
            }
        }
        Ok(())
    }
}

/// What ways choose, not the request.
const OF_WAYS: [&str; 3] = ["graph", "compute", "rng"];

/// A request with what a plan made of what it left open, without what ways choose.
pub(crate) fn settled(request: &Request, plan: &Plan) -> anyhow::Result<Map<String, Value>> {
    let settled = Request {
        width: Some(plan.size[0]),
        height: Some(plan.size[1]),
        steps: Some(plan.steps),
        guidance_scale: Some(plan.guidance_scale),
        sampler: Some(plan.sampler),
        spread: plan.spread,
        batch: 1,
        ..request.clone()
    };
    let mut fields = match serde_json::to_value(settled)? {
        Value::Object(fields) => fields,
        other => bail!("a request is an object, not {other}"),
    };
    fields.retain(|name, _| !OF_WAYS.contains(&name.as_str()));
    Ok(fields)
}

/// Refuses another request. Only fields of `found` are looked at.
///
/// # Errors
/// The fields that differ.
pub(crate) fn check_request(
    expected: &Map<String, Value>,
    found: &Map<String, Value>,
) -> anyhow::Result<()> {
    let different = found.iter().filter_map(|(name, found)| {
        let expected = expected.get(name).unwrap_or(&Value::Null);
        (expected != found).then(|| format!("{name} is {expected} there and {found} here"))
    });
    let different: Vec<String> = different.collect();
    if !different.is_empty() {
        bail!("it is of another request: {}", different.join("; "));
    }
    Ok(())
}
