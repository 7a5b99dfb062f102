//! Runs Stable Diffusion model directories on ONNX Runtime.
//!
//! [`engine`] finds and runs ONNX Runtime, [`text`] turns prompts into embeddings, [`noise`] draws what other programs draw,
//! [`denoise`] holds noise levels, guidance and prediction types, [`sampler`] the solvers, [`sigmas`] the spreads of noise
//! levels, [`profile`] the rules of other programs, [`pipeline`] puts them together, and [`jobs`]
//! takes many requests through it.
//!
//! A picture, from a model directory to a file:
//!
//! ```no_run
//! use std::path::Path;
//!
//! use sd_runtime::engine::{Cancel, Engine, EngineOptions, memory};
//! use sd_runtime::pipeline::{Destination, Format, ModelDir, Models, Plans, Request, run};
//!
//! let models = Models::one(ModelDir::open(Path::new("model"))?);
//! let request = Request {
//!     prompt: "a lighthouse at dusk".to_owned(),
//!     seed: 1,
//!     ..Request::default()
//! };
//! let plans = Plans::resolve(&request, &models, memory::limit())?;
//! let engine = Engine::start(&EngineOptions::default())?;
//! let cancel = Cancel::new();
//! let outcome = run(&plans, &models, &engine, &cancel, &mut |_| (), None)?;
//! let to = Destination::find(Path::new("lighthouse.png"))?;
//! let settings = plans.plans[0].infotext.with(&outcome.settings(0)).to_string();
//! outcome.pictures[0].write(&to, Format::Png, &settings, &cancel)?;
//! # Ok::<_, sd_runtime::pipeline::PipelineError>(())
//! ```
//!
//! What is deliberately not here: converting checkpoints. Models come as directories described by `sd_models::manifest`.

pub mod denoise;
pub mod engine;
pub mod jobs;
pub mod noise;
pub mod pipeline;
pub mod profile;
mod regular;
mod remedy;
pub mod sampler;
pub mod sensors;
pub mod sigmas;
pub mod text;

pub use remedy::{Remedy, WantedLora};
