//! Align Your Steps: Sabour et al. 2024 (arXiv:2404.14507): levels that were optimised for ten steps of a model family, and
//! are interpolated for other numbers of steps. A1111 rounds the published tables; `ComfyUI` has them in full.

use super::linspace;

/// Ten steps' levels of a family.
pub type Table = [f64; 11];

/// Stable Diffusion 1, rounded.
pub const SD1_ROUNDED: Table = [
    14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029,
];

/// SDXL, rounded.
pub const SDXL_ROUNDED: Table = [
    14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029,
];

/// Stable Diffusion 1.
pub const SD1: Table = [
    14.614_641_229_3,
    6.474_576_095_6,
    3.863_674_598_5,
    2.694_615_152_0,
    1.884_192_117_7,
    1.394_380_509_2,
    0.964_258_390_4,
    0.652_368_601_6,
    0.397_745_627_2,
    0.151_523_266_2,
    0.029_167_158_2,
];

/// SDXL.
pub const SDXL: Table = [
    14.614_641_229_3,
    6.318_448_528_7,
    3.768_179_031_5,
    2.181_148_076_9,
    1.340_524_494_5,
    0.862_072_114_1,
    0.555_069_328_9,
    0.379_854_070_8,
    0.233_236_413_4,
    0.111_418_817_7,
    0.029_167_158_2,
];

/// A table's levels at `count` even places, log sigma being linear between two of them.
#[must_use]
pub fn align_your_steps(table: &Table, count: usize) -> Vec<f64> {
    let last = table.len() - 1;
    let at = |place: f64| {
        let low = (place as usize).min(last - 1);
        let weight = place - low as f64;
        ((1.0 - weight) * table[low].ln() + weight * table[low + 1].ln()).exp()
    };
    linspace(0.0, last as f64, count).map(at).collect()
}
