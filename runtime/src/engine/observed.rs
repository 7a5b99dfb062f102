//! What goes into the layers of networks while they run.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use sd_models::calibration::Range;

/// Ranges of what linear layers and convolutions of native graphs multiplied so far, by names of layers. There is none where something
/// was no finite number.
#[derive(Debug, Default)]
pub struct Observed(Mutex<BTreeMap<String, Option<Range>>>);

impl Observed {
    /// Notes what a layer multiplies.
    pub(super) fn see(&self, layer: &str, numbers: &[f32]) {
        let range = Range::of(numbers);
        let mut ranges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match ranges.get_mut(layer) {
            Some(seen) => *seen = seen.zip(range).map(|(a, b)| a.and(b)),
            None => drop(ranges.insert(layer.to_owned(), range)),
        }
    }

    /// All layers that ran, and their ranges.
    #[must_use]
    pub fn ranges(&self) -> BTreeMap<String, Option<Range>> {
        let ranges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.clone()
    }
}
