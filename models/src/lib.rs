//! Pure descriptions of Stable Diffusion models.
//!
//! What is here: [`graph`] (ONNX graphs as data, and the builder that checks them), [`nn`] (layers that own parameter
//! names), [`arch`] (one architecture per file), [`keys`] (how checkpoint layouts name the same tensors), [`family`] (which
//! model a set of tensors is), [`manifest`] (the directory that `sdconvert` writes and `sdrun` reads), [`tokenizer`] (CLIP's
//! vocabulary), [`diffusers`] (its configuration files), [`defaults`] (what distilled models are run with),
//! [`calibration`] (ranges of layers' inputs) and [`demo`] (the small model that ships with the programs).
//!
//! What is deliberately not here: file I/O, threads, clocks, ONNX Runtime. The same input always gives the same graph.

pub mod arch;
pub mod calibration;
pub mod defaults;
pub mod demo;
pub mod diffusers;
pub mod family;
pub mod graph;
pub mod keys;
pub mod manifest;
pub mod nn;
pub mod presets;
pub mod structure;
pub mod tokenizer;
