//! CompVis' names ("LDM"), in which most checkpoints are distributed.
//!
//! UNet blocks are numbered in one row per direction (`input_blocks.4.1`), where diffusers counts levels and layers
//! (`down_blocks.1.attentions.0`), so the map needs to know how many numbers a level takes.

use std::collections::BTreeSet;

use crate::arch::UNetConfig;

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
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("time_embed.cond_proj", "time_embedding.cond_proj"),
    // Only the ControlNet has these.
    ("input_hint_block.0", "controlnet_cond_embedding.conv_in"),
    ("input_hint_block.14", "controlnet_cond_embedding.conv_out"),
    ("middle_block_out.0", "controlnet_mid_block"),
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

/// The numbering of a UNet's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UNetNames {
    /// Numbers that a level takes: its residual blocks and a downsampling. Models with one residual block per level are
    /// also found numbered as if they had two, with gaps.
    stride: usize,
    /// Place of the upsampler in its block: after the attention where there is one. By level on the way up.
    upsampler_slots: Vec<usize>,
}

impl UNetNames {
    /// Numbers without gaps.
    #[must_use]
    pub fn of(cfg: &UNetConfig) -> Self {
        let attends = |depths: &[usize]| depths.last().is_some_and(|&depth| depth > 0);
        let coarsest_first = cfg.levels.iter().rev();
        Self {
            stride: cfg.layers_per_block() + 1,
            upsampler_slots: coarsest_first
                .map(|level| if attends(&level.up) { 2 } else { 1 })
                .collect(),
        }
    }

    /// The numbering of a file's names under `prefix`: the first level ends with the first downsampling.
    #[must_use]
    pub fn detect(names: &BTreeSet<&str>, prefix: &str) -> Self {
        let has = |name: &str| names.contains(format!("{prefix}{name}").as_str());
        let first = (1..10).find(|n| has(&format!("input_blocks.{n}.0.op.weight")));
        let stride = first.unwrap_or(3);
        let slot = |i: usize| {
            let n = i * stride + stride - 1;
            let place = (1..3).find(|slot| has(&format!("output_blocks.{n}.{slot}.conv.weight")));
            place.unwrap_or(2)
        };
        Self {
            stride,
            upsampler_slots: (0..10).map(slot).collect(),
        }
    }

