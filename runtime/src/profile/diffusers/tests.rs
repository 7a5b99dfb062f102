//! Known answers of diffusers: single runs, and `tests/golden/schedulers.json`, which `tests/golden/schedulers.py` wrote.

use sd_models::diffusers::{self, Pipeline};
use sd_models::manifest::PredictionType;

use super::*;
use crate::denoise::{Latents, Thresholded, denoised};
use crate::sampler::tests::{Draws, Toy, close, pair};
use crate::sampler::{
    DDIM, DPMPP_2M, DPMPP_2M_SDE, DPMPP_SDE, EULER, EULER_ANCESTRAL, LCM, Options, PLMS, TCD, UNIPC,
};

/// The network returns `0.3 input + 0.05 cos(t / 100)`. The state, and when the network was called.
fn run_toy(
    sampler: Sampler,
    schedule: &Schedule,
    prediction: PredictionType,
) -> (Latents, Vec<f64>) {
    let mut times = Vec::new();
    let mut model = Toy(|x: &Latents, level: Level| {
        times.push(level.t);
        let c_in = 1.0 / (1.0 + level.sigma * level.sigma).sqrt();
        let shift = 0.05 * (level.t / 100.0).cos();
        let output = x.mapv(|x| (0.3 * f64::from(x) * c_in + shift) as f32);
        denoised(prediction, x, &output, level.sigma)
    });
    let mut model = Thresholded {
        inner: &mut model,
        threshold: schedule.setup.threshold,
    };
    let x = pair(0.5, -1.25) * schedule.initial_scale as f32;
    let method = (DIFFUSERS.solver)(sampler).unwrap();
    let options = Options::default();
    let x = (method.solve)(&mut model, x, schedule, &options, &mut Draws::default()).unwrap();
    (x * schedule.final_scale as f32, times)
}

fn schedule_of(
    sampler: Sampler,
    spread: Option<Spread>,
    count: usize,
    config: &Value,
) -> Result<Schedule, ConfigError> {
    // SDXL's pipelines leave a scheduler's configuration as it is.
    let trained = Trained { config, xl: true };
    schedule_for(sampler, spread, count, &trained)
}

fn schedule_for(
    sampler: Sampler,
    spread: Option<Spread>,
    count: usize,
    trained: &Trained<'_>,
) -> Result<Schedule, ConfigError> {
    let spread = match spread {
        _ if (DIFFUSERS.spreads)(sampler).is_empty() => None,
        Some(spread) => Some(spread),
        None => Some((DIFFUSERS.automatic)(sampler, trained)?),
    };
    (DIFFUSERS.schedule)(sampler, spread, count, trained)
}

fn spaced(spacing: &str) -> Value {
    let mut config = diffusers::scheduler(Pipeline::SD1);
    config["timestep_spacing"] = json!(spacing);
    config
}

