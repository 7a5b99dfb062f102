//! The timestep as a vector (Vaswani et al. 2017, section 3.5; order of Ho et al.'s UNet: cosines first).

use super::{linear, linear_no_bias, silu};
use crate::graph::{GraphBuilder, Result, Value};

/// Any number of numbers as a column [n, 1].
///
/// # Errors
/// None in practice: every shape can be a column.
pub fn column(g: &mut GraphBuilder, x: Value) -> Result<Value> {
    g.reshape(x, &[-1, 1])
}

/// `t` [n, 1] -> [n, width]: `cos(t f_i)` for i < width/2, then `sin(t f_i)`, with `f_i = 10000^(-i / (width/2))`.
///
/// # Errors
/// None in practice: the operands broadcast.
pub fn sinusoid(g: &mut GraphBuilder, t: Value, width: usize) -> Result<Value> {
    let half = width / 2;
    // The exponent is rounded to f32 as the reference does: at t = 999 one ulp of a frequency moves the angle by 6e-5.
    let minus_log_period = -(10000f64.ln()) as f32;
    let frequency = |i: usize| f64::from(minus_log_period * i as f32 / half as f32).exp() as f32;
    let frequencies = g.constant_f32(&[1, half], (0..half).map(frequency).collect());
    let angles = g.mul(t, frequencies)?;
    let (cos, sin) = (g.cos(angles), g.sin(angles));
    g.concat(&[cos, sin], 1)
}

/// `t` scalar -> [1, 4 * width]: sinusoid, then a two-layer perceptron with SiLU. A latent consistency model's embedded
/// guidance scale, `guidance` [N, G], is projected and added before the perceptron.
///
/// # Errors
/// None in practice: the operands have known widths.
pub fn time_embedding(
    g: &mut GraphBuilder,
    t: Value,
    guidance: Option<Value>,
    width: usize,
) -> Result<Value> {
    let t = g.reshape(t, &[1, 1])?;
    let mut h = sinusoid(g, t, width)?;
    if let Some(guidance) = guidance {
        let projected = g.scope("cond_proj", |g| linear_no_bias(g, guidance, width))?;
        h = g.add(h, projected)?;
    }
    let h = g.scope("linear_1", |g| linear(g, h, 4 * width))?;
    let h = silu(g, h)?;
    g.scope("linear_2", |g| linear(g, h, 4 * width))
}
