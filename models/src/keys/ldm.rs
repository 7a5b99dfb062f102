//! CompVis' single-file layout ("LDM"), in which SD 1.x checkpoints are distributed.
//!
//! UNet blocks are numbered in one row per direction (`input_blocks.4.1`), where diffusers counts levels and layers
//! (`down_blocks.1.attentions.0`), so the map needs to know how many layers a level has.

use super::{Component, Key};

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";
const TEXT: &str = "cond_stage_model.transformer.";
const EMA: &str = "model_ema.";

/// Schedule buffers and training state at the top level of a file.
const IGNORABLE: &[&str] = &[
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "scale_factor",
    "global_step",
    "model_ema.decay",
    "model_ema.num_updates",
];

/// Parts of the training set-up that some files still carry.
const IGNORABLE_PREFIXES: &[&str] = &[
    "loss.",
    "embedding_manager.",
    "first_stage_model.loss.",
    "first_stage_model.model_ema.",
    "cond_stage_model.transformer.vision_model.",
];

/// Names of the same residual block's layers, LDM and diffusers.
const RESNET: &[(&str, &str)] = &[
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// Layers outside the blocks, LDM and diffusers.
const UNET_TOP: &[(&str, &str)] = &[
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];

/// The VAE's middle, LDM and diffusers.
const VAE_MID: &[(&str, &str)] = &[
    ("mid.block_1", "mid_block.resnets.0"),
    ("mid.block_2", "mid_block.resnets.1"),
    ("mid.attn_1.norm", "mid_block.attentions.0.group_norm"),
    ("mid.attn_1.q", "mid_block.attentions.0.to_q"),
    ("mid.attn_1.k", "mid_block.attentions.0.to_k"),
    ("mid.attn_1.v", "mid_block.attentions.0.to_v"),
    ("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0"),
];

/// What the numbering of a single file depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Residual blocks per level on the way down.
    pub layers_per_block: usize,
    /// Levels of the VAE; the decoder counts them from the other end than diffusers does.
    pub vae_levels: usize,
}

impl Layout {
    /// Stable Diffusion 1, 2 and XL.
    pub const SD: Self = Self {
        layers_per_block: 2,
        vae_levels: 4,
    };

    /// What the key of a single file stands for.
    #[must_use]
    pub fn classify(&self, key: &str) -> Key {
        if IGNORABLE.contains(&key) || IGNORABLE_PREFIXES.iter().any(|p| key.starts_with(p)) {
            return Key::Ignorable;
        }
        if key.starts_with(EMA) {
            return Key::Ema;
        }
        let mapped = if let Some(rest) = key.strip_prefix(UNET) {
            self.unet_to_canonical(rest)
                .map(|name| Key::Weight(Component::UNet, name))
        } else if let Some(rest) = key.strip_prefix(VAE) {
            self.vae_to_canonical(rest)
                .map(|name| Key::Weight(Component::Vae, name))
        } else {
            key.strip_prefix(TEXT).map(text_to_canonical)
        };
        mapped.unwrap_or(Key::Unknown)
    }

    /// The name of the running average of the UNet weight called `key` in the same file: all dots are removed.
    #[must_use]
    pub fn ema_key(key: &str) -> Option<String> {
        let flat = key.strip_prefix("model.")?.replace('.', "");
        Some(format!("{EMA}{flat}"))
    }

    /// The single-file key of a canonical name.
    #[must_use]
    pub fn key(&self, component: Component, canonical: &str) -> Option<String> {
        match component {
            Component::UNet => Some(format!("{UNET}{}", self.unet_from_canonical(canonical)?)),
            Component::Vae => Some(format!("{VAE}{}", self.vae_from_canonical(canonical)?)),
            Component::TextEncoder => Some(format!("{TEXT}{canonical}")),
        }
    }

