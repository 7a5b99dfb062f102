//! Known answers: k-diffusion's and diffusers' results on toy models of two numbers, printed by `tests/golden/samplers.py`.

use ndarray::Array4;
use sd_models::diffusers::{self, Pipeline};
use sd_models::manifest::PredictionType;
use serde_json::{Value, json};

use super::*;
use crate::denoise::{Precision, denoised};
use crate::profile::{A1111, COMFYUI, DIFFUSERS, PROFILES, Profile, SchedulerConfig, Trained};
use crate::sigmas::karras_between;

/// A model that is a formula.
struct Toy<F>(F);

impl<F: FnMut(&Latents, Level) -> Latents> Denoiser for Toy<F> {
    fn denoise(&mut self, x: &Latents, level: Level) -> Result<Latents, DenoiseError> {
        Ok((self.0)(x, level))
    }
}

/// The k-th draw is `0.7 (-1)^k, 0.3 (k + 1)`.
#[derive(Default)]
struct Draws {
    noise: usize,
    steps: usize,
}

impl Run for Draws {
    fn noise(&mut self, noise: &mut Latents) {
        let k = self.noise as i32;
        *noise = pair(
            0.7 * f64::from((-1i32).pow(k as u32)),
            0.3 * f64::from(k + 1),
        );
        self.noise += 1;
    }

    fn brownian(&mut self, _: f64, _: f64, noise: &mut Latents) {
        self.noise(noise);
    }

    fn step(&mut self, i: usize, _: &Latents) -> Result<(), DenoiseError> {
        assert_eq!(i, self.steps);
        self.steps += 1;
        Ok(())
    }
}

fn pair(a: f64, b: f64) -> Latents {
    Array4::from_shape_vec((1, 1, 1, 2), vec![a as f32, b as f32]).unwrap()
}

/// The answers have double precision, the states single: a few roundings of numbers up to 100.
fn close(x: &Latents, expected: [f64; 2], what: &str) {
    for (found, expected) in x.iter().zip(expected) {
        assert!(
            (f64::from(*found) - expected).abs() < 2e-5 * expected.abs().max(1.0),
            "{what}: {x} {expected}"
        );
    }
}

const SIGMAS: [f64; 7] = [10.0, 5.0, 2.0, 1.0, 0.4, 0.1, 0.0];

fn steps(sigmas: &[f64]) -> Schedule {
    let level = |&sigma: &f64| Level { sigma, t: 0.0 };
    let levels: Vec<Level> = sigmas.iter().map(level).collect();
    Schedule::chain(&levels, 1.0, table())
}

