//! Kernels of Stable Diffusion's networks for CPUs: convolution, linear layers, attention and norms over channels-last
//! tensors, with weights read in the type they are stored in.
//!
//! One file per kernel. Each is written once, over the vectors of `simd::Simd`, and compiled for every instruction level
//! ([`Isa`]); the level is chosen at run time, so that one binary runs on any processor. Beside it stands a scalar twin, the
//! formula as one would write it down, which tests compare with.
//!
//! Nothing here knows ONNX Runtime, files or clocks. Threads come from the caller's [`Pool`]; sums run in an order that does not
//! depend on how many there are.
//!
//! `unsafe` is confined to this crate's inner loops: vector intrinsics, and threads that write disjoint parts of one output.
//! Every public function checks the lengths of its slices first.

#![allow(unsafe_code)]
// Code over `Simd` gets its instructions by being inlined into a function that has them.
#![allow(clippy::inline_always)]

mod activation;
mod attention;
mod chain;
mod compact;
mod compute;
mod concat;
mod conv;
mod factors;
mod floats;
mod group_norm;
mod isa;
mod layer_norm;
mod linear;
mod outliers;
mod pack;
mod pool;
mod product;
mod rows;
mod scratch;
mod simd;
#[cfg(test)]
mod testing;

pub use activation::Activation;
pub use attention::{Attention, attention};
pub use chain::{Step, chain, chain_sizes};
pub use compute::Compute;
pub use concat::concat;
pub use conv::{Conv, conv};
pub use floats::Floats;
pub use group_norm::{GroupNorm, group_norm};
pub use isa::Isa;
pub use layer_norm::{LayerNorm, layer_norm};
pub use linear::{Linear, Order, linear};
pub use pool::{Pool, Serial, Threads};
pub use scratch::{OutOfMemory, Scratch};

/// What a kernel runs with.
pub struct Run<'a> {
    /// Instructions to use.
    pub isa: Isa,
    /// What products of linear layers and attention are computed in.
    pub compute: Compute,
    /// Threads.
    pub pool: &'a dyn Pool,
    /// Memory that outlives a call, so that it is not asked for each time.
    pub scratch: &'a mut Scratch,
}
