//! Which model a set of tensors is: decided by structure, never by widths, so that narrow models go the same way.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::arch::{Activation, ClipTextConfig, Level, UNetConfig, VaeConfig};

/// A family of models that share structure, text encoders and latent space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ModelFamily {
    /// Stable Diffusion 1.1 to 1.5 and their fine-tunes.
    #[serde(rename = "sd15")]
    Sd15,
}

impl ModelFamily {
    /// Every family, in the order of `--family`'s help.
    pub const ALL: [Self; 1] = [Self::Sd15];

    /// The name on command lines and in manifests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd15 => "sd15",
        }
    }

    /// What the autoencoder's latents are multiplied by before the UNet sees them.
    #[must_use]
    pub fn scaling_factor(self) -> f64 {
        match self {
            Self::Sd15 => 0.18215,
        }
    }

    /// Side in pixels that the family was trained at.
    #[must_use]
    pub fn resolution(self) -> usize {
        match self {
            Self::Sd15 => 512,
        }
    }
}

impl fmt::Display for ModelFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sd15 => "Stable Diffusion 1.x",
        })
    }
}

/// Shapes of a component's tensors, by canonical name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// The tensors do not make up a network of a known structure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StructureError {
    /// A tensor from which the structure is read is absent.
    #[error("{component}: tensor `{name}` is missing, from which {tells} is read")]
    Missing {
        /// Which network.
        component: &'static str,
        /// Canonical name.
        name: String,
        /// What it would tell.
        tells: &'static str,
    },
    /// A tensor has a rank or size that no known structure has.
    #[error("{component}: tensor `{name}` has shape {found:?}; expected {expected}")]
    Shape {
        /// Which network.
        component: &'static str,
        /// Canonical name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// What a known structure would have.
        expected: String,
    },
}

/// Names that only files other than SD 1.x checkpoints hold, and what those files are.
const FOREIGN: &[(&str, &str)] = &[
    (
        "joint_blocks.",
        "Stable Diffusion 3, a diffusion transformer (DiT)",
    ),
    ("double_blocks.", "Flux, a diffusion transformer (DiT)"),
    ("single_blocks.", "Flux, a diffusion transformer (DiT)"),
    (
        "single_transformer_blocks.",
        "Flux, a diffusion transformer (DiT)",
    ),
    ("cap_embedder.", "a diffusion transformer (DiT)"),
    (
        "caption_projection.",
        "PixArt, a diffusion transformer (DiT)",
    ),
    ("clf.1.weight", "Stable Cascade"),
    ("time_stack.", "a video model"),
    ("time_mixer", "a video model"),
    ("motion_modules.", "an AnimateDiff motion module"),
    ("cc_projection.weight", "Zero123"),
    ("cond_stage_model.roberta.", "AltDiffusion"),
    ("depth_model.", "Stable Diffusion 2 depth"),
    ("conditioner.embedders.1.model.", "SDXL"),
    (
        "conditioner.embedders.0.model.",
        "the SDXL refiner or SD-Turbo",
    ),
    ("cond_stage_model.model.", "Stable Diffusion 2"),
    ("control_model.", "a ControlNet"),
    ("controlnet_down_blocks.", "a ControlNet"),
    ("zero_convs.0.0.weight", "a ControlNet"),
    ("lora_controlnet", "a Control-LoRA"),
    ("image_proj.", "an IP-Adapter"),
    ("ip_adapter.", "an IP-Adapter"),
    ("lllite_unet", "a ControlNet-LLLite"),
    ("string_to_param", "a textual inversion"),
    ("emb_params", "a textual inversion"),
    ("clip_g", "an SDXL textual inversion"),
    ("lora_unet_", "a LoRA"),
    ("lora_te", "a LoRA"),
    (".lora_down.", "a LoRA"),
    (".lora_A.", "a LoRA"),
    (".lora_up.", "a LoRA"),
    (".hada_w1_a", "a LoHa"),
    (".lokr_w1", "a LoKr"),
    (
        "label_emb.0.0.weight",
        "SDXL or another model with added conditioning",
    ),
    (
        "time_embed.cond_proj.weight",
        "a latent consistency model (LCM)",
    ),
    (
        "time_embedding.cond_proj.weight",
        "a latent consistency model (LCM)",
    ),
];

