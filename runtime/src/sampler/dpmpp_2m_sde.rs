//! DPM-Solver++(2M) for the diffusion SDE (k-diffusion's `sample_dpmpp_2m_sde`), in two forms that differ in the weight of the
//! second order. One model call per step, and one Brownian increment unless eta is 0 or the step ends at 0. With eta 0 the
//! midpoint form is DPM++ 2M.

use super::math::axpby;
use super::{Knob, Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// DPM-Solver++ on the SDE, second order, multistep, midpoint.
pub static DPMPP_2M_SDE: Method = Method {
    name: "DPM++ 2M SDE",
    aliases: &[
        "dpmpp_2m_sde",
        "dpm++2m_sde",
        "dpm++_2m_sde",
        "dpmpp_2m_sde_gpu",
        "k_dpmpp_2m_sde",
    ],
    class: None,
    space: Space::Ve,
    knobs: &[Knob::Eta, Knob::Noise],
    calls: one_call,
    solve: |model, x, schedule, options, run| {
        dpmpp_2m_sde(model, x, schedule, options, run, |q| 0.5 * -(-q).exp_m1())
    },
};

/// DPM-Solver++ on the SDE, second order, multistep, Heun.
pub static DPMPP_2M_SDE_HEUN: Method = Method {
    name: "DPM++ 2M SDE Heun",
    aliases: &[
        "dpmpp_2m_sde_heun",
        "dpm++_2m_sde_heun",
        "dpmpp_2m_sde_heun_gpu",
        "k_dpmpp_2m_sde_heun",
    ],
    class: None,
    space: Space::Ve,
    knobs: &[Knob::Eta, Knob::Noise],
    calls: one_call,
    solve: |model, x, schedule, options, run| {
        dpmpp_2m_sde(model, x, schedule, options, run, |q| {
            1.0 + (-q).exp_m1() / q
        })
    },
};

/// `x`: latents [N, C, h, w] at the first step's noise level. `second_order`: weight of the change of x0 by the step's size.
fn dpmpp_2m_sde(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
    second_order: fn(f64) -> f64,
) -> Result<Latents, DenoiseError> {
    let eta = options.eta.unwrap_or(1.0);
    let mut noise = Latents::zeros(x.raw_dim());
    let mut last: Option<(Latents, f64)> = None; // denoised and step size of the step before
    for (i, step) in schedule.steps.iter().enumerate() {
        let denoised = model.denoise(&x, step.from)?;
        let (from, to) = (step.from.sigma, step.to.sigma);
        let h = (from / to).ln();
        if to == 0.0 {
            x.assign(&denoised);
        } else {
            let q = h * (1.0 + eta);
            axpby(&mut x, (-q).exp(), &denoised, -(-q).exp_m1());
            if let Some((previous, h_last)) = &last {
                let weight = second_order(q) * h / h_last;
                x.scaled_add(weight as f32, &(&denoised - previous));
            }
            if eta > 0.0 {
                run.brownian(from, to, &mut noise);
                let fresh = to * (-(-2.0 * eta * h).exp_m1()).sqrt();
                x.scaled_add((fresh * options.s_noise) as f32, &noise);
            }
        }
        run.step(i, &x)?;
        last = Some((denoised, h));
    }
    Ok(x)
}
