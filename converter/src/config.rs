//! What a component's `config.json` says. Shapes decide sizes; what they do not show is taken from here, or must be what
//! our graphs compute.

use std::fmt;

use sd_models::arch::{Activation, ClipTextConfig, PooledAt, UNetConfig};
use sd_models::diffusers::POOLED_AT_LARGEST_ID;
use sd_models::keys::Component;
use serde_json::{Value, json};

use crate::ConvertError;
use crate::checkpoint::folder::ConfigFile;
use crate::model::Model;

/// What a field may say; where it is absent or null, it says the same. In a list, every entry must be so.
#[derive(Clone, Copy, Debug)]
enum Supported {
    Text(&'static [&'static str]),
    Number(f64),
    Flag(bool),
    /// Nothing but null.
    Null,
}

use Supported::{Flag, Null, Number, Text};

type Fields = &'static [(&'static str, Supported)];

/// Fields of a CLIP text encoder (transformers' `CLIPTextConfig`).
const TEXT_ENCODER: Fields = &[
    ("hidden_act", Text(&["quick_gelu", "gelu"])),
    ("layer_norm_eps", Number(1e-5)),
    ("quantization_config", Null),
];

/// Fields that a UNet and a ControlNet share (diffusers' `UNet2DConditionModel`, `ControlNetModel`).
const TRUNK: Fields = &[
    ("act_fn", Text(&["silu", "swish"])),
    ("addition_embed_type", Text(&["text_time"])),
    ("addition_time_embed_dim", Number(256.0)),
    ("center_input_sample", Flag(false)),
    ("class_embed_type", Null),
    ("conv_in_kernel", Number(3.0)),
    (
        "down_block_types",
        Text(&["CrossAttnDownBlock2D", "DownBlock2D"]),
    ),
    ("downsample_padding", Number(1.0)),
    ("encoder_hid_dim", Null),
    ("encoder_hid_dim_type", Null),
    ("flip_sin_to_cos", Flag(true)),
    ("freq_shift", Number(0.0)),
    ("mid_block_scale_factor", Number(1.0)),
    (
        "mid_block_type",
        Text(&["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"]),
    ),
    ("norm_eps", Number(1e-5)),
    ("norm_num_groups", Number(32.0)),
    ("num_class_embeds", Null),
    ("only_cross_attention", Flag(false)),
    ("quantization_config", Null),
    ("resnet_time_scale_shift", Text(&["default"])),
];

/// Fields that only a UNet has.
const UNET: Fields = &[
    ("attention_type", Text(&["default"])),
    ("class_embeddings_concat", Flag(false)),
    ("conv_out_kernel", Number(3.0)),
    ("cross_attention_norm", Null),
    ("dual_cross_attention", Flag(false)),
    ("mid_block_only_cross_attention", Flag(false)),
    ("resnet_out_scale_factor", Number(1.0)),
    ("resnet_skip_time_act", Flag(false)),
    ("time_embedding_act_fn", Null),
    ("time_embedding_type", Text(&["positional"])),
    ("timestep_post_act", Null),
    ("up_block_types", Text(&["CrossAttnUpBlock2D", "UpBlock2D"])),
];

/// Fields that only a ControlNet has.
const CONTROLNET: Fields = &[
    ("controlnet_conditioning_channel_order", Text(&["rgb"])),
    ("global_pool_conditions", Flag(false)),
];

/// Fields of the KL autoencoder (diffusers' `AutoencoderKL`).
const VAE: Fields = &[
    ("act_fn", Text(&["silu", "swish"])),
    ("down_block_types", Text(&["DownEncoderBlock2D"])),
    ("latents_mean", Null),
    ("latents_std", Null),
    ("mid_block_add_attention", Flag(true)),
    ("norm_num_groups", Number(32.0)),
    ("quantization_config", Null),
    ("shift_factor", Number(0.0)),
    ("up_block_types", Text(&["UpDecoderBlock2D"])),
    ("use_post_quant_conv", Flag(true)),
    ("use_quant_conv", Flag(true)),
];

