//! The program `sdrun`, as people call it and as they get it wrong.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{folder, run, sdrun};
use sd_runtime::pipeline::PictureFile;

/// Whether another program's reader takes the file for a picture of the demo model's size.
fn is_picture(path: &Path) -> bool {
    image::open(path).is_ok_and(|picture| (picture.width(), picture.height()) == (128, 128))
}

/// Names of a folder's pictures.
fn pictures(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".png")).collect();
    names.sort();
    names
}

#[test]
fn previews_lie_beside_pictures_and_change_nothing() {
    let dir = folder();
    let short = [
        "txt2img",
        "-p",
        "a red circle",
        "--steps",
        "5",
        "--seed",
        "7",
    ];
    let (code, _, stderr) = run(sdrun(dir.path()).args(short).args(["-o", "plain.png"]));
    assert_eq!(code, Some(0), "{stderr}");
    let args = ["--preview", "2", "--batch", "2", "-o", "a.b.png"];
    let (code, _, stderr) = run(sdrun(dir.path()).args(short).args(args));
    assert_eq!(code, Some(0), "{stderr}");
    let previews = |i: usize| [2, 4].map(|step| format!("a.b-{i:03}.step-{step:03}.png"));
    let mut expected = [previews(0).as_slice(), &previews(1)].concat();
    expected.extend(["a.b-000.png", "a.b-001.png", "plain.png"].map(str::to_owned));
    expected.sort();
    assert_eq!(pictures(dir.path()), expected);
    let bytes = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("a.b-000.png") == bytes("plain.png"));
    for name in [previews(0), previews(1)].concat() {
        let picture = image::open(dir.path().join(&name)).unwrap();
        assert_eq!((picture.width(), picture.height()), (16, 16), "{name}");
        // Nobody takes it for a picture with settings.
        assert!(PictureFile::open(&dir.path().join(&name)).is_err());
    }
    assert!(bytes("a.b-000.step-002.png") != bytes("a.b-001.step-002.png"));

    // Pictures that get a name have it before their previews.
    let (code, _, stderr) = run(sdrun(dir.path()).args(short).args(["--preview", "5"]));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(dir.path().join("sdrun-7.step-005.png").is_file());
    assert!(bytes("sdrun-7.png") == bytes("plain.png"));

    let (code, _, stderr) = run(sdrun(dir.path()).args(short).args(["--preview", "6"]));
    assert!(
        code == Some(0) && stderr.contains("there are no previews"),
        "{stderr}"
    );
}

#[test]
fn a_long_run_says_how_long_it_takes_by_one_before() {
    let dir = folder();
    let run_of = |steps: &str, more: &[&str]| {
        let short = ["txt2img", "-p", "x", "-W", "64", "-H", "64", "--json"];
        let args = ["--seed", "1", "-o", "a.png", "--steps", steps];
        let made = run(sdrun(dir.path()).args(short).args(args).args(more));
        assert_eq!(made.0, Some(0), "{}", made.2);
        assert!(made.1.starts_with('{'), "{}", made.1);
        made.2
    };
    assert!(!run_of("1", &[]).contains("takes about"));
    // As if the step had taken 10 s, half of it for the negative prompt.
    let file = dir.path().join("runs.json");
    let mut runs: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let took = &mut runs["measurements"][0]["result"]["took"];
    *took = serde_json::json!({"encode": 1.0, "load": 2.0, "per_step": 5.0, "decode": 7.0});
    let slow = serde_json::to_vec(&runs).unwrap();
    let told = |steps: &str, more: &[&str]| {
        fs::write(&file, &slow).unwrap();
        run_of(steps, more)
    };
    let said = told("3", &["--sampler", "Euler"]);
    assert!(said.contains("this takes about 40 s"), "{said}");
    let said = told("3", &["--sampler", "Euler", "--cfg", "1", "--batch", "2"]);
    assert!(said.contains("this takes about 47 s"), "{said}");
    assert_eq!(told("3", &["-q"]), "");
    // What is shown on the way takes time, too, and other sizes are other runs.
    let before = fs::read(&file).unwrap();
    assert!(!run_of("1", &["-W", "72"]).contains("takes about"));
    assert!(fs::read(&file).unwrap() != before);
    assert!(!told("1", &["--preview", "1"]).is_empty());
    assert!(fs::read(&file).unwrap() == slow);
}

