//! Multi-head attention (Vaswani et al. 2017).

use crate::graph::{GraphBuilder, Result, Value};

/// `softmax(q k^T / sqrt(d) + mask) v`, heads side by side in the last dimension.
///
/// `q` [N, s, heads * d], `k` and `v` [N, t, heads * d], `mask` broadcastable to [N, heads, s, t] -> [N, s, heads * d]
///
/// # Errors
/// A width that is no multiple of `heads`.
pub fn attention(
    g: &mut GraphBuilder,
    q: Value,
    k: Value,
    v: Value,
    heads: usize,
    mask: Option<Value>,
) -> Result<Value> {
    let width = g.fixed_dim(q, 2)?;
    let head_width = width / heads;
    // On q, the smallest operand; exporters do it on the scores.
    let scale = g.scalar(1.0 / (head_width as f32).sqrt());
    let q = g.mul(q, scale)?;
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

/// `x` [N, s, heads * d], seen as [N, s, heads, d] and transposed by `order`.
///
/// # Errors
/// A width that is no multiple of `heads`.
pub fn split_heads(
    g: &mut GraphBuilder,
    x: Value,
    heads: usize,
    order: [usize; 4],
) -> Result<Value> {
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