/// What a solver made of the toy `(x + sin(sigma)) / (1 + sigma^2)`, how often it called it and how much it drew.
fn solve_toy(sampler: Sampler, schedule: &Schedule, options: &Options) -> (Latents, usize, usize) {
    let mut called = 0;
    let mut model = Toy(|x: &Latents, level: Level| {
        called += 1;
        let sigma = level.sigma;
        x.mapv(|x| ((f64::from(x) + sigma.sin()) / (1.0 + sigma * sigma)) as f32)
    });
    let mut run = Draws::default();
    let x = (sampler.solve)(&mut model, pair(5.0, -12.5), schedule, options, &mut run);
    (x.unwrap(), called, run.noise)
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn solvers_give_k_diffusions_answers() {
    let like_k_diffusion = Options {
        idle_draws: true,
        ..Options::default()
    };
    let eta = |eta| Options {
        eta: Some(eta),
        ..like_k_diffusion
    };
    let churn = Options {
        s_churn: 3.0,
        ..like_k_diffusion
    };
    let plain = like_k_diffusion;
    let default = &SIGMAS[..];
    let noisy = &SIGMAS[..6];
    // DPM fast uses number and ends only.
    let nfe_6 = [10.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.1];
    let nfe_7 = [10.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.1];
    let karras = |count| [karras_between(14.0, 0.03, count), vec![0.0]].concat();
    let (twenty, forty) = (karras(20), karras(40));
    type Case<'a> = (Sampler, Options, &'a [f64], [f64; 2], usize, usize);
    let table: [Case<'_>; 21] = [
        (
            &DPM_ADAPTIVE,
            eta(1.0),
            noisy,
            [1.421_508_883_46, 5.437_011_026_93],
            39,
            10,
        ),
        (
            &EULER,
            plain,
            default,
            [1.018_280_063_32, -0.375_548_804_028],
            6,
            6,
        ),
        (
            &EULER,
            churn,
            default,
            [0.810_894_595_316, 2.094_392_222_2],
            6,
            6,
        ),
        (
            &EULER_ANCESTRAL,
            plain,
            default,
            [0.835_417_399_923, 1.835_891_322_51],
            6,
            5,
        ),
        (
            &EULER_ANCESTRAL,
            eta(0.5),
            default,
            [1.020_436_826_17, 0.688_754_469_019],
            6,
            5,
        ),
        (
            &HEUN,
            plain,
            default,
            [1.466_766_348_55, -0.443_391_338_923],
            11,
            6,
        ),
        (
            &DPM2,
            plain,
            default,
            [1.391_094_460_63, -0.441_794_092_554],
            11,
            6,
        ),
        (
            &DPM2_ANCESTRAL,
            plain,
            default,
            [1.938_944_943_56, 3.027_171_439_51],
            11,
            5,
        ),
        (
            &LMS,
            plain,
            default,
            [1.184_802_446_89, -0.395_823_128_624],
            6,
            0,
        ),
        (
            &DPMPP_2S_ANCESTRAL,
            plain,
            default,
            [1.200_474_807_4, 2.252_674_756_74],
            11,
            5,
        ),
        (
            &DPMPP_SDE,
            plain,
            default,
            [0.557_902_157_015, 4.484_932_989_8],
            11,
            10,
        ),
        (
            &DPMPP_2M,
            plain,
            default,
            [1.408_704_837_92, -0.425_182_915_786],
            6,
            0,
        ),
        (
            &DPMPP_2M_SDE,
            plain,
            default,
            [1.331_935_598_31, 2.937_970_952_67],
            6,
            5,
        ),
        (
            &DPMPP_2M_SDE_HEUN,
            plain,
            default,
            [1.583_690_030_4, 3.457_168_848_9],
            6,
            5,
        ),
        (
            &DPMPP_2M_SDE,
            eta(0.0),
            default,
            [1.408_704_837_92, -0.425_182_915_786],
            6,
            0,
        ),
        (
            &DPMPP_3M_SDE,
            plain,
            default,
            [1.872_929_936_51, 4.159_915_132_85],
            6,
            5,
        ),
        (
            &DPM_FAST,
            plain,
            &nfe_6,
            [1.365_830_400_06, -0.516_505_586_431],
            6,
            3,
        ),
        (
            &DPM_FAST,
            plain,
            &nfe_7,
            [1.141_571_255_42, -0.536_407_570_547],
            7,
            3,
        ),
        (
            &DPM_ADAPTIVE,
            plain,
            noisy,
            [1.230_563_451_83, -0.523_009_459_096],
            21,
            7,
        ),
        (
            &RESTART,
            plain,
            &twenty,
            [1.960_466_774_17, 1.043_096_324_08],
            39,
            1,
        ),
        (
            &RESTART,
            plain,
            &forty,
            [1.057_549_425_13, 1.783_508_417_55],
            79,
            2,
        ),
    ];
    for (sampler, options, sigmas, expected, calls, draws) in table {
        let schedule = steps(sigmas);
        let what = format!("{sampler} {options:?} {}", sigmas.len());
        let (x, called, drawn) = solve_toy(sampler, &schedule, &options);
        close(&x, expected, &what);
        assert_eq!((called, drawn), (calls, draws), "{what}");
        let told = (sampler.calls)(&schedule);
        assert_eq!(told.unwrap_or(called), called, "{what}");
    }
}