/// What kind of file the names give away, if it is one that is no SD 1.x checkpoint; with the telling name.
pub fn foreign<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<(&'static str, &'a str)> {
    let mut best: Option<(usize, &str)> = None;
    for name in names {
        let hit = FOREIGN.iter().position(|(part, _)| {
            let boundary = name
                .find(part)
                .map(|at| at == 0 || !part.ends_with('.') || name.as_bytes()[at - 1] == b'.');
            boundary.unwrap_or(false)
        });
        if let Some(rank) = hit
            && best.is_none_or(|(known, _)| rank < known)
        {
            best = Some((rank, name));
        }
    }
    best.map(|(rank, name)| (FOREIGN[rank].1, name))
}

/// What an SD 1 UNet with another number of input channels is for.
#[must_use]
pub fn purpose_of_input_channels(channels: usize) -> &'static str {
    match channels {
        5 => "a depth-conditioned model",
        7 => "an upscaler",
        8 => "instruct-pix2pix",
        9 => "an inpainting model",
        _ => "a model of unknown purpose",
    }
}

/// Reads a UNet's widths and depths from its tensors.
///
/// The number of heads cannot be read: structures whose `proj_in` is a convolution have 8 on every level.
///
/// # Errors
/// A structure other than that of SD 1.
pub fn unet_config(shapes: &Shapes) -> Result<UNetConfig, StructureError> {
    const COMPONENT: &str = "UNet";
    let reader = Reader {
        component: COMPONENT,
        shapes,
    };
    let conv_in = reader.conv("conv_in.weight", "the number of input channels")?;
    let conv_out = reader.conv("conv_out.weight", "the number of output channels")?;
    let level_count = reader.count(|i| format!("down_blocks.{i}.resnets.0.conv2.weight"));
    let layers_per_block = reader.count(|j| format!("down_blocks.0.resnets.{j}.conv2.weight"));
    let mut levels = Vec::new();
    for i in 0..level_count {
        let weight = reader.conv(
            &format!("down_blocks.{i}.resnets.0.conv2.weight"),
            "a level's width",
        )?;
        let block =
            |k| format!("down_blocks.{i}.attentions.0.transformer_blocks.{k}.attn2.to_k.weight");
        levels.push(Level {
            channels: weight[0],
            transformer_depth: reader.count(block),
            heads: 8,
        });
    }
    if levels.is_empty() {
        return Err(reader.missing(
            "down_blocks.0.resnets.0.conv2.weight",
            "the number of levels",
        ));
    }
    let text = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let cross_attention_dim = reader.rank(text, 2, "the width of the text embeddings")?[1];
    let projection = reader.get(
        "mid_block.attentions.0.proj_in.weight",
        "the kind of transformer",
    )?;
    if projection.len() != 4 {
        return Err(StructureError::Shape {
            component: COMPONENT,
            name: "mid_block.attentions.0.proj_in.weight".into(),
            found: projection.to_vec(),
            expected: "a 1x1 convolution [C, C, 1, 1], as in SD 1 (SD 2 and SDXL have a matrix: not supported yet)"
                .into(),
        });
    }
    Ok(UNetConfig {
        in_channels: conv_in[1],
        out_channels: conv_out[0],
        levels,
        layers_per_block,
        cross_attention_dim,
    })
}

/// Reads an autoencoder's widths from its decoder's tensors.
///
/// # Errors
/// A structure other than that of the KL autoencoder.
pub fn vae_config(shapes: &Shapes) -> Result<VaeConfig, StructureError> {
    let reader = Reader {
        component: "VAE",
        shapes,
    };
    let level_count = reader.count(|i| format!("decoder.up_blocks.{i}.resnets.0.conv2.weight"));
    let layers = reader.count(|j| format!("decoder.up_blocks.0.resnets.{j}.conv2.weight"));
    let mut channels = Vec::new();
    for i in (0..level_count).rev() {
        channels.push(
            reader.conv(
                &format!("decoder.up_blocks.{i}.resnets.0.conv2.weight"),
                "a level's width",
            )?[0],
        );
    }
    if channels.is_empty() || layers < 2 {
        return Err(reader.missing(
            "decoder.up_blocks.0.resnets.1.conv2.weight",
            "the number of levels and layers",
        ));
    }
    let latent = reader.conv("decoder.conv_in.weight", "the number of latent channels")?;
    Ok(VaeConfig {
        channels,
        layers_per_block: layers - 1,
        latent_channels: latent[1],
    })
}

