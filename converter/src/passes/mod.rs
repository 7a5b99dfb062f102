//! Passes: graphs to graphs that compute the same.

mod native;
mod split;
#[cfg(test)]
mod tests;

pub(crate) use native::{Report, native};
pub(crate) use split::{Part, Split, split};