    fn unet_to_canonical(&self, key: &str) -> Option<String> {
        let per_level = self.layers_per_block + 1;
        let (layer, parameter) = key.rsplit_once('.')?;
        if let Some(name) = lookup(UNET_TOP, layer) {
            return Some(format!("{name}.{parameter}"));
        }
        if let Some(rest) = key.strip_prefix("middle_block.") {
            let (i, rest) = split_index(rest)?;
            return match i {
                0 | 2 => Some(format!(
                    "mid_block.resnets.{}.{}",
                    i / 2,
                    resnet_to_canonical(rest)?
                )),
                1 => Some(format!("mid_block.attentions.0.{rest}")),
                _ => None,
            };
        }
        let down = key.starts_with("input_blocks.");
        let rest = key
            .strip_prefix("input_blocks.")
            .or_else(|| key.strip_prefix("output_blocks."))?;
        let (n, rest) = split_index(rest)?;
        let (slot, rest) = split_index(rest)?;
        // Block 0 of the way down is `conv_in`.
        let n = if down { n.checked_sub(1)? } else { n };
        let (level, layer) = (n / per_level, n % per_level);
        let block = if down { "down_blocks" } else { "up_blocks" };
        if let Some(parameter) = rest.strip_prefix("op.").filter(|_| down && slot == 0) {
            return Some(format!(
                "down_blocks.{level}.downsamplers.0.conv.{parameter}"
            ));
        }
        // The upsampler follows the attention where there is one, so its slot is 1 or 2.
        if let Some(parameter) = rest.strip_prefix("conv.").filter(|_| !down && slot > 0) {
            return Some(format!("up_blocks.{level}.upsamplers.0.conv.{parameter}"));
        }
        match slot {
            0 => Some(format!(
                "{block}.{level}.resnets.{layer}.{}",
                resnet_to_canonical(rest)?
            )),
            1 => Some(format!("{block}.{level}.attentions.{layer}.{rest}")),
            _ => None,
        }
    }

    fn unet_from_canonical(&self, name: &str) -> Option<String> {
        let per_level = self.layers_per_block + 1;
        let (layer, parameter) = name.rsplit_once('.')?;
        if let Some(key) = reverse_lookup(UNET_TOP, layer) {
            return Some(format!("{key}.{parameter}"));
        }
        if let Some(rest) = name.strip_prefix("mid_block.resnets.") {
            let (i, rest) = split_index(rest)?;
            return Some(format!(
                "middle_block.{}.{}",
                2 * i,
                resnet_from_canonical(rest)?
            ));
        }
        if let Some(rest) = name.strip_prefix("mid_block.attentions.0.") {
            return Some(format!("middle_block.1.{rest}"));
        }
        let down = name.starts_with("down_blocks.");
        let rest = name
            .strip_prefix("down_blocks.")
            .or_else(|| name.strip_prefix("up_blocks."))?;
        let (level, rest) = split_index(rest)?;
        let (blocks, first) = if down {
            ("input_blocks", 1)
        } else {
            ("output_blocks", 0)
        };
        if let Some(parameter) = rest.strip_prefix("downsamplers.0.conv.") {
            let n = level * per_level + per_level;
            return Some(format!("input_blocks.{n}.0.op.{parameter}"));
        }
        if let Some(parameter) = rest.strip_prefix("upsamplers.0.conv.") {
            // In SD 1 the first level on the way up is the only one without attention.
            let slot = if level == 0 { 1 } else { 2 };
            let n = level * per_level + self.layers_per_block;
            return Some(format!("output_blocks.{n}.{slot}.conv.{parameter}"));
        }
        if let Some(rest) = rest.strip_prefix("resnets.") {
            let (layer, rest) = split_index(rest)?;
            let n = first + level * per_level + layer;
            return Some(format!("{blocks}.{n}.0.{}", resnet_from_canonical(rest)?));
        }
        let (layer, rest) = split_index(rest.strip_prefix("attentions.")?)?;
        Some(format!(
            "{blocks}.{}.1.{rest}",
            first + level * per_level + layer
        ))
    }

    fn vae_to_canonical(&self, key: &str) -> Option<String> {
        let Some((half, rest)) = split_half(key) else {
            return (key.starts_with("quant_conv.") || key.starts_with("post_quant_conv."))
                .then(|| key.to_owned());
        };
        if let Some(name) = replace_prefix(VAE_MID, rest) {
            return Some(format!("{half}.{name}"));
        }
        let levels = rest
            .strip_prefix("down.")
            .or_else(|| rest.strip_prefix("up."));
        let Some(rest_of_level) = levels else {
            let rest = rest.replace("norm_out.", "conv_norm_out.");
            let known = ["conv_in.", "conv_out.", "conv_norm_out."]
                .iter()
                .any(|p| rest.starts_with(p));
            return known.then(|| format!("{half}.{rest}"));
        };
        let (i, rest_of_level) = split_index(rest_of_level)?;
        let (blocks, i, sampler) = if half == "encoder" {
            ("down_blocks", i, "downsample")
        } else {
            (
                "up_blocks",
                (self.vae_levels - 1).checked_sub(i)?,
                "upsample",
            )
        };
        if let Some(rest) = rest_of_level.strip_prefix("block.") {
            return Some(format!(
                "{half}.{blocks}.{i}.resnets.{}",
                rest.replace("nin_shortcut", "conv_shortcut")
            ));
        }
        let parameter = rest_of_level
            .strip_prefix(sampler)?
            .strip_prefix(".conv.")?;
        Some(format!(
            "{half}.{blocks}.{i}.{sampler}rs.0.conv.{parameter}"
        ))
    }

