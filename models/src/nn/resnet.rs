//! The residual block of UNet and VAE.

use super::{conv2d, group_norm, linear, silu};
use crate::graph::{Conv, GraphBuilder, Layer, Result, Value};

/// What varies between residual blocks.
#[derive(Clone, Copy, Debug)]
pub struct ResNet {
    /// Channels it produces.
    pub out_channels: usize,
    /// Epsilon of its GroupNorms: 1e-5 in the UNet, 1e-6 in the VAE.
    pub epsilon: f32,
    /// Activated time embedding [1, T]; the VAE has none.
    pub time: Option<Value>,
}

/// `x` [N, C, h, w] -> [N, out, h, w]: norm, SiLU, conv, (+ time), norm, SiLU, conv, + shortcut.
///
/// # Errors
/// `x` of unknown channels.
pub fn resnet(g: &mut GraphBuilder, x: Value, block: ResNet) -> Result<Value> {
    let out = block.out_channels;
    let h = g.scope("norm1", |g| group_norm(g, x, block.epsilon))?;
    let h = silu(g, h)?;
    let mut h = g.scope("conv1", |g| conv2d(g, h, out, Conv::K3))?;
    if let Some(time) = block.time {
        let t = g.scope("time_emb_proj", |g| linear(g, time, out))?;
        h = g.layer(Layer::AddVector, &[h, t])?;
    }
    let h = g.scope("norm2", |g| group_norm(g, h, block.epsilon))?;
    let h = silu(g, h)?;
    let h = g.scope("conv2", |g| conv2d(g, h, out, Conv::K3))?;
    let shortcut = if g.fixed_dim(x, 1)? == out {
        x
    } else {
        g.scope("conv_shortcut", |g| conv2d(g, x, out, Conv::K1))?
    };
    g.add(shortcut, h)
}
