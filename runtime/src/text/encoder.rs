//! Chunks to embeddings, through CLIP's text transformer.

use ndarray::{Array2, Array3, Axis, concatenate};

use super::emphasis::emphasize;
use super::{Chunk, TextError};
use crate::engine::{Cancel, Input, Network};

/// A prompt as the UNet sees it.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// Token ids, [chunks, 77].
    pub token_ids: Array2<i64>,
    /// Hidden states after the final norm, emphasis applied, [1, 77 chunks, width].
    pub embeddings: Array3<f32>,
}

/// CLIP's text transformer.
#[derive(Debug)]
pub struct TextEncoder {
    network: Network,
}

impl TextEncoder {
    /// Takes a loaded `text_encoder`.
    #[must_use]
    pub fn new(network: Network) -> Self {
        Self { network }
    }

    /// Name of the output for a layer counted from the end: 1 is the last one, 2 the one before.
    fn output(&self, clip_skip: usize) -> Result<String, TextError> {
        if clip_skip == 1 {
            return Ok("last_hidden_state".to_owned());
        }
        // The state after the layer, and then the final norm.
        let inner = self
            .network
            .outputs()
            .filter(|name| name.starts_with("normed_hidden_states."));
        let layers = inner.count();
        if (1..=layers).contains(&clip_skip) {
            Ok(format!("normed_hidden_states.{}", layers + 1 - clip_skip))
        } else {
            Err(TextError::ClipSkip { clip_skip, layers })
        }
    }

    /// Encodes chunks one by one and joins them along the tokens. `clip_skip` counts layers from the end: 1 is the last.
    ///
    /// # Errors
    /// More than there are layers, a network that does not return inner ones or another shape than [1, 77, width].
    pub fn encode(
        &mut self,
        chunks: &[Chunk],
        clip_skip: usize,
        cancel: &Cancel,
    ) -> Result<Conditioning, TextError> {
        let output_name = self.output(clip_skip)?;
        let mut ids = Array2::zeros((0, chunks.first().map_or(0, |chunk| chunk.ids.len())));
        let mut encoded = Vec::new();
        for chunk in chunks {
            let row = Array2::from_shape_fn((1, chunk.ids.len()), |(_, i)| i64::from(chunk.ids[i]));
            let input = Input::Ids(row.view().into_dyn());
            let output = self
                .network
                .run(&[("input_ids", input)], &[&output_name], cancel)?
                .remove(0);
            let found = output.shape().to_vec();
            let expected = || format!("[1, {}, width]", chunk.ids.len());
            let mut states: Array3<f32> = match output.into_dimensionality() {
                Ok(states) if found[..2] == [1, chunk.ids.len()] => states,
                _ => {
                    return Err(TextError::Shape {
                        found,
                        expected: expected(),
                    });
                }
            };
            let values = states.as_slice_mut().expect("outputs are contiguous");
            emphasize(values, &chunk.weights);
            ids.append(Axis(0), row.view())
                .expect("every chunk has 77 tokens");
            encoded.push(states);
        }
        let views: Vec<_> = encoded.iter().map(|states| states.view()).collect();
        let embeddings =
            concatenate(Axis(1), &views).expect("chunks of one network have one width");
        Ok(Conditioning {
            token_ids: ids,
            embeddings,
        })
    }
}
