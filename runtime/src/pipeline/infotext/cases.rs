//! Texts as programs of several years wrote them, what they mean here, and what is left out.

use super::Settings;
use crate::noise::Rng;
use crate::pipeline::Request;
use crate::sampler::{
    DDIM, DPM2_ANCESTRAL, DPMPP_2M, DPMPP_2M_SDE, DPMPP_3M_SDE, EULER, EULER_ANCESTRAL, HEUN,
    Options, RESTART, Sampler, UNIPC_BH2,
};
use crate::sigmas::Spread;
use crate::text::Emphasis;

/// Steps, guidance, seed and size.
fn numbers(steps: usize, scale: f64, seed: u64, [width, height]: [usize; 2]) -> Request {
    Request {
        steps: Some(steps),
        guidance_scale: Some(scale),
        seed,
        width: Some(width),
        height: Some(height),
        rng: Rng::Philox,
        ..Request::default()
    }
}

fn solved(sampler: Sampler, spread: Option<Spread>, request: Request) -> Request {
    Request {
        sampler: Some(sampler),
        spread,
        ..request
    }
}

fn said(prompt: &str, negative: Option<&str>, request: Request) -> Request {
    Request {
        prompt: prompt.to_owned(),
        negative_prompt: negative.map(ToOwned::to_owned),
        ..request
    }
}

fn check(text: &str, expected: &Request, left_out: &[&str]) {
    let read = Settings::read(text).unwrap();
    assert_eq!(read.request, *expected, "{text}");
    let found: Vec<String> = read
        .not_carried
        .iter()
        .map(|it| format!("{}: {}", it.field, it.value))
        .collect();
    assert_eq!(found, left_out, "{text}");
    assert!(read.request.check().is_ok());
}

#[test]
fn a1111_1_0_says_no_version_and_spreads_are_names_of_samplers() {
    check(
        "portrait of a [cat:dog:0.5], ((detailed))\nNegative prompt: blurry,\nlowres\nSteps: 28, Sampler: DPM++ 2M, CFG scale: 11, Seed: 2571978420, \
         Face restoration: CodeFormer, Size: 512x704, Model hash: 7460a6fa, Batch size: 4, Batch pos: 2, Variation seed: 77, \
         Variation seed strength: 0.15, Clip skip: 2, ENSD: 31337",
        &said(
            "portrait of a [cat:dog:0.5], ((detailed))",
            Some("blurry,\nlowres"),
            Request {
                subseed: Some(77),
                subseed_strength: 0.15,
                clip_skip: 2,
                ensd: 31_337,
                ..solved(
                    &DPMPP_2M,
                    Some(Spread::Uniform),
                    numbers(28, 11.0, 2_571_978_420, [512, 704]),
                )
            },
        ),
        &["Face restoration: CodeFormer"],
    );
}

#[test]
fn a1111_1_3_edits_prompts_by_its_own_rule() {
    check(
        "a [house:castle:1.5] by night\nSteps: 20, Sampler: DPM2 a Karras, CFG scale: 7, Seed: 12, Size: 512x512, Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, \
         Denoising strength: 0.7, Hires upscale: 2, Hires upscaler: Latent, Version: v1.3.2",
        &said(
            "a [house:castle:1.5] by night",
            None,
            solved(
                &DPM2_ANCESTRAL,
                Some(Spread::Karras),
                numbers(20, 7.0, 12, [512, 512]),
            ),
        ),
        &[
            "Denoising strength: 0.7",
            "Hires upscale: 2",
            "Hires upscaler: Latent",
            "Old prompt editing timelines: True",
            "Downcast alphas_cumprod: True",
        ],
    );
}

#[test]
fn a1111_1_4_pads_ddim_in_its_own_way() {
    check(
        "a boat\nNegative prompt: EasyNegative\nSteps: 30, Sampler: DDIM, CFG scale: 6.5, Seed: 4000000000, Size: 768x512, Model hash: fc2511737a, Model: chilloutmix_Ni, \
         Seed resize from: 512x512, Eta: 0.2, Eta DDIM: 0.2, Version: v1.4.1",
        &said(
            "a boat",
            Some("EasyNegative"),
            Request {
                seed_resize: Some([512, 512]),
                options: Options {
                    eta: Some(0.2),
                    ..Options::default()
                },
                ..solved(&DDIM, None, numbers(30, 6.5, 4_000_000_000, [768, 512]))
            },
        ),
        &["Pad conds v0: True", "Downcast alphas_cumprod: True"],
    );
}

