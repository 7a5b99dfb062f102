//! What the UNet is told about a picture, put together from its text encoders.

use ndarray::{Array2, Array3, Axis, concatenate};

use super::{Encoded, TextError};

/// What the UNet is told to show.
#[derive(Clone, Debug)]
pub struct Condition {
    /// Embeddings of the text encoders side by side, [1, tokens, width].
    pub context: Array3<f32>,
    /// Pooled embedding, [1, width], of families that are conditioned on one.
    pub pooled: Option<Array2<f32>>,
    /// Sizes, crop and so on, [1, n], of families that are conditioned on them.
    pub time_ids: Option<Array2<f32>>,
}

impl Condition {
    /// Joins what the encoders say. The pooled embedding is the last encoder's.
    ///
    /// # Errors
    /// The encoders have different numbers of tokens.
    pub fn join(encoded: &[Encoded], time_ids: Option<&[f32]>) -> Result<Self, TextError> {
        let views: Vec<_> = encoded.iter().map(|e| e.states.view()).collect();
        let context = concatenate(Axis(2), &views).map_err(|_| TextError::Shape {
            found: views.iter().map(|view| view.dim().1).collect(),
            expected: "the same number of tokens for every text encoder".to_owned(),
        })?;
        let row = |ids: &[f32]| {
            Array2::from_shape_vec((1, ids.len()), ids.to_vec()).expect("one row of these numbers")
        };
        Ok(Self {
            context,
            // Models without these numbers do not take a pooled embedding either.
            pooled: time_ids.and_then(|_| encoded.last()?.pooled.clone()),
            time_ids: time_ids.map(row),
        })
    }

    /// The same with no text at all: what SDXL was trained on for empty prompts.
    #[must_use]
    pub fn without_text(mut self) -> Self {
        self.context.fill(0.0);
        if let Some(pooled) = &mut self.pooled {
            pooled.fill(0.0);
        }
        self
    }
}
