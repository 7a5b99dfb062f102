//! The noise levels a model was trained at, and the way from timesteps to noise levels and back.
//!
//! SD's betas are "scaled linear": `beta_i = (sqrt(b0) + i / 999 (sqrt(b1) - sqrt(b0)))^2`; `abar` is the running product
//! of `1 - beta` and `sigma = sqrt((1 - abar) / abar)`. Programs differ in where they round, so tables do, too.

use super::Level;

/// Steps of training.
pub(crate) const TIMESTEPS: usize = 1000;

/// Where the table is rounded to single precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Noise levels only: `ComfyUI`.
    Double,
    /// Products rounded, then everything from them: `CompVis`, A1111.
    Products,
    /// Everything: diffusers.
    Single,
}

/// `sigma` by timestep.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseTable {
    sigmas: Vec<f64>,
    /// Whether models are told the nearest timestep of training for a level between two of them.
    whole_timesteps: bool,
}

impl NoiseTable {
    /// The table for betas from `beta_start` to `beta_end`.
    #[must_use]
    pub fn scaled_linear(beta_start: f64, beta_end: f64, precision: Precision) -> Self {
        let sigmas = match precision {
            Precision::Double | Precision::Products => {
                let (first, last) = (beta_start.sqrt(), beta_end.sqrt());
                let mut product: f64 = 1.0;
                let mut sigma = |i: usize| {
                    let root = first + i as f64 / (TIMESTEPS - 1) as f64 * (last - first);
                    product *= 1.0 - root * root;
                    match precision {
                        Precision::Double => f64::from(((1.0 - product) / product).sqrt() as f32),
                        _ => sigma_of(product as f32),
                    }
                };
                (0..TIMESTEPS).map(&mut sigma).collect()
            }
            Precision::Single => {
                // torch.linspace counts from both ends with one rounding each; torch.cumprod accumulates in double.
                let (first, last) = (beta_start.sqrt() as f32, beta_end.sqrt() as f32);
                let step = (last - first) / (TIMESTEPS - 1) as f32;
                let mut product = 1.0;
                let mut sigma = |i: usize| {
                    let root = if i < TIMESTEPS / 2 {
                        step.mul_add(i as f32, first)
                    } else {
                        (-step).mul_add((TIMESTEPS - 1 - i) as f32, last)
                    };
                    product *= f64::from(1.0 - root * root);
                    sigma_of(product as f32)
                };
                (0..TIMESTEPS).map(&mut sigma).collect()
            }
        };
        Self {
            sigmas,
            whole_timesteps: false,
        }
    }

    /// The same levels, of which models are told the nearest timestep of training by log sigma.
    #[must_use]
    pub fn with_whole_timesteps(mut self) -> Self {
        self.whole_timesteps = true;
        self
    }

    /// Every level, by timestep.
    #[must_use]
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// Least noise of training.
    #[must_use]
    pub fn sigma_min(&self) -> f64 {
        self.sigmas[0]
    }

    /// Most noise of training.
    #[must_use]
    pub fn sigma_max(&self) -> f64 {
        self.sigmas[TIMESTEPS - 1]
    }

    /// The level at `t`; between two levels, log sigma is linear in `t` (k-diffusion).
    #[must_use]
    pub fn at(&self, t: f64) -> Level {
        let (low, weight) = split(t);
        let (a, b) = (self.sigmas[low], self.sigmas[(low + 1).min(TIMESTEPS - 1)]);
        let sigma = if weight == 0.0 {
            a
        } else {
            ((1.0 - weight) * a.ln() + weight * b.ln()).exp()
        };
        Level { sigma, t }
    }

    /// The level at `t`; between two levels, sigma is linear in `t` (diffusers).
    #[must_use]
    pub fn at_linear(&self, t: f64) -> Level {
        let (low, weight) = split(t);
        let (a, b) = (self.sigmas[low], self.sigmas[(low + 1).min(TIMESTEPS - 1)]);
        Level {
            sigma: a + weight * (b - a),
            t,
        }
    }

    /// The level of noise `sigma`: its timestep by linear interpolation over log sigma, within the table; rounded if the table's
    /// timesteps are whole.
    #[must_use]
    pub fn of_sigma(&self, sigma: f64) -> Level {
        let above = self.sigmas.partition_point(|&s| s <= sigma);
        let low = above.saturating_sub(1).min(TIMESTEPS - 2);
        let (a, b) = (self.sigmas[low].ln(), self.sigmas[low + 1].ln());
        let weight = ((sigma.ln() - a) / (b - a)).clamp(0.0, 1.0);
        let weight = match self.whole_timesteps {
            // The lower one of two that are as near.
            true => (weight - 0.5).ceil(),
            false => weight,
        };
        Level {
            sigma,
            t: low as f64 + weight,
        }
    }
}

fn sigma_of(abar: f32) -> f64 {
    f64::from(((1.0 - abar) / abar).sqrt())
}

/// The timestep below `t`, and how far `t` is from it.
fn split(t: f64) -> (usize, f64) {
    let low = (t.max(0.0).floor() as usize).min(TIMESTEPS - 1);
    (low, (t - low as f64).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_those_of_the_programs() {
        let check = |precision, expected: [f64; 7]| {
            let table = NoiseTable::scaled_linear(0.00085, 0.012, precision);
            for (t, sigma) in [0, 1, 250, 500, 750, 998, 999].into_iter().zip(expected) {
                // One ulp of single precision: torch's square root is a power of 0.5.
                let found = table.sigmas()[t];
                assert!(
                    (found / sigma - 1.0).abs() < 1.2e-7,
                    "{precision:?} {t}: {found} {sigma}"
                );
            }
        };
        let products = [
            0.029_167_534_8,
            0.041_314_479,
            0.695_798_993,
            1.618_278_86,
            4.099_164_01,
            14.526_275_6,
            14.614_642_1,
        ];
        check(Precision::Products, products);
        let double = [
            0.029_167_158_2,
            0.041_314_412,
            0.695_798_937,
            1.618_278_83,
            4.099_164_05,
            14.526_275_7,
            14.614_641_2,
        ];
        check(Precision::Double, double);
        let single = [
            0.029_167_534_8,
            0.041_314_479,
            0.695_799_47,
            1.618_279_7,
            4.099_165_44,
            14.526_281_4,
            14.614_646_9,
        ];
        check(Precision::Single, single);
    }

    #[test]
    fn timesteps_and_sigmas_lead_to_each_other() {
        let table = NoiseTable::scaled_linear(0.00085, 0.012, Precision::Products);
        for t in [0.0, 0.4, 1.0, 249.75, 499.5, 998.9, 999.0] {
            let level = table.at(t);
            assert!((table.of_sigma(level.sigma).t - t).abs() < 1e-6, "{t}");
        }
        assert!((table.at(499.5).sigma - 1.615_580_32).abs() < 1e-7);
        let single = NoiseTable::scaled_linear(0.00085, 0.012, Precision::Single);
        assert!((single.at_linear(499.5).sigma - 1.615_583_42).abs() < 1e-6);
        assert_eq!(
            (table.of_sigma(1e-9).t, table.of_sigma(1e9).t),
            (0.0, 999.0)
        );
        let whole = table.clone().with_whole_timesteps();
        for (t, nearest) in [(0.0, 0.0), (249.4, 249.0), (998.6, 999.0), (999.0, 999.0)] {
            assert_eq!(whole.of_sigma(table.at(t).sigma).t, nearest);
        }
        assert_eq!(
            (whole.of_sigma(1e-9).t, whole.of_sigma(1e9).t),
            (0.0, 999.0)
        );
    }
}
