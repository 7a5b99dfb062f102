//! Multi-head attention (Vaswani et al. 2017).

use crate::graph::{GraphBuilder, Layer, Result, Scores, Value};

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
    attend(g, qkv, heads, Scores::Together, None)
}

/// [`attention`], whose portable form goes one head after the other, as [`Scores::ByHead`] says.
///
/// # Errors
/// A width that is no multiple of `heads`.
pub fn attention_by_head(g: &mut GraphBuilder, qkv: Qkv, heads: usize) -> Result<Value> {
    attend(g, qkv, heads, Scores::ByHead, None)
}

/// `softmax(q k^T / sqrt(d) + mask) v` -> [N, s, heads * d], with `mask` broadcastable to [N, heads, s, t].
///
/// # Errors
/// A width that is no multiple of `heads`.
pub fn masked_attention(
    g: &mut GraphBuilder,
    qkv: Qkv,
    heads: usize,
    mask: Value,
) -> Result<Value> {
    attend(g, qkv, heads, Scores::Together, Some(mask))
}

fn attend(
    g: &mut GraphBuilder,
    Qkv { q, k, v }: Qkv,
    heads: usize,
    scores: Scores,
    mask: Option<Value>,
) -> Result<Value> {
    let operands: Vec<Value> = [q, k, v].into_iter().chain(mask).collect();
    g.layer(Layer::Attention { heads, scores }, &operands)
}
