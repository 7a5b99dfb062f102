//! Pipes in place of small files: what is written to them is read, and who waits for a writer ends when the user wants to stop.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{folder, run, sdrun};

const JOB: &str = r#"{"prompt": "a red circle", "width": 64, "height": 64, "steps": 1, "seed": 1}"#;

/// Commands with a pipe called `pipe`, and what is written to it.
const READERS: [(&[&str], &str); 4] = [
    (&["batch", "pipe", "-o", "out"], JOB),
    (
        &[
            "txt2img",
            "--presets",
            "pipe",
            "--preset",
            "tiny",
            "-o",
            "preset.png",
        ],
        "[tiny]\nprompt = \"a star\"\nsteps = 1\nwidth = 64\nheight = 64\nseed = 3\n",
    ),
    (
        &[
            "txt2img",
            "-p",
            "a star",
            "--styles",
            "pipe",
            "--style",
            "red",
            "--steps",
            "1",
            "-W",
            "64",
            "-H",
            "64",
            "-o",
            "style.png",
        ],
        "name,prompt,negative_prompt\nred,red,\n",
    ),
    // Ranges are of models with whole numbers, which the last one is not.
    (
        &[
            "calibrate",
            "-m",
            "demo",
            "--prompts",
            "pipe",
            "-o",
            "ranges.json",
        ],
        "# a remark\n",
    ),
];

fn pipe(dir: &Path) {
    let made = Command::new("mkfifo").arg(dir.join("pipe")).status();
    assert!(made.unwrap().success());
}

#[test]
fn what_is_written_to_pipes_is_read() {
    let dir = folder();
    pipe(dir.path());
    for (args, text) in READERS {
        let writer = {
            let pipe = dir.path().join("pipe");
            thread::spawn(move || fs::write(pipe, text).unwrap())
        };
        let (code, _, stderr) = run(sdrun(dir.path()).args(args));
        writer.join().unwrap();
        match args[0] {
            "calibrate" => assert!(stderr.contains("pipe: it has no prompts"), "{stderr}"),
            _ => assert_eq!(code, Some(0), "{args:?}: {stderr}"),
        }
    }
}

#[test]
fn who_waits_for_a_writer_ends_when_he_shall() {
    let dir = folder();
    pipe(dir.path());
    for (args, _) in READERS {
        let mut child = sdrun(dir.path());
        let mut child = child.args(args).stderr(Stdio::null()).spawn().unwrap();
        let pid = child.id().to_string();
        wait_until_it_catches_signals(&pid);
        let killed = Command::new("kill").args(["-INT", &pid]).status();
        assert!(killed.unwrap().success());
        for _ in 0..400 {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        // It ends at once if it did not yet.
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{args:?}");
    }
}

fn wait_until_it_catches_signals(pid: &str) {
    if !cfg!(target_os = "linux") {
        return thread::sleep(Duration::from_secs(2));
    }
    let catches = || {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        u64::from_str_radix(caught.unwrap().trim(), 16).unwrap() & 2 != 0
    };
    while !catches() {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Where a folder or a regular file is needed, a pipe is an error.
#[test]
fn pipes_in_place_of_folders_and_results_are_refused() {
    let dir = folder();
    fs::write(dir.path().join("jobs.jsonl"), JOB).unwrap();
    fs::create_dir(dir.path().join("out")).unwrap();
    for pipe in ["pipe", "out/results.jsonl"] {
        let made = Command::new("mkfifo").arg(dir.path().join(pipe)).status();
        assert!(made.unwrap().success());
    }
    for (args, said) in [
        (
            &["txt2img", "-p", "a star", "-m", "pipe", "-o", "a.png"][..],
            "pipe: it is no folder",
        ),
        (
            &["batch", "jobs.jsonl", "-o", "out"],
            "results.jsonl: it is no file",
        ),
    ] {
        let (code, _, stderr) = run(sdrun(dir.path()).args(args));
        assert!(code == Some(1) && stderr.contains(said), "{stderr}");
    }
}