fn every_pair() -> impl Iterator<Item = (Profile, Sampler)> {
    let pairs = PROFILES.into_iter();
    let pairs = pairs.flat_map(|profile| METHODS.map(|sampler| (profile, sampler)));
    pairs.filter(|(profile, sampler)| (profile.solver)(sampler) == Some(*sampler))
}

/// Noise of a share of unit normal size that depends on the draw only.
#[derive(Default)]
struct Waves(usize);

impl Run for Waves {
    fn noise(&mut self, noise: &mut Latents) {
        let k = self.0 as f32;
        *noise = pair(f64::from((k * 1.7).sin()), f64::from((k * 2.9).cos()));
        self.0 += 1;
    }

    fn brownian(&mut self, _: f64, _: f64, noise: &mut Latents) {
        self.noise(noise);
    }

    fn step(&mut self, _: usize, _: &Latents) -> Result<(), DenoiseError> {
        Ok(())
    }
}

#[test]
fn solvers_keep_to_their_calls_and_stay_finite_for_every_number_of_steps() {
    for (profile, sampler) in every_pair() {
        for count in [1, 2, 3, 19, 20, 36, 150] {
            let what = format!("{} {sampler} {count}", profile.name);
            let schedule = schedule_of(profile, sampler, None, count);
            let options = (profile.options)(sampler, Options::default());
            let mut called = 0;
            let mut model = Toy(|x: &Latents, level: Level| {
                called += 1;
                x.mapv(|x| x / (1.0 + (level.sigma * level.sigma) as f32))
            });
            let x = pair(0.5, -1.25) * schedule.initial_scale as f32;
            let x = (sampler.solve)(&mut model, x, &schedule, &options, &mut Waves::default());
            assert!(x.unwrap().iter().all(|x| x.is_finite()), "{what}");
            let told = (sampler.calls)(&schedule);
            assert_eq!(told.is_none(), sampler == &DPM_ADAPTIVE, "{what}");
            assert_eq!(told.unwrap_or(called), called, "{what}");
        }
    }
}

#[test]
fn a_constant_estimate_is_the_result() {
    // Cold Diffusion's rule takes noise for a degraded picture at the start, and keeps the difference.
    for sampler in METHODS.into_iter().filter(|sampler| *sampler != &COLD) {
        for spread in [Spread::Uniform, Spread::Karras] {
            let schedule = schedule_of(&A1111, sampler, Some(spread), 12);
            let mut model = Toy(|_: &Latents, _: Level| pair(0.3, -1.2));
            let x = pair(0.5, -1.25) * schedule.initial_scale as f32;
            let options = Options::default();
            let x = (sampler.solve)(&mut model, x, &schedule, &options, &mut Waves::default());
            // Those that end at the least noise keep it.
            let end = schedule.steps[schedule.steps.len() - 1].to.sigma as f32;
            let [a, b] = [0.3, -1.2];
            let x = x.unwrap();
            let off = (x[[0, 0, 0, 0]] - a).abs().max((x[[0, 0, 0, 1]] - b).abs());
            assert!(off < 1e-5 + 1.3 * end, "{sampler} {spread:?}: {x}");
        }
    }
}

#[test]
fn dpmpp_2m_sde_without_noise_is_dpmpp_2m() {
    let eta = Options {
        eta: Some(0.0),
        ..Options::default()
    };
    for count in [2, 5, 20] {
        let schedule = schedule_of(&A1111, &DPMPP_2M, None, count);
        let (sde, ..) = solve_toy(&DPMPP_2M_SDE, &schedule, &eta);
        let (ode, ..) = solve_toy(&DPMPP_2M, &schedule, &Options::default());
        assert!((&sde - &ode).iter().all(|d| d.abs() < 1e-6), "{sde} {ode}");
    }
}