#[test]
fn every_configuration_gives_diffusers_answer() {
    let text = include_str!("../../../../tests/golden/schedulers.json");
    let rows: Vec<Value> = serde_json::from_str(text).unwrap();
    let mut failures = Vec::new();
    for row in &rows {
        let config = &row["config"];
        let trained = Trained {
            config,
            xl: row["pipeline"].is_null(),
        };
        let sampler = sampler(&trained).unwrap();
        let changed = !notes(sampler, &trained).is_empty();
        assert_eq!(changed, !trained.xl, "{config}");
        let prediction = match config["prediction_type"].as_str() {
            Some("v_prediction") => PredictionType::VPrediction,
            Some("sample") => PredictionType::Sample,
            _ => PredictionType::Epsilon,
        };
        for (steps, answer) in row["answers"].as_object().unwrap() {
            let schedule = schedule_for(sampler, None, steps.parse().unwrap(), &trained).unwrap();
            let (x, times) = run_toy(sampler, &schedule, prediction);
            let far = |(found, expected): (&f32, &Value)| {
                let expected = expected.as_f64().unwrap();
                (f64::from(*found) - expected).abs() > 1e-5 * expected.abs().max(1.0)
            };
            if x.iter().zip(answer.as_array().unwrap()).any(far) {
                failures.push(format!("{steps} {answer} {x:?} {config}"));
            }
            let expected = row["times"].as_array().unwrap();
            let late = |(found, expected): (&f64, &Value)| {
                (found - expected.as_f64().unwrap()).abs() > 2e-2
            };
            if steps == "5"
                && (times.len() != expected.len() || times.iter().zip(expected).any(late))
            {
                failures.push(format!("{times:?} {expected:?} {config}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(rows.len() >= 150, "{}", rows.len());
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn schedules_and_solvers_give_diffusers_answers() {
    let karras = Some(Spread::Karras);
    type Case = (
        Sampler,
        &'static str,
        Option<Spread>,
        usize,
        &'static [f64],
        f64,
        [f64; 2],
    );
    let cases: [Case; 14] = [
        (
            &DDIM,
            "leading",
            None,
            5,
            &[801.0, 601.0, 401.0, 201.0, 1.0],
            1.0,
            [1.437_014_22, -3.590_586_19],
        ),
        (
            &DDIM,
            "linspace",
            None,
            5,
            &[999.0, 749.0, 500.0, 250.0, 0.0],
            1.0,
            [2.677_151_68, -6.142_690_18],
        ),
        (
            &PLMS,
            "leading",
            None,
            5,
            &[801.0, 601.0, 601.0, 401.0, 201.0, 1.0],
            1.0,
            [1.161_940_93, -3.285_056_59],
        ),
        (
            &EULER,
            "leading",
            None,
            5,
            &[801.0, 601.0, 401.0, 201.0, 1.0],
            5.230_908_9,
            [1.423_547_03, -3.562_057_02],
        ),
        (
            &EULER,
            "linspace",
            None,
            5,
            &[999.0, 749.25, 499.5, 249.75, 0.0],
            14.614_647,
            [3.586_822_99, -8.117_501_26],
        ),
        (
            &EULER,
            "trailing",
            None,
            5,
            &[999.0, 799.0, 599.0, 399.0, 199.0],
            14.614_647,
            [3.428_982_26, -7.802_773],
        ),
        (
            &EULER,
            "linspace",
            karras,
            5,
            &[999.0, 785.954, 427.49, 58.892, 0.0],
            14.614_647,
            [3.696_843_62, -8.350_139_62],
        ),
        (
            &EULER,
            "leading",
            karras,
            5,
            &[801.0, 565.83, 248.593, 38.422, 1.0],
            5.230_908_9,
            [1.444_360_73, -3.676_543_71],
        ),
        (
            &EULER_ANCESTRAL,
            "leading",
            None,
            5,
            &[801.0, 601.0, 401.0, 201.0, 1.0],
            5.230_908_9,
            [1.673_868_06, -1.585_532_07],
        ),
        (
            &EULER_ANCESTRAL,
            "trailing",
            None,
            5,
            &[999.0, 799.0, 599.0, 399.0, 199.0],
            14.614_647,
            [3.368_918_42, -3.110_748_05],
        ),
        (
            &DPMPP_2M,
            "linspace",
            None,
            5,
            &[999.0, 799.0, 599.0, 400.0, 200.0],
            1.0,
            [3.042_613_27, -7.049_778_46],
        ),
        (
            &DPMPP_2M,
            "linspace",
            karras,
            5,
            &[999.0, 786.0, 427.0, 59.0, 0.0],
            1.0,
            [2.442_727_33, -5.942_617_42],
        ),
        (
            &DPMPP_2M,
            "leading",
            None,
            5,
            &[831.0, 665.0, 499.0, 333.0, 167.0],
            1.0,
            [1.465_921_64, -3.648_289_44],
        ),
        (
            &DPMPP_2M,
            "trailing",
            None,
            5,
            &[999.0, 799.0, 599.0, 399.0, 199.0],
            1.0,
            [3.041_106_7, -7.048_308_37],
        ),
    ];
    for (sampler, spacing, sigmas, count, times, scale, expected) in cases {
        let what = format!("{sampler} {spacing} {sigmas:?}");
        let schedule = schedule_of(sampler, sigmas, count, &spaced(spacing)).unwrap();
        // DPM-Solver's state is variance preserving in diffusers, so its scale is 1 there.
        let scale = if sampler == &DPMPP_2M {
            schedule.initial_scale
        } else {
            scale
        };
        assert!(
            (schedule.initial_scale / scale - 1.0).abs() < 1e-6,
            "{what}: {}",
            schedule.initial_scale
        );
        let (x, found) = run_toy(sampler, &schedule, PredictionType::Epsilon);
        assert_eq!(found.len(), times.len(), "{what}");
        assert!(
            found.iter().zip(times).all(|(a, b)| (a - b).abs() < 1e-2),
            "{what}: {found:?}"
        );
        close(&x, expected, &what);
    }
}

#[test]
fn twenty_steps_of_dpm_solver_give_diffusers_answer() {
    let config = diffusers::scheduler(Pipeline::SD1);
    let schedule = schedule_of(&DPMPP_2M, None, 20, &config).unwrap();
    let (x, _) = run_toy(&DPMPP_2M, &schedule, PredictionType::Epsilon);
    close(&x, [2.783_188_58, -6.562_713_15], "20 steps");
}

#[test]
fn distilled_models_give_diffusers_answers_in_few_steps() {
    let config = json!({});
    let eta = |eta| Options {
        eta: Some(eta),
        ..Options::default()
    };
    type Case<'a> = (Sampler, usize, Options, &'a [f64], [f64; 2]);
    let cases: [Case<'_>; 4] = [
        (
            &LCM,
            4,
            Options::default(),
            &[999.0, 759.0, 499.0, 259.0],
            [3.498_364_45, -3.650_255_68],
        ),
        (
            &LCM,
            8,
            Options::default(),
            &[999.0, 879.0, 759.0, 639.0, 499.0, 379.0, 259.0, 139.0],
            [1.467_727_3, 3.277_926_68],
        ),
        (
            &TCD,
            4,
            eta(0.3),
            &[999.0, 759.0, 499.0, 259.0],
            [4.274_748_33, -5.422_040_94],
        ),
        (
            &TCD,
            4,
            eta(0.0),
            &[999.0, 759.0, 499.0, 259.0],
            [3.623_345_14, -8.183_137_89],
        ),
    ];
    for (sampler, count, options, times, expected) in cases {
        let schedule = schedule_of(sampler, None, count, &config).unwrap();
        let found: Vec<f64> = schedule.steps.iter().map(|step| step.from.t).collect();
        assert_eq!(found, times, "{sampler}");
        let mut model = Toy(|x: &Latents, level: Level| {
            let c_in = 1.0 / (1.0 + level.sigma * level.sigma).sqrt();
            let shift = 0.05 * (level.t / 100.0).cos();
            let output = x.mapv(|x| (0.3 * f64::from(x) * c_in + shift) as f32);
            denoised(PredictionType::Epsilon, x, &output, level.sigma)
        });
        let x = pair(0.5, -1.25) * schedule.initial_scale as f32;
        let x = (sampler.solve)(&mut model, x, &schedule, &options, &mut Draws::default());
        let x = x.unwrap() * schedule.final_scale as f32;
        close(&x, expected, sampler.name);
    }
    let error = schedule_of(&LCM, None, 51, &config)
        .unwrap_err()
        .to_string();
    assert!(error.contains("original_inference_steps"), "{error}");
}

#[test]
fn unipc_with_bh1_ends_at_0_without_nan() {
    let config = json!({"solver_type": "bh1", "solver_order": 3});
    for mut config in [config.clone(), config] {
        config["lower_order_final"] = json!(false);
        let schedule = schedule_of(&UNIPC, None, 10, &config).unwrap();
        let (x, _) = run_toy(&UNIPC, &schedule, PredictionType::Epsilon);
        assert!(x.iter().all(|x| x.is_finite()), "{x:?}");
    }
}

#[test]
fn timesteps_are_spaced_as_published() {
    let config = diffusers::scheduler(Pipeline::SD1);
    let starts = |n| {
        let steps = schedule_of(&DDIM, None, n, &config).unwrap().steps;
        steps.iter().map(|s| s.from.t).collect::<Vec<f64>>()
    };
    assert_eq!(starts(4), [751.0, 501.0, 251.0, 1.0]);
    assert_eq!(
        (starts(30)[..3].to_vec(), starts(30)[29]),
        (vec![958.0, 925.0, 892.0], 1.0)
    );
}

fn refusal(class: &str, field: &str, value: Value) -> String {
    let mut config = diffusers::scheduler(Pipeline::SD1);
    config["_class_name"] = json!(class);
    config[field] = value;
    let trained = Trained {
        config: &config,
        xl: true,
    };
    let found = sampler(&trained).and_then(|s| schedule_of(s, None, 20, &config));
    match found {
        Ok(_) => panic!("{class} takes {field}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn configurations_that_would_be_followed_wrongly_are_refused_by_field() {
    for (class, field, value) in [
        ("PNDM", "beta_schedule", json!("sigmoid")),
        ("PNDM", "trained_betas", json!([0.1])),
        ("PNDM", "num_train_timesteps", json!(500)),
        ("PNDM", "timestep_spacing", json!("curly")),
        ("PNDM", "skip_prk_steps", json!(false)),
        ("PNDM", "prediction_type", json!("sample")),
        ("DDIM", "clip_sample", json!(true)),
        ("DDIM", "thresholding", json!(true)),
        ("DDPM", "variance_type", json!("learned")),
        ("EulerDiscrete", "prediction_type", json!("flow_prediction")),
        ("EulerDiscrete", "interpolation_type", json!("cubic")),
        ("EulerDiscrete", "final_sigmas_type", json!("tiny")),
        ("EulerDiscrete", "timestep_type", json!("continuous")),
        ("EulerDiscrete", "sigma_max", json!(80.0)),
        ("EulerDiscrete", "use_karras_sigmas", json!("yes")),
        ("EulerAncestralDiscrete", "prediction_type", json!("sample")),
        (
            "DPMSolverMultistep",
            "algorithm_type",
            json!("dpmsolver+++"),
        ),
        ("DPMSolverMultistep", "solver_order", json!(4)),
        ("DPMSolverMultistep", "solver_type", json!("euler")),
        ("DPMSolverMultistep", "use_flow_sigmas", json!(true)),
        ("DPMSolverMultistep", "variance_type", json!("learned")),
        ("UniPCMultistep", "disable_corrector", json!([0])),
        ("UniPCMultistep", "solver_order", json!(4)),
        ("DEISMultistep", "solver_type", json!("rk4")),
        ("LCM", "clip_sample", json!(true)),
        ("DPMSolverSDE", "prediction_type", json!("sample")),
        ("TCD", "clip_sample", json!(true)),
        ("EulerDiscrete", "use_something_new", json!(true)),
        (
            "FlowMatchEulerDiscrete",
            "_class_name",
            json!("FlowMatchEulerDiscreteScheduler"),
        ),
    ] {
        let error = refusal(&format!("{class}Scheduler"), field, value);
        assert!(error.starts_with(field), "{class} {field}: {error}");
    }
    let error = refusal("OtherScheduler", "steps_offset", json!(1));
    assert!(error.contains("another one can be chosen"), "{error}");
}

#[test]
fn what_diffusers_refuses_of_solvers_of_noise_is_refused() {
    for (algorithm, field, value, supported) in [
        ("dpmsolver", "final_sigmas_type", json!("zero"), "sigma_min"),
        (
            "sde-dpmsolver",
            "final_sigmas_type",
            json!("zero"),
            "sigma_min",
        ),
        ("sde-dpmsolver", "solver_order", json!(3), "1 or 2"),
    ] {
        let mut config = json!({"algorithm_type": algorithm, "final_sigmas_type": "sigma_min"});
        assert!(schedule_of(&DPM_MULTISTEP, None, 5, &config).is_ok());
        config[field] = value;
        let error = schedule_of(&DPM_MULTISTEP, None, 5, &config).unwrap_err();
        assert_eq!(error.field, field);
        assert!(error.supported.starts_with(supported), "{error}");
    }
    let config = json!({"thresholding": true, "dynamic_thresholding_ratio": 1.5});
    let error = schedule_of(&UNIPC, None, 5, &config).unwrap_err();
    assert_eq!(error.field, "dynamic_thresholding_ratio");
}

#[test]
fn what_the_pipeline_sets_is_said() {
    let config = json!({"steps_offset": 0, "clip_sample": true});
    let trained = |xl| Trained {
        config: &config,
        xl,
    };
    let said = notes(&DDIM, &trained(false));
    assert_eq!(said.len(), 2);
    assert_eq!(
        said[0],
        "steps_offset of DDIMScheduler is 1, as diffusers' StableDiffusionPipeline sets it, instead of 0"
    );
    assert!(notes(&DDIM, &trained(true)).is_empty());
    // Euler clips nothing.
    assert_eq!(notes(&EULER, &trained(false)).len(), 1);
}

#[test]
fn brownian_noise_has_the_configured_seed() {
    let seed = |config| {
        let schedule = schedule_of(&DPMPP_SDE, None, 5, &config).unwrap();
        schedule.setup.brownian_seed
    };
    assert_eq!(seed(json!({"noise_sampler_seed": 7})), Some(7));
    assert_eq!(seed(json!({})), None);
}

#[test]
fn two_spreads_at_once_are_refused() {
    let mut config = diffusers::scheduler(Pipeline::SD1);
    config["use_karras_sigmas"] = json!(true);
    config["use_beta_sigmas"] = json!(true);
    let error = schedule_of(&EULER, None, 5, &config)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("use_karras_sigmas, use_beta_sigmas"),
        "{error}"
    );
}

#[test]
fn noise_cannot_be_predicted_where_there_is_nothing_else() {
    let mut config = diffusers::scheduler(Pipeline::SD1);
    config["rescale_betas_zero_snr"] = json!(true);
    let error = schedule_of(&DDIM, None, 5, &config)
        .unwrap_err()
        .to_string();
    assert!(error.contains("v_prediction"), "{error}");
    config["prediction_type"] = json!("v_prediction");
    assert!(schedule_of(&DDIM, None, 5, &config).is_ok());
}

#[test]
fn fields_of_other_classes_and_of_nobody_change_nothing() {
    let plain = diffusers::scheduler(Pipeline::SD1);
    let mut config = plain.clone();
    config["_diffusers_version"] = json!("9.9");
    config["algorithm_type"] = json!("dpmsolver"); // Euler does not read it
    config["something_new"] = json!(false);
    let schedule = |config| schedule_of(&EULER, None, 5, config).unwrap();
    assert_eq!(schedule(&config), schedule(&plain));
}

#[test]
fn names_of_dpm_solvers_set_the_class_up() {
    let config = json!({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3});
    let schedule = schedule_of(&DPMPP_2M, None, 20, &config).unwrap();
    assert_eq!(schedule.setup.orders[..19], [2; 19]);
    let trained = Trained {
        config: &config,
        xl: false,
    };
    assert_eq!(sampler(&trained), Ok(&DPM_MULTISTEP));
    let schedule = schedule_of(&DPM_MULTISTEP, None, 20, &config).unwrap();
    assert_eq!(schedule.setup.orders[..19], [3; 19]);
    let config = json!({"_class_name": "DPMSolverMultistepScheduler"});
    let trained = Trained {
        config: &config,
        xl: false,
    };
    assert_eq!(sampler(&trained), Ok(&DPMPP_2M));
}

#[test]
fn the_sde_that_a_name_asks_for_runs_whatever_the_file_says() {
    let config = diffusers::scheduler(Pipeline::SD1);
    for (asked, sde) in [(&DPMPP_2M, false), (&DPMPP_2M_SDE, true)] {
        let solver = (DIFFUSERS.solver)(asked).unwrap();
        assert_eq!(solver, asked);
        assert!(solver.knobs.is_empty(), "the class takes no options");
        let schedule = schedule_of(solver, None, 5, &config).unwrap();
        assert_eq!(schedule.setup.sde, sde);
    }
    let mut config = spaced("linspace");
    config["steps_offset"] = json!(0);
    let schedule = schedule_of(&DPMPP_2M_SDE, None, 5, &config).unwrap();
    let (x, _) = run_toy(&DPMPP_2M_SDE, &schedule, PredictionType::Epsilon);
    close(&x, [2.799_233_44, -0.894_345_284], "2M SDE");
}