/// Reads a CLIP text encoder's widths and depth from its tensors. Heads are 64 wide in every CLIP.
///
/// # Errors
/// A structure other than that of CLIP.
pub fn clip_text_config(shapes: &Shapes) -> Result<ClipTextConfig, StructureError> {
    let reader = Reader {
        component: "text encoder",
        shapes,
    };
    let tokens = reader.rank(
        "text_model.embeddings.token_embedding.weight",
        2,
        "the vocabulary's size",
    )?;
    let positions = reader.rank(
        "text_model.embeddings.position_embedding.weight",
        2,
        "the longest sequence",
    )?;
    let layer = |i| format!("text_model.encoder.layers.{i}.mlp.fc1.weight");
    let layers = reader.count(layer);
    let feed_forward = reader.rank(&layer(0), 2, "the feed-forward width")?;
    if tokens[1] % 64 != 0 {
        return Err(StructureError::Shape {
            component: reader.component,
            name: "text_model.embeddings.token_embedding.weight".into(),
            found: tokens.to_vec(),
            expected: "a width that is a multiple of 64, the width of a head".into(),
        });
    }
    Ok(ClipTextConfig {
        vocab_size: tokens[0],
        positions: positions[0],
        hidden_size: tokens[1],
        intermediate_size: feed_forward[0],
        layers,
        heads: tokens[1] / 64,
        activation: Activation::QuickGelu,
    })
}

struct Reader<'a> {
    component: &'static str,
    shapes: &'a Shapes,
}

impl<'a> Reader<'a> {
    /// How many consecutive indices, from 0, have a tensor.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..self.shapes.len())
            .take_while(|&i| self.shapes.contains_key(&name(i)))
            .count()
    }

    fn get(&self, name: &str, tells: &'static str) -> Result<&'a [usize], StructureError> {
        self.shapes
            .get(name)
            .map(Vec::as_slice)
            .ok_or_else(|| self.missing(name, tells))
    }

    fn rank(
        &self,
        name: &str,
        rank: usize,
        tells: &'static str,
    ) -> Result<&'a [usize], StructureError> {
        let shape = self.get(name, tells)?;
        if shape.len() == rank && shape.iter().all(|&n| n > 0) {
            return Ok(shape);
        }
        let expected = format!("{rank} dimensions, none of them 0");
        Err(StructureError::Shape {
            component: self.component,
            name: name.into(),
            found: shape.to_vec(),
            expected,
        })
    }

    fn conv(&self, name: &str, tells: &'static str) -> Result<&'a [usize], StructureError> {
        self.rank(name, 4, tells)
    }

    fn missing(&self, name: &str, tells: &'static str) -> StructureError {
        StructureError::Missing {
            component: self.component,
            name: name.into(),
            tells,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{clip_text_encoder, unet, vae_decoder, vae_encoder};
    use crate::graph::Graph;

    fn shapes(graphs: &[Graph]) -> Shapes {
        graphs
            .iter()
            .flat_map(|g| &g.params)
            .map(|p| (p.name.clone(), p.shape.clone()))
            .collect()
    }

    #[test]
    fn configurations_are_read_back_from_the_tensors_they_declare() {
        for cfg in [UNetConfig::sd15(), UNetConfig::tiny()] {
            assert_eq!(unet_config(&shapes(&[unet(&cfg).unwrap()])).unwrap(), cfg);
        }
        for cfg in [VaeConfig::sd(), VaeConfig::tiny()] {
            let graphs = [vae_encoder(&cfg).unwrap(), vae_decoder(&cfg).unwrap()];
            assert_eq!(vae_config(&shapes(&graphs)).unwrap(), cfg);
        }
        for cfg in [ClipTextConfig::clip_l(), ClipTextConfig::tiny()] {
            assert_eq!(
                clip_text_config(&shapes(&[clip_text_encoder(&cfg).unwrap()])).unwrap(),
                cfg
            );
        }
    }

    #[test]
    fn other_files_are_named() {
        let kind = |names: &[&'static str]| foreign(names.iter().copied()).map(|(kind, _)| kind);
        assert_eq!(
            kind(&["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"]).unwrap(),
            FOREIGN[0].1
        );
        assert_eq!(
            kind(&["a", "conditioner.embedders.1.model.ln_final.weight"]),
            Some("SDXL")
        );
        assert_eq!(
            kind(&["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"]),
            Some("a LoRA")
        );
        assert_eq!(
            kind(&["cond_stage_model.model.ln_final.weight"]),
            Some("Stable Diffusion 2")
        );
        assert_eq!(
            kind(&["model.diffusion_model.input_blocks.0.0.weight", "betas"]),
            None
        );
    }

    #[test]
    fn a_linear_projection_is_not_taken_for_sd1() {
        let mut shapes = shapes(&[unet(&UNetConfig::tiny()).unwrap()]);
        shapes.insert("mid_block.attentions.0.proj_in.weight".into(), vec![96, 96]);
        let error = unet_config(&shapes).unwrap_err().to_string();
        assert!(error.contains("SD 2"), "{error}");
    }
}
