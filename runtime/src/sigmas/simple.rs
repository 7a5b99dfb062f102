//! Every n-th level of the table, from the last one (`ComfyUI`'s "simple").

use crate::denoise::NoiseTable;

/// Level `999 - floor(i 1000 / count)` for each `i`.
#[must_use]
pub fn simple(table: &NoiseTable, count: usize) -> Vec<f64> {
    let sigmas = table.sigmas();
    let last = sigmas.len() - 1;
    (0..count)
        .map(|i| sigmas[last - i * sigmas.len() / count])
        .collect()
}
