//! What people ask for, and what they get wrong: sizes, seeds, samplers, profiles.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::path::Path;

use sd_runtime::engine::Cancel;
use sd_runtime::noise::texture::Texture;
use sd_runtime::noise::{BrownianTree, Rng};
use sd_runtime::pipeline::{self, Destination, Dump, Micro, ModelDir, Models, Plans, Request};
use sd_runtime::profile::{A1111, COMFYUI, DIFFUSERS, PROFILES, Profile};
use sd_runtime::sampler::math::ancestral;
use sd_runtime::sampler::{
    DDIM, DDIM_CFGPP, DPM_ADAPTIVE, DPM_FAST, DPM2, DPMPP_2M, EULER, EULER_ANCESTRAL, METHODS,
    Options, PLMS, Sampler,
};
use sd_runtime::text::Emphasis;
use sdrt_tests::{
    Made, Reference, circle, demo_model, engine, make, make_with, psnr, relative_l2, synthetic,
};

fn run(request: &Request, dump: Option<&mut Dump>) -> Made {
    make(demo_model(), request, dump).unwrap()
}

fn picture(request: &Request) -> Vec<u8> {
    run(request, None).pictures.remove(0).rgb
}

fn mean_color(made: &Made, x: usize, y: usize) -> [u8; 3] {
    let picture = &made.pictures[0];
    let at = 3 * (y * picture.width + x);
    picture.rgb[at..at + 3].try_into().unwrap()
}

#[test]
fn every_sampler_of_every_profile_draws_the_prompt() {
    for profile in PROFILES {
        // Some of each kind are enough where profiles share the solvers.
        let few = [&EULER, &EULER_ANCESTRAL, &DPM2, &DPMPP_2M, &DDIM, &PLMS];
        let solved = |sampler: &Sampler| (profile.solver)(sampler) == Some(*sampler);
        for sampler in METHODS.into_iter().filter(solved) {
            if profile != &A1111 && !few.contains(&sampler) {
                continue;
            }
            let mut request = Request {
                sampler: Some(sampler),
                profile,
                steps: Some(14),
                ..circle()
            };
            if [&DPM_FAST, &DPM_ADAPTIVE].contains(&sampler) {
                // Few steps of high order do not keep up with as much noise as A1111 adds.
                request.options.eta = Some(0.0);
            }
            let made = run(&request, None);
            let what = format!("{sampler} {}", profile.name);
            let ([r, _, b], [cr, _, cb]) = (mean_color(&made, 64, 64), mean_color(&made, 2, 2));
            assert!(r > 150 && b < 100, "{what}: the middle is not red");
            assert!(cb > 150 && cr < 100, "{what}: the corner is not blue");
            let calls = made.plans[0].calls.unwrap_or(made.calls);
            assert_eq!(made.calls, calls, "{what}");
        }
    }
}

#[test]
fn comments_are_left_out_where_the_program_has_them() {
    let stripped = |profile| {
        let mut request = Request {
            prompt: "a red circle # or <lora:none:1>\n# at night\non blue".to_owned(),
            negative_prompt: Some("#x".to_owned()),
            profile,
            ..circle()
        };
        let comments = request.strip_comments();
        (request, comments)
    };
    let (request, comments) = stripped(&A1111);
    assert_eq!(request.prompt, "a red circle \non blue");
    assert_eq!(request.negative_prompt.as_deref(), Some("\n"));
    assert_eq!(comments, ["# or <lora:none:1>", "# at night", "#x"]);
    // What a picture's text has is a part of the prompt.
    let models = Models::one(ModelDir::open(demo_model()).unwrap());
    let request = Request {
        prompt: "a #ff0000 circle".to_owned(),
        ..circle()
    };
    let plans = Plans::resolve(&request, &models, u64::MAX).unwrap();
    assert_eq!(plans.plans[0].infotext.prompt, request.prompt);
    for profile in [&COMFYUI, &DIFFUSERS] {
        let (request, comments) = stripped(profile);
        assert!(request.prompt.contains("# at night"));
        assert_eq!(request.negative_prompt.as_deref(), Some("#x"));
        assert_eq!(comments, [""; 0]);
    }
}

