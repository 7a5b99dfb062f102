//! Names of the same tensor in different layouts.
//!
//! The canonical names are diffusers' (UNet, VAE) and transformers' (text encoder), per [`Component`] and without a prefix.
//! Every other layout is one file here, as a pair of functions from and to the canonical name.

pub mod ldm;

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
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UNet => "UNet",
            Self::Vae => "VAE",
            Self::TextEncoder => "text encoder",
        })
    }
}

/// What a name in a checkpoint file stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// A weight or bias: its component and canonical name.
    Weight(Component, String),
    /// The running average of a UNet weight.
    Ema,
    /// Known and without influence on the network: schedule buffers, positions, training state.
    Ignorable,
    /// Nothing this layout knows.
    Unknown,
}
