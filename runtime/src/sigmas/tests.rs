//! Known answers: k-diffusion's, A1111's and `ComfyUI`'s levels, printed by `tests/golden/samplers.py`.

use super::*;
use crate::denoise::{NoiseTable, Precision};
use crate::profile::{A1111, COMFYUI, Profile, Trained};
use crate::sampler::{DPM2, DPMPP_3M_SDE, EULER, LCM, Sampler};

fn table(precision: Precision) -> NoiseTable {
    NoiseTable::scaled_linear(0.00085, 0.012, precision)
}

const KL_A1111: [f64; 6] = [
    14.614_632_9,
    2.632_888_21,
    1.294_767_63,
    0.711_627_13,
    0.335_637_716,
    0.029_167_535_5,
];

const KL_COMFYUI: [f64; 6] = [
    14.614_632_9,
    2.142_741_05,
    0.961_587_99,
    0.419_836_182,
    0.029_167_158_9,
    0.0,
];

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{found:?} {expected:?}");
    // The answers were rounded to single precision, and powers amplify that.
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * b;
    assert!(
        found.iter().zip(expected).all(near),
        "{found:?} {expected:?}"
    );
}

/// Levels with their end.
fn levels(profile: Profile, sampler: Sampler, spread: Spread, count: usize, xl: bool) -> Vec<f64> {
    let trained = Trained {
        config: &serde_json::Value::Null,
        xl,
    };
    let steps = (profile.schedule)(sampler, Some(spread), count, &trained)
        .unwrap()
        .steps;
    let mut sigmas: Vec<f64> = steps.iter().map(|step| step.from.sigma).collect();
    sigmas.push(steps[steps.len() - 1].to.sigma);
    sigmas
}

#[test]
fn levels_are_a1111s() {
    let (most, least) = (14.614_643_1, 0.029_167_536_6);
    let uniform = [most, 4.086_081_03, 1.615_580_32, 0.695_149_601, least, 0.0];
    let exponential = [most, 3.088_987_11, 0.652_895_987, 0.137_997_702, least, 0.0];
    for (spread, expected) in [
        (Spread::Uniform, &uniform[..]),
        (Spread::Normal, &uniform),
        (
            Spread::Karras,
            &[
                most,
                4.796_544_08,
                1.274_104_95,
                0.247_951_746,
                0.029_167_538_5,
                0.0,
            ],
        ),
        (Spread::Exponential, &exponential),
        (Spread::Polyexponential, &exponential),
        (
            Spread::SgmUniform,
            &[
                most,
                5.092_407_7,
                2.279_730_56,
                1.162_864_57,
                0.571_188_927,
                0.0,
            ],
        ),
        (
            Spread::Simple,
            &[
                14.614_642_1,
                5.087_762_83,
                2.276_463_03,
                1.160_578_37,
                0.569_284_916,
                0.0,
            ],
        ),
        (
            Spread::Ddim,
            &[
                5.134_430_89,
                2.292_853_83,
                1.168_215_99,
                0.574_050_307,
                0.041_314_479,
                0.0,
            ],
        ),
        (
            Spread::Beta,
            &[
                14.614_642_1,
                12.052_260_4,
                7.321_904_84,
                2.591_549_24,
                0.029_167_534_8,
                0.0,
            ],
        ),
        (
            Spread::AlignYourSteps,
            &[14.615, 3.226_936_16, 1.396, 0.510_047_057, 0.029, 0.0],
        ),
        (Spread::KlOptimal, &KL_A1111),
    ] {
        close(&levels(&A1111, &EULER, spread, 5, false), expected);
    }
    let quadratic = polyexponential(&table(Precision::Products), 5, 2.0);
    close(
        &quadratic,
        &[most, 0.962_913_036, 0.137_997_702, 0.043_017_268_2, least],
    );
}