/// How the error falls with the number of steps, on normally distributed data, whose solution is known.
#[test]
fn solvers_converge_at_their_order() {
    let error = |sampler: Sampler, count: usize| {
        // Data of deviation 1/2 around 0: x0 = x / (1 + 4 sigma^2), x ~ sqrt(1/4 + sigma^2).
        let mut model = Toy(|x: &Latents, level: Level| {
            x.mapv(|x| (f64::from(x) / (1.0 + 4.0 * level.sigma * level.sigma)) as f32)
        });
        let sigmas = karras_between(10.0, 0.5, count + 1);
        let schedule = steps(&sigmas);
        let size = |sigma: f64| (0.25 + sigma * sigma).sqrt();
        let x = pair(size(10.0), -size(10.0));
        let options = Options::default();
        let x = (sampler.solve)(&mut model, x, &schedule, &options, &mut Waves::default());
        (f64::from(x.unwrap()[[0, 0, 0, 0]]) - size(0.5)).abs()
    };
    for (sampler, order) in [(&EULER, 1.0), (&HEUN, 2.0), (&DPM2, 2.0), (&DPMPP_2M, 2.0)] {
        let found = (error(sampler, 16) / error(sampler, 32)).log2();
        assert!((found - order).abs() < 0.35, "{sampler}: {found}");
    }
}

#[test]
fn noise_is_drawn_before_steps_only_where_it_acts_unless_the_program_draws_it_anyway() {
    let options = Options {
        s_churn: 3.0,
        s_tmin: 0.9,
        s_tmax: 6.0,
        ..Options::default()
    };
    let idle = Options {
        idle_draws: true,
        ..options
    };
    for sampler in [&EULER, &HEUN, &DPM2] {
        let schedule = steps(&SIGMAS);
        let (few, _, draws) = solve_toy(sampler, &schedule, &options);
        assert_eq!(draws, 3, "{sampler}");
        let (many, _, draws) = solve_toy(sampler, &schedule, &idle);
        assert_eq!(draws, 6, "{sampler}");
        assert_ne!(few, many, "{sampler}");
    }
}

#[test]
fn levels_between_two_steps_have_their_timestep() {
    let schedule = schedule_of(&A1111, &DPM2, None, 5);
    let comfyui = schedule_of(&COMFYUI, &DPM2, None, 5);
    for (schedule, whole) in [(schedule, false), (comfyui, true)] {
        for sampler in [&DPM2, &DPMPP_SDE, &DPM_FAST] {
            let mut fractions = 0;
            let mut model = Toy(|x: &Latents, level: Level| {
                let t = schedule.table.of_sigma(level.sigma).t;
                assert!((t - level.t).abs() < 1e-6);
                fractions += usize::from(level.t.fract() != 0.0);
                x * 0.5
            });
            let x = pair(0.5, -1.25);
            let options = Options::default();
            (sampler.solve)(&mut model, x, &schedule, &options, &mut Waves::default()).unwrap();
            assert_eq!(fractions == 0, whole, "{sampler}");
        }
    }
}

fn table() -> NoiseTable {
    NoiseTable::scaled_linear(0.00085, 0.012, Precision::Products)
}

/// diffusers' toy: the network returns `0.3 input + 0.05 cos(t / 100)`.
fn run_toy(sampler: Sampler, schedule: &Schedule) -> (Latents, Vec<f64>) {
    let mut times = Vec::new();
    let mut model = Toy(|x: &Latents, level: Level| {
        times.push(level.t);
        let c_in = 1.0 / (1.0 + level.sigma * level.sigma).sqrt();
        let output =
            x.mapv(|x| (0.3 * f64::from(x) * c_in + 0.05 * (level.t / 100.0).cos()) as f32);
        denoised(PredictionType::Epsilon, x, &output, level.sigma)
    });
    let x = pair(0.5, -1.25) * schedule.initial_scale as f32;
    let options = Options::default();
    let x = (sampler.solve)(&mut model, x, schedule, &options, &mut Draws::default());
    (x.unwrap(), times)
}