    fn vae_from_canonical(&self, name: &str) -> Option<String> {
        let Some((half, rest)) = split_half(name) else {
            return Some(name.to_owned());
        };
        if let Some((key, parameter)) = VAE_MID
            .iter()
            .find_map(|(key, name)| Some((key, rest.strip_prefix(name)?.strip_prefix('.')?)))
        {
            return Some(format!("{half}.{key}.{parameter}"));
        }
        let levels = rest
            .strip_prefix("down_blocks.")
            .or_else(|| rest.strip_prefix("up_blocks."));
        let Some(rest_of_level) = levels else {
            return Some(format!(
                "{half}.{}",
                rest.replace("conv_norm_out.", "norm_out.")
            ));
        };
        let (i, rest) = split_index(rest_of_level)?;
        let (level, i) = if half == "encoder" {
            ("down", i)
        } else {
            ("up", (self.vae_levels - 1).checked_sub(i)?)
        };
        let rest = rest
            .replace("resnets.", "block.")
            .replace("conv_shortcut", "nin_shortcut")
            .replace("samplers.0.conv", "sample.conv");
        Some(format!("{half}.{level}.{i}.{rest}"))
    }
}

fn text_to_canonical(rest: &str) -> Key {
    if rest.ends_with("embeddings.position_ids") {
        return Key::Ignorable;
    }
    // Old saves lack the level `text_model`.
    let levels = ["embeddings.", "encoder.", "final_layer_norm."];
    let missing = levels.iter().any(|l| rest.starts_with(l));
    let name = if missing {
        format!("text_model.{rest}")
    } else {
        rest.to_owned()
    };
    match name.strip_prefix("text_model.") {
        Some(rest) if levels.iter().any(|l| rest.starts_with(l)) => {
            Key::Weight(Component::TextEncoder, name)
        }
        _ => Key::Unknown,
    }
}

fn split_half(key: &str) -> Option<(&'static str, &str)> {
    ["encoder", "decoder"]
        .into_iter()
        .find_map(|half| Some((half, key.strip_prefix(half)?.strip_prefix('.')?)))
}

/// `4.1.norm.weight` -> 4 and `1.norm.weight`
fn split_index(key: &str) -> Option<(usize, &str)> {
    let (index, rest) = key.split_once('.')?;
    Some((index.parse().ok()?, rest))
}

fn lookup<'a>(table: &[(&str, &'a str)], key: &str) -> Option<&'a str> {
    table
        .iter()
        .find(|(from, _)| *from == key)
        .map(|(_, to)| *to)
}

fn reverse_lookup<'a>(table: &[(&'a str, &str)], name: &str) -> Option<&'a str> {
    table
        .iter()
        .find(|(_, to)| *to == name)
        .map(|(from, _)| *from)
}

/// Replaces a whole-component prefix found in the table's first column by the second.
fn replace_prefix(table: &[(&str, &str)], key: &str) -> Option<String> {
    table.iter().find_map(|(from, to)| {
        Some(format!(
            "{to}.{}",
            key.strip_prefix(from)?.strip_prefix('.')?
        ))
    })
}

fn resnet_to_canonical(rest: &str) -> Option<String> {
    let (layer, parameter) = rest.rsplit_once('.')?;
    Some(format!("{}.{parameter}", lookup(RESNET, layer)?))
}