#[test]
fn a1111_1_5_with_loras_and_inversions() {
    let text = "<lora:add_detail:0.6> a knight\nSteps: 25, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x768, Model hash: e4a30e4607, \
                Model: majicmixRealistic_v6, VAE hash: 735e4c3a44, VAE: vae-ft-mse-840000-ema-pruned.safetensors, Lora hashes: \"add_detail: 7c6bad76eb54\", \
                TI hashes: \"easynegative: c74b4e810b03, bad-hands-5: aa7651be154c\", Version: v1.5.1";
    check(
        text,
        &said(
            "<lora:add_detail:0.6> a knight",
            None,
            solved(
                &EULER_ANCESTRAL,
                Some(Spread::Uniform),
                numbers(25, 7.0, 5, [512, 768]),
            ),
        ),
        &["Downcast alphas_cumprod: True"],
    );
    let wanted = Settings::read(text).unwrap().wanted;
    assert_eq!(wanted.model_hash.as_deref(), Some("e4a30e4607"));
    assert_eq!(
        wanted.loras,
        [("add_detail".to_owned(), "7c6bad76eb54".to_owned())]
    );
    assert_eq!(wanted.embeddings.len(), 2);
    assert_eq!(wanted.vae.unwrap().1, "735e4c3a44");
}

#[test]
fn a1111_1_6_with_a_refiner_on_processors_noise() {
    let text = "a fox\nSteps: 30, Sampler: DPM++ 3M SDE Exponential, CFG scale: 5, Seed: 9, Size: 1024x1024, Model hash: 31e35c80fc, Model: sd_xl_base_1.0, \
                RNG: CPU, Refiner: sd_xl_refiner_1.0 [7440042bbd], Refiner switch at: 0.75, Sigma noise: 1.003, Token merging ratio: 0.3, Version: v1.6.0";
    check(
        text,
        &said(
            "a fox",
            None,
            Request {
                rng: Rng::TorchCpu,
                refiner_start: 0.75,
                options: Options {
                    s_noise: 1.003,
                    ..Options::default()
                },
                ..solved(
                    &DPMPP_3M_SDE,
                    Some(Spread::Exponential),
                    numbers(30, 5.0, 9, [1024, 1024]),
                )
            },
        ),
        &[
            "Token merging ratio: 0.3",
            "Downcast alphas_cumprod: True",
            "Refiner switch by sampling steps: True",
        ],
    );
    let (name, hash, _) = Settings::read(text).unwrap().wanted.refiner.unwrap();
    assert_eq!(
        (name.as_str(), hash.as_str()),
        ("sd_xl_refiner_1.0", "7440042bbd")
    );
}

#[test]
fn a1111_1_8_names_no_schedule_yet() {
    check(
        "a [tree|bush:1.5]\nSteps: 20, Sampler: Restart, CFG scale: 7, Seed: 1, Size: 512x512, Model: anything, Emphasis: No norm, RNG: NV, Version: v1.8.0",
        &said(
            "a [tree|bush:1.5]",
            None,
            Request {
                emphasis: Some(Emphasis::NoNorm),
                ..solved(
                    &RESTART,
                    Some(Spread::Karras),
                    numbers(20, 7.0, 1, [512, 512]),
                )
            },
        ),
        &[],
    );
}

#[test]
fn a1111_1_10_with_options_of_samplers() {
    check(
        "\"quoted\", a: b\nSteps: 20, Sampler: Heun, Schedule type: Align Your Steps, CFG scale: 7.5, Seed: 1, Size: 512x512, Model hash: 6ce0161689, \
         Model: v1-5, Sigma churn: 10, Sigma tmin: 0.1, Sigma tmax: 8, Hires prompt: \"a, b: \\\"c\\\"\", NGMS: 2, Skip Early CFG: 0.1, Beta schedule alpha: 0.6, Version: v1.10.1",
        &said(
            "\"quoted\", a: b",
            None,
            Request {
                options: Options {
                    s_churn: 10.0,
                    s_tmin: 0.1,
                    s_tmax: 8.0,
                    ..Options::default()
                },
                ..solved(
                    &HEUN,
                    Some(Spread::AlignYourSteps),
                    numbers(20, 7.5, 1, [512, 512]),
                )
            },
        ),
        &[
            "Hires prompt: a, b: \"c\"",
            "NGMS: 2",
            "Skip Early CFG: 0.1",
        ],
    );
    check(
        "a\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x512, Version: 1.9.4",
        &said(
            "a",
            None,
            solved(&DPMPP_2M, None, numbers(20, 7.0, 1, [512, 512])),
        ),
        &[],
    );
    check(
        "a\nSteps: 20, Sampler: UniPC, CFG scale: 7, Seed: 1, Size: 512x512, UniPC variant: bh2, UniPC order: 3, UniPC skip type: logSNR, Version: v1.9.0",
        &said(
            "a",
            None,
            solved(&UNIPC_BH2, None, numbers(20, 7.0, 1, [512, 512])),
        ),
        &["UniPC skip type: logSNR"],
    );
}

