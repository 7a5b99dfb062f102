//! The timestep as a vector (Vaswani et al. 2017, section 3.5; order of Ho et al.'s UNet: cosines first).

use super::{linear, silu};
use crate::graph::{GraphBuilder, Result, Value};

/// `t` scalar -> [1, width]: `cos(t f_i)` for i < width/2, then `sin(t f_i)`, with `f_i = 10000^(-i / (width/2))`.
///
/// # Errors
/// None in practice: the operands broadcast.
pub fn sinusoid(g: &mut GraphBuilder, t: Value, width: usize) -> Result<Value> {
    let half = width / 2;
    // The exponent is rounded to f32 as the reference does: at t = 999 one ulp of a frequency moves the angle by 6e-5.
    let minus_log_period = -(10000f64.ln()) as f32;
    let frequency = |i: usize| f64::from(minus_log_period * i as f32 / half as f32).exp() as f32;
    let frequencies = g.constant_f32(&[1, half], (0..half).map(frequency).collect());
    let t = g.reshape(t, &[1, 1])?;
    let angles = g.mul(t, frequencies)?;
    let (cos, sin) = (g.cos(angles), g.sin(angles));
    g.concat(&[cos, sin], 1)
}

/// `t` scalar -> [1, 4 * width]: sinusoid, then a two-layer perceptron with SiLU.
///
/// # Errors
/// None in practice: the operands have known widths.
pub fn time_embedding(g: &mut GraphBuilder, t: Value, width: usize) -> Result<Value> {
    let h = sinusoid(g, t, width)?;
    let h = g.scope("linear_1", |g| linear(g, h, 4 * width))?;
    let h = silu(g, h)?;
    g.scope("linear_2", |g| linear(g, h, 4 * width))
}
