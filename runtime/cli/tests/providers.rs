//! Libraries and providers of `sdrun`: which are found, what is said of those that are missing or of no use, and who computes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::fs;
use std::io::Write;
use std::process::Command;

use common::{folder, run, runtime_library, sdrun};

/// A library that does not load leaves the one that was set up before.
#[test]
fn a_library_of_no_use_replaces_no_other() {
    let dir = folder();
    let whole = runtime_library();
    let set_up = dir.path().join("onnxruntime");
    fs::create_dir(&set_up).unwrap();
    let kept = set_up.join("libonnxruntime.so.1");
    fs::hard_link(whole, &kept)
        .or_else(|_| fs::copy(whole, &kept).map(drop))
        .unwrap();
    let cut = dir.path().join("cut/libonnxruntime.so");
    fs::create_dir(cut.parent().unwrap()).unwrap();
    fs::write(&cut, &fs::read(whole).unwrap()[..100_000]).unwrap();
    let (code, _, text) = run(sdrun(dir.path()).args(["setup", "--lib"]).arg(&cut));
    assert_eq!(code, Some(1));
    assert!(text.contains("the end of the file is missing"), "{text}");
    assert!(kept.is_file());
    assert_eq!(fs::read_dir(&set_up).unwrap().count(), 1);
}

#[test]
fn missing_and_wrong_libraries_are_said_plainly() {
    let dir = folder();
    let doctor = |configure: &dyn Fn(&mut Command)| {
        let mut command = sdrun(dir.path());
        // No Python either.
        command
            .arg("doctor")
            .env_remove("ORT_DYLIB_PATH")
            .env("PATH", "");
        configure(&mut command);
        let (code, _, stderr) = run(&mut command);
        assert_eq!(code, Some(1), "{stderr}");
        stderr
    };
    assert!(doctor(&|_| ()).contains("sdrun setup"));
    let absent = doctor(&|command| {
        command.args(["--lib", "absent.so"]);
    });
    assert!(
        absent.contains("absent.so") && absent.contains("not there"),
        "{absent}"
    );
    let text = dir.path().join("libonnxruntime.so");
    fs::write(&text, "no library").unwrap();
    let broken = doctor(&|command| {
        command.env("ORT_DYLIB_PATH", &text);
    });
    assert!(
        broken.contains("cannot be loaded") && broken.contains("sdrun setup"),
        "{broken}"
    );
    // The loader's own reason, not that it had one.
    assert!(
        broken.contains("file too short") || broken.contains("invalid ELF header"),
        "{broken}"
    );
}

/// A library with the right symbol and an old version, made with the C compiler that Rust links with.
#[test]
#[cfg(target_os = "linux")]
fn an_old_library_is_said_to_be_old() {
    let dir = folder();
    let (source, library) = (
        dir.path().join("old.c"),
        dir.path().join("libonnxruntime.so"),
    );
    let code = r#"
        static const void *api(unsigned version) { return 0; }
        static const char *name(void) { return "1.10.0"; }
        static const struct { const void *(*a)(unsigned); const char *(*v)(void); } base = { api, name };
        const void *OrtGetApiBase(void) { return &base; }
    "#;
    fs::write(&source, code).unwrap();
    let built = Command::new("cc")
        .arg("-shared")
        .arg("-fPIC")
        .arg("-o")
        .arg(&library)
        .arg(&source)
        .status()
        .unwrap();
    assert!(built.success());
    let (code, _, stderr) = run(sdrun(dir.path()).arg("doctor").arg("--lib").arg(&library));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("1.10.0") && stderr.contains("at least 1.22"),
        "{stderr}"
    );
}

#[test]
fn doctor_lists_library_and_providers() {
    let dir = folder();
    let (code, stdout, stderr) = run(sdrun(dir.path()).args(["doctor", "--json"]));
    assert_eq!(code, Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["providers"][0], "cpu");
    assert_eq!(report["origin"], "ORT_DYLIB_PATH");
}

/// Numbers that a provider does not compute in are wrong usage, known before the model is opened.
#[test]
fn numbers_that_a_provider_lacks_are_wrong_usage() {
    let dir = folder();
    let args = ["txt2img", "-m", "nowhere", "-p", "a", "--ep", "openvino"];
    let (code, _, stderr) = run(sdrun(dir.path()).args(args).args(["--compute", "i16"]));
    assert_eq!(code, Some(2), "{stderr}");
    assert!(
        stderr.contains("--compute i16: openvino does not"),
        "{stderr}"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn doctor_says_where_its_folder_comes_from_and_that_standard_output_is_full() {
    let (dir, elsewhere) = (folder(), folder());
    let (code, stdout, stderr) = run(sdrun(dir.path()).arg("doctor"));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("(named by SDRT_DATA_DIR)"), "{stdout}");
    let mut doctor = sdrun(dir.path());
    doctor
        .env_remove("SDRT_DATA_DIR")
        .env("XDG_DATA_HOME", elsewhere.path());
    let (code, stdout, stderr) = run(doctor.arg("doctor"));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("(SDRT_DATA_DIR names another)"), "{stdout}");

    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let doctor = sdrun(dir.path())
        .arg("doctor")
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(doctor.status.code(), Some(1));
    let stderr = String::from_utf8(doctor.stderr).unwrap();
    assert!(stderr.contains("cannot write standard output"), "{stderr}");
}

