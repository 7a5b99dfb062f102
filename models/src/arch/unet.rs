//! The denoising UNet of Stable Diffusion (Rombach et al. 2022; Ho et al. 2020 for the residual trunk).

use crate::graph::{Conv, DType, Graph, GraphBuilder, Result, Value};
use crate::nn::{ResNet, conv2d, group_norm, resnet, silu, spatial_transformer, time_embedding};

/// Epsilon of the trunk's GroupNorms.
const EPSILON: f32 = 1e-5;

/// One resolution of the UNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Channels of every block at this resolution.
    pub channels: usize,
    /// Transformer blocks after each residual block; 0 where the level does not attend.
    pub transformer_depth: usize,
    /// Attention heads.
    pub heads: usize,
}

/// Shape of a UNet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UNetConfig {
    /// Channels of `sample`: 4 latents, more for inpainting and editing models.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// From the finest resolution to the coarsest.
    pub levels: Vec<Level>,
    /// Residual blocks of each level on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// Width of the text embeddings.
    pub cross_attention_dim: usize,
}

impl UNetConfig {
    /// Values of diffusers' `unet/config.json` for Stable Diffusion 1.5.
    #[must_use]
    pub fn sd15() -> Self {
        Self::sd1([320, 640, 1280, 1280], 768)
    }

    /// A narrow network of Stable Diffusion 1's structure, for tests.
    #[must_use]
    pub fn tiny() -> Self {
        Self::sd1([32, 64, 96, 96], 64)
    }

    fn sd1(channels: [usize; 4], cross_attention_dim: usize) -> Self {
        let depths = [1, 1, 1, 0];
        let level = |(channels, transformer_depth)| Level {
            channels,
            transformer_depth,
            heads: 8,
        };
        Self {
            in_channels: 4,
            out_channels: 4,
            levels: channels.into_iter().zip(depths).map(level).collect(),
            layers_per_block: 2,
            cross_attention_dim,
        }
    }
}

/// What every block is conditioned on.
#[derive(Clone, Copy)]
struct Cond {
    /// Activated time embedding [1, T].
    time: Value,
    /// Text embeddings [N, t, `cross_attention_dim`].
    context: Value,
}

/// `sample` [batch, 4, height, width], `timestep` scalar, `encoder_hidden_states` [batch, sequence, D] -> `out_sample`
///
/// # Errors
/// A configuration whose widths do not fit together.
pub fn unet(cfg: &UNetConfig) -> Result<Graph> {
    let mut builder = GraphBuilder::new("unet");
    let g = &mut builder;
    let latents = [
        "batch".into(),
        cfg.in_channels.into(),
        "height".into(),
        "width".into(),
    ];
    let sample = g.input("sample", DType::F32, latents)?;
    let timestep = g.input("timestep", DType::F32, [])?;
    let text = [
        "batch".into(),
        "sequence".into(),
        cfg.cross_attention_dim.into(),
    ];
    let context = g.input("encoder_hidden_states", DType::F32, text)?;

    let time = g.scope("time_embedding", |g| {
        time_embedding(g, timestep, cfg.levels[0].channels)
    })?;
    let cond = Cond {
        time: silu(g, time)?,
        context,
    };
    let mut x = g.scope("conv_in", |g| {
        conv2d(g, sample, cfg.levels[0].channels, Conv::K3)
    })?;
    let mut skips = vec![x];
    for i in 0..cfg.levels.len() {
        x = g.scope(("down_blocks", i), |g| {
            down_block(g, cfg, i, x, cond, &mut skips)
        })?;
    }
    x = g.scope("mid_block", |g| mid_block(g, cfg, x, cond))?;
    for i in 0..cfg.levels.len() {
        x = g.scope(("up_blocks", i), |g| {
            up_block(g, cfg, i, x, cond, &mut skips)
        })?;
    }
    x = g.scope("conv_norm_out", |g| group_norm(g, x, EPSILON))?;
    x = silu(g, x)?;
    x = g.scope("conv_out", |g| conv2d(g, x, cfg.out_channels, Conv::K3))?;
    g.output("out_sample", x)?;
    Ok(builder.finish())
}

/// `layers_per_block` x (resnet, then transformer where this level attends), then a stride-2 conv unless coarsest.
/// Each output is pushed on `skips`; the up path pops them in reverse.
fn down_block(
    g: &mut GraphBuilder,
    cfg: &UNetConfig,
    i: usize,
    mut x: Value,
    cond: Cond,
    skips: &mut Vec<Value>,
) -> Result<Value> {
    let level = cfg.levels[i];
    for j in 0..cfg.layers_per_block {
        x = layer(g, j, x, level, cond)?;
        skips.push(x);
    }
    if i + 1 < cfg.levels.len() {
        x = g.scope("downsamplers.0.conv", |g| {
            conv2d(g, x, level.channels, Conv::K3_STRIDE_2)
        })?;
        skips.push(x);
    }
    Ok(x)
}

/// Resnet, transformer, resnet at the coarsest resolution; it attends even where the coarsest level does not.
fn mid_block(g: &mut GraphBuilder, cfg: &UNetConfig, x: Value, cond: Cond) -> Result<Value> {
    let level = cfg.levels[cfg.levels.len() - 1];
    let depth = level.transformer_depth.max(1);
    let block = trunk(level, cond);
    let x = g.scope("resnets.0", |g| resnet(g, x, block))?;
    let x = g.scope("attentions.0", |g| {
        spatial_transformer(g, x, cond.context, depth, level.heads)
    })?;
    g.scope("resnets.1", |g| resnet(g, x, block))
}

/// Block 0 is the coarsest. Each layer first takes the skip of the same resolution; then the picture doubles, to
/// exactly the size of the next skip, which is not twice the size where a side was odd on the way down.
fn up_block(
    g: &mut GraphBuilder,
    cfg: &UNetConfig,
    i: usize,
    mut x: Value,
    cond: Cond,
    skips: &mut Vec<Value>,
) -> Result<Value> {
    let level = cfg.levels[cfg.levels.len() - 1 - i];
    for j in 0..=cfg.layers_per_block {
        let skip = skips
            .pop()
            .expect("the down path pushes as many skips as the up path takes");
        x = g.concat(&[x, skip], 1)?;
        x = layer(g, j, x, level, cond)?;
    }
    if let Some(&next) = skips.last() {
        x = g.upsample_like(x, next)?;
        x = g.scope("upsamplers.0.conv", |g| {
            conv2d(g, x, level.channels, Conv::K3)
        })?;
    }
    Ok(x)
}

fn layer(g: &mut GraphBuilder, j: usize, x: Value, level: Level, cond: Cond) -> Result<Value> {
    let x = g.scope(("resnets", j), |g| resnet(g, x, trunk(level, cond)))?;
    if level.transformer_depth == 0 {
        return Ok(x);
    }
    let Level {
        transformer_depth,
        heads,
        ..
    } = level;
    g.scope(("attentions", j), |g| {
        spatial_transformer(g, x, cond.context, transformer_depth, heads)
    })
}

fn trunk(level: Level, cond: Cond) -> ResNet {
    ResNet {
        out_channels: level.channels,
        epsilon: EPSILON,
        time: Some(cond.time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sd15_has_the_published_number_of_tensors_and_parameters() {
        let graph = unet(&UNetConfig::sd15()).unwrap();
        assert_eq!(graph.params.len(), 686);
        assert_eq!(graph.parameter_count(), 859_520_964);
    }

    #[test]
    fn tiny_unet_is_pinned() {
        insta::assert_snapshot!(unet(&UNetConfig::tiny()).unwrap().to_string());
    }
}
