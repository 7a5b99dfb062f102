//! Ranges that the inputs of a UNet's layers had when pictures were made: what `sdrun calibrate` writes and `sdconvert build` reads.
//!
//! Ranges are those of all numbers that were seen. Shares of them, or so many deviations around the mean, would cut off the few large ones that
//! a UNet's transformers depend on; coarser steps cost less.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of the file's schema.
pub const SCHEMA: u32 = 1;

/// Component whose layers have ranges.
pub const COMPONENT: &str = "unet";

/// What a calibration found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// Name and version of the program that wrote it.
    pub program: String,
    /// The model, for people.
    pub title: String,
    /// SHA-256 of the UNet's weights as they are stored, in hexadecimal.
    pub weights: String,
    /// How many pictures ranges were seen in.
    pub pictures: usize,
    /// Steps of the sampler for each.
    pub steps: usize,
    /// By names of linear layers and convolutions: `mid_block.resnets.0.conv1`.
    pub layers: BTreeMap<String, Range>,
}

/// Between what a tensor's numbers lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The least.
    pub least: f32,
    /// The largest.
    pub largest: f32,
}

/// A text that is no calibration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// It is no JSON, or something is missing or of another type.
    #[error("no ranges of a model's layers: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version wrote it.
    #[error("its schema is {found}, and {SCHEMA} is expected")]
    Schema {
        /// Its schema.
        found: u64,
    },
    /// A range that is none.
    #[error("layer `{layer}`: a range from {least} to {largest}")]
    Range {
        /// The layer.
        layer: String,
        /// Where it begins.
        least: f32,
        /// Where it ends.
        largest: f32,
    },
}

impl Calibration {
    /// Reads a file's text.
    ///
    /// # Errors
    /// It is no JSON of this schema, or a range does not lie between two numbers.
    ///
    /// ```
    /// use sd_models::calibration::Calibration;
    ///
    /// let text = r#"{"schema": 1, "program": "sdrun", "title": "demo", "weights": "", "pictures": 1, "steps": 8,
    ///     "layers": {"conv_in": {"least": -4.0, "largest": 3.5}}}"#;
    /// assert_eq!(Calibration::parse(text)?.layers["conv_in"].largest, 3.5);
    /// # Ok::<_, sd_models::calibration::CalibrationError>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, CalibrationError> {
        /// What files of every version have.
        #[derive(Deserialize)]
        struct Versioned {
            schema: u64,
        }
        let Versioned { schema } = serde_json::from_str(text)?;
        if schema != u64::from(SCHEMA) {
            return Err(CalibrationError::Schema { found: schema });
        }
        let read: Self = serde_json::from_str(text)?;
        match read.layers.iter().find(|(_, range)| !range.is_one()) {
            None => Ok(read),
            Some((layer, &Range { least, largest })) => Err(CalibrationError::Range {
                layer: layer.clone(),
                least,
                largest,
            }),
        }
    }
}

/// Numbers that are compared side by side, so that compilers make vectors of them.
const LANES: usize = 16;

impl Range {
    /// The range of some numbers, if they are all finite and there are any.
    #[must_use]
    pub fn of(numbers: &[f32]) -> Option<Self> {
        let (mut least, mut largest) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
        // What is no number times zero is none, either.
        let mut nothing = [0.0; LANES];
        for numbers in numbers.chunks(LANES) {
            for (i, &x) in numbers.iter().enumerate() {
                least[i] = if x < least[i] { x } else { least[i] };
                largest[i] = if x > largest[i] { x } else { largest[i] };
                nothing[i] += x * 0.0;
            }
        }
        let range = Self {
            least: least.into_iter().fold(f32::INFINITY, f32::min),
            largest: largest.into_iter().fold(f32::NEG_INFINITY, f32::max),
        };
        (range.is_one() && nothing.iter().sum::<f32>() == 0.0).then_some(range)
    }

    /// What holds both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            least: self.least.min(other.least),
            largest: self.largest.max(other.largest),
        }
    }

    /// Whether it lies between two numbers.
    fn is_one(self) -> bool {
        self.least.is_finite() && self.largest.is_finite() && self.least <= self.largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_that_of_all_numbers_if_they_are_numbers() {
        let mut numbers: Vec<f32> = (0..37).map(|i| (i as f32 - 20.0) / 4.0).collect();
        let found = Range::of(&numbers).unwrap();
        assert_eq!((found.least, found.largest), (-5.0, 4.0));
        for (place, wrong) in [(0, f32::NAN), (36, f32::INFINITY), (17, f32::NEG_INFINITY)] {
            let right = std::mem::replace(&mut numbers[place], wrong);
            assert_eq!(Range::of(&numbers), None, "{wrong}");
            numbers[place] = right;
        }
        assert_eq!(Range::of(&[]), None);
        let both = found.and(Range::of(&[7.0]).unwrap());
        assert_eq!((both.least, both.largest), (-5.0, 7.0));
    }

    /// A file with a range of one layer, written as JSON.
    fn file(range: &str) -> String {
        format!(
            r#"{{"schema": 1, "program": "p", "title": "t", "weights": "w", "pictures": 1, "steps": 1, "layers": {{"conv_in": {range}}}}}"#
        )
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let read = Calibration::parse(&file(r#"{"least": -0.1, "largest": 0.30000001}"#)).unwrap();
        let text = serde_json::to_string(&read).unwrap();
        assert_eq!(Calibration::parse(&text).unwrap(), read);
    }

    #[test]
    fn bad_files_are_refused_and_told_apart() {
        let whole = file(r#"{"least": -1.0, "largest": 1.0}"#);
        let newer = whole.replace(r#""schema": 1"#, r#""schema": 2, "more": 0"#);
        for (text, says) in [
            (&whole[..whole.len() - 9], "EOF"),
            ("", "EOF"),
            ("[]", "invalid"),
            (&whole.replace("layers", "Layers"), "Layers"),
            (&newer, "its schema is 2"),
            (&file(r#"{"least": 1.0, "largest": -1.0}"#), "`conv_in`"),
            (&file(r#"{"least": -1.0, "largest": 1e39}"#), "`conv_in`"),
            (&file(r#"{"least": NaN, "largest": 1.0}"#), "expected"),
            (&file(r#"{"least": null, "largest": 1.0}"#), "null"),
            (&file(r#"{"least": -1.0}"#), "missing field `largest`"),
        ] {
            let error = Calibration::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
