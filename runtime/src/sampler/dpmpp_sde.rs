//! DPM-Solver++ for the diffusion SDE (k-diffusion's `sample_dpmpp_sde`, with the intermediate point in the middle of
//! lambda = -ln(sigma)). Two model calls per step; two Brownian increments, from the step's start to its middle and from its
//! start to its end, which overlap. One call and no noise where the step ends at 0.

use super::math::{ancestral, euler_step};
use super::{Knob, Method, Options, Run, Schedule, Space, two_calls};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// DPM-Solver++ on the SDE, single step.
pub static DPMPP_SDE: Method = Method {
    name: "DPM++ SDE",
    aliases: &[
        "dpmpp_sde",
        "dpm++sde",
        "dpm++_sde",
        "dpmpp_sde_gpu",
        "k_dpmpp_sde",
    ],
    class: Some("DPMSolverSDEScheduler"),
    space: Space::Ve,
    knobs: &[Knob::Eta, Knob::Noise],
    calls: two_calls,
    solve: dpmpp_sde,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn dpmpp_sde(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let eta = options.eta.unwrap_or(1.0);
    let mut noise = Latents::zeros(x.raw_dim());
    for (i, step) in schedule.steps.iter().enumerate() {
        let denoised = model.denoise(&x, step.from)?;
        let (from, to) = (step.from.sigma, step.to.sigma);
        if to == 0.0 {
            euler_step(&mut x, &denoised, from, to);
        } else {
            let middle = schedule.table.of_sigma((from * to).sqrt());
            let (down, up) = ancestral(from, middle.sigma, eta);
            let mut half_way = x.clone();
            euler_step(&mut half_way, &denoised, from, down);
            run.brownian(from, middle.sigma, &mut noise);
            half_way.scaled_add((up * options.s_noise) as f32, &noise);

            let denoised = model.denoise(&half_way, middle)?;
            let (down, up) = ancestral(from, to, eta);
            euler_step(&mut x, &denoised, from, down);
            run.brownian(from, to, &mut noise);
            x.scaled_add((up * options.s_noise) as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}