fn config(spacing: Option<&str>) -> Value {
    let mut config = diffusers::scheduler(Pipeline::SD1);
    if let Some(spacing) = spacing {
        config["timestep_spacing"] = json!(spacing);
    }
    config
}

fn diffusers_schedule(
    sampler: Sampler,
    spread: Option<Spread>,
    count: usize,
    spacing: Option<&str>,
) -> Schedule {
    let config = config(spacing);
    let trained = Trained {
        config: &config,
        xl: false,
    };
    (DIFFUSERS.schedule)(sampler, spread, count, &trained).unwrap()
}

fn a1111_schedule(sampler: Sampler, spread: Option<Spread>, count: usize) -> Schedule {
    let trained = Trained {
        config: &Value::Null,
        xl: false,
    };
    let automatic = (A1111.automatic)(sampler, &trained).unwrap();
    let spread = spread.unwrap_or(automatic);
    let spread = Some(spread).filter(|spread| (A1111.spreads)(sampler).contains(spread));
    (A1111.schedule)(sampler, spread, count, &trained).unwrap()
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
        let schedule = diffusers_schedule(sampler, sigmas, count, Some(spacing));
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
        let (x, found) = run_toy(sampler, &schedule);
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
    let schedule = diffusers_schedule(&DPMPP_2M, None, 20, None);
    close(
        &run_toy(&DPMPP_2M, &schedule).0,
        [2.783_188_58, -6.562_713_15],
        "20 steps",
    );
}

#[test]
fn schedules_and_solvers_give_a1111s_answers() {
    let (x, times) = run_toy(&DDIM, &a1111_schedule(&DDIM, None, 5));
    assert_eq!(times, [801.0, 601.0, 401.0, 201.0]);
    close(&x, [1.442_257_77, -3.601_556_52], "A1111 DDIM");
    let (x, times) = run_toy(&PLMS, &a1111_schedule(&PLMS, None, 5));
    assert_eq!(times.len(), 5);
    close(&x, [1.165_793_15, -3.294_177_44], "A1111 PLMS");
}

#[test]
fn sigmas_are_a1111s() {
    let sigmas = |sampler, spread, count| -> Vec<f64> {
        let schedule = a1111_schedule(sampler, spread, count);
        schedule.steps.iter().map(|step| step.from.sigma).collect()
    };
    let check = |found: Vec<f64>, expected: &[f64]| {
        assert_eq!(found.len(), expected.len());
        // The answers were rounded to single precision, and the powers amplify that.
        assert!(
            found
                .iter()
                .zip(expected)
                .all(|(a, b)| (a / b - 1.0).abs() < 1e-6),
            "{found:?} {expected:?}"
        );
    };
    let normal = [
        14.614_643_1,
        4.086_081_03,
        1.615_580_32,
        0.695_149_601,
        0.029_167_536_6,
    ];
    check(sigmas(&EULER, None, 5), &normal);
    let karras = [
        14.614_643_1,
        4.796_544_08,
        1.274_104_95,
        0.247_951_746,
        0.029_167_538_5,
    ];
    check(sigmas(&EULER, Some(Spread::Karras), 5), &karras);
    check(sigmas(&DPMPP_2M, None, 5), &karras);
    let ten = [
        14.614_643_1,
        9.102_933_88,
        5.478_399_28,
        3.168_609_38,
        1.749_423_38,
        0.914_076_567,
        0.446_920_872,
        0.201_399_833,
        0.081_911_079_6,
        0.029_167_538_5,
    ];
    check(sigmas(&DPMPP_2M, None, 10), &ten);
}

/// The schedule that a profile makes for a solver of its own.
fn schedule_of(profile: Profile, sampler: Sampler, spread: Option<Spread>, n: usize) -> Schedule {
    let config = config(None);
    let trained = Trained {
        config: &config,
        xl: false,
    };
    let known = (profile.spreads)(sampler);
    let automatic = (profile.automatic)(sampler, &trained).unwrap();
    let spread = spread.unwrap_or(automatic);
    let spread = Some(spread).filter(|spread| known.contains(spread));
    (profile.schedule)(sampler, spread, n, &trained).unwrap()
}

