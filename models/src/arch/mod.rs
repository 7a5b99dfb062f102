//! One network per file: its configuration, and the graph it builds.

mod clip_text;
mod controlnet;
mod taesd;
mod unet;
mod vae;

pub use crate::nn::Projection;
pub use clip_text::{Activation, ClipTextConfig, PooledAt, clip_text_encoder};
pub use controlnet::{ControlNetConfig, controlnet};
pub use taesd::{TaesdConfig, taesd_decoder, taesd_encoder};
pub use unet::{
    AddedConditioning, Level, MidBlock, TIME_ID_WIDTH, UNetConfig, controlled_unet, unet,
};
pub use vae::{VaeConfig, vae_decoder, vae_encoder};