/// It would keep an identifier and a data base of events to send.
#[test]
fn onnx_runtime_collects_nothing_about_the_user() {
    let (dir, elsewhere) = (folder(), folder());
    let mut doctor = sdrun(dir.path());
    for variable in ["HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"] {
        doctor.env(variable, elsewhere.path());
    }
    let (code, _, stderr) = run(doctor.arg("doctor"));
    assert_eq!(code, Some(0), "{stderr}");
    let left: Vec<_> = fs::read_dir(elsewhere.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn onnx_runtimes_own_log_does_not_reach_the_user() {
    let dir = folder();
    assert_eq!(run(sdrun(dir.path()).arg("demo")).0, Some(0));
    let models = dir.path().join("models");
    let model = fs::read_dir(models).unwrap().next().unwrap().unwrap();
    fs::remove_file(model.path().join("sdrt.json")).unwrap();
    fs::write(model.path().join("unet/model.onnx"), "no graph").unwrap();
    let (code, _, stderr) = run(sdrun(dir.path())
        .args(["txt2img", "-p", "x", "-m"])
        .arg(model.path()));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("unet/model.onnx: ONNX Runtime cannot load it"));
    assert!(
        !stderr.contains("[E:") && !stderr.contains("\u{1b}["),
        "{stderr}"
    );
}

#[test]
fn the_only_provider_is_chosen_without_measuring_and_said() {
    let dir = folder();
    let args = [
        "txt2img", "-p", "x", "--steps", "1", "--ep", "auto", "--json",
    ];
    let option = ["--ep-option", "precision=bf16"];
    let (code, stdout, stderr) = run(sdrun(dir.path()).args(args).args(option));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("--ep-option does nothing"), "{stderr}");
    let result: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(result["ep"], "cpu");
    let choice = &result["ep_choice"];
    // Where the machine's library has OpenVINO, both were measured.
    let said = choice["why"].as_str().unwrap();
    assert!(said.contains("no library with another") || said.contains("openvino"));
}

#[test]
fn wrong_options_of_a_provider_are_answered_with_2() {
    let dir = folder();
    for (args, said) in [
        (vec!["--ep-option", "precision"], "KEY=VALUE"),
        (vec!["--ep-option", "precision=bf16"], "takes no options"),
        (
            vec!["--ep", "openvino", "--ep-option", "speed=high"],
            "num_of_threads",
        ),
        (
            vec!["--ep", "auto", "--ep-option", "num_streams=0"],
            "1 to 1024",
        ),
        (
            vec![
                "--ep",
                "openvino",
                "--ep-option",
                "precision=fp32",
                "--compute",
                "bf16",
            ],
            "contradict",
        ),
    ] {
        let mut command = sdrun(dir.path());
        let (code, _, stderr) = run(command.args(["txt2img", "-p", "x"]).args(args));
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
}

/// What is no plugin of a provider is told as what it is. A real one that `SDRT_TEST_PLUGIN` names makes a picture, with its
/// device, or says that it has none here.
#[test]
fn plugins_are_loaded_by_their_paths() {
    let dir = folder();
    fs::write(dir.path().join("text.so"), "no library").unwrap();
    let make = |args: &[&str]| {
        let mut command = sdrun(dir.path());
        command.args(["txt2img", "-p", "a red circle", "-W", "64", "-H", "64"]);
        run(command.args(["--steps", "2", "--seed", "1"]).args(args))
    };
    let library = runtime_library().to_str().unwrap();
    for (file, said) in [
        ("absent.so", "there is no such file"),
        ("text.so", "Failed to load library"),
        // A library with other functions.
        (library, "CreateEpFactories"),
    ] {
        let (code, _, stderr) = make(&["--ep-library", file]);
        assert!(
            code == Some(1) && stderr.contains(file) && stderr.contains(said),
            "{stderr}"
        );
        assert!(stderr.contains("hint: `--ep-library FILE`"), "{stderr}");
    }
    for (args, said) in [
        (&["--ep", "plugin"][..], "needs `--ep-library FILE`"),
        (
            &["--ep", "cpu", "--ep-library", "text.so"],
            "leave `--ep cpu` out",
        ),
    ] {
        let (code, _, stderr) = make(args);
        assert!(code == Some(2) && stderr.contains(said), "{stderr}");
    }
    let Some(plugin) = std::env::var_os("SDRT_TEST_PLUGIN") else {
        let text = "SKIPPED: SDRT_TEST_PLUGIN names no provider's plugin\n";
        std::io::stderr().write_all(text.as_bytes()).unwrap();
        return;
    };
    let plugin = plugin.to_str().unwrap();
    let (code, _, stderr) = make(&["--ep-library", plugin, "--strict-ep", "-o", "plugin.png"]);
    if stderr.contains("finds no device that it computes with") {
        assert_eq!(code, Some(1), "{stderr}");
        return;
    }
    assert_eq!(code, Some(0), "{stderr}");
    let option = ["--ep-option", "device=1000"];
    let (code, _, stderr) = make(&[&["--ep-library", plugin][..], &option].concat());
    assert!(
        code == Some(1) && stderr.contains("its devices are 0 ("),
        "{stderr}"
    );
}

/// The demo model's networks, as a processor of each level runs them.
#[test]
fn a_processor_without_the_instructions_runs_portable_graphs_and_says_so() {
    let dir = folder();
    let make = |more: &[&str]| {
        let short = ["txt2img", "-p", "x", "--steps", "2", "--seed", "7", "-v"];
        let (code, _, stderr) = run(sdrun(dir.path()).args(short).args(more));
        (code, stderr)
    };
    let (code, told) = make(&["--instructions", "scalar", "-o", "old.png"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("AVX2, FMA and F16C"), "{told}");
    let (code, told) = make(&["--graph", "portable", "-o", "portable.png"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(!told.contains("AVX2"), "{told}");
    let pixels = |name: &str| image::open(dir.path().join(name)).unwrap().into_rgb8();
    assert!(pixels("old.png") == pixels("portable.png"));

    let native = ["--instructions", "scalar", "--graph", "native"];
    let (code, told) = make(&native);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("AVX2"), "{told}");
}
