//! TAESD, a tiny autoencoder distilled from Stable Diffusion's (Ollin Boer Bohan, `madebyollin/taesd`, MIT).
//!
//! It works on latents as the UNet sees them, so its scaling factor is 1, and on pictures in 0..1.

use crate::graph::{Conv, DType, Graph, GraphBuilder, Layer, Result, Value};
use crate::nn::{conv2d, conv2d_no_bias};

/// Log-variance that stands for "no noise", the least that diffusers does not clamp.
const NO_VARIANCE: f32 = -30.0;

/// Shape of a tiny autoencoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaesdConfig {
    /// Channels of every layer.
    pub channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
}

/// Residual blocks at each of the resolutions, from full to an eighth.
const BLOCKS: [usize; 4] = [1, 3, 3, 3];

/// `sample` [batch, 3, height, width], -1..1 -> `latent_parameters` [batch, 2 L, h/8, w/8]: the latents, and a
/// log-variance so low that drawing from it gives the latents, as every other autoencoder's consumer expects.
///
/// # Errors
/// A configuration whose widths do not fit together.
pub fn taesd_encoder(cfg: TaesdConfig) -> Result<Graph> {
    let mut builder = GraphBuilder::new("vae_encoder");
    let g = &mut builder;
    let shape = ["batch".into(), 3.into(), "height".into(), "width".into()];
    let sample = g.input("sample", DType::F32, shape)?;
    let (one, half) = (g.scalar(1.0), g.scalar(0.5));
    let x = g.add(sample, one)?;
    let mut x = g.mul(x, half)?;
    x = g.scope("encoder.layers", |g| {
        let mut layers = Layers::default();
        for (level, blocks) in BLOCKS.into_iter().enumerate() {
            x = g.scope(layers.next(), |g| match level {
                0 => conv2d(g, x, cfg.channels, Conv::K3),
                _ => conv2d_no_bias(g, x, cfg.channels, Conv::K3_STRIDE_2),
            })?;
            for _ in 0..blocks {
                x = g.scope(layers.next(), |g| block(g, x))?;
            }
        }
        g.scope(layers.next(), |g| {
            conv2d(g, x, cfg.latent_channels, Conv::K3)
        })
    })?;
    let zero = g.scalar(0.0);
    let zeros = g.mul(x, zero)?;
    let low = g.scalar(NO_VARIANCE);
    let variance = g.add(zeros, low)?;
    let parameters = g.concat(&[x, variance], 1)?;
    g.output("latent_parameters", parameters)?;
    Ok(builder.finish())
}

/// `latent_sample` [batch, L, h, w] -> `sample` [batch, 3, 8h, 8w], -1..1
///
/// # Errors
/// A configuration whose widths do not fit together.
pub fn taesd_decoder(cfg: TaesdConfig) -> Result<Graph> {
    let mut builder = GraphBuilder::new("vae_decoder");
    let g = &mut builder;
    let shape = [
        "batch".into(),
        cfg.latent_channels.into(),
        "height".into(),
        "width".into(),
    ];
    let latents = g.input("latent_sample", DType::F32, shape)?;
    // Outliers are squeezed into -3..3.
    let three = g.scalar(3.0);
    let x = g.div(latents, three)?;
    let x = g.tanh(x);
    let mut x = g.mul(x, three)?;
    x = g.scope("decoder.layers", |g| {
        let mut layers = Layers::default();
        x = g.scope(layers.next(), |g| conv2d(g, x, cfg.channels, Conv::K3))?;
        x = g.relu(x);
        layers.next();
        for (level, blocks) in BLOCKS.into_iter().rev().enumerate() {
            for _ in 0..blocks {
                x = g.scope(layers.next(), |g| block(g, x))?;
            }
            if level + 1 < BLOCKS.len() {
                x = g.layer(Layer::Upsample, &[x])?;
                layers.next();
                x = g.scope(layers.next(), |g| {
                    conv2d_no_bias(g, x, cfg.channels, Conv::K3)
                })?;
            }
        }
        g.scope(layers.next(), |g| conv2d(g, x, 3, Conv::K3))
    })?;
    let (two, minus_one) = (g.scalar(2.0), g.scalar(-1.0));
    let x = g.mul(x, two)?;
    let x = g.add(x, minus_one)?;
    g.output("sample", x)?;
    Ok(builder.finish())
}

/// Positions in the list of layers, some of which have no parameters.
#[derive(Default)]
struct Layers(usize);

impl Layers {
    /// The scope of the next layer.
    fn next(&mut self) -> String {
        self.0 += 1;
        (self.0 - 1).to_string()
    }
}

/// Three convolutions with ReLU between, plus the input, ReLU.
fn block(g: &mut GraphBuilder, x: Value) -> Result<Value> {
    let channels = g.fixed_dim(x, 1)?;
    let conv = |g: &mut GraphBuilder, i: usize, x| {
        g.scope(("conv", i), |g| conv2d(g, x, channels, Conv::K3))
    };
    let h = conv(g, 0, x)?;
    let h = g.relu(h);
    let h = conv(g, 2, h)?;
    let h = g.relu(h);
    let h = conv(g, 4, h)?;
    let y = g.add(h, x)?;
    Ok(g.relu(y))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_halves_have_the_published_number_of_tensors_and_parameters() {
        let cfg = TaesdConfig {
            channels: 64,
            latent_channels: 4,
        };
        let (encoder, decoder) = (taesd_encoder(cfg).unwrap(), taesd_decoder(cfg).unwrap());
        let size = |g: &Graph| (g.params.len(), g.parameter_count());
        assert_eq!(size(&encoder), (67, 1_222_532));
        assert_eq!(size(&decoder), (67, 1_222_531));
    }
}