#[test]
fn forge_follows_the_version_inside_its_own() {
    check(
        "a\nSteps: 20, Sampler: DPM++ 2M SDE, CFG scale: 7, Seed: 1, Size: 512x512, Version: f0.0.17v1.8.0rc-latest-276-g29be1da7",
        &said(
            "a",
            None,
            solved(
                &DPMPP_2M_SDE,
                Some(Spread::Uniform),
                numbers(20, 7.0, 1, [512, 512]),
            ),
        ),
        &[],
    );
    check(
        "a\nSteps: 20, Sampler: Euler, Schedule type: SGM Uniform, CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 1, Size: 896x1152, Model hash: 58725940e3, \
         Model: some, ADetailer model: face_yolov8n.pt, Version: f2.0.1v1.10.1-previous-669-gdfdcbab6, Diffusion in Low Bits: Automatic (fp16 LoRA), Module 1: ae",
        &said(
            "a",
            None,
            solved(
                &EULER,
                Some(Spread::SgmUniform),
                numbers(20, 1.0, 1, [896, 1152]),
            ),
        ),
        &[
            "Distilled CFG Scale: 3.5",
            "ADetailer model: face_yolov8n.pt",
            "Diffusion in Low Bits: Automatic (fp16 LoRA)",
            "Module 1: ae",
        ],
    );
}

#[test]
fn sd_next_old_and_new() {
    check(
        "a lake\nSteps: 20, Seed: 3, Sampler: Euler a, CFG scale: 6, Size: 512x512, Parser: Full parser, Model: v1-5, Model hash: 6ce0161689, Backend: Original, \
         App: SD.Next, Version: 2f3a1b2, Operations: txt2img; hires, Hires steps: 10",
        &said(
            "a lake",
            None,
            solved(&EULER_ANCESTRAL, None, numbers(20, 6.0, 3, [512, 512])),
        ),
        &["Hires steps: 10"],
    );
    check(
        "a lake\nNegative prompt: low quality\nSteps: 20, Size: 1312x1408, Sampler: DPM++ 2M, Seed: 1561296656, CFG rescale: 0.7, CFG end: 0.8, \
         Model: someXL, Model hash: 847403d47a, Backend: Diffusers, Parser: native, App: SD.Next, Version: 8b73cb6, Pipeline: StableDiffusionXLPipeline, \
         Operations: txt2img, LoRA networks: outline_xl",
        &said(
            "a lake",
            Some("low quality"),
            Request {
                guidance_rescale: 0.7,
                ..solved(
                    &DPMPP_2M,
                    None,
                    numbers(20, 1.0, 1_561_296_656, [1312, 1408]),
                )
            },
        ),
        &[
            "CFG end: 0.8",
            "Backend: Diffusers",
            "Parser: native",
            "LoRA networks: outline_xl",
        ],
    );
}

#[test]
fn stable_diffusion_cpp() {
    check(
        "A sunflower field\nNegative prompt: Blue sky\nSteps: 30, CFG scale: 5.000000, Guidance: 3.500000, Eta: 0.000000, Seed: 1375127038, Size: 512x512, \
         Model: v1-5-pruned-emaonly.safetensors, RNG: cuda, Sampler: dpm++2m karras, Version: stable-diffusion.cpp",
        &said(
            "A sunflower field",
            Some("Blue sky"),
            solved(
                &DPMPP_2M,
                Some(Spread::Karras),
                numbers(30, 5.0, 1_375_127_038, [512, 512]),
            ),
        ),
        &[],
    );
    check(
        "A field\nSteps: 30, CFG scale: 5.0, Seed: 1, Size: 512x512, RNG: std_default, Sampler: ipndm, Version: stable-diffusion.cpp",
        &said("A field", None, numbers(30, 5.0, 1, [512, 512])),
        &["RNG: std_default", "Sampler: ipndm"],
    );
}

#[test]
fn values_that_cannot_be_are_left_out_one_by_one() {
    check(
        "a\nSteps: many, Sampler: Spawner SMEA, CFG scale: 1e9, Seed: -1, Size: 99999999x99999999, Clip skip: 99, Variation seed: 3, Seed resize from: 7, \
         Schedule type: Beta57, RNG: dice, Eta: 0.5, Version: v1.10.0",
        &said(
            "a",
            None,
            Request {
                rng: Rng::Philox,
                ..Request::default()
            },
        ),
        &[
            "Steps: many",
            "Sampler: Spawner SMEA",
            "CFG scale: 1e9",
            "Seed: -1",
            "Size: 99999999x99999999",
            "Clip skip: 99",
            "Variation seed: 3",
            "Seed resize from: 7",
            "Schedule type: Beta57",
            "RNG: dice",
            "Eta: 0.5",
        ],
    );
    let long = format!(
        "{}\nSteps: 20, Sampler: Euler, Seed: 1",
        "a".repeat(100_001)
    );
    let read = Settings::read(&long).unwrap();
    assert_eq!(read.not_carried[0].field, "Prompt");
}