#[test]
fn what_a_program_does_in_another_way_than_asked_is_said() {
    let comfyui = Request {
        profile: &COMFYUI,
        steps: Some(1),
        ..circle()
    };
    let made = run(&comfyui, None);
    assert_eq!((made.warnings.len(), made.notes.len()), (0, 0));
    let other = Request {
        sampler: Some(&DDIM),
        ..comfyui.clone()
    };
    let made = run(&other, None);
    assert_eq!(made.notes, ["comfyui's DDIM is Euler"]);
    assert!(made.infotext().contains("Sampler: Euler,"));

    let idle = Request {
        guidance_scale: Some(1.0),
        guidance_rescale: 0.5,
        negative_prompt: Some("square".to_owned()),
        ensd: 3,
        ..comfyui.clone()
    };
    let made = run(&idle, None);
    assert_eq!(made.notes.len(), 3, "{:?}", made.notes);
    let cfgpp = Request {
        sampler: Some(&DDIM_CFGPP),
        profile: &A1111,
        ..idle
    };
    // It makes use of guidance of 1, but draws nothing after the first noise.
    let notes = run(&cfgpp, None).notes;
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].starts_with("another seed for later noise"),
        "{notes:?}"
    );

    let a1111 = Request {
        sampler: Some(&DDIM),
        steps: Some(2),
        ..circle()
    };
    let made = run(&a1111, None);
    assert_eq!(made.notes, ["under a1111's rules 2 steps are 1"]);
}

#[test]
fn weights_act_by_the_rule_that_is_asked_for_or_the_profiles() {
    let weighted = |profile, emphasis| {
        let request = Request {
            prompt: "a (red:1.4) (circle:0.8)".to_owned(),
            profile,
            emphasis,
            steps: Some(2),
            ..circle()
        };
        run(&request, None)
    };
    for (profile, own) in [(&A1111, Emphasis::Original), (&COMFYUI, Emphasis::Comfyui)] {
        let pictures = Emphasis::ALL.map(|rule| weighted(profile, Some(rule)));
        for (i, made) in pictures.iter().enumerate() {
            let others = &pictures[i + 1..];
            assert!(others.iter().all(|other| other.pictures != made.pictures));
            let is_own = made.plans[0].emphasis == own;
            assert_eq!(made.infotext().contains("Emphasis: "), !is_own);
            if is_own {
                assert_eq!(weighted(profile, None).pictures, made.pictures);
            }
        }
    }
    let plain = Request {
        profile: &DIFFUSERS,
        emphasis: Some(Emphasis::NoNorm),
        ..circle()
    };
    let error = plain.check().unwrap_err().to_string();
    assert!(error.contains("plain text"), "{error}");
}

#[test]
fn comfyuis_steps_draw_from_a_generator_of_the_next_seed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    let mut dump = Dump::default();
    let request = Request {
        profile: &COMFYUI,
        sampler: Some(&EULER_ANCESTRAL),
        steps: Some(2),
        ..circle()
    };
    let made = run(&request, Some(&mut dump));
    dump.write(&Destination::find(&file).unwrap(), &Cancel::new())
        .unwrap();
    let tensors = Reference::open(&file);
    let schedule = &made.plans[0].schedule;
    let [from, to] = [schedule.steps[0].from.sigma, schedule.steps[0].to.sigma];
    let (down, up) = ancestral(from, to, 1.0);
    let mut source = request.rng.source(request.seed + 1);
    let mut noise = tensors.get("initial_noise");
    let x = &noise * schedule.initial_scale as f32;
    source.normal(noise.as_slice_mut().unwrap());
    let ratio = (down / from) as f32;
    let expected = x * ratio + tensors.get("denoised.000") * (1.0 - ratio) + noise * up as f32;
    assert!(relative_l2(&tensors.get("latents.000"), &expected) < 1e-6);
}