#[test]
fn previews_that_cannot_be_written_are_refused_before_the_run() {
    let dir = folder();
    let short = ["txt2img", "-p", "x", "--steps", "1", "--preview"];
    for args in [
        ["0", "-o", "a.png"],
        ["1", "-o", "-"],
        ["1", "-o", "/dev/null"],
    ] {
        let (code, _, stderr) = run(sdrun(dir.path()).args(short).args(args));
        assert!(
            code == Some(2) && stderr.contains("--preview"),
            "{args:?}: {stderr}"
        );
    }
    fs::create_dir(dir.path().join("a.step-001.png")).unwrap();
    let (code, _, stderr) = run(sdrun(dir.path()).args(short).args(["1", "-o", "a.png"]));
    assert!(
        code == Some(1) && stderr.contains("cannot write a.step-001.png"),
        "{stderr}"
    );
    assert!(!dir.path().join("a.png").exists() && !stderr.contains("converting"));
}

#[test]
fn the_demo_makes_a_picture_and_says_what_to_try_next() {
    let dir = folder();
    let (code, stdout, stderr) = run(sdrun(dir.path()).arg("demo"));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stdout.contains("demo.png")
            && stderr.contains("sdrun txt2img")
            && stderr.contains("sdconvert build")
    );
    assert!(is_picture(&dir.path().join("demo.png")));
    // The model is converted once.
    let (code, _, stderr) = run(sdrun(dir.path()).args(["demo", "-o", "second.png"]));
    assert!(
        code == Some(0) && !stderr.contains("converting"),
        "{stderr}"
    );
    let bytes = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("demo.png") == bytes("second.png"));
}

#[test]
fn pictures_have_numbers_and_results_are_one_json_object() {
    let dir = folder();
    let args = [
        "txt2img",
        "-p",
        "a red circle",
        "--steps",
        "2",
        "--batch",
        "2",
        "--seed",
        "7",
        "-o",
        "out.png",
        "--json",
    ];
    let (code, stdout, stderr) = run(sdrun(dir.path())
        .args(args)
        .args(["--dump", "d.safetensors"]));
    assert_eq!(code, Some(0), "{stderr}");
    let result: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(result["images"][1]["seed"], 8);
    assert_eq!(result["images"][1]["file"], "out-001.png");
    for name in ["out-000.png", "out-001.png"] {
        assert!(is_picture(&dir.path().join(name)));
    }
    assert!(dir.path().join("d.safetensors").exists());
}

