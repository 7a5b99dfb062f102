//! Names of the same tensor in different layouts.
//!
//! The canonical names are diffusers' (UNet, VAE, ControlNet) and transformers' (text encoders), per [`Component`] and
//! without a prefix. Every other way of naming is one file here, as a pair of functions from and to the canonical name;
//! [`layout`] finds out which of them a file uses where.

mod averages;
pub mod blocks;
pub mod kohya;
pub mod layout;
pub mod ldm;
mod open_clip;
mod taesd;

use std::fmt;

/// A network of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// The denoiser.
    UNet,
    /// The autoencoder.
    Vae,
    /// CLIP's text transformer.
    TextEncoder,
    /// SDXL's second text transformer.
    TextEncoder2,
    /// A network that steers a UNet by a picture.
    ControlNet,
    /// The tiny autoencoder.
    Taesd,
}

impl Component {
    /// Every component.
    pub const ALL: [Self; 6] = [
        Self::TextEncoder,
        Self::TextEncoder2,
        Self::UNet,
        Self::Vae,
        Self::ControlNet,
        Self::Taesd,
    ];

    /// The name in reports; that of its folder in a pipeline, where it has one.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UNet => "unet",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
            Self::ControlNet => "controlnet",
            Self::Taesd => "taesd",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UNet => "UNet",
            Self::Vae => "VAE",
            Self::TextEncoder => "text encoder",
            Self::TextEncoder2 => "second text encoder",
            Self::ControlNet => "ControlNet",
            Self::Taesd => "TAESD",
        })
    }
}

/// Which part of a stored tensor a canonical tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first, second or last third of its rows.
    Third(usize),
    /// All of it, a matrix with rows and columns exchanged.
    Transposed,
}

/// Canonical names of what one stored tensor holds.
pub type Parts = Vec<(String, Part)>;

/// What a name in a checkpoint file stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Weights or biases of a component.
    Weight(Component, Parts),
    /// The running average of a UNet weight.
    Ema,
    /// Known and without influence on the network: schedule buffers, positions, training state.
    Ignorable,
    /// Nothing this layout knows.
    Unknown,
}
