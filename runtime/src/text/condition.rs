//! What the UNet is told about a picture, put together from its text encoders.

use ndarray::{Array2, Array3, Axis, concatenate, s};

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

    /// How many tokens the text encoders saw.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.context.dim().1
    }

    /// Repeats the last token until there are as many as asked for: how A1111 joins prompts of different lengths.
    pub fn extend_to(&mut self, tokens: usize) {
        let missing = tokens.saturating_sub(self.tokens());
        if missing > 0 {
            let last = self.context.slice(s![.., -1.., ..]);
            let more = vec![last; missing];
            let views: Vec<_> = std::iter::once(self.context.view()).chain(more).collect();
            self.context = concatenate(Axis(1), &views).expect("tokens have one width");
        }
    }

    /// Takes the text out: what SDXL was trained on for empty prompts.
    pub fn clear_text(&mut self) {
        self.context.fill(0.0);
        if let Some(pooled) = &mut self.pooled {
            pooled.fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_prompt_is_extended_by_its_last_token() {
        let context = Array3::from_shape_vec((1, 2, 2), vec![1.0, 2.0, 3.0, 4.0]);
        let mut condition = Condition {
            context: context.unwrap(),
            pooled: None,
            time_ids: None,
        };
        condition.extend_to(1);
        assert_eq!(condition.tokens(), 2);
        condition.extend_to(4);
        let expected = [1.0, 2.0, 3.0, 4.0, 3.0, 4.0, 3.0, 4.0];
        assert!(condition.context.iter().eq(&expected));
    }
}
