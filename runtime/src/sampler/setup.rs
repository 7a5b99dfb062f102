//! What programs and configurations say of a solver that has more than one form.

use sd_models::manifest::PredictionType;

use crate::denoise::Threshold;

/// The form of a solver. Each solver reads what concerns it; the default is every method's own form.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// The order of each step, at most; empty for the method's own.
    pub orders: Vec<usize>,
    /// DPM-Solver's term of second order.
    pub second_order: SecondOrder,
    /// Whether DPM-Solver follows the SDE: fresh noise in every step.
    pub sde: bool,
    /// `UniPC`'s function of the step size.
    pub bh: Bh,
    /// Where DEIS's polynomials are.
    pub knots: Knots,
    /// What multistep methods extrapolate, if not what is usual: `UniPC` and DPM-Solver clean latents, PLMS noise.
    pub extrapolated: Option<PredictionType>,
    /// What LCM multiplies timesteps by in its boundary condition; none for a model without one.
    pub timestep_scaling: Option<f64>,
    /// What is done with the model's clean latents before a solver sees them.
    pub threshold: Option<Threshold>,
    /// The seed of Brownian noise, if it is not the picture's.
    pub brownian_seed: Option<u64>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            orders: Vec::new(),
            second_order: SecondOrder::Midpoint,
            sde: false,
            bh: Bh::Two,
            knots: Knots::LogSigma,
            extrapolated: None,
            timestep_scaling: Some(10.0),
            threshold: None,
            brownian_seed: None,
        }
    }
}

impl Setup {
    /// The order of step `i`, for a method of order `own`.
    #[must_use]
    pub fn order(&self, i: usize, own: usize) -> usize {
        self.orders.get(i).copied().unwrap_or(own)
    }
}

/// DPM-Solver's term of second order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecondOrder {
    /// Half of the first-order term.
    Midpoint,
    /// The exact integral.
    Heun,
}

/// The variable in which DEIS's polynomials run through the last estimates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knots {
    /// The logarithm of sigma; integrals are exact.
    LogSigma,
    /// Time of a variance-preserving SDE, as `ComfyUI` has it; integrals are sums.
    Time,
}

/// `UniPC`'s function of the step size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bh {
    /// `h`.
    One,
    /// `e^h - 1`.
    Two,
}