/// Fields of the tiny autoencoder (diffusers' `AutoencoderTiny`).
const TAESD: Fields = &[
    ("act_fn", Text(&["relu"])),
    ("scaling_factor", Number(1.0)),
    ("shift_factor", Number(0.0)),
    ("upsample_fn", Text(&["nearest"])),
    ("upsampling_scaling_factor", Number(2.0)),
];

impl Supported {
    fn allows(self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (Text(_) | Number(_) | Flag(_), Value::Array(entries)) => {
                entries.iter().all(|entry| self.allows(entry))
            }
            (Text(names), Value::String(name)) => names.contains(&name.as_str()),
            (Flag(wanted), Value::Bool(found)) => wanted == *found,
            (Number(wanted), Value::Number(found)) => found.as_f64().is_some_and(|found| {
                // Some files hold numbers that were rounded to single precision.
                (found - wanted).abs() <= 1e-6 * wanted.abs()
            }),
            _ => false,
        }
    }
}

impl fmt::Display for Supported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Text(names) => f.write_str(&names.join(" or ")),
            Number(number) => write!(f, "{number}"),
            Flag(flag) => write!(f, "{flag}"),
            Null => f.write_str("null"),
        }
    }
}

/// A component's `config.json`, if it has one.
pub(crate) struct Config<'a> {
    model: &'a dyn Model,
    component: Component,
    file: Option<&'a ConfigFile>,
}

impl<'a> Config<'a> {
    /// Looks it up and checks every field that shapes do not show.
    ///
    /// # Errors
    /// A field says something that our graphs do not compute.
    pub(crate) fn of(model: &'a dyn Model, component: Component) -> Result<Self, ConvertError> {
        let file = model.hints().configs.get(&component);
        let config = Self {
            model,
            component,
            file,
        };
        let tables: &[Fields] = match component {
            Component::TextEncoder | Component::TextEncoder2 => &[TEXT_ENCODER],
            Component::UNet => &[TRUNK, UNET],
            Component::ControlNet => &[TRUNK, CONTROLNET],
            Component::Vae => &[VAE],
            Component::Taesd => &[TAESD],
        };
        for (field, supported) in tables.iter().copied().flatten() {
            if let Some(found) = config.get(field)
                && !supported.allows(found)
            {
                return Err(config.unsupported(field, found, supported));
            }
        }
        Ok(config)
    }

