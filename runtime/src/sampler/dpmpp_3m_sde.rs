//! DPM-Solver++(3M) for the diffusion SDE (k-diffusion's `sample_dpmpp_3m_sde`): third order in the last three estimates. One
//! model call per step, and one Brownian increment unless eta is 0 or the step ends at 0. Lower orders at the start.

use super::math::axpby;
use super::{Knob, Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// DPM-Solver++ on the SDE, third order, multistep.
pub static DPMPP_3M_SDE: Method = Method {
    name: "DPM++ 3M SDE",
    aliases: &[
        "dpmpp_3m_sde",
        "dpm++_3m_sde",
        "dpmpp_3m_sde_gpu",
        "k_dpmpp_3m_sde",
    ],
    class: None,
    space: Space::Ve,
    knobs: &[Knob::Eta, Knob::Noise],
    calls: one_call,
    solve: dpmpp_3m_sde,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn dpmpp_3m_sde(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let eta = options.eta.unwrap_or(1.0);
    let mut noise = Latents::zeros(x.raw_dim());
    let mut history: Vec<(Latents, f64)> = Vec::new(); // denoised and step size of the steps before, the newest first
    for (i, step) in schedule.steps.iter().enumerate() {
        let denoised = model.denoise(&x, step.from)?;
        let (from, to) = (step.from.sigma, step.to.sigma);
        let h = (from / to).ln();
        if to == 0.0 {
            x.assign(&denoised);
        } else {
            let q = h * (1.0 + eta);
            axpby(&mut x, (-q).exp(), &denoised, -(-q).exp_m1());
            let phi_2 = (-q).exp_m1() / q + 1.0;
            let phi_3 = phi_2 / q - 0.5;
            match &history[..] {
                [(one, h_1), (two, h_2)] => {
                    let (r0, r1) = (h_1 / h, h_2 / h);
                    let newer = (&denoised - one) * (1.0 / r0) as f32;
                    let older = (one - two) * (1.0 / r1) as f32;
                    // First and second derivative of x0.
                    let mut second = &newer - &older;
                    second *= (1.0 / (r0 + r1)) as f32;
                    let mut first = newer;
                    first.scaled_add(r0 as f32, &second);
                    x.scaled_add(phi_2 as f32, &first);
                    x.scaled_add(-phi_3 as f32, &second);
                }
                [(one, h_1)] => x.scaled_add((phi_2 * h / h_1) as f32, &(&denoised - one)),
                _ => {}
            }
            if eta > 0.0 {
                run.brownian(from, to, &mut noise);
                let fresh = to * (-(-2.0 * eta * h).exp_m1()).sqrt();
                x.scaled_add((fresh * options.s_noise) as f32, &noise);
            }
        }
        run.step(i, &x)?;
        history.insert(0, (denoised, h));
        history.truncate(2);
    }
    Ok(x)
}