#[test]
fn pictures_of_a_batch_are_those_of_their_seeds() {
    let request = Request {
        batch: 3,
        sampler: Some(&EULER_ANCESTRAL),
        ..circle()
    };
    let batch = run(&request, None);
    for (i, (made, plan)) in batch.pictures.iter().zip(&batch.plans).enumerate() {
        assert_eq!(plan.seed, 1 + i as u64);
        let single = picture(&Request {
            batch: 1,
            seed: plan.seed,
            ..request.clone()
        });
        assert!(made.rgb == single, "picture {i}");
    }
    assert_ne!(batch.pictures[0], batch.pictures[1]);
}

#[test]
fn programs_that_draw_for_a_batch_at_once_have_one_seed_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    for profile in [&COMFYUI, &DIFFUSERS] {
        let request = Request {
            batch: 3,
            steps: Some(2),
            sampler: Some(&EULER_ANCESTRAL),
            profile,
            ..circle()
        };
        let mut dump = Dump::default();
        let batch = run(&request, Some(&mut dump));
        dump.write(&Destination::find(&file).unwrap(), &Cancel::new())
            .unwrap();
        let mut noise = Reference::open(&file).get("initial_noise");
        let drawn = noise.clone();
        let numbers = noise.as_slice_mut().unwrap();
        request.rng.source(request.seed).normal(numbers);
        assert_eq!(drawn, noise, "{}", profile.name);
        for (i, plan) in batch.plans.iter().enumerate() {
            assert_eq!(plan.seed, request.seed);
            let said = format!("Batch size: 3, Batch pos: {i}, ");
            let infotext = plan.infotext.to_string();
            assert!(infotext.contains(&said), "{infotext}");
            // Solvers that take Brownian noise take the picture's part of the batch's.
            let mut whole = BrownianTree::new(plan.seed, request.rng, 3 * 1024, 0.03, 14.0);
            let mut part = BrownianTree::new(plan.seed, plan.origin, 1024, 0.03, 14.0);
            let (mut all, mut own) = (vec![0.0; 3 * 1024], vec![0.0; 1024]);
            whole.increment(14.0, 3.0, &mut all);
            part.increment(14.0, 3.0, &mut own);
            assert_eq!(all[1024 * i..][..1024], own);
        }
        let single = run(
            &Request {
                batch: 1,
                ..request
            },
            None,
        );
        assert!(!single.infotext().contains("Batch"));
        assert_ne!(batch.pictures[1], batch.pictures[2]);
    }
}

#[test]
fn pictures_of_a_batch_of_variations_share_the_seed() {
    let request = Request {
        subseed: Some(7),
        subseed_strength: 0.3,
        seed_resize: Some([64, 96]),
        batch: 2,
        steps: Some(2),
        ..circle()
    };
    let batch = run(&request, None);
    for (i, (made, plan)) in batch.pictures.iter().zip(&batch.plans).enumerate() {
        assert_eq!(plan.seed, 1);
        let subseed = 7 + i as u64;
        let single = picture(&Request {
            batch: 1,
            subseed: Some(subseed),
            ..request.clone()
        });
        assert!(made.rgb == single, "picture {i}");
        let said = format!(
            "Model: tiny-shapes, Variation seed: {subseed}, Variation seed strength: 0.3, \
             Seed resize from: 64x96, RNG: CPU"
        );
        let infotext = plan.infotext.to_string();
        assert!(infotext.contains(&said), "{infotext}");
    }
    assert_ne!(batch.pictures[0], batch.pictures[1]);
    // Without strength there is no variation.
    let off = Request {
        subseed_strength: 0.0,
        seed_resize: None,
        batch: 1,
        ..request
    };
    let plain = Request {
        subseed: None,
        ..off.clone()
    };
    assert!(picture(&off) == picture(&plain));
}

#[test]
fn another_seed_for_later_noise_acts_on_samplers_that_draw_it() {
    let with = |ensd, sampler| {
        let request = Request {
            ensd,
            sampler: Some(sampler),
            steps: Some(3),
            ..circle()
        };
        let mut made = run(&request, None);
        let told = made.infotext().contains("ENSD: 31337, RNG");
        (made.pictures.remove(0).rgb, told)
    };
    let (ancestral, told) = with(31_337, &EULER_ANCESTRAL);
    assert!(told && ancestral != with(0, &EULER_ANCESTRAL).0);
    let (deterministic, told) = with(31_337, &EULER);
    assert!(!told && deterministic == with(0, &EULER).0);
}

