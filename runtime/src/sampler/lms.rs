//! Linear multistep (Adams-Bashforth with steps of different size): the integral of the polynomial through the last four
//! slopes (k-diffusion's `sample_lms`). One model call per step, no noise.

use std::collections::VecDeque;

use super::math::slope;
use super::{Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// Linear multistep.
pub static LMS: Method = Method {
    name: "LMS",
    aliases: &["lms", "k_lms"],
    class: Some("LMSDiscreteScheduler"),
    space: Space::Ve,
    knobs: &[],
    calls: one_call,
    solve: lms,
};

const ORDER: usize = 4;

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn lms(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    _: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let mut slopes: VecDeque<(f64, Latents)> = VecDeque::new(); // with their levels, the newest first
    for (i, step) in schedule.steps.iter().enumerate() {
        let denoised = model.denoise(&x, step.from)?;
        let (from, to) = (step.from.sigma, step.to.sigma);
        slopes.push_front((from, slope(&x, &denoised, from)));
        slopes.truncate(ORDER);
        let nodes: Vec<f64> = slopes.iter().map(|(sigma, _)| *sigma).collect();
        for (j, (_, slope)) in slopes.iter().enumerate() {
            x.scaled_add(weight(&nodes, j, from, to) as f32, slope);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}

/// The integral between two levels of the polynomial that is 1 at the j-th node and 0 at the others.
fn weight(nodes: &[f64], j: usize, from: f64, to: f64) -> f64 {
    let basis = |sigma: f64| -> f64 {
        let others = nodes.iter().enumerate().filter(|(k, _)| *k != j);
        others
            .map(|(_, node)| (sigma - node) / (nodes[j] - node))
            .product()
    };
    // Two points of Gauss and Legendre are exact for cubics.
    let (middle, half) = (f64::midpoint(from, to), (to - from) / 2.0);
    let offset = half / 3f64.sqrt();
    half * (basis(middle - offset) + basis(middle + offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_the_published_integrals() {
        for (nodes, to, expected) in [
            (
                &[1.0, 2.0, 5.0, 10.0][..],
                0.4,
                &[-0.8739, 0.31035, -0.03954, 0.00309][..],
            ),
            (&[5.0, 10.0], 2.0, &[-3.9, 0.9]),
        ] {
            for (j, expected) in expected.iter().enumerate() {
                let found = weight(nodes, j, nodes[0], to);
                assert!((found - expected).abs() < 5e-6, "{j}: {found} {expected}");
            }
        }
    }
}