fn resnet_from_canonical(rest: &str) -> Option<String> {
    let (layer, parameter) = rest.rsplit_once('.')?;
    Some(format!("{}.{parameter}", reverse_lookup(RESNET, layer)?))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::arch::{
        ClipTextConfig, UNetConfig, VaeConfig, clip_text_encoder, unet, vae_decoder, vae_encoder,
    };

    fn canonical_names() -> Vec<(Component, String)> {
        let graphs = [
            (Component::UNet, unet(&UNetConfig::sd15()).unwrap()),
            (Component::Vae, vae_encoder(&VaeConfig::sd()).unwrap()),
            (Component::Vae, vae_decoder(&VaeConfig::sd()).unwrap()),
            (
                Component::TextEncoder,
                clip_text_encoder(&ClipTextConfig::clip_l()).unwrap(),
            ),
        ];
        graphs
            .into_iter()
            .flat_map(|(c, g)| g.params.into_iter().map(move |p| (c, p.name)))
            .collect()
    }

    #[test]
    fn canonical_to_ldm_and_back_is_the_identity() {
        let names = canonical_names();
        assert_eq!(names.len(), 686 + 248 + 196);
        let mut keys = HashSet::new();
        for (component, name) in names {
            let key = Layout::SD.key(component, &name).unwrap();
            assert_eq!(Layout::SD.classify(&key), Key::Weight(component, name));
            assert!(keys.insert(key));
        }
    }

    #[test]
    fn keys_of_real_files_land_where_diffusers_has_them() {
        let cases = [
            ("input_blocks.0.0.weight", "conv_in.weight"),
            (
                "input_blocks.1.0.in_layers.0.weight",
                "down_blocks.0.resnets.0.norm1.weight",
            ),
            (
                "input_blocks.11.0.in_layers.0.weight",
                "down_blocks.3.resnets.1.norm1.weight",
            ),
            (
                "input_blocks.3.0.op.bias",
                "down_blocks.0.downsamplers.0.conv.bias",
            ),
            (
                "output_blocks.2.1.conv.weight",
                "up_blocks.0.upsamplers.0.conv.weight",
            ),
            (
                "output_blocks.2.2.conv.weight",
                "up_blocks.0.upsamplers.0.conv.weight",
            ),
            (
                "output_blocks.5.2.conv.weight",
                "up_blocks.1.upsamplers.0.conv.weight",
            ),
            (
                "middle_block.2.out_layers.3.bias",
                "mid_block.resnets.1.conv2.bias",
            ),
            (
                "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0.bias",
                "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0.bias",
            ),
        ];
        for (key, name) in cases {
            let classified = Layout::SD.classify(&format!("model.diffusion_model.{key}"));
            assert_eq!(
                classified,
                Key::Weight(Component::UNet, name.to_owned()),
                "{key}"
            );
        }
        let vae = [
            (
                "decoder.up.3.block.0.conv1.weight",
                "decoder.up_blocks.0.resnets.0.conv1.weight",
            ),
            (
                "decoder.up.1.upsample.conv.bias",
                "decoder.up_blocks.2.upsamplers.0.conv.bias",
            ),
            (
                "encoder.down.1.block.0.nin_shortcut.bias",
                "encoder.down_blocks.1.resnets.0.conv_shortcut.bias",
            ),
            (
                "encoder.mid.attn_1.proj_out.weight",
                "encoder.mid_block.attentions.0.to_out.0.weight",
            ),
            ("quant_conv.bias", "quant_conv.bias"),
            ("decoder.norm_out.bias", "decoder.conv_norm_out.bias"),
        ];
        for (key, name) in vae {
            let classified = Layout::SD.classify(&format!("first_stage_model.{key}"));
            assert_eq!(
                classified,
                Key::Weight(Component::Vae, name.to_owned()),
                "{key}"
            );
        }
    }

    #[test]
    fn the_level_text_model_may_be_missing() {
        let name = "text_model.encoder.layers.3.mlp.fc1.bias";
        let expected = Key::Weight(Component::TextEncoder, name.to_owned());
        assert_eq!(
            Layout::SD.classify(&format!("cond_stage_model.transformer.{name}")),
            expected
        );
        assert_eq!(
            Layout::SD.classify("cond_stage_model.transformer.encoder.layers.3.mlp.fc1.bias"),
            expected
        );
    }

    #[test]
    fn what_does_not_matter_is_known_and_what_is_unknown_is_said() {
        for key in [
            "betas",
            "model_ema.decay",
            "cond_stage_model.transformer.text_model.embeddings.position_ids",
        ] {
            assert_eq!(Layout::SD.classify(key), Key::Ignorable, "{key}");
        }
        let unknown = [
            "nonsense",
            "model.diffusion_model.input_blocks.1.7.x",
            "model.diffusion_model.input_blocks.0.0",
            "first_stage_model.encoder.down.9.block",
            "first_stage_model.decoder.up.9.block.0.conv1.weight",
            "model.diffusion_model.",
            "first_stage_model.",
            "cond_stage_model.transformer.",
        ];
        for key in unknown {
            assert_eq!(Layout::SD.classify(key), Key::Unknown, "{key}");
        }
    }

    #[test]
    fn ema_names_have_no_dots() {
        let key = "model.diffusion_model.input_blocks.0.0.weight";
        assert_eq!(
            Layout::ema_key(key).unwrap(),
            "model_ema.diffusion_modelinput_blocks00weight"
        );
        assert_eq!(
            Layout::SD.classify("model_ema.diffusion_modelinput_blocks00weight"),
            Key::Ema
        );
    }
}
