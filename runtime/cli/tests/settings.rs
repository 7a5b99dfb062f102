//! The settings in pictures' files: formats, replaying, and taking them over.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::fs;
use std::path::Path;

use common::{folder, run, sdrun};
use sd_converter::build::{BuildOptions, BuildPlan};
use sd_converter::checkpoint::SafetensorsFile;
use sd_converter::progress::Unwatched;
use sd_converter::synth::{Kind, Synth};
use sd_converter::weights::Weights;
use sd_runtime::engine::Cancel;
use sd_runtime::pipeline::{Destination, Format, Picture, PictureFile};

/// A grey picture with settings of any program.
fn picture_with(path: &Path, parameters: &str) {
    let picture = Picture {
        width: 64,
        height: 64,
        rgb: vec![128; 3 * 64 * 64],
    };
    let to = Destination::find(path).unwrap();
    let format = Format::of(path).unwrap();
    picture
        .write(&to, format, parameters, &Cancel::new())
        .unwrap();
}

const SHORT: [&str; 11] = [
    "txt2img",
    "-p",
    "a red circle",
    "--steps",
    "2",
    "-W",
    "64",
    "-H",
    "64",
    "--seed",
    "5",
];

#[test]
fn a_tiny_decoder_is_told_and_wanted_again() {
    let dir = folder();
    let file = dir.path().join("taesd.safetensors");
    let synth = Synth {
        kind: Kind::named("taesd").unwrap(),
        tiny: true,
        seed: 0,
    };
    synth.write(&file, false, &Unwatched).unwrap();
    let weights = Weights::from_source(Box::new(SafetensorsFile::open(&file).unwrap())).unwrap();
    let plan = BuildPlan::new(Box::new(weights), BuildOptions::default()).unwrap();
    plan.write(&dir.path().join("models/taesd"), &Unwatched)
        .unwrap();

    let tiny = ["--vae-approx", "models/taesd"];
    let more = ["--preview", "2", "-o", "a.png", "--json"];
    let (code, stdout, stderr) = run(sdrun(dir.path()).args(SHORT).args(tiny).args(more));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains(r#""vae_decoder":"TAESD""#), "{stdout}");
    let preview = image::open(dir.path().join("a.step-002.png")).unwrap();
    assert_eq!((preview.width(), preview.height()), (64, 64));

    let replay = |args: &[&str]| run(sdrun(dir.path()).args(["replay", "a.png"]).args(args)).1;
    assert_eq!(replay(&tiny), "equal\n");
    assert_eq!(replay(&["--models", "models"]), "equal\n");
    assert!(replay(&[]).starts_with("missing: vae-approx "));
    let again = ["txt2img", "--from-png", "a.png", "-o", "b.png", "--json"];
    let (code, stdout, stderr) = run(sdrun(dir.path()).args(again));
    assert!(
        code == Some(0) && stderr.contains("not carried over: VAE Decoder: TAESD"),
        "{stderr}"
    );
    assert!(stdout.contains(r#""vae_decoder":"Full""#), "{stdout}");
    let (code, _, stderr) = run(sdrun(dir.path()).args(again).args(tiny));
    assert!(
        code == Some(0) && !stderr.contains("not carried over"),
        "{stderr}"
    );

    let full = ["-o", "full.png"];
    let (code, _, stderr) = run(sdrun(dir.path()).args(SHORT).args(full));
    assert_eq!(code, Some(0), "{stderr}");
    for command in [
        &["replay", "full.png"][..],
        &["txt2img", "--from-png", "full.png", "-o", "d.png"],
    ] {
        let (_, _, stderr) = run(sdrun(dir.path()).args(command).args(tiny));
        assert!(
            stderr.contains("not carried over: VAE Decoder: Full"),
            "{command:?}: {stderr}"
        );
    }

    let (code, _, stderr) = run(sdrun(dir.path()).args(SHORT).args(["--vae-approx", "."]));
    assert!(
        code == Some(1) && stderr.contains("hint: `sdconvert build taesd"),
        "{stderr}"
    );
    fs::write(
        dir.path().join("jobs.jsonl"),
        r#"{"prompt": "x", "steps": 1}"#,
    )
    .unwrap();
    let batch = ["batch", "jobs.jsonl", "-o", "many"];
    let (code, _, stderr) = run(sdrun(dir.path()).args(batch).args(tiny));
    assert_eq!(code, Some(0), "{stderr}");
    let picture = PictureFile::open(&dir.path().join("many/000001.png")).unwrap();
    assert!(picture.parameters.contains("VAE Decoder: TAESD"));
    // The same job by another decoder is another one.
    let (code, _, stderr) = run(sdrun(dir.path()).args(batch));
    assert!(code == Some(2) && stderr.contains("another"), "{stderr}");
}

#[test]
fn pictures_are_written_in_three_formats_and_replayed() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    for (name, more) in [
        ("a.png", &[][..]),
        ("b.jpg", &["--quality", "95"]),
        ("c.webp", &["--compute", "auto"]),
    ] {
        let (code, _, stderr) = run(sdrun(dir.path()).args(SHORT).args(["-o", name]).args(more));
        assert_eq!(code, Some(0), "{stderr}");
        assert_eq!(image::open(at(name)).unwrap().width(), 64);
        let (code, stdout, stderr) = run(sdrun(dir.path()).args(["replay", name]));
        assert_eq!(
            (code, stdout.as_str()),
            (Some(0), "equal\n"),
            "{name}: {stderr}"
        );
        assert_eq!(stderr, "", "{name}");
    }
    let data = at("models");
    let found = |folder: &Path| {
        run(sdrun(dir.path())
            .args(["replay", "a.png", "--models"])
            .arg(folder))
    };
    assert_eq!(found(&data).1, "equal\n");
    fs::create_dir(at("empty")).unwrap();
    let (code, stdout, stderr) = found(&at("empty"));
    assert_eq!(
        (code, stdout.as_str()),
        (Some(1), "missing: model 30398d282e\n"),
        "{stderr}"
    );
    assert_eq!(stderr, "");

    // The same settings with other pixels.
    let settings = PictureFile::open(&at("a.png")).unwrap().parameters;
    picture_with(&at("grey.png"), &settings);
    let (code, stdout, _) = run(sdrun(dir.path()).args(["replay", "grey.png"]));
    assert_eq!(code, Some(1));
    assert!(
        stdout.starts_with("differs: PSNR ") && stdout.contains(" dB, max level "),
        "{stdout}"
    );

    // A model that is given is not another one, and settings of a graph that cannot be had are told.
    let another = settings.replace("30398d282e", "0123456789");
    picture_with(&at("another.png"), &another);
    let said = run(sdrun(dir.path())
        .args(["replay", "another.png", "-m"])
        .arg(data.join("tiny-shapes-0.1.0")));
    assert_eq!(
        (said.0, said.1.as_str()),
        (Some(1), "missing: model 0123456789\n"),
        "{}",
        said.2
    );
    let scalar = ["--instructions", "scalar", "-o", "e.png", "--json"];
    let (code, stdout, stderr) = run(sdrun(dir.path())
        .args(["txt2img", "--from-png", "a.png"])
        .args(scalar));
    assert_eq!(code, Some(0), "{stderr}");
    let told = stdout.contains(r#"{"field":"Graph","value":"native"}"#);
    assert_eq!(told, settings.contains("Graph: native"), "{stdout}");
    let graph = ["--instructions", "scalar", "--graph", "native"];
    let (code, ..) = run(sdrun(dir.path())
        .args(["txt2img", "--from-png", "a.png", "-o", "e.png"])
        .args(graph));
    assert_eq!(code, Some(1));
    // A provider that is named is taken, whatever the settings have.
    let openvino = format!("{settings}, EP: openvino");
    picture_with(&at("openvino.png"), &openvino);
    let (code, stdout, stderr) =
        run(sdrun(dir.path()).args(["replay", "openvino.png", "--ep", "cpu"]));
    assert!(
        code == Some(1) && stdout.starts_with("differs: "),
        "{stderr}"
    );
    assert!(
        stderr.contains("not carried over: EP: openvino"),
        "{stderr}"
    );

    let quality = ["--quality", "9", "-o", "d.png"];
    assert_eq!(run(sdrun(dir.path()).args(SHORT).args(quality)).0, Some(2));
    let long = "word ".repeat(8000);
    let (code, _, stderr) = run(sdrun(dir.path()).args(["txt2img", "-p", &long, "-o", "d.jpg"]));
    assert_eq!(code, Some(2));
    assert!(stderr.contains("65527 bytes that a JPEG holds"), "{stderr}");
}

#[test]
fn settings_come_from_pictures_and_options_override_them() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    let text = "a red circle\nNegative prompt: fog\nSteps: 2, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 64x72, Model hash: 6ce0161689, Model: v1-5, \
                Clip skip: 2, Token merging ratio: 0.5, Hires upscale: 2, Version: v1.8.0";
    picture_with(&at("theirs.webp"), text);
    let told = |more: &[&str]| {
        let base = [
            "txt2img",
            "--from-png",
            "theirs.webp",
            "-o",
            "ours.png",
            "--json",
        ];
        let (code, stdout, stderr) = run(sdrun(dir.path()).args(base).args(more));
        assert_eq!(code, Some(0), "{stderr}");
        let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        (
            json,
            stderr,
            PictureFile::open(&at("ours.png")).unwrap().parameters,
        )
    };
    let (json, stderr, ours) = told(&[]);
    let expected = "a red circle\nNegative prompt: fog\nSteps: 2, Sampler: Euler a, Schedule type: Uniform, CFG scale: 5, Seed: 7, Size: 64x72, ";
    assert!(ours.starts_with(expected), "{ours}");
    assert!(ours.contains("Clip skip: 2, RNG: NV, "), "{ours}");
    let left_out = [
        ("Token merging ratio", "0.5"),
        ("Hires upscale", "2"),
        ("Model", "v1-5"),
        ("Model hash", "6ce0161689"),
    ];
    let listed = left_out.map(|(field, value)| serde_json::json!({"field": field, "value": value}));
    assert_eq!(json["not_carried"], serde_json::json!(listed));
    for (field, value) in left_out {
        assert!(
            stderr.contains(&format!("not carried over: {field}: {value}\n")),
            "{stderr}"
        );
    }
    assert!(
        stderr.contains("the picture has 64x64 pixels, its settings are for 64x72"),
        "{stderr}"
    );

    let (_, _, ours) = told(&[
        "-p",
        "a star",
        "--seed",
        "8",
        "--sampler",
        "DDIM",
        "--rng",
        "torch-cpu",
        "--clip-skip",
        "1",
    ]);
    let expected = "a star\nNegative prompt: fog\nSteps: 2, Sampler: DDIM, CFG scale: 5, Seed: 8, Size: 64x72, ";
    assert!(
        ours.starts_with(expected) && ours.contains("tiny-shapes, RNG: CPU"),
        "{ours}"
    );

    // Without another option, the picture is the same as its settings by hand.
    let (_, _, from) = told(&[
        "-m",
        at("models").join("tiny-shapes-0.1.0").to_str().unwrap(),
    ]);
    let by_hand = [
        "txt2img",
        "-p",
        "a red circle",
        "-n",
        "fog",
        "--steps",
        "2",
        "--sampler",
        "Euler a",
        "--cfg",
        "5",
        "--seed",
        "7",
        "-W",
        "64",
        "-H",
        "72",
        "--clip-skip",
        "2",
        "--rng",
        "philox",
        "-o",
        "hand.png",
    ];
    assert_eq!(run(sdrun(dir.path()).args(by_hand)).0, Some(0));
    let file = |name: &str| PictureFile::open(&at(name)).unwrap();
    assert_eq!(file("hand.png").parameters, from);
    let pixels = |name: &str| file(name).decode().unwrap();
    assert_eq!(pixels("hand.png"), pixels("ours.png"));
}

#[test]
fn pictures_without_settings_are_errors_with_their_names() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    picture_with(&at("whole.png"), "a\nSteps: 1, Seed: 2, Size: 64x64");
    fs::write(at("cut.png"), &fs::read(at("whole.png")).unwrap()[..40]).unwrap();
    picture_with(&at("words.jpg"), "just words");
    for (file, said) in [
        ("none.png", "none.png: "),
        ("cut.png", "cut.png: "),
        ("words.jpg", "words.jpg: no settings in the text"),
    ] {
        for command in [&["replay", file][..], &["txt2img", "--from-png", file]] {
            let (code, _, stderr) = run(sdrun(dir.path()).args(command));
            assert_eq!(code, Some(1), "{stderr}");
            assert!(stderr.contains(said), "{stderr}");
        }
    }
}
