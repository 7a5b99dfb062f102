//! Passes: graphs to graphs that compute the same.

mod native;
mod split;

pub(crate) use native::{Report, native};
pub(crate) use split::{Part, Split, split};