    /// The canonical name of a key without its prefix.
    #[must_use]
    pub fn to_canonical(&self, key: &str) -> Option<String> {
        let (layer, parameter) = key.rsplit_once('.')?;
        if let Some(name) = lookup(UNET_TOP, layer) {
            return Some(format!("{name}.{parameter}"));
        }
        if key == "time_embedding.cond_proj.weight" {
            return Some(key.to_owned());
        }
        if let Some(rest) = key.strip_prefix("zero_convs.") {
            let (n, rest) = split_index(rest)?;
            let parameter = rest.strip_prefix("0.")?;
            return Some(format!("controlnet_down_blocks.{n}.{parameter}"));
        }
        if let Some(rest) = key.strip_prefix("input_hint_block.") {
            let (n, parameter) = split_index(rest)?;
            let i = (n % 2 == 0).then(|| (n / 2).checked_sub(1)).flatten()?;
            return Some(format!("controlnet_cond_embedding.blocks.{i}.{parameter}"));
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
        let (level, layer) = (n / self.stride, n % self.stride);
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

    /// The key of a canonical name, without prefix.
    #[must_use]
    pub fn key_of(&self, name: &str) -> Option<String> {
        let (layer, parameter) = name.rsplit_once('.')?;
        if let Some(key) = reverse_lookup(UNET_TOP, layer) {
            return Some(format!("{key}.{parameter}"));
        }
        if let Some(rest) = name.strip_prefix("controlnet_down_blocks.") {
            let (n, parameter) = split_index(rest)?;
            return Some(format!("zero_convs.{n}.0.{parameter}"));
        }
        if let Some(rest) = name.strip_prefix("controlnet_cond_embedding.blocks.") {
            let (i, parameter) = split_index(rest)?;
            return Some(format!("input_hint_block.{}.{parameter}", 2 * (i + 1)));
        }
        if let Some(rest) = name.strip_prefix("mid_block.resnets.") {
            let (i, rest) = split_index(rest)?;
            return Some(format!("middle_block.{}.{}", 2 * i, resnet_key_of(rest)?));
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
            let n = level * self.stride + self.stride;
            return Some(format!("input_blocks.{n}.0.op.{parameter}"));
        }
        if let Some(parameter) = rest.strip_prefix("upsamplers.0.conv.") {
            let slot = self.upsampler_slots.get(level)?;
            let n = level * self.stride + self.stride - 1;
            return Some(format!("output_blocks.{n}.{slot}.conv.{parameter}"));
        }
        if let Some(rest) = rest.strip_prefix("resnets.") {
            let (layer, rest) = split_index(rest)?;
            let n = first + level * self.stride + layer;
            return Some(format!("{blocks}.{n}.0.{}", resnet_key_of(rest)?));
        }
        let (layer, rest) = split_index(rest.strip_prefix("attentions.")?)?;
        let n = first + level * self.stride + layer;
        Some(format!("{blocks}.{n}.1.{rest}"))
    }
}

/// The numbering of an autoencoder's levels: the decoder counts them from the other end than diffusers does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaeNames {
    /// Levels.
    pub levels: usize,
}

impl VaeNames {
    /// The numbering of a file's names under `prefix`.
    #[must_use]
    pub fn detect(names: &BTreeSet<&str>, prefix: &str) -> Self {
        let has = |half: &str, i: usize| {
            names.contains(format!("{prefix}{half}.{i}.block.0.conv1.weight").as_str())
        };
        let count = |half: &str| (0..10).take_while(|&i| has(half, i)).count();
        Self {
            levels: count("decoder.up").max(count("encoder.down")),
        }
    }

    /// The canonical name of a key without its prefix.
    #[must_use]
    pub fn to_canonical(self, key: &str) -> Option<String> {
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
            ("up_blocks", (self.levels - 1).checked_sub(i)?, "upsample")
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

    /// The key of a canonical name, without prefix.
    #[must_use]
    pub fn key_of(self, name: &str) -> Option<String> {
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
            ("up", (self.levels - 1).checked_sub(i)?)
        };
        let rest = rest
            .replace("resnets.", "block.")
            .replace("conv_shortcut", "nin_shortcut")
            .replace("samplers.0.conv", "sample.conv");
        Some(format!("{half}.{level}.{i}.{rest}"))
    }
}

fn split_half(key: &str) -> Option<(&'static str, &str)> {
    ["encoder", "decoder"]
        .into_iter()
        .find_map(|half| Some((half, key.strip_prefix(half)?.strip_prefix('.')?)))
}

/// `4.1.norm.weight` -> 4 and `1.norm.weight`
pub(super) fn split_index(key: &str) -> Option<(usize, &str)> {
    let (index, rest) = key.split_once('.')?;
    Some((index.parse().ok()?, rest))
}

pub(super) fn lookup<'a>(table: &[(&str, &'a str)], key: &str) -> Option<&'a str> {
    table
        .iter()
        .find(|(from, _)| *from == key)
        .map(|(_, to)| *to)
}

pub(super) fn reverse_lookup<'a>(table: &[(&'a str, &str)], name: &str) -> Option<&'a str> {
    table
        .iter()
        .find(|(_, to)| *to == name)
        .map(|(from, _)| *from)
}

/// Replaces a whole-component prefix found in the table's first column by the second.
pub(super) fn replace_prefix(table: &[(&str, &str)], key: &str) -> Option<String> {
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

fn resnet_key_of(rest: &str) -> Option<String> {
    let (layer, parameter) = rest.rsplit_once('.')?;
    Some(format!("{}.{parameter}", reverse_lookup(RESNET, layer)?))
}
