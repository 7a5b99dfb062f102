//! Normalizations.

use crate::graph::{GraphBuilder, Result, Value};

/// Groups of every GroupNorm in Stable Diffusion.
const GROUPS: usize = 32;

/// GroupNorm (Wu and He 2018) of `x` [N, C, h, w] in 32 groups, with `weight` and `bias` `[C]`.
///
/// There is no CPU kernel for ONNX's `GroupNormalization`; normalizing the rows of [N, 32, C/32 * h * w] is the same.
///
/// # Errors
/// Channels unknown or no multiple of 32.
pub fn group_norm(g: &mut GraphBuilder, x: Value, epsilon: f32) -> Result<Value> {
    let channels = g.fixed_dim(x, 1)?;
    let rows = g.reshape(x, &[0, GROUPS as i64, -1])?;
    let one = g.constant_f32(&[GROUPS], vec![1.0; GROUPS]);
    let zero = g.constant_f32(&[GROUPS], vec![0.0; GROUPS]);
    let normal = g.instance_norm(rows, one, zero, epsilon);
    let normal = g.reshape_like(normal, x);
    let per_channel = |g: &mut GraphBuilder, name| {
        let value = g.param(name, [channels])?;
        g.reshape(value, &[channels as i64, 1, 1])
    };
    let weight = per_channel(g, "weight")?;
    let bias = per_channel(g, "bias")?;
    let y = g.mul(normal, weight)?;
    g.add(y, bias)
}

/// LayerNorm (Ba et al. 2016) of `x` [..., C] over its last dimension, epsilon 1e-5, with `weight` and `bias` `[C]`.
///
/// # Errors
/// `x` of unknown width.
pub fn layer_norm(g: &mut GraphBuilder, x: Value) -> Result<Value> {
    Ok(layer_norms(g, &[x])?[0])
}

/// One [`layer_norm`] of several values of the same width.
///
/// # Errors
/// Values of unknown or different widths.
pub fn layer_norms(g: &mut GraphBuilder, values: &[Value]) -> Result<Vec<Value>> {
    let width = g.fixed_dim(values[0], g.shape(values[0]).len() - 1)?;
    let weight = g.param("weight", [width])?;
    let bias = g.param("bias", [width])?;
    values
        .iter()
        .map(|&x| g.layer_norm(x, weight, bias, 1e-5))
        .collect()
}