#[test]
fn first_noise_of_other_kinds_makes_other_pictures_and_is_told() {
    let plain = picture(&circle());
    for (noise, name) in [(Texture::Perlin, "perlin"), (Texture::Pink, "pink")] {
        let request = Request { noise, ..circle() };
        let made = run(&request, None);
        assert_ne!(made.pictures[0].rgb, plain, "{name}");
        let told = format!("RNG: CPU, Noise: {name}, Weights hash");
        assert!(made.infotext().contains(&told));
    }
    let missing = Request {
        noise: Texture::Image("/nowhere.png".into()),
        ..circle()
    };
    let error = make(demo_model(), &missing, None).unwrap_err().to_string();
    assert!(error.contains("/nowhere.png"), "{error}");
}

#[test]
fn brownian_noise_of_a_plan_is_that_of_its_seed_and_noise_levels() {
    let model = Models::one(ModelDir::open(demo_model()).unwrap());
    let request = Request {
        rng: Rng::Philox,
        ..circle()
    };
    let plan = Plans::resolve(&request, &model, u64::MAX)
        .unwrap()
        .plans
        .remove(0);
    let steps = &plan.schedule.steps;
    let (least, most) = (steps[7].from.sigma, steps[0].from.sigma);
    let mut expected = BrownianTree::new(1, Rng::Philox, 4 * 16 * 16, least, most);
    let (mut a, mut b) = (vec![0.0; 4 * 16 * 16], vec![0.0; 4 * 16 * 16]);
    plan.brownian_tree().increment(most, least, &mut a);
    expected.increment(most, least, &mut b);
    assert_eq!(a, b);
    assert!(a.iter().all(|&x| x != 0.0));
}

#[test]
fn sizes_that_are_no_multiple_of_the_unets_stride_work() {
    for (width, height) in [(128, 72), (104, 136), (64, 64)] {
        let request = Request {
            width: Some(width),
            height: Some(height),
            steps: Some(2),
            ..circle()
        };
        let picture = &run(&request, None).pictures[0];
        assert_eq!(
            (picture.width, picture.height, picture.rgb.len()),
            (width, height, 3 * width * height)
        );
    }
}

#[test]
fn a_dump_holds_what_its_name_says_and_its_noise_makes_the_same_picture() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    let mut dump = Dump::default();
    let first = run(
        &Request {
            rng: Rng::Philox,
            ..circle()
        },
        Some(&mut dump),
    );
    dump.write(&Destination::find(&file).unwrap(), &Cancel::new())
        .unwrap();
    let tensors = Reference::open(&file);
    assert_eq!(tensors.ids("token_ids").shape(), [1, 77]);
    assert_eq!(tensors.get("text_embeddings_uncond").shape(), [1, 77, 128]);
    for name in [
        "initial_noise",
        "latents.000",
        "denoised.007",
        "final_latents",
    ] {
        assert_eq!(tensors.get(name).shape(), [1, 4, 16, 16], "{name}");
    }
    // The last step of DPM++ 2M goes all the way to the last estimate.
    assert!(relative_l2(&tensors.get("latents.007"), &tensors.get("denoised.007")) < 1e-6);
    let again = Request {
        seed: 99,
        initial_noise: Some(file),
        ..circle()
    };
    assert_eq!(run(&again, None).pictures, first.pictures);
}

