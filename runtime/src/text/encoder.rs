//! Chunks to embeddings, through CLIP's text transformers.

use ndarray::{Array2, Array3, ArrayD, Axis, Ix2, Ix3, concatenate};

use super::lighter::without_light;
use super::{Chunk, Emphasis, TextError};
use crate::engine::{Cancel, Input, Lease, Network, VECTOR_PLACES, VECTORS};

/// Which state of a text transformer the UNet sees. Layers count from the end: 1 is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// After this layer and the final norm: Stable Diffusion 1 and 2.
    Normed(usize),
    /// After this layer, without the norm: SDXL takes 2.
    Raw(usize),
}

/// A prompt as one text encoder sees it.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Hidden states, emphasis applied, [1, 77 chunks, width].
    pub states: Array3<f32>,
    /// Projection of the first chunk's end token, [1, width], of encoders that have one.
    pub pooled: Option<Array2<f32>>,
}

/// CLIP's text transformer.
#[derive(Debug)]
pub struct TextEncoder {
    network: Lease,
}

impl TextEncoder {
    /// Name of the pooled output of encoders with a projection.
    const POOLED: &'static str = "text_embeds";

    /// Takes a `text_encoder`.
    #[must_use]
    pub fn new(network: Lease) -> Self {
        Self { network }
    }

    /// Names of the outputs of a `text_encoder` that say what a UNet is told: a layer's states, and the pooled embedding of
    /// encoders that have one.
    ///
    /// # Errors
    /// It has no such layer.
    pub fn outputs(network: &Network, layer: Layer) -> Result<Vec<String>, TextError> {
        let mut names = vec![Self::output(network, layer)?];
        if network.outputs().any(|name| name == Self::POOLED) {
            names.push(Self::POOLED.to_owned());
        }
        Ok(names)
    }

    /// Name of the output for a layer.
    fn output(network: &Network, layer: Layer) -> Result<String, TextError> {
        let states = |prefix: &str| {
            let names = network.outputs();
            names.filter(|name| name.starts_with(prefix)).count()
        };
        let missing = |clip_skip, layers| TextError::ClipSkip { clip_skip, layers };
        match layer {
            Layer::Normed(1) => Ok("last_hidden_state".to_owned()),
            Layer::Normed(n) => match states("normed_hidden_states.") {
                inner if (1..=inner).contains(&n) => {
                    Ok(format!("normed_hidden_states.{}", inner + 1 - n))
                }
                inner => Err(missing(n, inner)),
            },
            // There is one state more than layers: the embedded tokens.
            Layer::Raw(n) => match states("hidden_states.") {
                states if (1..=states).contains(&n) => Ok(format!("hidden_states.{}", states - n)),
                states => Err(missing(n, states.saturating_sub(1))),
            },
        }
    }

    /// Encodes chunks one by one, weights their tokens by a rule and joins them along the tokens. `empty` is the empty
    /// prompt's chunk, with which some rules compare.
    ///
    /// # Errors
    /// The network does not return the layer, fails, or returns another shape than [1, 77, width].
    pub fn encode(
        &mut self,
        chunks: &[Chunk],
        (emphasis, empty): (Emphasis, &Chunk),
        layer: Layer,
        cancel: &Cancel,
    ) -> Result<Encoded, TextError> {
        let outputs = Self::outputs(&self.network, layer)?;
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let (mut encoded, mut pooled) = (Vec::new(), None);
        let width = match self.network.has_input(VECTORS) {
            true => self.network.width(VECTORS)?,
            false => None,
        };
        let mut run = |chunk: &Chunk| {
            let row = chunk.row();
            let mut inputs = vec![("input_ids", Input::Ids(row.view().into_dyn()))];
            let (vectors, places) = chunk.placed_vectors(width.unwrap_or(0));
            if width.is_some() {
                inputs.push((VECTORS, Input::F32(vectors.view().into_dyn())));
                inputs.push((VECTOR_PLACES, Input::Ids(places.view().into_dyn())));
            }
            self.network.run(&inputs, &outputs, cancel)
        };
        let weighted = |chunk: &Chunk| chunk.weights.iter().any(|&weight| weight != 1.0);
        let mut of_empty = Vec::new();
        if emphasis.needs_empty() && chunks.iter().any(weighted) {
            of_empty = run(empty)?.remove(0).into_iter().collect();
        }
        let mut weigh = |chunk: &Chunk| {
            let mut results = run(chunk)?.into_iter();
            let states = results.next().expect("an output for every name");
            let mut states: Array3<f32> = shaped::<Ix3>(states, &[1, chunk.ids.len()])?;
            emphasis.apply(
                states.as_slice_mut().expect("outputs are contiguous"),
                &chunk.weights,
                &of_empty,
            );
            let pooled = results.next().map(|output| shaped::<Ix2>(output, &[1]));
            Ok::<_, TextError>((states, pooled.transpose()?))
        };
        for chunk in chunks {
            let (mut states, of_chunk) = weigh(chunk)?;
            let lighter = match emphasis {
                Emphasis::Compel => without_light(chunk, *empty.ids.last().unwrap_or(&0)),
                _ => Vec::new(),
            };
            let total: f64 = lighter.iter().map(|(_, counts)| counts).sum();
            for (rest, counts) in &lighter {
                let (rest, _) = weigh(rest)?;
                states.scaled_add(*counts as f32, &rest);
            }
            if total > 0.0 {
                states /= (1.0 + total) as f32;
            }
            encoded.push(states);
            // The first chunk speaks for all.
            pooled = pooled.or(of_chunk);
        }
        let views: Vec<_> = encoded.iter().map(|states| states.view()).collect();
        let states = concatenate(Axis(1), &views).expect("chunks of one network have one width");
        Ok(Encoded { states, pooled })
    }
}

/// An output whose shape begins as expected and has one dimension more.
fn shaped<D: ndarray::Dimension>(
    output: ArrayD<f32>,
    expected: &[usize],
) -> Result<ndarray::Array<f32, D>, TextError> {
    let found = output.shape().to_vec();
    match output.into_dimensionality() {
        Ok(output) if found.starts_with(expected) => Ok(output),
        _ => Err(TextError::Shape {
            found,
            expected: format!("{expected:?} and a width"),
        }),
    }
}
