//! From a request to pictures: [`Request`], [`Plans`], [`run`].
//!
//! A request says what is asked for. [`Plans::resolve`] makes every choice that it leaves open, before any weight is read.
//! [`run`] takes the plans through the stages and tells a listener what happens.

mod decode;
pub mod dump;
mod error;
mod event;
mod folder;
mod idle;
pub mod image_io;
pub mod infotext;
mod json;
mod leases;
mod model;
mod output;
mod plan;
mod preview;
mod prompts;
mod replay;
mod request;
mod run;
mod stages;
mod vae_approx;

pub use dump::Dump;
pub use error::{PipelineError, RequestError};
pub use event::{Event, Listener, Stage};
pub use image_io::{Format, Picture, PictureError, PictureFile};
pub use json::problem;
pub use model::{ModelDir, Models};
pub use output::Destination;
pub use plan::{Plan, Plans, Told};
pub use replay::{Call, Replay, Trajectory};
pub use request::{Micro, Request};
pub use run::{Outcome, Timing, run};
pub use vae_approx::VaeApprox;
