//! DPM-Solver: Lu et al. 2022 (arXiv:2206.00927), steps of order 1 to 3 in the noise estimate, with lambda = -ln(sigma).
//! DPM fast and DPM adaptive are made of them.

use super::Schedule;
use super::math::slope;
use crate::denoise::{DenoiseError, Denoiser, Latents, NoiseTable};

/// Where the intermediate points of third order lie.
const R1: f64 = 1.0 / 3.0;
const R2: f64 = 2.0 / 3.0;

/// A model, seen as an estimate of noise at a lambda.
pub(super) struct Noise<'a> {
    model: &'a mut dyn Denoiser,
    table: &'a NoiseTable,
}

impl<'a> Noise<'a> {
    pub(super) fn new(model: &'a mut dyn Denoiser, table: &'a NoiseTable) -> Self {
        Self { model, table }
    }

    pub(super) fn at(&mut self, x: &Latents, lambda: f64) -> Result<Latents, DenoiseError> {
        let level = self.table.of_sigma(sigma(lambda));
        Ok(slope(x, &self.model.denoise(x, level)?, level.sigma))
    }

    /// A step of an order from 1 to 3.
    pub(super) fn step(
        &mut self,
        order: usize,
        x: &Latents,
        lambda: f64,
        h: f64,
    ) -> Result<Latents, DenoiseError> {
        let eps = self.at(x, lambda)?;
        match order {
            1 => Ok(first(x, &eps, lambda, h)),
            2 => {
                let r = 0.5;
                let change = self.at(&first(x, &eps, lambda, r * h), lambda + r * h)? - &eps;
                Ok(second(x, &eps, &change, lambda, h, r))
            }
            _ => Ok(self.second_and_third(x, &eps, lambda, h)?.1),
        }
    }

    /// Steps of second and third order that share their calls, `eps` being the estimate at the start.
    pub(super) fn second_and_third(
        &mut self,
        x: &Latents,
        eps: &Latents,
        lambda: f64,
        h: f64,
    ) -> Result<(Latents, Latents), DenoiseError> {
        let change_1 = self.at(&first(x, eps, lambda, R1 * h), lambda + R1 * h)? - eps;
        let (end, part) = (lambda + R2 * h, R2 * h);
        let mut point = first(x, eps, lambda, part);
        let weight = sigma(end) * (R2 / R1) * (part.exp_m1() / part - 1.0);
        point.scaled_add(-weight as f32, &change_1);
        let change_2 = self.at(&point, end)? - eps;
        let mut third = first(x, eps, lambda, h);
        let weight = sigma(lambda + h) / R2 * (h.exp_m1() / h - 1.0);
        third.scaled_add(-weight as f32, &change_2);
        Ok((second(x, eps, &change_1, lambda, h, R1), third))
    }
}

/// `x - sigma' expm1(h) eps`.
fn first(x: &Latents, eps: &Latents, lambda: f64, h: f64) -> Latents {
    let mut end = x.clone();
    end.scaled_add((-sigma(lambda + h) * h.exp_m1()) as f32, eps);
    end
}

/// The first order, and the change of eps at `r` of the step.
fn second(x: &Latents, eps: &Latents, change: &Latents, lambda: f64, h: f64, r: f64) -> Latents {
    let mut end = first(x, eps, lambda, h);
    end.scaled_add((-sigma(lambda + h) * h.exp_m1() / (2.0 * r)) as f32, change);
    end
}

pub(super) fn sigma(lambda: f64) -> f64 {
    (-lambda).exp()
}

/// Lambdas of a schedule's first and last noisy level; the model's least noise where these are one.
pub(super) fn ends(schedule: &Schedule) -> (f64, f64) {
    let most = schedule.steps[0].from.sigma;
    let levels = schedule.steps.iter().flat_map(|step| [step.from, step.to]);
    let noisy = levels.map(|level| level.sigma).filter(|sigma| *sigma > 0.0);
    let least = match noisy.fold(most, f64::min) {
        least if least < most => least,
        _ => schedule.table.sigma_min(),
    };
    (-most.ln(), -least.ln())
}

/// Where an ancestral step from one lambda to another goes, not past `end`, and the noise that raises it to its target.
pub(super) fn target(from: f64, to: f64, end: f64, eta: f64) -> (f64, f64) {
    if eta == 0.0 {
        return (to, 0.0);
    }
    let (down, _) = super::math::ancestral(sigma(from), sigma(to), eta);
    let target = (-down.ln()).min(end).max(to);
    // Both are the same level at the end, up to rounding.
    let up = (sigma(to).powi(2) - sigma(target).powi(2)).max(0.0).sqrt();
    (target, up)
}
