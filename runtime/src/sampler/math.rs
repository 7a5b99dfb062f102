//! What solvers share.

use super::{Options, Run, Schedule};
use crate::denoise::{DenoiseError, Denoiser, Latents, Level, NoiseTable};

/// `x <- a x + b y`.
pub fn axpby(x: &mut Latents, a: f64, y: &Latents, b: f64) {
    let (a, b) = (a as f32, b as f32);
    x.zip_mut_with(y, |x, &y| *x = a * *x + b * y);
}

/// Euler's step of `dx/dsigma = (x - x0) / sigma`: `x <- x + (x - x0) / from (to - from)`.
pub fn euler_step(x: &mut Latents, denoised: &Latents, from: f64, to: f64) {
    let ratio = to / from;
    axpby(x, ratio, denoised, 1.0 - ratio);
}

/// `(x - x0) / sigma`: the slope of the probability-flow ODE, and the estimate of the noise.
#[must_use]
pub fn slope(x: &Latents, denoised: &Latents, sigma: f64) -> Latents {
    (x - denoised) * (1.0 / sigma) as f32
}

/// A step of `dx/dsigma = (x - x0) / sigma` with the slope at the geometric middle of both levels.
///
/// # Errors
/// The model fails there.
pub fn midpoint_step(
    model: &mut dyn Denoiser,
    x: &mut Latents,
    denoised: &Latents,
    from: f64,
    to: f64,
    table: &NoiseTable,
) -> Result<(), DenoiseError> {
    let middle = table.of_sigma((from * to).sqrt());
    let mut half_way = x.clone();
    euler_step(&mut half_way, denoised, from, middle.sigma);
    let denoised = model.denoise(&half_way, middle)?;
    x.scaled_add(
        (to - from) as f32,
        &slope(&half_way, &denoised, middle.sigma),
    );
    Ok(())
}

/// Noise before a step (Karras et al. 2022, algorithm 2): the level that `x` is raised to, which is `level` without churn.
pub fn churn(
    x: &mut Latents,
    level: Level,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Level {
    let sigma = level.sigma;
    let share = options.s_churn / schedule.steps.len() as f64;
    let within = (options.s_tmin..=options.s_tmax).contains(&sigma);
    let gamma = if within {
        share.min(std::f64::consts::SQRT_2 - 1.0)
    } else {
        0.0
    };
    if gamma == 0.0 && !options.idle_draws {
        return level;
    }
    let mut noise = Latents::zeros(x.raw_dim());
    run.noise(&mut noise);
    if gamma == 0.0 {
        return level;
    }
    let raised = sigma * (1.0 + gamma);
    let up = (raised * raised - sigma * sigma).sqrt();
    x.scaled_add((up * options.s_noise) as f32, &noise);
    schedule.table.of_sigma(raised)
}

/// How far down a step from level `a` goes and how much noise raises it to `b` (k-diffusion's `get_ancestral_step`):
/// `up^2 = eta^2 b^2 (a^2 - b^2) / a^2`, `down^2 = b^2 - up^2`.
#[must_use]
pub fn ancestral(a: f64, b: f64, eta: f64) -> (f64, f64) {
    let up = (eta * (b * b * (a * a - b * b) / (a * a)).sqrt()).min(b);
    ((b * b - up * up).sqrt(), up)
}

/// Shares of signal and noise in a variance-preserving state: `sqrt(abar)` and `sqrt(1 - abar)`.
#[derive(Clone, Copy, Debug)]
pub struct Vp {
    /// `1 / sqrt(1 + sigma^2)`.
    pub signal: f64,
    /// `sigma / sqrt(1 + sigma^2)`.
    pub noise: f64,
}

impl Vp {
    /// Shares at noise level `sigma`.
    #[must_use]
    pub fn new(sigma: f64) -> Self {
        let signal = 1.0 / (1.0 + sigma * sigma).sqrt();
        Self {
            signal,
            noise: sigma * signal,
        }
    }
}

/// Solves a small, regular system of linear equations, `rows . x = sides`.
#[must_use]
pub fn solve(mut rows: Vec<Vec<f64>>, mut sides: Vec<f64>) -> Vec<f64> {
    let n = sides.len();
    for k in 0..n {
        let largest = |&a: &usize, &b: &usize| rows[a][k].abs().total_cmp(&rows[b][k].abs());
        let pivot = (k..n).max_by(largest).unwrap_or(k);
        rows.swap(k, pivot);
        sides.swap(k, pivot);
        let (above, below) = rows.split_at_mut(k + 1);
        for (i, row) in below.iter_mut().enumerate() {
            let factor = row[k] / above[k][k];
            let entries = row.iter_mut().zip(&above[k]);
            entries.for_each(|(entry, pivot)| *entry -= factor * pivot);
            sides[k + 1 + i] -= factor * sides[k];
        }
    }
    for k in (0..n).rev() {
        let known: f64 = (k + 1..n).map(|j| rows[k][j] * sides[j]).sum();
        sides[k] = (sides[k] - known) / rows[k][k];
    }
    sides
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_are_solved() {
        let rows = vec![
            vec![0.0, 2.0, 1.0],
            vec![1.0, 1.0, 1.0],
            vec![4.0, -1.0, 0.5],
        ];
        let x = solve(rows, vec![7.0, 6.0, 3.5]);
        for (found, expected) in x.iter().zip([1.0, 2.0, 3.0]) {
            assert!((found - expected).abs() < 1e-12, "{x:?}");
        }
    }

    #[test]
    fn levels_split_as_published() {
        for (eta, expected) in [
            (1.0, (0.8, 1.833_030_28)),
            (0.5, (1.777_638_88, 0.916_515_139)),
            (0.0, (2.0, 0.0)),
        ] {
            let (down, up) = ancestral(5.0, 2.0, eta);
            assert!((down - expected.0).abs() < 1e-8 && (up - expected.1).abs() < 1e-8);
        }
    }
}
