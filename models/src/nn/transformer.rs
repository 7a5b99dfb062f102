//! The UNet's transformer over pixels (Rombach et al. 2022, section 3.3): self-attention, cross-attention to the text, GEGLU.

use super::{
    Qkv, attention, attention_by_head, conv2d, group_norm, layer_norm, linear, linear_no_bias,
};
use crate::graph::{Conv, GraphBuilder, Layer, Result, Value};

/// How pixels become tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// A 1x1 convolution; with it go 8 heads on every level.
    Convolution,
    /// A matrix; with it go heads of width 64.
    Linear,
}

/// What varies between transformers.
#[derive(Clone, Copy, Debug)]
pub struct SpatialTransformer {
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// How pixels become tokens and tokens pixels.
    pub projection: Projection,
}

/// `x` [N, C, h, w], `context` [N, t, D] -> [N, C, h, w]: pixels become tokens, pass the blocks, and are added to `x`.
///
/// # Errors
/// `x` of unknown channels, or channels that are no multiple of the heads.
pub fn spatial_transformer(
    g: &mut GraphBuilder,
    x: Value,
    context: Value,
    shape: SpatialTransformer,
) -> Result<Value> {
    let h = g.scope("norm", |g| group_norm(g, x, 1e-6))?;
    let mut tokens = g.scope("proj_in", |g| to_tokens(g, h, shape.projection))?;
    for k in 0..shape.depth {
        tokens = g.scope(("transformer_blocks", k), |g| {
            block(g, tokens, context, shape.heads)
        })?;
    }
    let h = g.scope("proj_out", |g| to_pixels(g, tokens, x, shape.projection))?;
    g.add(h, x)
}

/// `x` [N, C, h, w] -> [N, h * w, C]
fn to_tokens(g: &mut GraphBuilder, x: Value, projection: Projection) -> Result<Value> {
    let channels = g.fixed_dim(x, 1)?;
    match projection {
        Projection::Convolution => {
            let h = conv2d(g, x, channels, Conv::K1)?;
            g.layer(Layer::ToTokens, &[h])
        }
        Projection::Linear => {
            let tokens = g.layer(Layer::ToTokens, &[x])?;
            linear(g, tokens, channels)
        }
    }
}

/// `tokens` [N, h * w, C] -> [N, C, h, w], the shape of `like`
fn to_pixels(
    g: &mut GraphBuilder,
    tokens: Value,
    like: Value,
    projection: Projection,
) -> Result<Value> {
    let channels = g.fixed_dim(tokens, 2)?;
    match projection {
        Projection::Convolution => {
            let h = g.layer(Layer::ToPixels, &[tokens, like])?;
            conv2d(g, h, channels, Conv::K1)
        }
        Projection::Linear => {
            let tokens = linear(g, tokens, channels)?;
            g.layer(Layer::ToPixels, &[tokens, like])
        }
    }
}

fn block(g: &mut GraphBuilder, x: Value, context: Value, heads: usize) -> Result<Value> {
    let h = g.scope("norm1", layer_norm_of(x))?;
    let h = g.scope("attn1", |g| multi_head(g, h, h, heads, attention_by_head))?;
    let x = g.add(h, x)?;
    let h = g.scope("norm2", layer_norm_of(x))?;
    let h = g.scope("attn2", |g| multi_head(g, h, context, heads, attention))?;
    let x = g.add(h, x)?;
    let h = g.scope("norm3", layer_norm_of(x))?;
    let h = g.scope("ff", |g| feed_forward(g, h))?;
    g.add(h, x)
}

fn layer_norm_of(x: Value) -> impl FnOnce(&mut GraphBuilder) -> Result<Value> {
    move |g| layer_norm(g, x)
}

/// Queries from `x` [N, s, C], keys and values from `context` [N, t, D]; projections without bias.
fn multi_head(
    g: &mut GraphBuilder,
    x: Value,
    context: Value,
    heads: usize,
    attend: fn(&mut GraphBuilder, Qkv, usize) -> Result<Value>,
) -> Result<Value> {
    let width = g.fixed_dim(x, 2)?;
    let q = g.scope("to_q", |g| linear_no_bias(g, x, width))?;
    let k = g.scope("to_k", |g| linear_no_bias(g, context, width))?;
    let v = g.scope("to_v", |g| linear_no_bias(g, context, width))?;
    let y = attend(g, Qkv { q, k, v }, heads)?;
    g.scope("to_out.0", |g| linear(g, y, width))
}

/// GEGLU (Shazeer 2020): the first half of a linear layer, gated by the GELU of the second; then back to the width of `x`.
fn feed_forward(g: &mut GraphBuilder, x: Value) -> Result<Value> {
    let width = g.fixed_dim(x, 2)?;
    let both = g.scope("net.0.proj", |g| linear(g, x, 8 * width))?;
    let h = g.layer(Layer::Geglu, &[both])?;
    g.scope("net.2", |g| linear(g, h, width))
}