#[test]
fn emphasis_and_negative_prompts_change_the_picture_and_long_prompts_take_more_chunks() {
    let plain = picture(&circle());
    let psnr_with = |request: &Request| psnr(&picture(request), &plain);
    let stressed = Request {
        prompt: "a large (red:0.5) circle on a (blue:1.5) background".to_owned(),
        ..circle()
    };
    assert!(psnr_with(&stressed) < 45.0);
    assert!(
        psnr_with(&Request {
            negative_prompt: Some("a green square".to_owned()),
            ..circle()
        }) < 45.0
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    let mut dump = Dump::default();
    let long = Request {
        prompt: "a red circle, ".repeat(25),
        steps: Some(1),
        ..circle()
    };
    run(&long, Some(&mut dump));
    dump.write(&Destination::find(&file).unwrap(), &Cancel::new())
        .unwrap();
    assert_eq!(
        Reference::open(&file).get("text_embeddings").shape(),
        [1, 154, 128]
    );
    let cut = Request {
        profile: &DIFFUSERS,
        ..long
    };
    let warnings = run(&cut, None).warnings;
    assert!(warnings[0].contains("cut off"), "{warnings:?}");
}

#[test]
fn clip_skip_takes_an_earlier_layer() {
    let skipped = Request {
        clip_skip: 2,
        ..circle()
    };
    let made = run(&skipped, None);
    assert!(made.infotext().contains("Clip skip: 2"));
    assert!(psnr(&made.pictures[0].rgb, &picture(&circle())) < 45.0);
    let beyond = Request {
        clip_skip: 6,
        ..circle()
    };
    let error = make(demo_model(), &beyond, None).unwrap_err();
    assert!(error.to_string().contains("4 inner layers"), "{error}");
}

#[test]
fn infotexts_say_how_the_picture_was_made() {
    let request = Request {
        negative_prompt: Some("fog".to_owned()),
        ..circle()
    };
    let text = &run(&request, None).infotext();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[..2],
        [
            "a large red circle on a blue background",
            "Negative prompt: fog"
        ]
    );
    let expected = "Steps: 8, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 1, Size: 128x128, \
                    Model hash: 30398d282e, Model: tiny-shapes, RNG: CPU, Weights hash: ";
    assert!(lines[2].starts_with(expected), "{}", lines[2]);
}

