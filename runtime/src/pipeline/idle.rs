//! What is asked for and does nothing in a run, because of what else was asked for or not.

use sd_models::family::ModelFamily;

use super::{Models, Request};
use crate::sampler::{Options, Sampler, Schedule};

/// Notes on a solver's options that do nothing.
pub(super) fn options(request: &Request, sampler: Sampler, schedule: &Schedule) -> Vec<String> {
    let (asked, default) = (request.options, Options::default());
    let options = (request.profile.options)(sampler, asked);
    let acts = |without: Options| !sampler.is_alike(schedule, &options, &without);
    let mut notes = Vec::new();
    let bounds = [asked.s_tmin, asked.s_tmax] != [default.s_tmin, default.s_tmax];
    if bounds && asked.s_churn == 0.0 {
        notes.push("s_tmin and s_tmax have no effect without s_churn".to_owned());
    }
    let still = Options {
        s_churn: 0.0,
        ..options
    };
    if asked.s_churn > 0.0 && !acts(still) {
        notes.push("s_churn has no effect: no step begins between s_tmin and s_tmax".to_owned());
    }
    let usual = Options {
        s_noise: default.s_noise,
        ..options
    };
    if asked.s_noise != default.s_noise && !acts(usual) {
        notes.push(format!(
            "s_noise has no effect: with these options {sampler} adds no noise"
        ));
    }
    let seeds_noise = request.ensd != 0 && request.profile.step_seed.is_none();
    if seeds_noise && !sampler.hears_noise(schedule, &options) {
        notes.push(format!(
            "another seed for later noise has no effect: with these options {sampler} adds none that is drawn from it"
        ));
    }
    notes
}

/// Notes on settings of refiners that do nothing.
pub(super) fn refiner(request: &Request, models: &Models) -> Vec<String> {
    let default = Request::default();
    let mut notes = Vec::new();
    if request.refiner_start != default.refiner_start && models.refiner.is_none() {
        notes.push("the refiner's start has no effect without a refiner".to_owned());
    }
    let is_told = models
        .all()
        .any(|model| model.family == ModelFamily::SdxlRefiner);
    if request.aesthetic != default.aesthetic && !is_told {
        notes.push("aesthetic scores have no effect without SDXL's refiner".to_owned());
    }
    notes
}
