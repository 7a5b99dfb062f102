//! ControlNet (Zhang et al. 2023): a copy of the UNet's way down that sees a hint picture, and whose outputs, each through
//! a convolution that was zero at the start of training, are added to the UNet's skips and middle.

use super::unet::{UNetConfig, conditioning, latents_input, way_down};
use crate::graph::{Conv, DType, Graph, GraphBuilder, Result, Value};
use crate::nn::{conv2d, silu};

/// Shape of a ControlNet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlNetConfig {
    /// The UNet whose way down it has; what that says of the way up does not matter.
    pub trunk: UNetConfig,
    /// Channels of the hint picture.
    pub hint_channels: usize,
    /// Channels of the hint's convolutions from the full resolution to an eighth of it.
    pub hint_widths: Vec<usize>,
}

impl ControlNetConfig {
    /// The published hint network on a UNet's way down.
    #[must_use]
    pub fn of(trunk: UNetConfig) -> Self {
        Self {
            trunk,
            hint_channels: 3,
            hint_widths: vec![16, 32, 96, 256],
        }
    }
}

/// The inputs of the UNet, `controlnet_cond` [batch, 3, 8 height, 8 width] in 0..1 and `conditioning_scale` scalar ->
/// `down_block_res_samples.N` for every skip of the UNet, and `mid_block_res_sample`.
///
/// # Errors
/// A configuration whose widths do not fit together.
pub fn controlnet(cfg: &ControlNetConfig) -> Result<Graph> {
    let mut builder = GraphBuilder::new("controlnet");
    let g = &mut builder;
    let trunk = &cfg.trunk;
    let sample = latents_input(g, trunk)?;
    let cond = conditioning(g, trunk)?;
    let hint = [
        "batch".into(),
        cfg.hint_channels.into(),
        "image_height".into(),
        "image_width".into(),
    ];
    let hint = g.input("controlnet_cond", DType::F32, hint)?;
    let scale = g.input("conditioning_scale", DType::F32, [])?;

    let width = trunk.levels[0].channels;
    let x = g.scope("conv_in", |g| conv2d(g, sample, width, Conv::K3))?;
    let hint = g.scope("controlnet_cond_embedding", |g| {
        hint_embedding(g, cfg, hint, width)
    })?;
    let x = g.add(x, hint)?;
    let mut skips = vec![x];
    let middle = way_down(g, trunk, x, cond, &mut skips)?;

    let mut outputs = Vec::new();
    for (i, &skip) in skips.iter().enumerate() {
        let y = g.scope(("controlnet_down_blocks", i), |g| same_width(g, skip))?;
        outputs.push((format!("down_block_res_samples.{i}"), y));
    }
    let y = g.scope("controlnet_mid_block", |g| same_width(g, middle))?;
    outputs.push(("mid_block_res_sample".to_owned(), y));
    for (name, y) in outputs {
        let y = g.mul(y, scale)?;
        g.output(&name, y)?;
    }
    Ok(builder.finish())
}

fn same_width(g: &mut GraphBuilder, x: Value) -> Result<Value> {
    let channels = g.fixed_dim(x, 1)?;
    conv2d(g, x, channels, Conv::K1)
}

/// Three halvings of the picture, each after a convolution of the same width.
fn hint_embedding(
    g: &mut GraphBuilder,
    cfg: &ControlNetConfig,
    hint: Value,
    out: usize,
) -> Result<Value> {
    let mut x = g.scope("conv_in", |g| conv2d(g, hint, cfg.hint_widths[0], Conv::K3))?;
    x = silu(g, x)?;
    for (i, pair) in cfg.hint_widths.windows(2).enumerate() {
        for (k, (width, conv)) in [(pair[0], Conv::K3), (pair[1], Conv::K3_STRIDE_2)]
            .into_iter()
            .enumerate()
        {
            x = g.scope(("blocks", 2 * i + k), |g| conv2d(g, x, width, conv))?;
            x = silu(g, x)?;
        }
    }
    g.scope("conv_out", |g| conv2d(g, x, out, Conv::K3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::Preset;

    #[test]
    fn published_controlnets_have_their_numbers_of_tensors() {
        for (name, tensors) in [("sd15", 340), ("sd21", 340), ("sdxl", 844)] {
            let trunk = Preset::named(name).unwrap().unet(false);
            let graph = controlnet(&ControlNetConfig::of(trunk)).unwrap();
            assert_eq!(graph.params.len(), tensors, "{name}");
        }
    }
}
