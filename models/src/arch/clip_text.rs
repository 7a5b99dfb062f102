//! CLIP's text transformer (Radford et al. 2021, section 2.4), which turns token ids into the UNet's context.

use crate::graph::{DType, Graph, GraphBuilder, Result, Value};
use crate::nn::{
    Qkv, gelu, layer_norm, layer_norms, linear, linear_no_bias, masked_attention, quick_gelu,
};

/// Nonlinearity of the feed-forward layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`: OpenAI's CLIP.
    QuickGelu,
    /// Exact GELU: OpenCLIP.
    Gelu,
}

/// The token at which the pooled output is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PooledAt {
    /// The first one with the largest id: the end token, unless a token was added to the vocabulary.
    LargestId,
    /// The first one with this id.
    First(u32),
}

/// Shape of a text encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClipTextConfig {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Longest sequence.
    pub positions: usize,
    /// Width of the embeddings.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Feed-forward nonlinearity.
    pub activation: Activation,
    /// Where the pooled output is taken.
    pub pooled_at: PooledAt,
    /// Width that the pooled output is projected to, where it is.
    pub projection: Option<usize>,
}

impl ClipTextConfig {
    /// CLIP ViT-L/14, the text encoder of Stable Diffusion 1.
    #[must_use]
    pub fn clip_l() -> Self {
        Self {
            vocab_size: 49408,
            positions: 77,
            hidden_size: 768,
            intermediate_size: 3072,
            layers: 12,
            heads: 12,
            activation: Activation::QuickGelu,
            pooled_at: PooledAt::LargestId,
            projection: None,
        }
    }

    /// OpenCLIP ViT-H/14 without its last layer, which Stable Diffusion 2 does not use.
    #[must_use]
    pub fn open_clip_h() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            layers: 23,
            heads: 16,
            activation: Activation::Gelu,
            ..Self::clip_l()
        }
    }

    /// OpenCLIP ViT-bigG/14, the second text encoder of SDXL.
    #[must_use]
    pub fn open_clip_big_g() -> Self {
        Self {
            hidden_size: 1280,
            intermediate_size: 5120,
            layers: 32,
            heads: 20,
            projection: Some(1280),
            ..Self::open_clip_h()
        }
    }

    /// A narrow encoder with this one's vocabulary, activation and kind of output, for tests.
    #[must_use]
    pub fn narrowed(self, width: usize, layers: usize) -> Self {
        Self {
            hidden_size: width,
            intermediate_size: 4 * width,
            layers,
            heads: width / 64,
            projection: self.projection.map(|_| width),
            ..self
        }
    }
}

/// `input_ids` [batch, sequence] i64 -> `last_hidden_state` [batch, sequence, C] after the final norm, `pooler_output`
/// [batch, C] at the end token (with a projection: `text_embeds` [batch, P], its projection, in its place),
/// `hidden_states.N` for N = 0 (embeddings) to `layers`, before the final norm, and `normed_hidden_states.N` below
/// `layers`, after it: what "clip skip" takes.
///
/// # Errors
/// A configuration whose widths do not fit together.
pub fn clip_text_encoder(cfg: &ClipTextConfig) -> Result<Graph> {
    let mut builder = GraphBuilder::new("text_encoder");
    let g = &mut builder;
    let ids = g.input("input_ids", DType::I64, ["batch".into(), "sequence".into()])?;
    let shape = g.shape_of(ids);
    let length = g.slice_1d(shape, 1, 2);

    let (states, normed) = g.scope("text_model", |g| {
        let mut x = g.scope("embeddings", |g| embeddings(g, cfg, ids, length))?;
        let mask = causal_mask(g, cfg.positions, length);
        let mut states = vec![x];
        for i in 0..cfg.layers {
            x = g.scope("encoder", |g| {
                g.scope(("layers", i), |g| layer(g, cfg, x, mask))
            })?;
            states.push(x);
        }
        let normed = g.scope("final_layer_norm", |g| layer_norms(g, &states))?;
        Ok((states, normed))
    })?;

    // The first end token counts, since padding may repeat it. Ids are whole numbers below 2^24, which single precision holds.
    let end = match cfg.pooled_at {
        PooledAt::LargestId => {
            let ids = g.cast_to_f32(ids);
            g.argmax(ids, 1)
        }
        PooledAt::First(id) => g.first_of(ids, i64::from(id), 1),
    };
    let last = normed[cfg.layers];
    let pooled = g.pick_row_per_batch(last, end);
    // In transformers' order, on which optimum's pipelines rely.
    if let Some(width) = cfg.projection {
        let projected = g.scope("text_projection", |g| linear_no_bias(g, pooled, width))?;
        g.output("text_embeds", projected)?;
        g.output("last_hidden_state", last)?;
    } else {
        g.output("last_hidden_state", last)?;
        g.output("pooler_output", pooled)?;
    }
    for (i, &state) in states.iter().enumerate() {
        g.output(&format!("hidden_states.{i}"), state)?;
    }
    for (i, &state) in normed[..cfg.layers].iter().enumerate() {
        g.output(&format!("normed_hidden_states.{i}"), state)?;
    }
    Ok(builder.finish())
}