#[test]
fn wrong_usage_is_answered_with_2_before_anything_is_opened() {
    let dir = folder();
    for (args, said) in [
        (vec!["--sampler", "DPM++ 2N"], "DPM++ 2M"),
        (vec!["-W", "100"], "104"),
        (vec!["--steps", "0"], "steps"),
        (vec!["--schedule", "spiral"], "karras"),
        (vec!["--profile", "mine"], "a1111"),
        (vec!["--rng", "dice"], "philox"),
        (
            vec!["--sampler", "DDIM", "--schedule", "karras"],
            "noise levels of its own",
        ),
        (vec!["--ep", "abacus"], "openvino"),
        (vec!["--seed", "-2"], "-1 for a random one"),
        (
            vec!["--seed", "18446744073709551615", "--batch", "2"],
            "seed of the last picture",
        ),
        (vec!["--sampler", "TCD"], "under those of diffusers"),
        (
            vec!["--sampler", "Euler", "--eta", "0.5"],
            "no effect on Euler",
        ),
        (
            vec!["--sampler", "DPM++ 2M Karras", "--schedule", "uniform"],
            "say one of them",
        ),
        (
            vec![
                "--profile",
                "diffusers",
                "--sampler",
                "Euler a",
                "--schedule",
                "karras",
            ],
            "diffusers's rules",
        ),
        (vec!["--refiner-start", "0.5"], "--refiner <DIR>"),
        (vec!["--subseed", "3"], "--subseed-strength"),
        (vec!["--subseed-strength", "2"], "0 to 1"),
        (vec!["--seed-resize", "512"], "512x768"),
        (vec!["--seed-resize", "500x512"], "504"),
        (vec!["--noise", "brown"], "perlin"),
        (
            vec!["--noise", "pink", "--init-noise", "x"],
            "cannot be used with",
        ),
        (
            vec![
                "--profile",
                "diffusers",
                "--sampler",
                "Euler",
                "--schedule",
                "turbo",
            ],
            "no schedule Turbo",
        ),
        (
            vec!["--profile", "comfyui", "--sampler", "Restart"],
            "cannot be run under comfyui's rules",
        ),
        (
            vec!["--profile", "comfyui", "--sampler", "DDIM", "--eta", "1"],
            "no effect on Euler",
        ),
        (
            vec!["--sampler", "DPM adaptive", "--schedule", "karras"],
            "noise levels of its own",
        ),
        (vec!["-o", "x.gif"], "-o x.png"),
        (
            vec!["-o", "same", "--dump", "./same"],
            "overwrite each other",
        ),
        (vec!["-o", "-", "--json"], "standard output"),
        (vec!["-o", "-", "--batch", "2"], "one pipe"),
        (
            vec!["--cfg", "-3"],
            "--cfg: guidance_scale -3 is out of range",
        ),
        (
            vec!["--sampler", "DPM++ 2M", "--s-tmax", "3"],
            "--s-tmax: options.s_tmax has no effect on DPM++ 2M",
        ),
        (vec!["--s-tmin", "nan"], "--s-tmin: "),
        (vec!["--original-size", "0x512"], "1 to 16384"),
        (vec!["--original-size", "-5x512"], "512x768"),
        (vec!["--target-size", "512x99999"], "--target-size: "),
        (vec!["--crop", "0,99999"], "0 to 16384"),
    ] {
        let (code, _, stderr) = run(sdrun(dir.path())
            .args(["txt2img", "-p", "x", "-m", "/nowhere"])
            .args(&args));
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// What is wrong with the command line ends with 2 also where only the model tells.
#[test]
fn wrong_usage_that_the_model_tells_is_answered_with_2() {
    let dir = folder();
    for (args, said) in [
        // The demo model runs with DPM++ 2M.
        (
            vec!["--eta", "0.5"],
            "--eta: options.eta has no effect on DPM++ 2M",
        ),
        (vec!["--clip-skip", "11"], "clip skip 11"),
        (
            vec!["-p", "a (red:9999999) circle"],
            "`red` a weight of 9999999",
        ),
    ] {
        let prompt = ["txt2img", "--steps", "1"];
        let default = match args.contains(&"-p") {
            true => vec![],
            false => vec!["-p", "x"],
        };
        let (code, _, stderr) = run(sdrun(dir.path()).args(prompt).args(default).args(&args));
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
}

#[test]
fn a_native_graph_that_is_not_there_is_an_error_only_if_it_was_asked_for() {
    let dir = folder();
    assert_eq!(run(sdrun(dir.path()).arg("demo")).0, Some(0));
    let models = dir.path().join("models");
    let model = fs::read_dir(models).unwrap().next().unwrap().unwrap();
    fs::remove_file(model.path().join("sdrt.json")).unwrap();
    let made = |graph: &str| {
        let short = ["txt2img", "-p", "x", "--steps", "1", "--graph", graph, "-m"];
        run(sdrun(dir.path()).args(short).arg(model.path()))
    };
    let (code, _, stderr) = made("native");
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("native graph cannot be run") && stderr.contains("hint: convert"),
        "{stderr}"
    );
    assert_eq!(made("auto").0, Some(0));
}

#[test]
fn a_dump_takes_no_other_files_place() {
    let dir = folder();
    let model = dir.path().join("model.safetensors");
    fs::write(&model, "weights").unwrap();
    let short = ["txt2img", "-p", "x", "--steps", "1", "-o", "a.png"];
    let (code, _, stderr) = run(sdrun(dir.path())
        .args(short)
        .args(["--dump", "model.safetensors"]));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("model.safetensors: it exists and is no dump") && stderr.contains("hint:"),
        "{stderr}"
    );
    assert_eq!(fs::read(&model).unwrap(), b"weights");
}

#[test]
fn missing_models_outputs_and_providers_are_plain_errors() {
    let dir = folder();
    let txt2img = ["txt2img", "-p", "x", "--steps", "1"];
    for (args, said) in [
        (vec!["-m", "/nowhere"], "sdconvert build"),
        (vec!["-o", "no/such/folder.png"], "cannot write"),
        (vec!["--ep", "migraphx"], "migraphx"),
        (vec!["--init-noise", "absent"], "absent"),
    ] {
        let (code, _, stderr) = run(sdrun(dir.path()).args(txt2img).args(&args));
        assert_eq!(code, Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
    let (code, _, stderr) = run(sdrun(dir.path()).args(["txt2img", "-p", "a <lora:foo:0.8> b"]));
    assert!(
        code == Some(1) && stderr.contains("<lora:foo:0.8>") && stderr.contains("--lora foo"),
        "{stderr}"
    );
}

#[test]
#[cfg(unix)]
fn an_interrupt_ends_with_130_and_no_picture() {
    let dir = folder();
    assert_eq!(
        run(sdrun(dir.path()).args(["txt2img", "-p", "x", "--steps", "1", "-o", "first.png"])).0,
        Some(0)
    );
    let mut child = sdrun(dir.path())
        .args([
            "txt2img",
            "-p",
            "x",
            "--steps",
            "1000",
            "-W",
            "256",
            "-H",
            "256",
            "-o",
            "never.png",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut names: Vec<String> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["first.png", "models", "runs.json", "verified.json"]);
}

#[test]
fn a_picture_goes_to_standard_output_and_through_devices() {
    let dir = folder();
    let short = ["txt2img", "-p", "x", "--steps", "1", "--seed", "1"];
    let file = sdrun(dir.path())
        .args(short)
        .args(["-o", "a.png"])
        .output()
        .unwrap();
    assert!(file.status.success());
    let out = sdrun(dir.path())
        .args(short)
        .args(["-o", "-"])
        .output()
        .unwrap();
    assert!(out.status.success());
    assert!(out.stdout == fs::read(dir.path().join("a.png")).unwrap());
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let (code, _, stderr) = run(sdrun(dir.path()).args(short).args(["-o", "/dev/null"]));
        assert_eq!(code, Some(0), "{stderr}");
        let null = fs::metadata("/dev/null").unwrap();
        assert!(null.file_type().is_char_device());
    }
}

#[test]
fn seeds_of_minus_one_are_random_and_prompts_may_begin_with_a_dash() {
    let dir = folder();
    for seed in [&["--seed", "-1"][..], &["--seed=-1"]] {
        let (code, stdout, stderr) = run(sdrun(dir.path())
            .args([
                "txt2img",
                "-p",
                "-1girl, red",
                "-n",
                "--blurry",
                "--steps",
                "1",
            ])
            .args(["--json"])
            .args(seed));
        assert_eq!(code, Some(0), "{stderr}");
        let result: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert!(result["images"][0]["seed"].as_u64().unwrap() < 1 << 32);
    }
}

#[test]
fn variations_without_a_seed_have_a_random_one() {
    let dir = folder();
    let (code, stdout, stderr) = run(sdrun(dir.path())
        .args(["txt2img", "-p", "red", "--steps", "1", "--seed", "5"])
        .args(["--subseed-strength", "0.2", "--batch", "2", "--ensd", "-1"])
        .args(["--noise", "pink", "-o", "a.png", "--json"]));
    assert_eq!(code, Some(0), "{stderr}");
    let result: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    for image in result["images"].as_array().unwrap() {
        assert_eq!(image["seed"], 5);
        let file = fs::read(dir.path().join(image["file"].as_str().unwrap())).unwrap();
        let text = String::from_utf8_lossy(&file);
        assert!(text.contains("Variation seed strength: 0.2"));
        assert!(text.contains("Noise: pink"));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn names_that_are_not_unicode_are_no_reason_to_panic() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = folder();
    let name = OsStr::from_bytes(b"caf\xe9.png");
    let (code, stdout, stderr) = run(sdrun(dir.path())
        .args(["txt2img", "-p", "x", "--steps", "1", "--json", "-o"])
        .arg(name));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("caf"), "{stdout}");
    assert!(is_picture(&dir.path().join(name)));
}

#[test]
fn what_is_no_model_directory_is_called_what_it_is() {
    let dir = folder();
    let write = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    write("model.safetensors", "");
    write(
        "pointer.safetensors",
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    );
    write("unet.onnx", "");
    write("torch/unet/diffusion_pytorch_model.safetensors", "");
    write("torch/model_index.json", "{}");
    write("unet/model.onnx", "");
    write("notes.txt", "");
    fs::create_dir(dir.path().join("empty")).unwrap();
    for (name, said) in [
        ("model.safetensors", "sdconvert build model.safetensors"),
        ("pointer.safetensors", "git lfs pull"),
        ("unet.onnx", "the folder that holds unet/model.onnx"),
        ("torch", "sdconvert build torch"),
        ("unet", "the folder around it"),
        ("notes.txt", "a file, not a folder"),
        ("empty", "no unet/model.onnx"),
        ("absent", "no such folder"),
    ] {
        let (code, _, stderr) = run(sdrun(dir.path()).args(["txt2img", "-p", "x", "-m", name]));
        assert_eq!(code, Some(1), "{name}: {stderr}");
        assert!(stderr.contains(said), "{name}: {stderr}");
    }
}

#[test]
fn what_cannot_fit_is_refused_before_the_work_with_a_size_that_fits() {
    let dir = folder();
    let (code, _, stderr) = run(sdrun(dir.path()).args([
        "txt2img", "-p", "x", "-W", "4096", "-H", "4096", "--steps", "1",
    ]));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("GB of memory; there are") && stderr.contains(" fits"),
        "{stderr}"
    );
}

#[test]
fn phases_and_their_times_are_told_where_more_is_asked_for() {
    let dir = folder();
    let short = ["txt2img", "-p", "x", "--steps", "2", "--seed", "7"];
    let told = |more: &[&str]| run(sdrun(dir.path()).args(short).args(more)).2;
    let verbose = told(&["-v", "-o", "a.png"]);
    for (phase, fields) in [
        ("encode: load", "component text_encoder"),
        ("load", "component unet"),
        ("denoise", "steps 2, size 128x128, seed 7"),
        ("decode", "size 128x128, seed 7"),
        ("write", "file a.png, size 128x128"),
    ] {
        let begin = format!("{phase} ({fields}): ");
        let line = verbose.lines().find_map(|line| line.strip_prefix(&begin));
        let seconds = line.and_then(|rest| rest.strip_suffix(" s"));
        let seconds: Option<f64> = seconds.and_then(|seconds| seconds.parse().ok());
        assert!(seconds.is_some(), "{begin}: {verbose}");
    }
    assert!(!told(&["-o", "b.png"]).contains("component"));
}

#[test]
fn more_threads_than_processors_are_not_started() {
    let dir = folder();
    let (code, stdout, stderr) =
        run(sdrun(dir.path()).args(["doctor", "--threads", "1000", "--json"]));
    assert_eq!(code, Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let processors = std::thread::available_parallelism().unwrap().get();
    assert_eq!(report["threads"], processors);
    assert!(stderr.contains("--threads 1000"), "{stderr}");
}

#[test]
fn styles_and_embeddings_go_into_the_picture_and_its_settings() {
    let dir = folder();
    let styles = "name,prompt,negative_prompt\nnight,\"{prompt}, at night # or noon\",day\n";
    fs::write(dir.path().join("styles.csv"), styles).unwrap();
    fs::write(dir.path().join("broken.csv"), "name,prompt\na,\"b\"c\n").unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let inversion = "demo-stripes.safetensors";
    fs::create_dir(dir.path().join("words")).unwrap();
    fs::copy(
        demo.join(inversion),
        dir.path().join("words").join(inversion),
    )
    .unwrap();
    let short = [
        "txt2img",
        "-p",
        "a demo-stripes circle",
        "--steps",
        "1",
        "--seed",
        "7",
    ];
    let told = |more: &[&str]| run(sdrun(dir.path()).args(short).args(more));
    let styled = ["--styles", "styles.csv", "--style", "night"];
    let (code, _, stderr) =
        told(&[&styled[..], &["--embeddings", "words", "-o", "a.png"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("comment left out: # or noon"), "{stderr}");
    let picture = fs::read(dir.path().join("a.png")).unwrap();
    let settings = String::from_utf8_lossy(&picture);
    for part in [
        "a demo-stripes circle, at night \n\nNegative prompt: day\nSteps: 1",
        "TI hashes: \"demo-stripes: d8718ccac584\"",
    ] {
        assert!(settings.contains(part), "{part}");
    }
    for (more, said) in [
        (
            &["--styles", "broken.csv"][..],
            "broken.csv: line 2, column 6",
        ),
        (
            &["--styles", "styles.csv", "--style", "nigth"],
            "`night` is the nearest",
        ),
        (&["--embeddings", "nowhere"], "nowhere"),
    ] {
        let (code, _, stderr) = told(more);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
    assert_eq!(told(&["--style", "night"]).0, Some(2));
}

#[test]
fn presets_are_options_that_others_override() {
    let dir = folder();
    let presets = "[tiny]\nprompt = \"a star\"\nsteps = 1\nwidth = 64\nheight = 64\nseed = 3\n[wrong]\nstepz = 3\n";
    fs::write(dir.path().join("presets.toml"), presets).unwrap();
    let told = |words: &[&str]| {
        run(sdrun(dir.path())
            .args(["txt2img", "-o", "a.png"])
            .args(words))
    };
    let text = || {
        PictureFile::open(&dir.path().join("a.png"))
            .unwrap()
            .parameters
    };
    let (code, _, stderr) = told(&["--preset", "tiny", "--seed", "4"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        text().starts_with("a star\nSteps: 1, ") && text().contains("Seed: 4, Size: 64x64"),
        "{}",
        text()
    );
    for (words, code, said) in [
        (
            &["--preset", "wrong"][..],
            2,
            "preset `wrong`: unexpected argument '--stepz'",
        ),
        (&["--preset", "none"], 1, "there are tiny, wrong"),
        (
            &["--preset", "tiny", "--presets", "nowhere.toml"],
            1,
            "nowhere.toml",
        ),
        (&["--presets", "presets.toml", "-p", "a"], 2, "--preset"),
    ] {
        let (found, _, stderr) = told(words);
        assert_eq!(found, Some(code), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
}

#[test]
fn shells_get_completions_and_people_examples() {
    let dir = folder();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, stdout, _) = run(sdrun(dir.path()).args(["completions", shell]));
        assert_eq!(code, Some(0));
        assert!(
            stdout.contains("txt2img") && stdout.contains("from-png"),
            "{shell}"
        );
    }
    let (_, stdout, _) = run(sdrun(dir.path()).args(["txt2img", "--help"]));
    for heading in [
        "Prompt:",
        "Noise:",
        "Sampler options:",
        "SDXL:",
        "Refiner:",
        "Output:",
        "Engine:",
        "Examples:",
    ] {
        assert!(stdout.contains(&format!("\n{heading}\n")), "{heading}");
    }
}
