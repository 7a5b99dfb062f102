//! Runs Stable Diffusion model directories on ONNX Runtime.
//!
//! [`engine`] finds and runs ONNX Runtime, [`text`] turns prompts into embeddings, [`noise`] draws what other programs draw,
//! [`denoise`] holds noise levels, guidance and prediction types, [`sampler`] the solvers, [`sigmas`] the spreads of noise
//! levels, [`profile`] the rules of other programs, and [`pipeline`] puts them together.
//!
//! What is deliberately not here: converting checkpoints. Models come as directories described by `sd_models::manifest`.

pub mod denoise;
pub mod engine;
pub mod noise;
pub mod pipeline;
pub mod profile;
pub mod sampler;
pub mod sigmas;
pub mod text;