/// Sum of the token's and the position's vector: [batch, sequence, C]
fn embeddings(
    g: &mut GraphBuilder,
    cfg: &ClipTextConfig,
    ids: Value,
    length: Value,
) -> Result<Value> {
    let table = g.param("token_embedding.weight", [cfg.vocab_size, cfg.hidden_size])?;
    let tokens = g.gather_rows(table, ids);
    let table = g.param(
        "position_embedding.weight",
        [cfg.positions, cfg.hidden_size],
    )?;
    let positions = g.take_first(table, length, 0);
    g.add(tokens, positions)
}

/// [sequence, sequence]: minus infinity where a token would see a later one.
fn causal_mask(g: &mut GraphBuilder, positions: usize, length: Value) -> Value {
    let entry = |i: usize| {
        if i % positions > i / positions {
            f32::NEG_INFINITY
        } else {
            0.0
        }
    };
    let mask = g.constant_f32(
        &[positions, positions],
        (0..positions * positions).map(entry).collect(),
    );
    let mask = g.take_first(mask, length, 0);
    g.take_first(mask, length, 1)
}

/// Pre-norm transformer layer with biases everywhere.
fn layer(g: &mut GraphBuilder, cfg: &ClipTextConfig, x: Value, mask: Value) -> Result<Value> {
    let width = cfg.hidden_size;
    let h = g.scope("layer_norm1", |g| layer_norm(g, x))?;
    let h = g.scope("self_attn", |g| {
        let q = g.scope("q_proj", |g| linear(g, h, width))?;
        let k = g.scope("k_proj", |g| linear(g, h, width))?;
        let v = g.scope("v_proj", |g| linear(g, h, width))?;
        let y = masked_attention(g, Qkv { q, k, v }, cfg.heads, mask)?;
        g.scope("out_proj", |g| linear(g, y, width))
    })?;
    let x = g.add(x, h)?;
    let h = g.scope("layer_norm2", |g| layer_norm(g, x))?;
    let h = g.scope("mlp", |g| {
        let h = g.scope("fc1", |g| linear(g, h, cfg.intermediate_size))?;
        let h = match cfg.activation {
            Activation::QuickGelu => quick_gelu(g, h)?,
            Activation::Gelu => gelu(g, h)?,
        };
        g.scope("fc2", |g| linear(g, h, width))
    })?;
    g.add(x, h)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_encoders_have_their_numbers_of_tensors_and_parameters() {
        for (cfg, tensors, parameters) in [
            (ClipTextConfig::clip_l(), 196, 123_060_480),
            (ClipTextConfig::open_clip_h(), 372, 340_387_840),
            (ClipTextConfig::open_clip_big_g(), 517, 694_659_840),
        ] {
            let graph = clip_text_encoder(&cfg).unwrap();
            assert_eq!(
                (graph.params.len(), graph.parameter_count()),
                (tensors, parameters)
            );
        }
    }

    #[test]
    fn the_pooled_output_is_taken_where_the_configuration_says() {
        let operators = |pooled_at| {
            let cfg = ClipTextConfig {
                pooled_at,
                ..ClipTextConfig::clip_l().narrowed(64, 1)
            };
            let graph = clip_text_encoder(&cfg).unwrap();
            let argmax = graph.nodes.iter().find(|node| node.op.name() == "ArgMax");
            let compared = argmax.and_then(|node| node.inputs[0]).unwrap();
            // CUDA's ArgMax takes no whole numbers.
            assert_eq!(graph.info(compared).dtype, DType::F32);
            let graph = graph.to_string();
            ["Equal", "ArgMax"].map(|op| graph.contains(op))
        };
        assert_eq!(operators(PooledAt::LargestId), [false, true]);
        assert_eq!(operators(PooledAt::First(49407)), [true, true]);
    }

    #[test]
    fn outputs_are_named_as_optimum_names_them() {
        let outputs = |cfg: ClipTextConfig| {
            let graph = clip_text_encoder(&cfg.narrowed(64, 2)).unwrap();
            let name = |&v| graph.info(v).name.clone();
            graph.outputs.iter().map(name).collect::<Vec<_>>()
        };
        let states = [
            "hidden_states.0",
            "hidden_states.1",
            "hidden_states.2",
            "normed_hidden_states.0",
            "normed_hidden_states.1",
        ];
        let plain = outputs(ClipTextConfig::clip_l());
        assert_eq!(plain[..2], ["last_hidden_state", "pooler_output"]);
        assert_eq!(plain[2..], states);
        let projected = outputs(ClipTextConfig::open_clip_big_g());
        assert_eq!(projected[..2], ["text_embeds", "last_hidden_state"]);
        assert_eq!(projected[2..], states);
    }
}
