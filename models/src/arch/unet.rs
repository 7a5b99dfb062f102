//! The denoising UNet of Stable Diffusion (Rombach et al. 2022; Ho et al. 2020 for the residual trunk; Podell et al. 2023
//! for SDXL's added conditioning; Luo et al. 2023 for the guidance embedding of latent consistency models).

use crate::graph::{Conv, DType, Dim, Graph, GraphBuilder, Layer, Result, Value};
use crate::nn::{
    Projection, ResNet, SpatialTransformer, column, conv2d, group_norm, linear, resnet, silu,
    sinusoid, spatial_transformer, time_embedding,
};

/// Epsilon of the trunk's GroupNorms.
pub(super) const EPSILON: f32 = 1e-5;

/// Width of the sinusoid of each number in `time_ids`.
pub const TIME_ID_WIDTH: usize = 256;

/// One resolution of the UNet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// Channels of every block at this resolution.
    pub channels: usize,
    /// Attention heads.
    pub heads: usize,
    /// Transformer blocks after each residual block on the way down; 0 where it is not followed by attention.
    pub down: Vec<usize>,
    /// The same on the way up, which has one residual block more.
    pub up: Vec<usize>,
}

/// What lies between the way down and the way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MidBlock {
    /// Nothing: some distilled models.
    Absent,
    /// One residual block.
    ResNet,
    /// Residual block, transformer with this many blocks, residual block.
    Transformer(usize),
}

/// SDXL's conditioning beside the text: the pooled text embedding and a few numbers (sizes, crop, aesthetic score).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedConditioning {
    /// Width of the pooled text embedding.
    pub pooled_width: usize,
    /// How many numbers.
    pub time_ids: usize,
}

impl AddedConditioning {
    /// Width of both, side by side.
    #[must_use]
    pub fn width(self) -> usize {
        self.pooled_width + self.time_ids * TIME_ID_WIDTH
    }
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
    /// Between the ways down and up.
    pub mid: MidBlock,
    /// Kind of the transformers' first and last layers.
    pub projection: Projection,
    /// Width of the text embeddings.
    pub cross_attention_dim: usize,
    /// SDXL's further conditioning.
    pub added: Option<AddedConditioning>,
    /// Width of the guidance scale's embedding, in latent consistency models.
    pub guidance_width: Option<usize>,
}

impl UNetConfig {
    /// Residual blocks of each level on the way down.
    #[must_use]
    pub fn layers_per_block(&self) -> usize {
        self.levels[0].down.len()
    }

    /// Skips from the way down to the way up: the first convolution, every residual block and every downsampling.
    #[must_use]
    pub fn skips(&self) -> usize {
        self.levels.len() * (self.layers_per_block() + 1)
    }
}

/// What every block is conditioned on.
#[derive(Clone, Copy)]
pub(super) struct Cond {
    /// Activated time embedding [1 or N, T].
    time: Value,
    /// Text embeddings [N, t, `cross_attention_dim`].
    context: Value,
    projection: Projection,
}

/// `sample` [batch, in, height, width], `timestep` scalar, `encoder_hidden_states` [batch, sequence, D], and where the
/// configuration has them `text_embeds` [batch, P], `time_ids` [batch, n], `timestep_cond` [batch, G] -> `out_sample`
///
/// # Errors
/// A configuration whose widths do not fit together.
pub fn unet(cfg: &UNetConfig) -> Result<Graph> {
    build(cfg, false)
}

/// [`unet`] with a ControlNet's outputs as further inputs, which are added to the skips and to the middle:
/// `down_block_additional_residuals.N` and `mid_block_additional_residual`, each of the shape of what it is added to.
///
/// # Errors
/// A configuration whose widths do not fit together.
pub fn controlled_unet(cfg: &UNetConfig) -> Result<Graph> {
    build(cfg, true)
}

