//! Linear, then quadratic, from Genmo's Mochi (`linear_quadratic` in `ComfyUI`): half of the steps take away a fortieth of the noise
//! evenly, and the rest goes by a parabola that continues them.

use crate::denoise::NoiseTable;

/// The share of the noise that goes evenly.
const LINEAR: f64 = 0.025;

/// Shares of the most noise.
#[must_use]
pub fn linear_quadratic(table: &NoiseTable, count: usize) -> Vec<f64> {
    let most = table.sigma_max();
    let linear = (count / 2).max(1) as f64;
    let quadratic = count as f64 - linear;
    let slope = LINEAR / linear;
    let gone = |i: usize| {
        let past = i as f64 - linear;
        // From where the line ends, with its slope, to 1 after `quadratic` steps.
        let bend = match quadratic {
            0.0 => 0.0,
            n => (1.0 - LINEAR - slope * n) / (n * n),
        };
        slope * i as f64 + if past > 0.0 { bend * past * past } else { 0.0 }
    };
    (0..count).map(|i| (1.0 - gone(i)) * most).collect()
}
