//! Passes: graphs to graphs that compute the same.

mod integer;
mod native;
mod quantize;
mod ranges;
mod split;
#[cfg(test)]
mod tests;

pub(crate) use integer::{integer, multiplied};
pub(crate) use native::{Report, native};
pub use quantize::Rounded;
pub(crate) use quantize::{Roundings, quantizable, quantize};
pub(crate) use ranges::ranged;
pub(crate) use split::{Part, Split, split};