fn build(cfg: &UNetConfig, controlled: bool) -> Result<Graph> {
    let mut builder = GraphBuilder::new("unet");
    let g = &mut builder;
    let sample = latents_input(g, cfg)?;
    let cond = conditioning(g, cfg)?;
    let mut x = g.scope("conv_in", |g| {
        conv2d(g, sample, cfg.levels[0].channels, Conv::K3)
    })?;
    let mut skips = vec![x];
    x = way_down(g, cfg, x, cond, &mut skips)?;
    if controlled {
        for (i, skip) in skips.iter_mut().enumerate() {
            let name = format!("down_block_additional_residuals.{i}");
            *skip = add_residual(g, &name, *skip)?;
        }
        x = add_residual(g, "mid_block_additional_residual", x)?;
    }
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

pub(super) fn latents_input(g: &mut GraphBuilder, cfg: &UNetConfig) -> Result<Value> {
    let shape = [
        "batch".into(),
        cfg.in_channels.into(),
        "height".into(),
        "width".into(),
    ];
    g.input("sample", DType::F32, shape)
}

/// `x` plus the graph input `name` of its shape.
fn add_residual(g: &mut GraphBuilder, name: &str, x: Value) -> Result<Value> {
    let channels = g.fixed_dim(x, 1)?;
    // Height and width follow from the latents' by halving.
    let shape = ["batch".into(), channels.into(), Dim::Unknown, Dim::Unknown];
    let residual = g.input(name, DType::F32, shape)?;
    g.add(x, residual)
}

/// Declares the inputs beside the latents and embeds them.
pub(super) fn conditioning(g: &mut GraphBuilder, cfg: &UNetConfig) -> Result<Cond> {
    let timestep = g.input("timestep", DType::F32, [])?;
    let text = [
        "batch".into(),
        "sequence".into(),
        cfg.cross_attention_dim.into(),
    ];
    let context = g.input("encoder_hidden_states", DType::F32, text)?;
    let guidance = match cfg.guidance_width {
        Some(width) => {
            Some(g.input("timestep_cond", DType::F32, ["batch".into(), width.into()])?)
        }
        None => None,
    };
    let width = cfg.levels[0].channels;
    let mut time = g.scope("time_embedding", |g| {
        time_embedding(g, timestep, guidance, width)
    })?;
    if let Some(added) = cfg.added {
        let embedding = added_embedding(g, added, 4 * width)?;
        time = g.add(time, embedding)?;
    }
    Ok(Cond {
        time: silu(g, time)?,
        context,
        projection: cfg.projection,
    })
}

/// Pooled text and the sinusoids of `time_ids`, side by side, through a two-layer perceptron: [N, out]
fn added_embedding(g: &mut GraphBuilder, added: AddedConditioning, out: usize) -> Result<Value> {
    let pooled = ["batch".into(), added.pooled_width.into()];
    let pooled = g.input("text_embeds", DType::F32, pooled)?;
    let ids = ["batch".into(), added.time_ids.into()];
    let ids = g.input("time_ids", DType::F32, ids)?;
    let ids = column(g, ids)?;
    let ids = sinusoid(g, ids, TIME_ID_WIDTH)?;
    let ids = g.reshape(ids, &[-1, (added.time_ids * TIME_ID_WIDTH) as i64])?;
    let both = g.concat(&[pooled, ids], 1)?;
    g.scope("add_embedding", |g| {
        let h = g.scope("linear_1", |g| linear(g, both, out))?;
        let h = silu(g, h)?;
        g.scope("linear_2", |g| linear(g, h, out))
    })
}

/// From the first convolution's output to the middle's. Skips are pushed as they are made.
pub(super) fn way_down(
    g: &mut GraphBuilder,
    cfg: &UNetConfig,
    mut x: Value,
    cond: Cond,
    skips: &mut Vec<Value>,
) -> Result<Value> {
    for i in 0..cfg.levels.len() {
        x = g.scope(("down_blocks", i), |g| {
            down_block(g, cfg, i, x, cond, skips)
        })?;
    }
    g.scope("mid_block", |g| mid_block(g, cfg, x, cond))
}

/// Residual blocks, each followed by a transformer where the level attends, then a stride-2 conv unless coarsest.
/// Each output is pushed on `skips`; the up path pops them in reverse.
fn down_block(
    g: &mut GraphBuilder,
    cfg: &UNetConfig,
    i: usize,
    mut x: Value,
    cond: Cond,
    skips: &mut Vec<Value>,
) -> Result<Value> {
    let level = &cfg.levels[i];
    for (j, &depth) in level.down.iter().enumerate() {
        x = layer(g, j, x, level, depth, cond)?;
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

/// The coarsest resolution once more; it may attend even where the coarsest level does not.
fn mid_block(g: &mut GraphBuilder, cfg: &UNetConfig, x: Value, cond: Cond) -> Result<Value> {
    let level = &cfg.levels[cfg.levels.len() - 1];
    let block = trunk(level, cond);
    if cfg.mid == MidBlock::Absent {
        return Ok(x);
    }
    let x = g.scope("resnets.0", |g| resnet(g, x, block))?;
    let MidBlock::Transformer(depth) = cfg.mid else {
        return Ok(x);
    };
    let x = g.scope("attentions.0", |g| attend(g, x, level, depth, cond))?;
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
    let level = &cfg.levels[cfg.levels.len() - 1 - i];
    for (j, &depth) in level.up.iter().enumerate() {
        let skip = skips
            .pop()
            .expect("the down path pushes as many skips as the up path takes");
        x = g.concat(&[x, skip], 1)?;
        x = layer(g, j, x, level, depth, cond)?;
    }
    if let Some(&next) = skips.last() {
        x = g.layer(Layer::Upsample, &[x, next])?;
        x = g.scope("upsamplers.0.conv", |g| {
            conv2d(g, x, level.channels, Conv::K3)
        })?;
    }
    Ok(x)
}

fn layer(
    g: &mut GraphBuilder,
    j: usize,
    x: Value,
    level: &Level,
    depth: usize,
    cond: Cond,
) -> Result<Value> {
    let x = g.scope(("resnets", j), |g| resnet(g, x, trunk(level, cond)))?;
    if depth == 0 {
        return Ok(x);
    }
    g.scope(("attentions", j), |g| attend(g, x, level, depth, cond))
}

fn attend(
    g: &mut GraphBuilder,
    x: Value,
    level: &Level,
    depth: usize,
    cond: Cond,
) -> Result<Value> {
    let shape = SpatialTransformer {
        depth,
        heads: level.heads,
        projection: cond.projection,
    };
    spatial_transformer(g, x, cond.context, shape)
}

fn trunk(level: &Level, cond: Cond) -> ResNet {
    ResNet {
        out_channels: level.channels,
        epsilon: EPSILON,
        time: Some(cond.time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::lower;
    use crate::presets::Preset;

    #[test]
    fn every_published_unet_has_its_number_of_tensors_and_parameters() {
        for (name, tensors, parameters) in [
            ("sd15", 686, 859_520_964),
            ("sd15-inpaint", 686, 859_535_364),
            ("sd21", 686, 865_910_724),
            ("sdxl", 1680, 2_567_463_684),
            ("sdxl-refiner", 1220, 2_259_526_660),
            ("ssd-1b", 944, 1_331_334_404),
            ("vega", 564, 745_225_604),
            ("bk-sdm-base", 442, 579_384_964),
            ("bk-sdm-small", 396, 482_346_884),
            ("bk-sdm-tiny", 358, 323_384_964),
            ("koala-700m", 584, 782_822_724),
            ("koala-1b", 790, 1_161_184_324),
        ] {
            let graph = unet(&Preset::named(name).unwrap().unet(false)).unwrap();
            assert_eq!(
                (graph.params.len(), graph.parameter_count()),
                (tensors, parameters),
                "{name}"
            );
        }
    }

    #[test]
    fn a_controlled_unet_has_the_same_parameters_and_an_input_for_every_skip() {
        let cfg = Preset::named("sd15").unwrap().unet(true);
        let (plain, controlled) = (unet(&cfg).unwrap(), controlled_unet(&cfg).unwrap());
        let names = |g: &Graph| g.params.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&plain), names(&controlled));
        assert_eq!(cfg.skips(), 12);
        assert_eq!(
            controlled.inputs.len(),
            plain.inputs.len() + cfg.skips() + 1
        );
    }

    #[test]
    fn tiny_unet_is_pinned() {
        let cfg = Preset::named("sd15").unwrap().unet(true);
        let graph = lower(&unet(&cfg).unwrap()).unwrap();
        insta::assert_snapshot!(graph.to_string());
    }
}