    fn get(&self, field: &str) -> Option<&'a Value> {
        let value = self.file?.json.get(field);
        value.filter(|value| !value.is_null())
    }

    fn unsupported(
        &self,
        field: &'static str,
        found: &Value,
        supported: impl fmt::Display,
    ) -> ConvertError {
        let path = self.file.map(|file| file.path.clone());
        ConvertError::ConfigUnsupported {
            path: path.unwrap_or_default(),
            field,
            found: found.to_string(),
            supported: supported.to_string(),
        }
    }

    fn contradiction(&self, field: &'static str, config: &Value, weights: String) -> ConvertError {
        ConvertError::ConfigContradictsWeights {
            path: self.model.path().to_owned(),
            component: self.component,
            field,
            config: config.to_string(),
            weights,
        }
    }

    /// Compares a size with the weights', or each entry of a list.
    ///
    /// # Errors
    /// The configuration says something else than the weights.
    pub(crate) fn agrees(&self, field: &'static str, weights: usize) -> Result<(), ConvertError> {
        let same = |value: &Value| value.as_u64() == Some(weights as u64);
        match self.get(field) {
            Some(Value::Array(entries)) if entries.iter().all(same) => Ok(()),
            Some(value) if !same(value) => {
                Err(self.contradiction(field, value, weights.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Compares a list of sizes with the weights'.
    ///
    /// # Errors
    /// The configuration says something else than the weights.
    pub(crate) fn agrees_by_level(
        &self,
        field: &'static str,
        weights: &[usize],
    ) -> Result<(), ConvertError> {
        match self.get(field) {
            Some(value) if *value != json!(weights) => {
                Err(self.contradiction(field, value, format!("{weights:?}")))
            }
            _ => Ok(()),
        }
    }

    /// The numbers of heads, which diffusers calls `attention_head_dim` by a historic mistake.
    ///
    /// # Errors
    /// They do not divide the widths.
    pub(crate) fn apply_heads(&self, cfg: &mut UNetConfig) -> Result<(), ConvertError> {
        const FIELD: &str = "attention_head_dim";
        let Some(value) = self.get("num_attention_heads").or_else(|| self.get(FIELD)) else {
            return Ok(());
        };
        let heads = |i: usize| value.as_u64().or_else(|| value.get(i)?.as_u64());
        for (i, level) in cfg.levels.iter_mut().enumerate() {
            match heads(i).map(|n| n as usize) {
                Some(n) if n > 0 && level.channels % n == 0 => level.heads = n,
                _ => {
                    let weights = format!("level {i} has {} channels", level.channels);
                    return Err(self.contradiction(FIELD, value, weights));
                }
            }
        }
        Ok(())
    }

    /// The activation of a text encoder, if it is said.
    pub(crate) fn activation(&self) -> Option<Activation> {
        match self.get("hidden_act")?.as_str()? {
            "quick_gelu" => Some(Activation::QuickGelu),
            _ => Some(Activation::Gelu),
        }
    }

    /// What shapes do not show of a text encoder: heads, and where the pooled output is taken.
    ///
    /// # Errors
    /// Heads that do not divide the width, or an end token that is no id.
    pub(crate) fn apply_text(&self, cfg: &mut ClipTextConfig) -> Result<(), ConvertError> {
        const HEADS: &str = "num_attention_heads";
        const END: &str = "eos_token_id";
        if let Some(value) = self.get(HEADS) {
            cfg.heads = match value.as_u64().map(|n| n as usize) {
                Some(n) if n > 0 && cfg.hidden_size.is_multiple_of(n) => n,
                _ => {
                    let weights = format!("a width of {}", cfg.hidden_size);
                    return Err(self.contradiction(HEADS, value, weights));
                }
            };
        }
        if let Some(value) = self.get(END) {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            cfg.pooled_at = match id {
                Some(POOLED_AT_LARGEST_ID) => PooledAt::LargestId,
                Some(id) => PooledAt::First(id),
                None => return Err(self.unsupported(END, value, "a token's id")),
            };
        }
        Ok(())
    }

    /// What an autoencoder's latents are multiplied by, if it is said.
    ///
    /// # Errors
    /// It is no number above 0.
    pub(crate) fn scaling_factor(&self) -> Result<Option<f64>, ConvertError> {
        const FIELD: &str = "scaling_factor";
        match self.get(FIELD) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(factor) if factor > 0.0 => Ok(Some(factor)),
                _ => Err(self.unsupported(FIELD, value, "a number above 0")),
            },
        }
    }

    /// Side of the latents that a UNet was trained on, if it is said.
    pub(crate) fn sample_size(&self) -> Option<usize> {
        self.get("sample_size")?.as_u64().map(|side| side as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_by_what_they_mean() {
        let eps = Number(1e-5);
        assert!(eps.allows(&json!(1e-5)) && eps.allows(&json!(9.999_999_747_378_752e-6)));
        assert!(!eps.allows(&json!(1e-6)) && !eps.allows(&json!("1e-5")));
        assert!(Number(0.0).allows(&json!(0)) && !Number(0.0).allows(&json!(0.1)));
        let none = Flag(false);
        assert!(none.allows(&json!([false, false])) && !none.allows(&json!([false, true])));
        assert!(Null.allows(&json!(null)) && !Null.allows(&json!([0.1])));
    }
}
