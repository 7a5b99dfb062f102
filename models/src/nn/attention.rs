//! Multi-head attention (Vaswani et al. 2017).

use crate::graph::{GraphBuilder, Result, Value};

/// Projected queries [N, s, heads * d], keys and values [N, t, heads * d], heads side by side in the last dimension.
#[derive(Clone, Copy, Debug)]
pub struct Qkv {
    /// Queries.
    pub q: Value,
    /// Keys.
    pub k: Value,
    /// Values.
    pub v: Value,
}

/// `softmax(q k^T / sqrt(d)) v` -> [N, s, heads * d]
///
/// # Errors
/// A width that is no multiple of `heads`.
pub fn attention(g: &mut GraphBuilder, qkv: Qkv, heads: usize) -> Result<Value> {
    masked_attention(g, qkv, heads, None)
}

/// `softmax(q k^T / sqrt(d) + mask) v` -> [N, s, heads * d], with `mask` broadcastable to [N, heads, s, t].
///
/// # Errors
/// A width that is no multiple of `heads`.
pub fn masked_attention(
    g: &mut GraphBuilder,
    Qkv { q, k, v }: Qkv,
    heads: usize,
    mask: Option<Value>,
) -> Result<Value> {
    let width = g.fixed_dim(q, 2)?;
    let q = scaled(g, q, heads)?;
    let q = split_heads(g, q, heads, [0, 2, 1, 3])?;
    let k = split_heads(g, k, heads, [0, 2, 3, 1])?;
    let v = split_heads(g, v, heads, [0, 2, 1, 3])?;
    let mut scores = g.matmul(q, k)?;
    if let Some(mask) = mask {
        scores = g.add(scores, mask)?;
    }
    let weights = g.softmax(scores);
    let y = g.matmul(weights, v)?;
    let y = g.transpose(y, [0, 2, 1, 3])?;
    g.reshape(y, &[0, 0, width as i64])
}

/// [`attention`], one head after the other: between the pixels of a picture, the scores of all heads at once would be the
/// largest tensor of the network, 0.5 GB at 64x64.
///
/// # Errors
/// A width that is no multiple of `heads`.
pub fn attention_by_head(
    g: &mut GraphBuilder,
    Qkv { q, k, v }: Qkv,
    heads: usize,
) -> Result<Value> {
    let q = scaled(g, q, heads)?;
    let k = g.transpose(k, [0, 2, 1])?;
    let (q, k, v) = (
        g.split(q, 2, heads)?,
        g.split(k, 1, heads)?,
        g.split(v, 2, heads)?,
    );
    let mut outputs = Vec::new();
    for i in 0..heads {
        let scores = g.matmul(q[i], k[i])?;
        let weights = g.softmax(scores);
        outputs.push(g.matmul(weights, v[i])?);
    }
    g.concat(&outputs, 2)
}

/// `q / sqrt(d)`: q is the smallest operand; exporters scale the scores.
fn scaled(g: &mut GraphBuilder, q: Value, heads: usize) -> Result<Value> {
    let head_width = g.fixed_dim(q, 2)? / heads;
    let scale = g.scalar(1.0 / (head_width as f32).sqrt());
    g.mul(q, scale)
}

/// `x` [N, s, heads * d], seen as [N, s, heads, d] and transposed by `order`.
///
/// # Errors
/// A width that is no multiple of `heads`.
fn split_heads(g: &mut GraphBuilder, x: Value, heads: usize, order: [usize; 4]) -> Result<Value> {
    let width = g.fixed_dim(x, 2)?;
    if width % heads != 0 {
        return Err(g.impossible(
            "attention",
            &[x],
            &format!("the width must be a multiple of {heads} heads"),
        ));
    }
    let x = g.reshape(x, &[0, 0, heads as i64, (width / heads) as i64])?;
    g.transpose(x, order)
}
