//! Stable Diffusion checkpoints to ONNX model directories, streaming, without Python.
//!
//! [`checkpoint`] reads files tensor by tensor; [`weights`] gives their tensors canonical names and so makes a
//! [`model`], from which [`merge`], [`lora`], [`replace`] and [`control`] make others. [`build`] turns models into the directory that
//! `sdrun` and diffusers run ([`onnx`] writes the graphs), [`save`] into a checkpoint, [`extract`] two of them into a LoRA.
//! [`calibrated`] has ranges that a model's runs had. [`synth`] makes weights for those who own none, [`inspect`], [`against`] and [`verify`] look at files and directories.
//!
//! What is deliberately not here: running models. This crate never touches ONNX Runtime.

pub mod against;
pub mod build;
pub mod calibrated;
pub mod checkpoint;
mod config;
pub mod control;
mod design;
pub mod embedding;
pub mod error;
pub mod extract;
pub mod inspect;
pub mod lora;
pub mod merge;
pub mod model;
pub mod onnx;
pub mod output;
mod passes;
pub mod prediction;
pub mod progress;
mod random;
mod remedy;
pub mod replace;
pub mod save;
mod svd;
pub mod synth;
pub mod verify;
pub mod weights;

pub use error::ConvertError;
pub use remedy::Remedy;
