//! How the weights of a prompt act on its embeddings.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A rule of emphasis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Emphasis {
    /// A1111's "Original": every token's embedding times its weight, and the chunk's mean as it was.
    Original,
    /// A1111's "No norm": the product alone.
    NoNorm,
    /// A1111's "Ignore": weights are read and do nothing.
    Ignore,
    /// A1111's "None": brackets, numbers and `BREAK` are text.
    None,
    /// `ComfyUI`'s: as much of the way from the embedding that the empty prompt has at this place.
    Comfyui,
    /// compel's: `ComfyUI`'s, and where weights are below 1, also towards the prompt without these words.
    Compel,
}

/// A name that is no rule's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no rule of emphasis is called `{name}`; there are {}", Emphasis::ALL.map(Emphasis::name).join(", "))]
pub struct UnknownEmphasis {
    name: String,
}

impl Emphasis {
    /// Every rule.
    pub const ALL: [Self; 6] = [
        Self::Original,
        Self::NoNorm,
        Self::Ignore,
        Self::None,
        Self::Comfyui,
        Self::Compel,
    ];

    /// The name on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::NoNorm => "no-norm",
            Self::Ignore => "ignore",
            Self::None => "none",
            Self::Comfyui => "comfyui",
            Self::Compel => "compel",
        }
    }

    /// The name in A1111's settings.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Original => "Original",
            Self::NoNorm => "No norm",
            Self::Ignore => "Ignore",
            Self::None => "None",
            Self::Comfyui => "ComfyUI",
            Self::Compel => "compel",
        }
    }

    /// Whether weights are syntax.
    #[must_use]
    pub fn reads_weights(self) -> bool {
        self != Self::None
    }

    /// Whether the rule compares with the empty prompt.
    #[must_use]
    pub fn needs_empty(self) -> bool {
        matches!(self, Self::Comfyui | Self::Compel)
    }

    /// Weights the tokens of a chunk; what compel's rule has beside that concerns whole chunks.
    ///
    /// `embeddings`: one chunk, [77, width]; `weights`: one per token; `empty`: the empty prompt's chunk if the rule needs it.
    /// Weights of 1 throughout leave every bit as it is.
    pub fn apply(self, embeddings: &mut [f32], weights: &[f32], empty: &[f32]) {
        if weights.iter().all(|&w| w == 1.0) {
            return;
        }
        let width = embeddings.len() / weights.len();
        let tokens = embeddings.chunks_exact_mut(width).zip(weights);
        match self {
            Self::Ignore | Self::None => {}
            Self::NoNorm => tokens.for_each(|(token, weight)| scale(token, *weight)),
            Self::Original => {
                let before = mean(embeddings);
                Self::NoNorm.apply(embeddings, weights, empty);
                let ratio = before / mean(embeddings);
                // A mean of 0 has nothing to restore it by.
                if ratio.is_finite() {
                    scale(embeddings, ratio as f32);
                }
            }
            Self::Comfyui | Self::Compel => {
                for ((token, weight), empty) in tokens.zip(empty.chunks_exact(width)) {
                    if *weight != 1.0 {
                        let both = token.iter_mut().zip(empty);
                        both.for_each(|(x, empty)| *x = (*x - empty) * weight + empty);
                    }
                }
            }
        }
    }
}

impl FromStr for Emphasis {
    type Err = UnknownEmphasis;

    fn from_str(name: &str) -> Result<Self, UnknownEmphasis> {
        let rule = Self::ALL.into_iter().find(|rule| rule.name() == name);
        rule.ok_or_else(|| UnknownEmphasis {
            name: name.to_owned(),
        })
    }
}

fn scale(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|x| *x *= factor);
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_act_as_published() {
        let empty = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0];
        for (rule, expected) in [
            (
                Emphasis::Original,
                [
                    1.019_417_4,
                    2.038_834_8,
                    3.364_077_6,
                    4.485_437,
                    4.587_378_5,
                    5.504_853_7,
                ],
            ),
            (Emphasis::NoNorm, [1.0, 2.0, 3.3, 4.4, 4.5, 5.4]),
            (Emphasis::Ignore, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            (Emphasis::Comfyui, [1.0, 2.0, 3.1, 4.2, 4.8, 5.7]),
        ] {
            let mut z = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
            rule.apply(&mut z, &[1.0, 1.1, 0.9], &empty);
            // A few roundings to single precision.
            let near = |(a, b): (&f32, f32)| (a - b).abs() < 1e-6;
            assert!(z.iter().zip(expected).all(near), "{rule:?} {z:?}");
        }
    }

    #[test]
    fn weights_of_one_change_nothing_and_a_mean_of_zero_is_no_accident() {
        for rule in Emphasis::ALL {
            let mut z = [0.1, -0.7, 0.3];
            rule.apply(&mut z, &[1.0, 1.0, 1.0], &[9.0; 3]);
            assert_eq!(z, [0.1, -0.7, 0.3]);
        }
        let mut z = [1.0, 1.0];
        Emphasis::Original.apply(&mut z, &[1.0, -1.0], &[]);
        assert_eq!(z, [1.0, -1.0]);
    }

    #[test]
    fn names_are_read_back() {
        for rule in Emphasis::ALL {
            assert_eq!(rule.name().parse(), Ok(rule));
        }
        let error = "bold".parse::<Emphasis>().unwrap_err().to_string();
        assert!(error.contains("no-norm"), "{error}");
    }
}