#[test]
fn schedules_fall_to_the_end_for_every_number_of_steps_and_spread() {
    for (profile, sampler) in every_pair() {
        let known = (profile.spreads)(sampler);
        let spreads = known.iter().copied().map(Some).chain([None]);
        for spread in spreads {
            for count in [1, 2, 3, 7, 20, 30, 100, 150] {
                let steps = schedule_of(profile, sampler, spread, count).steps;
                let what = format!("{} {sampler} {spread:?} {count}", profile.name);
                let falls = |step: &Step| step.to.sigma < step.from.sigma;
                assert!(steps.iter().all(falls) || count == 1, "{what}");
                assert!(steps[steps.len() - 1].to.sigma < 0.042, "{what}");
                let times = |step: &Step| (0.0..=999.0).contains(&step.from.t);
                assert!(steps.iter().all(times), "{what}");
            }
        }
    }
    let starts = |n| {
        let steps = diffusers_schedule(&DDIM, None, n, None).steps;
        steps.iter().map(|s| s.from.t).collect::<Vec<f64>>()
    };
    assert_eq!(starts(4), [751.0, 501.0, 251.0, 1.0]);
    assert_eq!(
        (starts(30)[..3].to_vec(), starts(30)[29]),
        (vec![958.0, 925.0, 892.0], 1.0)
    );
}

#[test]
fn names_of_samplers_are_read_and_wrong_ones_answered() {
    let karras = Some(Spread::Karras);
    for (name, sampler, spread) in [
        ("DPM++ 2M SDE Karras", &DPMPP_2M_SDE, Spread::Karras),
        (
            "dpmpp_2m_sde_heun_exponential",
            &DPMPP_2M_SDE_HEUN,
            Spread::Exponential,
        ),
        ("k_dpm_2_a_ka", &DPM2_ANCESTRAL, Spread::Karras),
        (
            "DPM++ 3M SDE SGM Uniform",
            &DPMPP_3M_SDE,
            Spread::SgmUniform,
        ),
        ("Heun Align Your Steps", &HEUN, Spread::AlignYourSteps),
    ] {
        assert_eq!(parse(name), Ok((sampler, Some(spread))), "{name}");
    }
    assert_eq!(parse("DPM++ 2M Karras"), Ok((&DPMPP_2M, karras)));
    assert_eq!(parse("dpmpp_2m_karras"), Ok((&DPMPP_2M, karras)));
    for method in METHODS {
        for name in method.aliases.iter().chain([&method.name]) {
            assert_eq!(parse(name), Ok((method, None)));
        }
        if let Some(class) = method.class {
            assert_eq!(parse(class).unwrap().0.class, method.class);
        }
    }
    for (name, nearest) in [
        ("DPM++ 2N", "nearest: DPM++ 2M"),
        ("eular", "nearest: Euler"),
    ] {
        let error = parse(name).unwrap_err().to_string();
        assert!(error.contains(nearest), "{error}");
    }
}

#[test]
fn configurations_that_would_be_followed_wrongly_are_refused() {
    for (field, value) in [
        ("beta_schedule", json!("linear")),
        ("num_train_timesteps", json!(500)),
        ("clip_sample", json!(true)),
        ("rescale_betas_zero_snr", json!(true)),
        ("timestep_spacing", json!("curly")),
        ("skip_prk_steps", json!(false)),
    ] {
        let mut config = diffusers::scheduler(Pipeline::SD1);
        config[field] = value;
        let error = SchedulerConfig::read(&config).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
    let mut config = diffusers::scheduler(Pipeline::SD1);
    config["_class_name"] = json!("UniPCMultistepScheduler");
    let error = SchedulerConfig::read(&config)
        .unwrap()
        .sampler()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("UniPC") && error.contains("another one can be chosen"),
        "{error}"
    );
}
