//! Known answers: k-diffusion's and diffusers' results on toy models of two numbers, printed by `tests/golden/samplers.py`.

use ndarray::Array4;
use sd_models::diffusers::{self, Pipeline};
use sd_models::manifest::PredictionType;
use serde_json::Value;

use super::*;
use crate::denoise::{Precision, denoised};
use crate::profile::{A1111, COMFYUI, ConfigError, DIFFUSERS, PROFILES, Profile, Trained};
use crate::sigmas::karras_between;

/// A model that is a formula.
pub(crate) struct Toy<F>(pub(crate) F);

impl<F: FnMut(&Latents, Level) -> Latents> Denoiser for Toy<F> {
    fn denoise(&mut self, x: &Latents, level: Level) -> Result<Latents, DenoiseError> {
        Ok((self.0)(x, level))
    }
}

/// The k-th draw is `0.7 (-1)^k, 0.3 (k + 1)`.
#[derive(Default)]
pub(crate) struct Draws {
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

pub(crate) fn pair(a: f64, b: f64) -> Latents {
    Array4::from_shape_vec((1, 1, 1, 2), vec![a as f32, b as f32]).unwrap()
}

/// The answers have double precision, the states single: a few roundings of numbers up to 100.
pub(crate) fn close(x: &Latents, expected: [f64; 2], what: &str) {
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
    let own = |profile: Profile| {
        let solver = move |sampler: Sampler| (profile.solver)(sampler).filter(|s| *s == sampler);
        METHODS.into_iter().filter_map(solver)
    };
    pairs.flat_map(move |profile| own(profile).map(move |sampler| (profile, sampler)))
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
fn solvers_keep_to_their_calls_and_stay_finite_for_every_prediction_spread_and_number_of_steps() {
    let predictions = [
        ("epsilon", PredictionType::Epsilon),
        ("v_prediction", PredictionType::VPrediction),
        ("sample", PredictionType::Sample),
    ];
    let mut config = diffusers::scheduler(Pipeline::SD1);
    for ((profile, sampler), (name, prediction)) in
        every_pair().flat_map(|pair| predictions.map(|prediction| (pair, prediction)))
    {
        config["prediction_type"] = name.into();
        let known = (profile.spreads)(sampler);
        let spreads = known.iter().copied().map(Some).chain([None]);
        for (spread, count) in spreads.flat_map(|s| [1, 2, 3, 19, 20, 36, 150].map(|n| (s, n))) {
            let what = format!("{} {sampler} {name} {spread:?} {count}", profile.name);
            let schedule = match schedule_with(profile, sampler, spread, count, &config) {
                Ok(schedule) => schedule,
                // Some of diffusers' classes do not know the prediction, or as many steps.
                Err(error) => {
                    let error = error.to_string();
                    let limited = error.starts_with("original_inference_steps") && count > 50;
                    let unknown = error.starts_with("prediction_type") && name == "sample";
                    assert!(limited || unknown, "{what}: {error}");
                    continue;
                }
            };
            let options = (profile.options)(sampler, Options::default());
            let mut called = 0;
            let mut model = Toy(|x: &Latents, level: Level| {
                called += 1;
                let input = 0.3 / (1.0 + level.sigma * level.sigma).sqrt() as f32;
                denoised(prediction, x, &x.mapv(|x| input * x + 0.1), level.sigma)
            });
            let x = pair(0.5, -1.25) * schedule.initial_scale as f32;
            let x = (sampler.solve)(&mut model, x, &schedule, &options, &mut Waves::default());
            let x = x.unwrap() * schedule.final_scale as f32;
            assert!(x.iter().all(|x| x.is_finite()), "{what}: {x}");
            let told = (sampler.calls)(&schedule);
            assert_eq!(told.is_none(), sampler == &DPM_ADAPTIVE, "{what}");
            assert_eq!(told.unwrap_or(called), called, "{what}");
        }
    }
}

#[test]
fn a_constant_estimate_is_the_result() {
    // Cold Diffusion's rule takes noise for a degraded picture at the start, and keeps the difference.
    let pairs = every_pair().filter(|(profile, _)| *profile == &A1111);
    for (_, sampler) in pairs.filter(|(_, sampler)| *sampler != &COLD) {
        for spread in [Spread::Uniform, Spread::Karras] {
            let schedule = schedule_of(&A1111, sampler, Some(spread), 12).unwrap();
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
        let schedule = schedule_of(&A1111, &DPMPP_2M, None, count).unwrap();
        let (sde, ..) = solve_toy(&DPMPP_2M_SDE, &schedule, &eta);
        let (ode, ..) = solve_toy(&DPMPP_2M, &schedule, &Options::default());
        assert!((&sde - &ode).iter().all(|d| d.abs() < 1e-6), "{sde} {ode}");
    }
}

/// How far a solver without noise is off after a number of steps, on normally distributed data, whose solution is known.
fn error(sampler: Sampler, setup: &Setup, count: usize) -> f64 {
    // Data of deviation 1/2 around 0: x0 = x / (1 + 4 sigma^2), x ~ sqrt(1/4 + sigma^2).
    let mut model = Toy(|x: &Latents, level: Level| {
        x.mapv(|x| (f64::from(x) / (1.0 + 4.0 * level.sigma * level.sigma)) as f32)
    });
    let table = table();
    let sigmas = karras_between(10.0, 0.5, count + 1).into_iter();
    let levels: Vec<Level> = sigmas.map(|sigma| table.of_sigma(sigma)).collect();
    let mut schedule = Schedule::chain(&levels, 1.0, table);
    schedule.setup = setup.clone();
    let state = |sigma: f64| {
        let size = (0.25 + sigma * sigma).sqrt();
        match sampler.space {
            Space::Ve => size,
            Space::Vp => size * math::Vp::new(sigma).signal,
        }
    };
    let options = Options {
        eta: Some(0.0),
        ..Options::default()
    };
    let x = pair(state(10.0), -state(10.0));
    let x = (sampler.solve)(&mut model, x, &schedule, &options, &mut Waves::default());
    (f64::from(x.unwrap()[[0, 0, 0, 0]]) - state(0.5)).abs()
}

/// Multistep methods have the order of their first steps, which have no history. DPM++ 2S a CFG++ compares estimates of two
/// levels, so that it has none.
#[test]
fn solvers_converge_at_their_order() {
    let own = Setup::default();
    let of_order = |order| Setup {
        orders: vec![order; 40],
        ..Setup::default()
    };
    let of_noise = Setup {
        extrapolated: Some(PredictionType::Epsilon),
        ..Setup::default()
    };
    let heun = Setup {
        second_order: SecondOrder::Heun,
        ..Setup::default()
    };
    let bh1 = Setup {
        bh: Bh::One,
        ..of_order(3)
    };
    let in_time = Setup {
        knots: Knots::Time,
        ..of_order(3)
    };
    for (sampler, setup, order) in [
        (&EULER, &own, 1.0),
        (&EULER_ANCESTRAL, &own, 1.0),
        (&EULER_CFGPP, &own, 1.0),
        (&EULER_ANCESTRAL_CFGPP, &own, 1.0),
        (&DDIM, &own, 1.0),
        (&DDIM_CFGPP, &own, 1.0),
        (&HEUN, &own, 2.0),
        (&DPM2, &own, 2.0),
        (&DPM2_ANCESTRAL, &own, 2.0),
        (&DPMPP_2S_ANCESTRAL, &own, 2.0),
        (&DPMPP_SDE, &own, 2.0),
        (&DPMPP_2M, &own, 2.0),
        (&DPMPP_2M_CFGPP, &own, 2.0),
        (&DPMPP_2M_SDE, &own, 2.0),
        (&DPMPP_2M_SDE_HEUN, &own, 2.0),
        (&DPMPP_3M_SDE, &own, 2.0),
        (&LMS, &own, 2.0),
        (&PLMS, &own, 2.0),
        (&DPM_MULTISTEP, &of_order(1), 1.0),
        (&DPM_MULTISTEP, &own, 2.0),
        (&DPM_MULTISTEP, &heun, 2.0),
        (&DPM_MULTISTEP, &of_order(3), 2.0),
        (&DPM_MULTISTEP, &of_noise, 2.0),
        (&DEIS, &of_order(1), 1.0),
        (&DEIS, &own, 2.0),
        (&DEIS, &of_order(3), 2.0),
        (&DEIS, &in_time, 2.0),
        (&UNIPC, &of_order(1), 2.0),
        (&UNIPC, &own, 2.0),
        (&UNIPC, &bh1, 2.0),
        (&UNIPC, &of_noise, 2.0),
        // As many calls as there are steps, the last interval of second order.
        (&DPM_FAST, &own, 3.0),
    ] {
        let (few, many) = (error(sampler, setup, 17), error(sampler, setup, 35));
        let found = (few / many).ln() / (35f64 / 17.0).ln();
        // Below this it is rounding to single precision.
        let exact = many < 2e-5;
        assert!(
            found > order - 0.35 || exact,
            "{sampler} {setup:?}: {found}, {few} {many}"
        );
    }
    // It chooses its steps by the error that it allows.
    assert!(error(&DPM_ADAPTIVE, &own, 17) < 0.01);
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
    let schedule = schedule_of(&A1111, &DPM2, None, 5).unwrap();
    let comfyui = schedule_of(&COMFYUI, &DPM2, None, 5).unwrap();
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

/// The schedule that a profile makes for a solver of its own; none for more steps than diffusers' LCM and TCD can do.
fn schedule_of(
    profile: Profile,
    sampler: Sampler,
    spread: Option<Spread>,
    n: usize,
) -> Option<Schedule> {
    let config = diffusers::scheduler(Pipeline::SD1);
    let schedule = schedule_with(profile, sampler, spread, n, &config);
    let is_limited = n > 50 && profile == &DIFFUSERS && [&LCM, &TCD].contains(&sampler);
    assert!(
        schedule.is_ok() || is_limited,
        "{} {sampler} {n}",
        profile.name
    );
    schedule.ok()
}

fn schedule_with(
    profile: Profile,
    sampler: Sampler,
    spread: Option<Spread>,
    n: usize,
    config: &Value,
) -> Result<Schedule, ConfigError> {
    let trained = Trained { config, xl: false };
    let known = (profile.spreads)(sampler);
    let spread = match spread {
        Some(spread) => spread,
        None => (profile.automatic)(sampler, &trained)?,
    };
    let spread = Some(spread).filter(|spread| known.contains(spread));
    (profile.schedule)(sampler, spread, n, &trained)
}

#[test]
fn schedules_fall_to_the_end_for_every_number_of_steps_and_spread() {
    for (profile, sampler) in every_pair() {
        let known = (profile.spreads)(sampler);
        let spreads = known.iter().copied().map(Some).chain([None]);
        for spread in spreads {
            for count in [1, 2, 3, 7, 20, 30, 100, 150] {
                let Some(schedule) = schedule_of(profile, sampler, spread, count) else {
                    continue;
                };
                let steps = schedule.steps;
                let what = format!("{} {sampler} {spread:?} {count}", profile.name);
                // diffusers' classes that end at the least noise may reach it a step early. LCM's least is 0.134.
                // A1111's LCM knows 50 levels, and repeats them for more steps.
                let repeats = sampler == &LCM && count > 50;
                let falls = |step: &Step| {
                    let (from, to) = (step.from.sigma, step.to.sigma);
                    to < from || (repeats && to <= from)
                };
                let (last, others) = steps.split_last().unwrap();
                assert!(others.iter().all(falls), "{what}");
                assert!(
                    last.to.sigma <= last.from.sigma && last.to.sigma < 0.14,
                    "{what}"
                );
                let times = |step: &Step| (0.0..=999.0).contains(&step.from.t);
                assert!(steps.iter().all(times), "{what}");
            }
        }
    }
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
fn lcm_without_a_boundary_gives_comfyuis_answer() {
    let sigmas = [10.0, 5.0, 2.0, 1.0, 0.4, 0.1, 0.0];
    let levels = sigmas.map(|sigma| Level { sigma, t: 0.0 });
    let mut schedule = Schedule::chain(&levels, 1.0, table());
    schedule.setup.timestep_scaling = None;
    let mut model = Toy(|x: &Latents, level: Level| {
        let sigma = level.sigma;
        x.mapv(|x| ((f64::from(x) + sigma.sin()) / (1.0 + sigma * sigma)) as f32)
    });
    let mut run = Draws::default();
    let options = Options::default();
    let x = (LCM.solve)(&mut model, pair(5.0, -12.5), &schedule, &options, &mut run).unwrap();
    close(&x, [0.885_996_411_586, 1.914_027_548_08], "LCM");
    assert_eq!(run.noise, 5);
}

/// A guided model whose estimates differ.
struct Both;

impl Denoiser for Both {
    fn denoise(&mut self, x: &Latents, level: Level) -> Result<Latents, DenoiseError> {
        Ok(self.denoise_both(x, level)?[0].clone())
    }

    fn denoise_both(&mut self, x: &Latents, _: Level) -> Result<[Latents; 2], DenoiseError> {
        Ok([x * 0.5, x * 0.25])
    }
}

/// The toy of `solve_toy`, guided; the unconditional estimate is half of it and 0.1.
struct Pair;

impl Denoiser for Pair {
    fn denoise(&mut self, x: &Latents, level: Level) -> Result<Latents, DenoiseError> {
        Ok(self.denoise_both(x, level)?[0].clone())
    }

    fn denoise_both(&mut self, x: &Latents, level: Level) -> Result<[Latents; 2], DenoiseError> {
        let sigma = level.sigma;
        let guided = x.mapv(|x| ((f64::from(x) + sigma.sin()) / (1.0 + sigma * sigma)) as f32);
        let uncond = guided.mapv(|x| 0.5 * x + 0.1);
        Ok([guided, uncond])
    }
}

#[test]
fn comfyuis_own_solvers_give_its_answers() {
    let eta = |eta| Options {
        eta: Some(eta),
        ..Options::default()
    };
    let plain = Options::default();
    type Case = (Sampler, Options, [f64; 2], usize);
    let cases: [Case; 8] = [
        (
            &EULER_CFGPP,
            plain,
            [1.245_709_812_64, -0.732_193_807_353],
            0,
        ),
        (
            &EULER_ANCESTRAL_CFGPP,
            plain,
            [0.875_749_629_801, 1.938_611_082_72],
            5,
        ),
        (
            &EULER_ANCESTRAL_CFGPP,
            eta(0.5),
            [1.222_347_661_1, 0.645_644_871_175],
            5,
        ),
        (
            &DPMPP_2M_CFGPP,
            plain,
            [1.919_659_643_16, -1.414_049_758_23],
            0,
        ),
        (
            &DPMPP_2S_ANCESTRAL_CFGPP,
            plain,
            [1.389_691_793_5, 2.653_492_278_76],
            5,
        ),
        (&DEIS, plain, [1.270_327_825_32, -0.400_787_264_934], 0),
        (&UNIPC, plain, [1.868_800_732_1, -0.367_259_925_569], 0),
        (&UNIPC_BH2, plain, [1.638_878_425_18, -0.369_836_568_444], 0),
    ];
    for (sampler, options, expected, draws) in cases {
        let mut schedule = steps(&SIGMAS);
        let own = schedule_of(&COMFYUI, sampler, None, 6).unwrap();
        schedule.setup = own.setup;
        // UniPC's own end.
        schedule.steps[5].to = own.steps[5].to;
        let mut run = Draws::default();
        let x = (sampler.solve)(&mut Pair, pair(5.0, -12.5), &schedule, &options, &mut run);
        close(&x.unwrap(), expected, sampler.name);
        assert_eq!(run.noise, draws, "{sampler}");
    }
}

#[test]
fn unipc_on_a1111s_clock_gives_its_answers() {
    for (sampler, count, expected) in [
        (&UNIPC, 5, [2.717_082_606_6, -6.438_456_579_13]),
        (&UNIPC, 20, [2.793_206_504_05, -6.593_042_916_11]),
        (&UNIPC_BH2, 10, [2.821_901_352_36, -6.633_560_512_66]),
    ] {
        let mut schedule = a1111_schedule(sampler, None, count);
        if count == 10 {
            // Its option "order".
            let order = |order: &mut usize| *order = (*order).min(2);
            schedule.setup.orders.iter_mut().for_each(order);
        }
        let (x, _) = run_toy(sampler, &schedule);
        let x = x * schedule.final_scale as f32;
        close(&x, expected, sampler.name);
    }
}

#[test]
fn cfgpp_adds_the_unconditional_noise_back() {
    let mut schedule = a1111_schedule(&DDIM_CFGPP, None, 5);
    schedule.steps.truncate(1);
    let options = Options::default();
    let start = pair(0.5, -1.25);
    let run = &mut Draws::default();
    let x = (DDIM_CFGPP.solve)(&mut Both, start.clone(), &schedule, &options, run).unwrap();
    let [now, next] =
        [schedule.steps[0].from, schedule.steps[0].to].map(|l| math::Vp::new(l.sigma));
    // In VE terms x / signal: x0 is x (0.25 + 0.25 / 12.5), the noise that is added back 0.75 x / sigma.
    for (x, start) in x.iter().zip(&start) {
        let start = f64::from(*start);
        let clean = start / now.signal * (0.25 + 0.25 / 12.5);
        let eps = (start - now.signal * 0.25 * start / now.signal) / now.noise;
        let expected = next.signal * clean + next.noise * eps;
        assert!((f64::from(*x) - expected).abs() < 1e-6 * expected.abs());
    }
}

#[test]
fn a1111s_clocks_of_unipc_and_lcm() {
    let unipc = a1111_schedule(&UNIPC, None, 4);
    let times: Vec<f64> = unipc.steps.iter().map(|step| step.from.t).collect();
    assert_eq!(times, [999.0, 749.25, 499.5, 249.75]);
    assert_eq!(unipc.steps[3].to.sigma as f32, table().sigma_min() as f32);
    assert_eq!(unipc.setup.orders, [3, 3, 2, 1]);
    let lcm = a1111_schedule(&LCM, None, 4);
    let times: Vec<f64> = lcm.steps.iter().map(|step| step.from.t).collect();
    assert_eq!(times, [999.0, 679.0, 339.0, 19.0]);
    assert_eq!(lcm.steps[3].to, Level::CLEAN);
}

#[test]
fn a1111_starts_zero_snr_models_at_its_own_level() {
    let config = serde_json::json!({"rescale_betas_zero_snr": true});
    let trained = Trained {
        config: &config,
        xl: false,
    };
    let schedule = (A1111.schedule)(&EULER, Some(Spread::Uniform), 5, &trained).unwrap();
    assert!((schedule.initial_scale / 4_518.763_7 - 1.0).abs() < 1e-5);
}
