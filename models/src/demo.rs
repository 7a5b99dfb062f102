//! The demo model: a small, really trained checkpoint in SD 1.x's exact layout, built into the programs.
//!
//! Its README (`models/demo/README.md`) says what it draws and how it was trained. CC0.

/// The checkpoint: UNet, VAE and text encoder in one fp16 safetensors file, 34 MB.
pub static CHECKPOINT: &[u8] = include_bytes!("../demo/tiny-shapes.safetensors");

/// File name of [`CHECKPOINT`], for messages and manifests.
pub const FILE_NAME: &str = "tiny-shapes.safetensors";

/// SHA-256 of [`CHECKPOINT`], by which directories that were made of it are known.
pub const SHA256: &str = "30398d282e57f81882df6de895010a2afefad338eb945eea963a0a293ecb3589";

/// A prompt it follows well.
pub const PROMPT: &str = "a large red circle on a blue background";

/// Licence of the model.
pub const LICENSE: &str = "CC0-1.0";