#[test]
fn levels_are_comfyuis() {
    let check = |spread, count, xl, expected: &[f64]| {
        close(&levels(&COMFYUI, &EULER, spread, count, xl), expected);
    };
    check(Spread::KlOptimal, 5, false, &KL_COMFYUI);
    let ten = [
        14.614_641_229_3,
        3.863_674_6,
        1.884_192_12,
        0.964_258_39,
        0.397_745_627,
        0.0,
    ];
    check(Spread::AlignYourSteps, 5, false, &ten);
    for (xl, family) in [(false, SD1), (true, SDXL)] {
        let mut family = family;
        family[10] = 0.0;
        check(Spread::AlignYourSteps, 10, xl, &family);
    }
    let table = table(Precision::Double);
    let times = |times: &[usize]| -> Vec<f64> {
        let sigmas = times.iter().map(|t| table.sigmas()[*t]);
        sigmas.chain([0.0]).collect()
    };
    check(Spread::Beta, 5, false, &times(&[999, 876, 637, 362, 123]));
    let ten = [999, 959, 876, 765, 637, 500, 362, 234, 123, 40];
    check(Spread::Beta, 10, false, &times(&ten));
    check(Spread::Turbo, 2, false, &times(&[999, 899]));
    for (count, expected) in [
        (1, &[14.614_641_2, 0.0][..]),
        (2, &[14.614_641_2, 14.249_275_2, 0.0]),
        (
            5,
            &[
                14.614_641_2,
                14.431_958_2,
                14.249_275_2,
                12.544_233_7,
                7.794_475_3,
                0.0,
            ],
        ),
    ] {
        check(Spread::LinearQuadratic, count, false, expected);
    }
}

#[test]
fn lcms_levels_are_a1111s() {
    let sgm = [
        14.614_643_4,
        5.182_727_34,
        2.343_317_95,
        1.207_117_5,
        0.607_616_459,
        0.0,
    ];
    let simple = [
        14.614_642_1,
        5.087_762_83,
        2.276_463_03,
        1.160_578_37,
        0.569_284_916,
        0.0,
    ];
    let ddim = [
        6.137_460_71,
        2.634_795_67,
        1.323_060_99,
        0.667_538_464,
        0.196_302_652,
        0.0,
    ];
    let kl = [
        14.614_632_9,
        2.808_331_79,
        1.413_104_06,
        0.810_616_146,
        0.431_561_255,
        0.134_450_588,
    ];
    for (spread, expected) in [
        (Spread::SgmUniform, sgm),
        (Spread::Simple, simple),
        (Spread::Ddim, ddim),
        (Spread::KlOptimal, kl),
    ] {
        close(&levels(&A1111, &LCM, spread, 5, false), &expected);
    }
    let ays = levels(&A1111, &EULER, Spread::AlignYourSteps, 5, true);
    assert_eq!(levels(&A1111, &LCM, Spread::AlignYourSteps, 5, true), ays);
}

#[test]
fn turbo_is_forges() {
    let table = table(Precision::Products);
    let times = [999, 799, 599, 399, 199];
    assert_eq!(turbo(&table, 5), times.map(|t| table.sigmas()[t]));
}

#[test]
fn next_to_last_levels_are_discarded_where_the_programs_do() {
    for (profile, sampler) in [(&A1111, &DPM2), (&A1111, &DPMPP_3M_SDE), (&COMFYUI, &DPM2)] {
        let all = levels(profile, &EULER, Spread::Karras, 6, false);
        let mut kept = all.clone();
        kept.remove(5);
        assert_eq!(levels(profile, sampler, Spread::Karras, 5, false), kept);
    }
    let all = levels(&COMFYUI, &EULER, Spread::Karras, 5, false);
    assert_eq!(
        levels(&COMFYUI, &DPMPP_3M_SDE, Spread::Karras, 5, false),
        all
    );
}

#[test]
fn sdxl_has_steps_of_its_own() {
    let found = levels(&A1111, &EULER, Spread::AlignYourSteps, 11, true);
    close(&found, &[&SDXL_ROUNDED[..], &[0.0]].concat());
}

#[test]
fn names_are_read_back() {
    for spread in Spread::ALL {
        for name in spread.names() {
            assert_eq!(name.parse(), Ok(spread));
            assert_eq!(name.to_uppercase().replace('_', " ").parse(), Ok(spread));
        }
    }
    assert_eq!("Align-Your Steps".parse(), Ok(Spread::AlignYourSteps));
    let error = "karas".parse::<Spread>().unwrap_err().to_string();
    assert!(error.contains("nearest: Karras"), "{error}");
}
