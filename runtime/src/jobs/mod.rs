//! Many requests, by several workers with one copy of the weights: [`Scheduler`].
//!
//! *The queue* is bounded, shares fairly between clients and admits jobs while they fit into memory together (`queue.rs`). *A
//! worker* is an engine with its part of the processors' threads ([`Engine::split`]), so workers compute at the same time with
//! weights that are mapped once. Which number of workers is fastest depends on machine and model: [`split`] measures.
//! *Stages overlap*: a worker has two jobs at a time, of which one has its UNet while the other one's prompts are read or its
//! picture is decoded and written.
//!
//! Deliberately not here: batches of jobs with one shape. On processors a batch takes as long as its pictures one by one.
//!
//! [`Engine::split`]: crate::engine::Engine::split

mod pins;
mod queue;
mod scheduler;
pub mod split;
mod sync;
mod turn;

pub use pins::{PinError, Pins};
pub use scheduler::{
    Follow, Handle, Job, JobError, Made, News, Options, Scheduler, Stop, SubmitError,
};
