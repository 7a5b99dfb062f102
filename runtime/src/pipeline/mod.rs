//! From a request to pictures.

pub mod dump;
mod error;
pub mod image_io;
pub mod infotext;
mod model;
mod output;
mod txt2img;

pub use dump::Dump;
pub use error::{PipelineError, RequestError};
pub use image_io::Picture;
pub use model::ModelDir;
pub use output::Destination;
pub use txt2img::{Outcome, Phase, Timing, Txt2Img, Watch};
