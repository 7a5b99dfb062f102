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
    /// Nothing before the levels themselves: `ComfyUI`.
    Double,
    /// Products rounded, then everything from them: `CompVis`, A1111.
    Products,
    /// Everything: diffusers.
    Single,
}

/// `sigma` by timestep.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseTable {
    precision: Precision,
    /// `abar` by timestep, in single precision as all programs keep it.
    products: Vec<f32>,
    sigmas: Vec<f64>,
    /// Whether models are told whole timesteps only.
    whole_timesteps: bool,
}

impl NoiseTable {
    /// The table for betas from `beta_start` to `beta_end`.
    #[must_use]
    pub fn scaled_linear(beta_start: f64, beta_end: f64, precision: Precision) -> Self {
        match precision {
            Precision::Double | Precision::Products => {
                let (first, last) = (beta_start.sqrt(), beta_end.sqrt());
                let mut product: f64 = 1.0;
                let product = |i: usize| {
                    let root = first + i as f64 / (TIMESTEPS - 1) as f64 * (last - first);
                    product *= 1.0 - root * root;
                    product
                };
                let products: Vec<f64> = (0..TIMESTEPS).map(product).collect();
                let rounded = products.iter().map(|&product| product as f32).collect();
                let mut table = Self::of_products(precision, rounded);
                if precision == Precision::Double {
                    let sigma = |abar: &f64| f64::from(((1.0 - abar) / abar).sqrt() as f32);
                    table.sigmas = products.iter().map(sigma).collect();
                }
                table
            }
            Precision::Single => {
                let roots = linspace(beta_start.sqrt() as f32, beta_end.sqrt() as f32);
                Self::of_betas(roots.map(|root| root * root))
            }
        }
    }

    /// The table for betas that grow evenly from `beta_start` to `beta_end`, in single precision.
    #[must_use]
    pub fn linear(beta_start: f64, beta_end: f64) -> Self {
        Self::of_betas(linspace(beta_start as f32, beta_end as f32))
    }

    /// The table of a squared cosine: Nichol and Dhariwal 2021 (arXiv:2102.09672), equation 17, in single precision.
    #[must_use]
    pub fn squared_cosine() -> Self {
        let product = |i: usize| {
            let u = i as f64 / TIMESTEPS as f64;
            ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                .cos()
                .powi(2)
        };
        Self::of_betas(
            (0..TIMESTEPS).map(|i| (1.0 - product(i + 1) / product(i)).min(0.999) as f32),
        )
    }

    fn of_betas(betas: impl Iterator<Item = f32>) -> Self {
        Self::of_products(Precision::Single, cumulative(betas.map(|beta| 1.0 - beta)))
    }

    fn of_products(precision: Precision, products: Vec<f32>) -> Self {
        Self {
            precision,
            sigmas: products.iter().map(|&abar| sigma_of(abar)).collect(),
            products,
            whole_timesteps: false,
        }
    }

    /// The same levels, of which models are told the nearest timestep of training by log sigma.
    #[must_use]
    pub fn with_whole_timesteps(mut self) -> Self {
        self.whole_timesteps = true;
        self
    }

    /// The table of a model that was trained to start at pure noise: Lin et al. 2023 (arXiv:2305.08891), algorithm 1.
    /// The last `abar` would be 0 and its sigma infinite; programs put different numbers there, `last`.
    #[must_use]
    pub fn zero_terminal_snr(&self, last: f32) -> Self {
        let roots: Vec<f32> = self.products.iter().map(|abar| abar.sqrt()).collect();
        let (first, terminal) = (roots[0], roots[TIMESTEPS - 1]);
        let scale = first / (first - terminal);
        let rescaled = roots.iter().map(|root| ((root - terminal) * scale).powi(2));
        let mut products: Vec<f32> = rescaled.collect();
        if self.precision == Precision::Single {
            // diffusers goes back to betas.
            let later = products.windows(2).map(|pair| pair[1] / pair[0]);
            let alphas = std::iter::once(products[0]).chain(later);
            products = cumulative(alphas.map(|alpha| 1.0 - (1.0 - alpha)));
        }
        products[TIMESTEPS - 1] = last;
        Self::of_products(self.precision, products)
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

/// torch.linspace, which counts from both ends with one rounding each.
fn linspace(first: f32, last: f32) -> impl Iterator<Item = f32> {
    let step = (last - first) / (TIMESTEPS - 1) as f32;
    (0..TIMESTEPS).map(move |i| {
        if i < TIMESTEPS / 2 {
            step.mul_add(i as f32, first)
        } else {
            (-step).mul_add((TIMESTEPS - 1 - i) as f32, last)
        }
    })
}

/// torch.cumprod, which accumulates in double precision.
fn cumulative(alphas: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut product = 1.0;
    let next = |alpha: f32| {
        product *= f64::from(alpha);
        product as f32
    };
    alphas.map(next).collect()
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
    fn zero_terminal_snr_rescales_all_but_the_first() {
        let abar = |sigma: f64| 1.0 / (1.0 + sigma * sigma);
        for (precision, last) in [
            (Precision::Products, 4.897_345e-8),
            (Precision::Single, 2f32.powi(-24)),
        ] {
            let table = NoiseTable::scaled_linear(0.00085, 0.012, precision);
            let rescaled = table.zero_terminal_snr(last);
            let sigmas = rescaled.sigmas();
            assert!((sigmas[0] / table.sigmas()[0] - 1.0).abs() < 1e-4);
            assert!((abar(sigmas[500]) / 0.241_018_776 - 1.0).abs() < 1e-5);
            // A difference of two roots that agree in two digits.
            assert!((abar(sigmas[998]) / 1.967_907_33e-7 - 1.0).abs() < 1e-4);
            assert!((abar(sigmas[999]) / f64::from(last) - 1.0).abs() < 1e-5);
        }
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
    }
}
