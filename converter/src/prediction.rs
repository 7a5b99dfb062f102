//! What a UNet predicts, noise or velocity: shapes do not show it.

use sd_models::diffusers::{prediction_name, prediction_type};
use sd_models::keys::Component;
use sd_models::manifest::PredictionType;

use crate::ConvertError;
use crate::model::Model;

/// Spread of a certain bias above which Stable Diffusion 2's UNet was trained on velocity.
const VELOCITY_SPREAD: f64 = 0.09;

/// A prediction type and what says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// What the UNet predicts.
    pub kind: PredictionType,
    /// What says so.
    pub evidence: String,
}

impl Prediction {
    /// Asks, in this order: the user, the scheduler's configuration, files and tensors that name it, the file's metadata,
    /// and for Stable Diffusion 2 a statistic of the weights.
    ///
    /// # Errors
    /// The weights cannot be read.
    pub fn choose(wanted: Option<PredictionType>, model: &dyn Model) -> Result<Self, ConvertError> {
        let told = |kind, evidence: &str| {
            Ok(Self {
                kind,
                evidence: format!("{}, by {evidence}", prediction_name(kind)),
            })
        };
        if let Some(kind) = wanted {
            return told(kind, "your word");
        }
        let hints = model.hints();
        let configured = hints.scheduler.as_ref().map(|s| &s["prediction_type"]);
        if let Some(kind) = configured.and_then(|name| prediction_type(name.as_str()?)) {
            return told(kind, "scheduler_config.json");
        }
        let metadata = |key: &str| hints.metadata.get(key).map(String::as_str);
        match metadata("modelspec.prediction_type") {
            Some("epsilon") => return told(PredictionType::Epsilon, "the file's metadata"),
            Some("v" | "v_prediction") => {
                return told(PredictionType::VPrediction, "the file's metadata");
            }
            _ => {}
        }
        match metadata("modelspec.architecture") {
            Some("stable-diffusion-v2-512") => {
                return told(PredictionType::Epsilon, "the file's metadata");
            }
            Some("stable-diffusion-v2-768-v") => {
                return told(PredictionType::VPrediction, "the file's metadata");
            }
            _ => {}
        }
        if let Some(evidence) = &hints.velocity {
            return told(PredictionType::VPrediction, evidence);
        }
        if let Some(spread) = telling_spread(model)? {
            let velocity = spread > VELOCITY_SPREAD;
            let (kind, sign) = match velocity {
                true => (PredictionType::VPrediction, ">"),
                false => (PredictionType::Epsilon, "<="),
            };
            let evidence = format!("a statistic ({spread:.3} {sign} {VELOCITY_SPREAD})");
            return told(kind, &evidence);
        }
        told(PredictionType::Epsilon, "the family's custom")
    }
}

/// Standard deviation of the first LayerNorm's bias in the last transformer on the way up, if the model has the structure
/// of Stable Diffusion 2 for text to image.
fn telling_spread(model: &dyn Model) -> Result<Option<f64>, ConvertError> {
    let shape = |name: &str| {
        let entry = model.entries().get(&(Component::UNet, name.to_owned()));
        entry.map(|entry| entry.shape.as_slice())
    };
    let is_sd2 = shape("conv_in.weight").is_some_and(|s| s.get(1) == Some(&4))
        && shape("add_embedding.linear_1.weight").is_none()
        && shape("down_blocks.0.attentions.0.proj_in.weight").is_some_and(|s| s.len() == 2);
    if !is_sd2 {
        return Ok(None);
    }
    let name = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias";
    if shape(name).is_none() {
        return Ok(None);
    }
    let values = model.read_f32(&(Component::UNet, name.to_owned()))?;
    let count = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let square = |&x: &f32| (f64::from(x) - mean).powi(2);
    Ok(Some(
        (values.iter().map(square).sum::<f64>() / count).sqrt(),
    ))
}
