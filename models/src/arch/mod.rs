//! One network per file: its configuration, presets, and the graph it builds.

mod clip_text;
mod unet;
mod vae;

pub use clip_text::{Activation, ClipTextConfig, clip_text_encoder};
pub use unet::{Level, UNetConfig, unet};
pub use vae::{VaeConfig, vae_decoder, vae_encoder};
