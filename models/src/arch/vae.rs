//! The KL autoencoder between pictures and latents (Rombach et al. 2022, appendix G).

use crate::graph::{Conv, DType, Graph, GraphBuilder, Layer, Result, Value};
use crate::nn::{Qkv, ResNet, attention, conv2d, group_norm, linear, resnet, silu};

/// Epsilon of every GroupNorm.
const EPSILON: f32 = 1e-6;

/// Shape of an autoencoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaeConfig {
    /// Channels from the finest resolution to the coarsest; each level halves the size but the last.
    pub channels: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
}

impl VaeConfig {
    /// Values of diffusers' `vae/config.json` for Stable Diffusion 1, 2 and XL.
    #[must_use]
    pub fn sd() -> Self {
        Self {
            channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            latent_channels: 4,
        }
    }

    /// A narrow autoencoder of the same structure, for tests.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            channels: vec![32, 64, 64, 64],
            ..Self::sd()
        }
    }

    fn coarsest(&self) -> usize {
        self.channels[self.channels.len() - 1]
    }
}

/// `sample` [batch, 3, height, width], -1..1 -> `latent_parameters` [batch, 8, h/8, w/8], mean then log-variance
///
/// # Errors
/// A configuration whose widths do not fit together.
pub fn vae_encoder(cfg: &VaeConfig) -> Result<Graph> {
    let mut builder = GraphBuilder::new("vae_encoder");
    let g = &mut builder;
    let sample = g.input(
        "sample",
        DType::F32,
        ["batch".into(), 3.into(), "height".into(), "width".into()],
    )?;
    let moments = 2 * cfg.latent_channels;
    let x = g.scope("encoder", |g| {
        let mut x = g.scope("conv_in", |g| conv2d(g, sample, cfg.channels[0], Conv::K3))?;
        for i in 0..cfg.channels.len() {
            x = g.scope(("down_blocks", i), |g| down_block(g, cfg, i, x))?;
        }
        x = g.scope("mid_block", |g| mid_block(g, x, cfg.coarsest()))?;
        head(g, x, moments)
    })?;
    let x = g.scope("quant_conv", |g| conv2d(g, x, moments, Conv::K1))?;
    g.output("latent_parameters", x)?;
    Ok(builder.finish())
}

/// `latent_sample` [batch, 4, h, w], divided by the scaling factor -> `sample` [batch, 3, 8h, 8w], -1..1
///
/// # Errors
/// A configuration whose widths do not fit together.
pub fn vae_decoder(cfg: &VaeConfig) -> Result<Graph> {
    let mut builder = GraphBuilder::new("vae_decoder");
    let g = &mut builder;
    let latents = [
        "batch".into(),
        cfg.latent_channels.into(),
        "height".into(),
        "width".into(),
    ];
    let latents = g.input("latent_sample", DType::F32, latents)?;
    let x = g.scope("post_quant_conv", |g| {
        conv2d(g, latents, cfg.latent_channels, Conv::K1)
    })?;
    let x = g.scope("decoder", |g| {
        let mut x = g.scope("conv_in", |g| conv2d(g, x, cfg.coarsest(), Conv::K3))?;
        x = g.scope("mid_block", |g| mid_block(g, x, cfg.coarsest()))?;
        for i in 0..cfg.channels.len() {
            x = g.scope(("up_blocks", i), |g| up_block(g, cfg, i, x))?;
        }
        head(g, x, 3)
    })?;
    g.output("sample", x)?;
    Ok(builder.finish())
}

/// `layers_per_block` residual blocks, then a stride-2 conv padded at the right and bottom only, unless coarsest.
fn down_block(g: &mut GraphBuilder, cfg: &VaeConfig, i: usize, mut x: Value) -> Result<Value> {
    let channels = cfg.channels[i];
    for j in 0..cfg.layers_per_block {
        x = g.scope(("resnets", j), |g| resnet(g, x, trunk(channels)))?;
    }
    if i + 1 < cfg.channels.len() {
        let conv = Conv {
            kernel: 3,
            stride: 2,
            pads: [0, 0, 1, 1],
        };
        x = g.scope("downsamplers.0.conv", |g| conv2d(g, x, channels, conv))?;
    }
    Ok(x)
}

/// Resnet, single-head self-attention over all pixels, resnet.
fn mid_block(g: &mut GraphBuilder, x: Value, channels: usize) -> Result<Value> {
    let x = g.scope("resnets.0", |g| resnet(g, x, trunk(channels)))?;
    let x = g.scope("attentions.0", |g| pixel_attention(g, x, channels))?;
    g.scope("resnets.1", |g| resnet(g, x, trunk(channels)))
}

/// Block 0 is the coarsest; the picture doubles after every block but the last.
fn up_block(g: &mut GraphBuilder, cfg: &VaeConfig, i: usize, mut x: Value) -> Result<Value> {
    let channels = cfg.channels[cfg.channels.len() - 1 - i];
    for j in 0..=cfg.layers_per_block {
        x = g.scope(("resnets", j), |g| resnet(g, x, trunk(channels)))?;
    }
    if i + 1 < cfg.channels.len() {
        x = g.layer(Layer::Upsample, &[x])?;
        x = g.scope("upsamplers.0.conv", |g| conv2d(g, x, channels, Conv::K3))?;
    }
    Ok(x)
}

fn pixel_attention(g: &mut GraphBuilder, x: Value, channels: usize) -> Result<Value> {
    let h = g.scope("group_norm", |g| group_norm(g, x, EPSILON))?;
    let tokens = g.layer(Layer::ToTokens, &[h])?;
    let q = g.scope("to_q", |g| linear(g, tokens, channels))?;
    let k = g.scope("to_k", |g| linear(g, tokens, channels))?;
    let v = g.scope("to_v", |g| linear(g, tokens, channels))?;
    let h = attention(g, Qkv { q, k, v }, 1)?;
    let h = g.scope("to_out.0", |g| linear(g, h, channels))?;
    let h = g.layer(Layer::ToPixels, &[h, x])?;
    g.add(h, x)
}

fn head(g: &mut GraphBuilder, x: Value, out: usize) -> Result<Value> {
    let x = g.scope("conv_norm_out", |g| group_norm(g, x, EPSILON))?;
    let x = silu(g, x)?;
    g.scope("conv_out", |g| conv2d(g, x, out, Conv::K3))
}

fn trunk(channels: usize) -> ResNet {
    ResNet {
        out_channels: channels,
        epsilon: EPSILON,
        time: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::lower;

    #[test]
    fn both_halves_have_the_published_number_of_tensors_and_parameters() {
        let (encoder, decoder) = (
            vae_encoder(&VaeConfig::sd()).unwrap(),
            vae_decoder(&VaeConfig::sd()).unwrap(),
        );
        assert_eq!(encoder.params.len(), 108);
        assert_eq!(encoder.params.len() + decoder.params.len(), 248);
        assert_eq!(
            encoder.parameter_count() + decoder.parameter_count(),
            83_653_863
        );
    }

    #[test]
    fn tiny_decoder_is_pinned() {
        let graph = vae_decoder(&VaeConfig::tiny()).unwrap();
        insta::assert_snapshot!(lower(&graph).unwrap().to_string());
    }
}
