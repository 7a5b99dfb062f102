//! Files of ranges that a model's runs had, and whether they are those of a model.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sd_models::calibration::{Calibration, Range};

use crate::ConvertError;
use crate::error::some_of;

/// A file with ranges of the inputs of a UNet's layers.
#[derive(Clone, Debug)]
pub struct Calibrated {
    path: PathBuf,
    calibration: Calibration,
}

impl Calibrated {
    /// Reads a file's text; `path` is for messages.
    ///
    /// # Errors
    /// It holds something else.
    pub fn read(text: &str, path: &Path) -> Result<Self, ConvertError> {
        let calibration = Calibration::parse(text);
        let calibration = calibration.map_err(|source| ConvertError::Calibration {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            calibration,
        })
    }

    /// The range of the inputs of the layer that has this weight.
    pub(crate) fn range(&self, weight: &str) -> Option<Range> {
        let layer = weight.strip_suffix(".weight")?;
        self.calibration.layers.get(layer).copied()
    }

    /// Refuses a file that lacks layers with these weights.
    pub(crate) fn has_all(&self, weights: &BTreeSet<String>) -> Result<(), ConvertError> {
        let missing = weights.iter().filter(|weight| self.range(weight).is_none());
        let missing: Vec<&str> = missing.map(String::as_str).collect();
        match missing.len() {
            0 => Ok(()),
            count => Err(ConvertError::CalibrationLacks {
                path: self.path.clone(),
                count,
                names: some_of(&missing),
            }),
        }
    }

    /// Refuses ranges of other weights than those of this SHA-256.
    pub(crate) fn is_of(&self, weights: Option<&str>) -> Result<(), ConvertError> {
        if weights == Some(&self.calibration.weights) {
            return Ok(());
        }
        Err(ConvertError::CalibrationOfOther {
            path: self.path.clone(),
            title: self.calibration.title.clone(),
            found: self.calibration.weights.clone(),
            expected: weights.unwrap_or("no UNet").to_owned(),
        })
    }
}
