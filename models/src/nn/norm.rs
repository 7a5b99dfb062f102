//! Normalizations.

use crate::graph::{GraphBuilder, Layer, Result, Value};

/// Groups of every GroupNorm in Stable Diffusion.
const GROUPS: usize = 32;

/// GroupNorm (Wu and He 2018) of `x` [N, C, h, w] in 32 groups, with `weight` and `bias` `[C]`.
///
/// # Errors
/// Channels unknown or no multiple of 32.
pub fn group_norm(g: &mut GraphBuilder, x: Value, epsilon: f32) -> Result<Value> {
    let channels = g.fixed_dim(x, 1)?;
    let weight = g.param("weight", [channels])?;
    let bias = g.param("bias", [channels])?;
    let norm = Layer::GroupNorm {
        groups: GROUPS,
        epsilon,
    };
    g.layer(norm, &[x, weight, bias])
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
    let norm = Layer::LayerNorm { epsilon: 1e-5 };
    values
        .iter()
        .map(|&x| g.layer(norm, &[x, weight, bias]))
        .collect()
}