#[test]
fn requests_that_make_no_sense_are_answered_before_anything_is_opened() {
    for (request, said) in [
        (
            Request {
                width: Some(100),
                ..circle()
            },
            "104",
        ),
        (
            Request {
                height: Some(8),
                ..circle()
            },
            "64",
        ),
        (
            Request {
                steps: Some(0),
                ..circle()
            },
            "steps",
        ),
        (
            Request {
                batch: 0,
                ..circle()
            },
            "batch",
        ),
        (
            Request {
                guidance_scale: Some(f64::NAN),
                ..circle()
            },
            "guidance_scale",
        ),
        (
            Request {
                subseed: Some(1),
                subseed_strength: 1.5,
                ..circle()
            },
            "subseed_strength 1.5 is out of range",
        ),
        (
            Request {
                subseed_strength: 0.5,
                ..circle()
            },
            "needs a subseed",
        ),
        (
            Request {
                seed_resize: Some([512, 500]),
                ..circle()
            },
            "seed_resize[1] 500",
        ),
    ] {
        let error = request.check().unwrap_err();
        let hint = error.hint().map(|hint| hint.to_string());
        let error = format!("{error}; {}", hint.unwrap_or_default());
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_run_stops_when_the_user_wants() {
    let model = Models::one(ModelDir::open(demo_model()).unwrap());
    let plans = Plans::resolve(&circle(), &model, u64::MAX).unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    let error = pipeline::run(&plans, &model, engine(), &cancel, &mut |_| (), None);
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "interrupted");
}

#[test]
fn diffusers_guides_above_1_only_and_a1111_at_any_scale() {
    let made = |profile, guidance_scale| {
        let request = Request {
            profile,
            guidance_scale: Some(guidance_scale),
            sampler: Some(&EULER),
            steps: Some(3),
            ..circle()
        };
        let mut made = run(&request, None);
        (made.pictures.remove(0), made.notes)
    };
    let one = made(&DIFFUSERS, 1.0).0;
    for scale in [0.0, 0.5] {
        assert!(made(&DIFFUSERS, scale).0 == one, "{scale}");
        assert!(made(&A1111, scale).0 != made(&A1111, 1.0).0);
    }
    assert!(made(&DIFFUSERS, 1.5).0 != one);
    let notes = made(&A1111, 0.0).1;
    assert!(notes[0].contains("negative prompt only"), "{notes:?}");
}

#[test]
fn clip_skip_acts_where_the_profiles_program_applies_it() {
    let dir = tempfile::tempdir().unwrap();
    let embeddings = |path: &Path, profile: Profile, clip_skip| {
        let file = dir.path().join("dump.safetensors");
        let request = Request {
            profile,
            clip_skip,
            negative_prompt: Some("fog".to_owned()),
            steps: Some(1),
            width: Some(64),
            height: Some(64),
            ..circle()
        };
        let mut dump = Dump::default();
        let made = make(path, &request, Some(&mut dump)).unwrap();
        dump.write(&Destination::find(&file).unwrap(), &Cancel::new())
            .unwrap();
        let tensors = Reference::open(&file);
        let get = |name: &str| tensors.get(name);
        (
            get("text_embeddings"),
            get("text_embeddings_uncond"),
            made.notes,
        )
    };
    let demo = demo_model();
    for (profile, reaches_negative) in [(&A1111, true), (&DIFFUSERS, false)] {
        let (last, skipped) = (embeddings(demo, profile, 1), embeddings(demo, profile, 2));
        assert!(last.0 != skipped.0, "{}", profile.name);
        assert_eq!(last.1 != skipped.1, reaches_negative, "{}", profile.name);
    }
    let (_dir, sd21) = synthetic("sd21");
    let (last, skipped) = (embeddings(&sd21, &A1111, 1), embeddings(&sd21, &A1111, 2));
    assert!(last.0 == skipped.0);
    assert!(skipped.2[0].contains("no effect"), "{:?}", skipped.2);
}

#[test]
fn sdxl_is_told_sizes_crop_and_zeros_for_no_negative_prompt() {
    let (_dir, path) = synthetic("sdxl");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    let dumped = |request: &Request| {
        let mut dump = Dump::default();
        make(&path, request, Some(&mut dump)).unwrap();
        dump.write(&Destination::find(&file).unwrap(), &Cancel::new())
            .unwrap();
        Reference::open(&file)
    };
    let request = |profile, negative: Option<&str>| Request {
        profile,
        negative_prompt: negative.map(str::to_owned),
        sampler: Some(&EULER),
        width: Some(64),
        height: Some(128),
        steps: Some(1),
        ..circle()
    };
    let plain = dumped(&request(&A1111, None));
    let ids: Vec<f32> = plain.get("time_ids").into_iter().collect();
    assert_eq!(ids, [128.0, 64.0, 0.0, 0.0, 128.0, 64.0]);
    assert_eq!(plain.ids("token_ids_2").shape(), [1, 77]);
    let width = plain.get("text_embeddings").shape()[2];
    assert!(plain.get("pooled").shape()[1] < width);
    for (profile, negative, zeros) in [
        (&A1111, None, true),
        (&A1111, Some(""), true),
        (&A1111, Some("fog"), false),
        (&DIFFUSERS, None, true),
        (&DIFFUSERS, Some(""), false),
    ] {
        let dump = dumped(&request(profile, negative));
        for name in ["text_embeddings_uncond", "pooled_uncond"] {
            let found = dump.get(name).iter().all(|&x| x == 0.0);
            assert_eq!(found, zeros, "{} {negative:?} {name}", profile.name);
        }
    }
    let told = Request {
        micro: Micro {
            original_size: Some([1000, 2000]),
            target_size: Some([512, 256]),
            crop: [3, 5],
        },
        ..request(&A1111, None)
    };
    let ids: Vec<f32> = dumped(&told).get("time_ids").into_iter().collect();
    assert_eq!(ids, [2000.0, 1000.0, 5.0, 3.0, 256.0, 512.0]);
    let warnings = run(&told, None).warnings;
    assert!(warnings[0].contains("no SDXL"), "{warnings:?}");
}

#[test]
fn what_does_nothing_is_said() {
    let model = Models::one(ModelDir::open(demo_model()).unwrap());
    let said = |request: &Request| {
        let plans = Plans::resolve(request, &model, u64::MAX).unwrap();
        plans.notes
    };
    let with = |sampler, options| Request {
        sampler: Some(sampler),
        options,
        ..circle()
    };
    let default = Options::default();
    let churn = Options {
        s_churn: 2.0,
        s_tmin: 0.1,
        s_tmax: 5.0,
        s_noise: 1.01,
        ..default
    };
    for (request, expected) in [
        (with(&EULER, default), None),
        (with(&EULER, churn), None),
        (
            with(
                &EULER,
                Options {
                    s_tmax: 5.0,
                    ..default
                },
            ),
            Some("s_tmin and s_tmax have no effect without s_churn"),
        ),
        (
            with(
                &EULER,
                Options {
                    s_tmin: 900.0,
                    ..churn
                },
            ),
            Some("no step begins between s_tmin and s_tmax"),
        ),
        (
            with(
                &EULER,
                Options {
                    s_noise: 1.01,
                    ..default
                },
            ),
            Some("s_noise has no effect: with these options Euler adds no noise"),
        ),
        (
            with(
                &EULER_ANCESTRAL,
                Options {
                    s_noise: 1.01,
                    ..default
                },
            ),
            None,
        ),
        (
            Request {
                ensd: 31_337,
                ..with(&EULER, default)
            },
            Some("another seed for later noise has no effect: with these options Euler"),
        ),
        (
            Request {
                ensd: 31_337,
                ..with(&EULER_ANCESTRAL, default)
            },
            None,
        ),
        (
            Request {
                aesthetic: [7.0, 2.5],
                ..circle()
            },
            Some("aesthetic scores have no effect without SDXL's refiner"),
        ),
        (
            Request {
                refiner_start: 0.5,
                ..circle()
            },
            Some("the refiner's start has no effect without a refiner"),
        ),
    ] {
        let notes = said(&request);
        match expected {
            None => assert!(notes.is_empty(), "{notes:?}"),
            Some(text) => assert!(notes.iter().any(|note| note.contains(text)), "{notes:?}"),
        }
    }
}

#[test]
fn a_refiner_ends_what_the_base_model_began() {
    let (_base, base) = synthetic("sdxl");
    let (_refiner, refiner) = synthetic("sdxl-refiner");
    let open = |path: &Path| ModelDir::open(path).unwrap();
    let refined = Models {
        refiner: Some(open(&refiner)),
        ..Models::one(open(&base))
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    let request = |profile, refiner_start| Request {
        profile,
        refiner_start,
        sampler: Some(&EULER),
        width: Some(64),
        height: Some(64),
        steps: Some(5),
        ..circle()
    };
    let dumped = |models: &Models, request: &Request| {
        let mut dump = Dump::default();
        let made = make_with(models, request, Some(&mut dump)).unwrap();
        dump.write(&Destination::find(&file).unwrap(), &Cancel::new())
            .unwrap();
        (Reference::open(&file), made)
    };
    for profile in PROFILES {
        let (alone, _) = dumped(&Models::one(open(&base)), &request(profile, 0.8));
        let (both, made) = dumped(&refined, &request(profile, 0.6));
        assert_eq!(made.calls, 5);
        let same: Vec<bool> = (0..5)
            .map(|i| format!("denoised.{i:03}"))
            .map(|name| alone.get(&name) == both.get(&name))
            .collect();
        // Timesteps 999, 749, 499 .. (A1111) and 801, 601, 401 .. (leading): below 400 the refiner is called.
        assert_eq!(same, [true, true, true, false, false], "{}", profile.name);
        let ids: Vec<f32> = both.get("time_ids_refiner").into_iter().collect();
        assert_eq!(ids, [64.0, 64.0, 0.0, 0.0, 6.0]);
        assert!(both.find("text_embeddings_refiner").is_some());
        assert!(made.infotext().contains("Refiner switch at: 0.6"));
    }
    // Another family has other latents.
    let strange = Models {
        refiner: Some(open(&refiner)),
        ..Models::one(open(demo_model()))
    };
    let error = make_with(&strange, &circle(), None)
        .unwrap_err()
        .to_string();
    let said = "its family is SDXL refiner; expected Stable Diffusion 1.x";
    assert!(error.contains(said), "{error}");
}
