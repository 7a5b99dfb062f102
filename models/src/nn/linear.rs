//! Linear layers and convolutions.

use crate::graph::{Conv, GraphBuilder, Layer, Result, Value};

/// `x` [..., in] -> [..., out]: `x W^T + b`, with `weight` [out, in] and `bias` `[out]`.
///
/// # Errors
/// `x` of unknown width.
pub fn linear(g: &mut GraphBuilder, x: Value, out: usize) -> Result<Value> {
    let weight = matrix(g, x, out)?;
    let bias = g.param("bias", [out])?;
    g.layer(Layer::Linear, &[x, weight, bias])
}

/// `x` [..., in] -> [..., out]: `x W^T`.
///
/// # Errors
/// `x` of unknown width.
pub fn linear_no_bias(g: &mut GraphBuilder, x: Value, out: usize) -> Result<Value> {
    let weight = matrix(g, x, out)?;
    g.layer(Layer::Linear, &[x, weight])
}

/// `x` [N, C, h, w] -> [N, out, h', w'], with `weight` [out, C, k, k] and `bias` `[out]`.
///
/// # Errors
/// `x` of unknown channels.
pub fn conv2d(g: &mut GraphBuilder, x: Value, out: usize, conv: Conv) -> Result<Value> {
    let weight = kernel(g, x, out, conv)?;
    let bias = g.param("bias", [out])?;
    g.layer(Layer::Conv2d(conv), &[x, weight, bias])
}

/// [`conv2d`] without `bias`.
///
/// # Errors
/// `x` of unknown channels.
pub fn conv2d_no_bias(g: &mut GraphBuilder, x: Value, out: usize, conv: Conv) -> Result<Value> {
    let weight = kernel(g, x, out, conv)?;
    g.layer(Layer::Conv2d(conv), &[x, weight])
}

fn matrix(g: &mut GraphBuilder, x: Value, out: usize) -> Result<Value> {
    let width = g.fixed_dim(x, g.shape(x).len() - 1)?;
    g.param_transposed("weight", [out, width])
}

fn kernel(g: &mut GraphBuilder, x: Value, out: usize, conv: Conv) -> Result<Value> {
    let channels = g.fixed_dim(x, 1)?;
    g.param("weight", [out, channels, conv.kernel, conv.kernel])
}
