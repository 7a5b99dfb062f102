//! Families of models: what goes with a UNet's structure, and what kinds of files are none of them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::arch::{ClipTextConfig, Projection, UNetConfig};
use crate::keys::Component;
use crate::presets::encoder;
use crate::tokenizer::Pad;

/// Models that share text encoders, latent space and conditioning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ModelFamily {
    /// Stable Diffusion 1.1 to 1.5 and their distillations: CLIP-L.
    #[serde(rename = "sd15")]
    Sd15,
    /// Stable Diffusion 2.0 and 2.1, SD-Turbo: OpenCLIP-H.
    #[serde(rename = "sd21")]
    Sd21,
    /// SDXL and its distillations: CLIP-L and OpenCLIP-bigG.
    #[serde(rename = "sdxl")]
    Sdxl,
    /// SDXL's refiner: OpenCLIP-bigG.
    #[serde(rename = "sdxl-refiner")]
    SdxlRefiner,
}

impl ModelFamily {
    /// The family of a UNet: decided by structure, never by widths, so that narrow models go the same way.
    #[must_use]
    pub fn of(unet: &UNetConfig) -> Self {
        match (unet.projection, unet.added) {
            (Projection::Convolution, _) => Self::Sd15,
            (Projection::Linear, None) => Self::Sd21,
            (Projection::Linear, Some(added)) if added.time_ids == 5 => Self::SdxlRefiner,
            (Projection::Linear, Some(_)) => Self::Sdxl,
        }
    }

    /// What the autoencoder's latents are multiplied by before the UNet sees them.
    #[must_use]
    pub fn scaling_factor(self) -> f64 {
        match self {
            Self::Sd15 | Self::Sd21 => 0.18215,
            Self::Sdxl | Self::SdxlRefiner => 0.13025,
        }
    }

    /// Side in pixels that the family was trained at; Stable Diffusion 2 models that predict velocity have a larger one.
    #[must_use]
    pub fn resolution(self, velocity: bool) -> usize {
        match self {
            Self::Sd21 if velocity => 768,
            Self::Sd15 | Self::Sd21 => 512,
            Self::Sdxl | Self::SdxlRefiner => 1024,
        }
    }

    /// The text encoders, in the order in which their embeddings lie side by side; with `tiny`, narrow ones.
    #[must_use]
    pub fn text_encoders(self, tiny: bool) -> Vec<(Component, ClipTextConfig)> {
        use Component::{TextEncoder, TextEncoder2};
        let clip_l = (TextEncoder, encoder(ClipTextConfig::clip_l(), tiny, 64));
        let big_g = (
            TextEncoder2,
            encoder(ClipTextConfig::open_clip_big_g(), tiny, 128),
        );
        match self {
            Self::Sd15 => vec![clip_l],
            Self::Sd21 => vec![(
                TextEncoder,
                encoder(ClipTextConfig::open_clip_h(), tiny, 64),
            )],
            Self::Sdxl => vec![clip_l, big_g],
            Self::SdxlRefiner => vec![big_g],
        }
    }

    /// What fills the token sequences of one of its text encoders.
    #[must_use]
    pub fn pad(self, encoder: Component) -> Pad {
        match (self, encoder) {
            (Self::Sd15 | Self::Sdxl, Component::TextEncoder) => Pad::EndOfText,
            _ => Pad::Exclamation,
        }
    }

    /// Kind of the UNet's transformers.
    #[must_use]
    pub fn projection(self) -> Projection {
        match self {
            Self::Sd15 => Projection::Convolution,
            Self::Sd21 | Self::Sdxl | Self::SdxlRefiner => Projection::Linear,
        }
    }

    /// Attention heads of a level: 8 where transformers begin with a convolution, otherwise heads are 64 wide.
    #[must_use]
    pub fn heads(projection: Projection, channels: usize) -> usize {
        match projection {
            Projection::Convolution => 8,
            Projection::Linear => channels / 64,
        }
    }

    /// How many numbers the UNet is conditioned on: SDXL takes original size, crop and target size, its refiner original
    /// size, crop and aesthetic score.
    #[must_use]
    pub fn time_ids(self) -> Option<usize> {
        match self {
            Self::Sd15 | Self::Sd21 => None,
            Self::Sdxl => Some(6),
            Self::SdxlRefiner => Some(5),
        }
    }
}

/// What a UNet's input channels beside the latents are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// There are none.
    #[default]
    TextToImage,
    /// A mask and the masked picture's latents.
    Inpaint,
    /// The latents of a picture to be edited by instruction (pix2pix).
    Edit,
}

impl Purpose {
    /// The purpose of a UNet with this many input channels on latents of `latent_channels`, if it is a known one.
    #[must_use]
    pub fn of(in_channels: usize, latent_channels: usize) -> Option<Self> {
        let known = [
            (latent_channels, Self::TextToImage),
            (2 * latent_channels + 1, Self::Inpaint),
            (2 * latent_channels, Self::Edit),
        ];
        let found = known.iter().find(|(channels, _)| *channels == in_channels);
        found.map(|(_, purpose)| *purpose)
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TextToImage => "text to image",
            Self::Inpaint => "inpainting",
            Self::Edit => "editing by instruction (pix2pix)",
        })
    }
}

impl fmt::Display for ModelFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sd15 => "Stable Diffusion 1.x",
            Self::Sd21 => "Stable Diffusion 2.x",
            Self::Sdxl => "SDXL",
            Self::SdxlRefiner => "SDXL refiner",
        })
    }
}

/// Names that only files of other kinds hold, and what those files are.
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
    ("lq_proj", "a diffusion transformer (DiT)"),
    (
        "edm_mean",
        "Playground v2.5, whose latents have another scale",
    ),
    (
        "edm_vpred.sigma_max",
        "CosXL, which predicts by another rule (EDM)",
    ),
    ("clf.1.weight", "Stable Cascade"),
    ("time_stack.", "a video model"),
    ("time_mixer", "a video model"),
    ("motion_modules.", "an AnimateDiff motion module"),
    ("cc_projection.weight", "Zero123"),
    ("cond_stage_model.roberta.", "AltDiffusion"),
    ("depth_model.", "Stable Diffusion 2 depth"),
    ("embedder.model.", "Stable Diffusion 2 unCLIP"),
    ("class_embedding.", "Stable Diffusion 2 unCLIP"),
    ("control_add_embedding.", "a union ControlNet"),
    ("task_embedding", "a union ControlNet"),
    ("image_proj.", "an IP-Adapter"),
    ("ip_adapter.", "an IP-Adapter"),
    ("lllite_unet", "a ControlNet-LLLite"),
    ("string_to_param", "a textual inversion"),
    ("emb_params", "a textual inversion"),
    ("clip_g", "an SDXL textual inversion"),
    ("lora_unet_", ADAPTER),
    ("lora_te", ADAPTER),
    (".lora_down.", ADAPTER),
    (".lora_A.", ADAPTER),
    (".lora_up.", ADAPTER),
];

/// What files that are added to models are called.
pub const ADAPTER: &str = "a LoRA";

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_named() {
        let kind = |names: &[&'static str]| foreign(names.iter().copied()).map(|(kind, _)| kind);
        assert_eq!(
            kind(&["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"]).unwrap(),
            FOREIGN[0].1
        );
        assert_eq!(
            kind(&["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"]),
            Some("a LoRA")
        );
        assert_eq!(
            kind(&["model.diffusion_model.input_blocks.0.0.weight", "betas"]),
            None
        );
    }
}
