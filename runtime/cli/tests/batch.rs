//! `sdrun batch`: jobs, wrong jobs, and what becomes of a batch that is ended in the middle.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{folder, run, sdrun};
use serde_json::{Value, json};

/// A small picture of the demo model.
fn small(seed: usize) -> Value {
    json!({"prompt": "a red circle", "width": 64, "height": 64, "steps": 1, "seed": seed})
}

fn with(mut job: Value, fields: &Value) -> Value {
    let all = job.as_object_mut().unwrap();
    for (name, value) in fields.as_object().unwrap() {
        all.insert(name.clone(), value.clone());
    }
    job
}

/// Writes `jobs.jsonl` into a folder.
fn write_jobs(dir: &Path, jobs: &[Value]) {
    let lines: Vec<String> = jobs.iter().map(Value::to_string).collect();
    fs::write(dir.join("jobs.jsonl"), lines.join("\n")).unwrap();
}

fn batch(dir: &Path) -> Command {
    let mut command = sdrun(dir);
    command.args(["batch", "jobs.jsonl", "-o", "out"]);
    command
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Names of a folder's pictures. Each is whole: another program's reader takes it.
fn pictures(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let mut names: Vec<String> = names
        .filter(|name| name.ends_with(".png") && !name.starts_with('.'))
        .collect();
    for name in &names {
        assert_eq!(
            image::open(folder.join(name)).unwrap().width(),
            64,
            "{name}"
        );
    }
    names.sort();
    names
}

#[test]
fn pictures_are_those_of_txt2img_and_are_made_once() {
    let dir = folder();
    let jobs = [
        small(1),
        with(
            small(2),
            &json!({"id": "two", "batch": 2, "client": "b", "priority": 3}),
        ),
        small(4),
    ];
    write_jobs(dir.path(), &jobs);
    let (code, stdout, stderr) = run(batch(dir.path()).args(["--workers", "2"]));
    assert_eq!(code, Some(0), "{stderr}");
    let mut results = lines(&stdout);
    results.sort_by_key(|result| result["line"].as_u64());
    assert_eq!(results.len(), 3);
    let out = dir.path().join("out");
    let bytes = fs::metadata(out.join("two-001.png")).unwrap().len();
    assert_eq!(
        results[1]["images"][1],
        json!({"file": "two-001.png", "seed": 3, "bytes": bytes})
    );
    assert!(stderr.contains("4 of 4 pictures"), "{stderr}");
    let all = ["000001.png", "000003.png", "two-000.png", "two-001.png"];
    assert_eq!(pictures(&out), all);

    let args = [
        "txt2img",
        "-p",
        "a red circle",
        "-W",
        "64",
        "-H",
        "64",
        "--steps",
        "1",
        "--seed",
        "3",
        "-o",
        "3.png",
    ];
    assert_eq!(run(sdrun(dir.path()).args(args)).0, Some(0));
    let bytes = |path: &Path| fs::read(path).unwrap();
    assert!(bytes(&dir.path().join("3.png")) == bytes(&out.join("two-001.png")));

    // Once more, with a job more.
    write_jobs(dir.path(), &[&jobs[..], &[small(5)]].concat());
    let before = fs::metadata(out.join("two-001.png"))
        .unwrap()
        .modified()
        .unwrap();
    let (code, stdout, stderr) = run(&mut batch(dir.path()));
    assert_eq!(code, Some(0), "{stderr}");
    let earlier = lines(&stdout);
    let earlier: Vec<bool> = earlier.iter().map(|line| line["earlier"] == true).collect();
    assert_eq!(earlier, [true, true, true, false]);
    assert_eq!(
        fs::metadata(out.join("two-001.png"))
            .unwrap()
            .modified()
            .unwrap(),
        before
    );
    assert_eq!(pictures(&out).len(), 5);

    // A job that was another one before takes no picture's place.
    write_jobs(dir.path(), &[small(7)]);
    let (code, _, stderr) = run(&mut batch(dir.path()));
    assert!(
        code == Some(2) && stderr.contains("line 1: job 000001 was made from another request"),
        "{stderr}"
    );
}

#[test]
fn the_number_of_workers_is_measured_once() {
    let dir = folder();
    let jobs: Vec<Value> = (0..12).map(small).collect();
    write_jobs(dir.path(), &jobs);
    let made = |output: &str| {
        let mut command = sdrun(dir.path());
        command.args(["batch", "jobs.jsonl", "-o", output]);
        let (code, _, stderr) = run(&mut command);
        assert_eq!(code, Some(0), "{stderr}");
        (
            stderr.contains("measuring"),
            stderr.contains(" at a time (1: "),
        )
    };
    let several = std::thread::available_parallelism().unwrap().get() > 1;
    assert_eq!(made("first"), (several, several));
    assert_eq!(made("second"), (false, several));
    let record = fs::read_to_string(dir.path().join("workers.json"));
    assert_eq!(
        record.is_ok_and(|text| text.matches("\"workers\"").count() > 1),
        several
    );
}

#[test]
fn broken_lines_are_named_before_anything_is_made() {
    let dir = folder();
    let in_bands = json!({"graph": "portable", "tile": true});
    let text = format!(
        "{}\n\n{{\"promt\": 1}}\n{{\"steps\": 0}}\n{}\n{{\"prompt\": \n{}\n{}\n{}\n{}\n{}\n{}\n",
        small(1),
        with(small(2), &json!({"id": "000001"})),
        with(small(3), &json!({"width": 4096, "height": 4096})),
        with(small(4), &in_bands),
        with(small(5), &json!({"initial_noise": "absent.safetensors"})),
        with(small(6), &json!({"noise": "image:absent.png"})),
        r#"{"prompt": "a", "steps": 1, "prompt": "b"}"#,
        r#"{"options": {"eta": 1, "eta": 0}}"#,
    );
    fs::write(dir.path().join("jobs.jsonl"), text).unwrap();
    let small_machine = ["--max-ram", "2GB"];
    let (code, stdout, stderr) = run(batch(dir.path()).args(small_machine));
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
    for said in [
        "line 3: promt: unknown field `promt`, expected one of `id`, `client`, `priority`, `aesthetic`",
        "line 4: steps 0 is out of range",
        "line 5: another line has pictures called 000001.png",
        "line 6: no JSON",
        "line 7: 4096x4096 takes about ",
        "there are 2.0 GB",
        "line 11: the field `prompt` is given twice",
        "line 12: options: the field `eta` is given twice",
        "--keep-going",
    ] {
        assert!(stderr.contains(said), "{said}: {stderr}");
    }
    assert!(!dir.path().join("out").exists());

    let (code, stdout, stderr) = run(batch(dir.path()).args(small_machine).arg("--keep-going"));
    assert_eq!(code, Some(1), "{stderr}");
    let status = |line: &Value| (line["line"].as_u64().unwrap(), line["status"] == "done");
    let results: BTreeMap<u64, bool> = lines(&stdout).iter().map(status).collect();
    let expected = [
        (1, true),
        (3, false),
        (4, false),
        (5, false),
        (6, false),
        (7, false),
        (8, false),
        (9, false),
        (10, false),
        (11, false),
        (12, false),
    ];
    assert_eq!(results, BTreeMap::from(expected));
    assert_eq!(pictures(&dir.path().join("out")), ["000001.png"]);
    assert!(stderr.contains("10 jobs failed"), "{stderr}");
}

/// What the provider cannot do, and files that are missing or hold something else, are known before anything is made. A job that is
/// done needs its files no more.
#[test]
fn jobs_that_cannot_be_computed_are_named_before_anything_is_made() {
    let dir = folder();
    let out = dir.path().join("out");
    fs::write(dir.path().join("broken.safetensors"), "no tensors").unwrap();
    fs::write(dir.path().join("noise.safetensors"), noise(0.5)).unwrap();
    let of = |file: &str| json!({"initial_noise": file});
    write_jobs(
        dir.path(),
        &[
            with(small(1), &of("noise.safetensors")),
            with(small(2), &json!({"graph": "portable", "tile": true})),
            with(small(3), &of("absent.safetensors")),
            with(small(4), &of("broken.safetensors")),
            with(
                small(5),
                &json!({"initial_noise": "noise.safetensors", "width": 128}),
            ),
            with(small(6), &json!({"noise": "image:absent.png"})),
        ],
    );
    let (code, stdout, stderr) = run(&mut batch(dir.path()));
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
    for said in [
        "line 2: ",
        "the portable one was asked for; `\"graph\": \"auto\"` takes the native graph",
        "line 3: absent.safetensors: ",
        "line 4: broken.safetensors: not a safetensors file",
        "line 5: noise.safetensors: `initial_noise` has shape [1, 4, 8, 8]",
        "line 6: ",
        "absent.png",
    ] {
        assert!(stderr.contains(said), "{said}: {stderr}");
    }
    assert!(!stderr.contains("line 1: ") && !out.exists(), "{stderr}");

    write_jobs(dir.path(), &[with(small(1), &of("noise.safetensors"))]);
    assert_eq!(run(&mut batch(dir.path())).0, Some(0));
    fs::remove_file(dir.path().join("noise.safetensors")).unwrap();
    let (code, stdout, stderr) = run(&mut batch(dir.path()));
    assert!(
        code == Some(0) && lines(&stdout)[0]["earlier"] == true,
        "{stderr}"
    );
}

/// A safetensors file with the first noise of a small picture, the same number everywhere.
fn noise(value: f32) -> Vec<u8> {
    let header = r#"{"initial_noise":{"dtype":"F32","shape":[1,4,8,8],"data_offsets":[0,1024]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    let numbers = value.to_le_bytes().repeat(256);
    [&length[..], header.as_bytes(), &numbers].concat()
}

#[test]
fn wrong_usage_is_answered_with_2() {
    let dir = folder();
    write_jobs(dir.path(), &[small(1)]);
    for (args, said) in [
        (vec!["--max-ram", "8"], "8GB"),
        (vec!["--workers", "0"], "--workers"),
        (vec!["--ep", "abacus"], "openvino"),
    ] {
        let (code, _, stderr) = run(batch(dir.path()).args(&args));
        assert!(
            code == Some(2) && stderr.contains(said),
            "{args:?}: {stderr}"
        );
    }
    let (code, _, stderr) = run(sdrun(dir.path()).args(["batch", "absent.jsonl", "-o", "out"]));
    assert!(
        code == Some(1) && stderr.contains("absent.jsonl"),
        "{stderr}"
    );
    let (code, _, stderr) = run(sdrun(dir.path()).args(["batch", "jobs.jsonl"]));
    assert!(code == Some(2) && stderr.contains("--output"), "{stderr}");
    let (code, stdout, _) = run(sdrun(dir.path()).args(["batch", "--schema"]));
    assert_eq!(code, Some(0));
    let schema: Value = serde_json::from_str(&stdout).unwrap();
    assert!(schema["properties"]["prompt"].is_object());
}

#[test]
fn a_job_of_a_stream_begins_before_the_stream_ends() {
    let dir = folder();
    let mut command = sdrun(dir.path());
    command.args(["batch", "-", "-o", "out"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut to = child.stdin.take().unwrap();
    let mut from = BufReader::new(child.stdout.take().unwrap());
    for seed in 1..3 {
        writeln!(to, "{}", small(seed)).unwrap();
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        assert!(line.contains("\"done\""), "{line}");
    }
    writeln!(to, "{{").unwrap();
    // The next one is not wanted any more, and its writer may find nobody.
    let _ = writeln!(to, "{}", small(3));
    assert_eq!(child.wait().unwrap().code(), Some(1));
    drop(to);
    assert_eq!(pictures(&dir.path().join("out")).len(), 2);
}

#[test]
fn a_job_that_fails_ends_the_batch_unless_it_shall_go_on() {
    let dir = folder();
    // That shows when its turn comes.
    fs::write(dir.path().join("nan.safetensors"), noise(f32::NAN)).unwrap();
    let fails = with(small(1), &json!({"initial_noise": "nan.safetensors"}));
    write_jobs(dir.path(), &[fails, small(2), small(3)]);
    let (code, stdout, stderr) = run(&mut batch(dir.path()));
    assert_eq!(code, Some(1), "{stderr}");
    let failed = lines(&stdout)[0].clone();
    assert!(
        failed["status"] == "failed"
            && failed["job"] == "000001"
            && failed["error"].as_str().unwrap().contains("step 1"),
        "{failed}"
    );
    let (code, stdout, stderr) = run(batch(dir.path()).arg("--keep-going"));
    assert_eq!(code, Some(1), "{stderr}");
    let done = lines(&stdout)
        .iter()
        .filter(|line| line["status"] == "done")
        .count();
    assert_eq!(done, 2, "{stdout}");
}

/// A job's pictures belong to it in later runs, too, and are made again if they are gone.
#[test]
fn pictures_of_earlier_jobs_are_theirs_while_they_are_there() {
    let dir = folder();
    let two = with(small(1), &json!({"id": "a", "batch": 2}));
    write_jobs(dir.path(), std::slice::from_ref(&two));
    assert_eq!(run(&mut batch(dir.path())).0, Some(0));
    write_jobs(dir.path(), &[with(small(2), &json!({"id": "a-000"}))]);
    let (code, _, stderr) = run(&mut batch(dir.path()));
    assert!(
        code == Some(2)
            && stderr.contains("job a of an earlier run has a picture called a-000.png"),
        "{stderr}"
    );
    let out = dir.path().join("out");
    fs::remove_file(out.join("a-001.png")).unwrap();
    write_jobs(dir.path(), &[two]);
    let (code, stdout, stderr) = run(&mut batch(dir.path()));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(lines(&stdout)[0]["earlier"].is_null(), "{stdout}");
    assert_eq!(pictures(&out), ["a-000.png", "a-001.png"]);
}

/// A picture whose end went missing is made again, also where not even its settings are left, and that is said.
#[test]
fn pictures_that_were_cut_off_are_made_again() {
    let dir = folder();
    write_jobs(
        dir.path(),
        &[with(small(1), &json!({"id": "a", "batch": 2}))],
    );
    assert_eq!(run(&mut batch(dir.path())).0, Some(0));
    let [kept, cut] = ["a-000.png", "a-001.png"].map(|name| dir.path().join("out").join(name));
    let whole = fs::read(&cut).unwrap();
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let at = modified(&kept);
    for left in [whole.len() - 1, 40] {
        fs::write(&cut, &whole[..left]).unwrap();
        let (code, stdout, stderr) = run(&mut batch(dir.path()));
        assert_eq!(code, Some(0), "{stderr}");
        assert!(lines(&stdout)[0]["earlier"].is_null(), "{stdout}");
        assert!(
            stderr.contains("job a: the end of a-001.png is missing"),
            "{stderr}"
        );
        assert!(fs::read(&cut).unwrap() == whole && modified(&kept) == at);
    }
    for path in [&kept, &cut] {
        fs::write(path, &whole[..40]).unwrap();
    }
    let (code, _, stderr) = run(&mut batch(dir.path()));
    assert!(
        code == Some(0) && stderr.contains("a-000.png is missing"),
        "{stderr}"
    );
    assert!(fs::read(&cut).unwrap() == whole);
    // What took a picture's place is no picture that was cut off.
    fs::write(&cut, "a pointer to it").unwrap();
    let (_, stdout, _) = run(&mut batch(dir.path()));
    assert!(lines(&stdout)[0]["earlier"] == true, "{stdout}");
    assert_eq!(fs::read(&cut).unwrap(), b"a pointer to it");
}

/// What no job made is not written over; what a killed run made and did not record is.
#[test]
fn files_of_others_are_left_alone() {
    let dir = folder();
    let fields = json!({"id": "a", "prompt": "a star # in summer"});
    write_jobs(dir.path(), &[with(small(1), &fields)]);
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let picture = out.join("a.png");
    fs::write(&picture, "precious").unwrap();
    let (code, _, said) = run(&mut batch(dir.path()));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("a.png is there"), "{said}");
    assert_eq!(fs::read(&picture).unwrap(), b"precious");

    fs::write(&picture, "").unwrap();
    let (code, _, said) = run(&mut batch(dir.path()));
    assert_eq!(code, Some(0), "{said}");
    let made = fs::read(&picture).unwrap();
    fs::remove_file(out.join("results.jsonl")).unwrap();
    let (code, _, said) = run(&mut batch(dir.path()));
    assert_eq!(code, Some(0), "{said}");
    assert!(fs::read(&picture).unwrap() == made);
}

/// A job's seconds are its own, however long the worker's other job computes before it.
#[test]
fn who_waits_for_another_job_took_no_longer() {
    let dir = folder();
    let jobs = [with(small(1), &json!({"steps": 100})), small(2)];
    write_jobs(dir.path(), &jobs);
    let (code, stdout, stderr) = run(batch(dir.path()).args(["--workers", "1"]));
    assert_eq!(code, Some(0), "{stderr}");
    let results = lines(&stdout);
    let of = |line: usize, field: &str| {
        let result = results.iter().find(|result| result["line"] == line);
        result.unwrap()[field].as_f64().unwrap()
    };
    assert!(of(2, "waited") > of(2, "seconds"), "{stdout}");
    assert!(of(1, "seconds") > of(2, "seconds"), "{stdout}");
}

/// What cannot be written is its job's failure, and no other's.
#[test]
fn a_picture_that_cannot_be_written_fails_alone() {
    let dir = folder();
    let named = |id: &str, steps: usize| with(small(1), &json!({"id": id, "steps": steps}));
    write_jobs(dir.path(), &[named("a", 1), named("b", 200), named("c", 1)]);
    let mut command = batch(dir.path());
    command.args(["--keep-going", "--workers", "1"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    // Nothing was there when the line was read.
    fs::create_dir(dir.path().join("out/b.png")).unwrap();
    let rest = std::io::read_to_string(stdout).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let status = |name: &str| {
        let all = lines(&line).into_iter().chain(lines(&rest));
        let mut of_job = all.filter(|result| result["job"] == name);
        of_job.next().unwrap()
    };
    assert_eq!(status("a")["status"], "done");
    assert_eq!(status("c")["status"], "done");
    let error = status("b")["error"].to_string();
    assert!(error.contains("b.png"), "{error}");
}

/// Each picture of a line is there when it is finished; who goes on makes the others.
#[test]
#[cfg(unix)]
fn pictures_of_a_line_are_written_one_by_one() {
    let dir = folder();
    let job = with(small(1), &json!({"id": "a", "batch": 4, "steps": 60}));
    write_jobs(dir.path(), &[job]);
    let command = || {
        let mut command = batch(dir.path());
        command.args(["--workers", "1"]);
        command
    };
    let mut child = command().stdout(Stdio::null()).spawn().unwrap();
    let out = dir.path().join("out");
    let first = out.join("a-000.png");
    while !first.exists() {
        assert!(child.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    let killed = Command::new("kill").args(["-INT", &pid]).status();
    assert!(killed.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let written = |status: &str| -> Vec<Value> {
        let results = fs::read_to_string(out.join("results.jsonl")).unwrap();
        let lines = lines(&results).into_iter();
        lines.filter(|line| line["status"] == status).collect()
    };
    let before = pictures(&out);
    assert!(before.len() < 4 && written("picture").len() == before.len());
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let at = modified(&first);
    let (code, stdout, stderr) = run(&mut command());
    assert_eq!(code, Some(0), "{stderr}");
    // One line for the job, with all of its pictures.
    let result = &lines(&stdout)[..];
    assert!(result.len() == 1 && result[0]["earlier"].is_null());
    let seeds = result[0]["images"].as_array().unwrap().iter();
    let seeds: Vec<u64> = seeds.map(|image| image["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [1, 2, 3, 4]);
    assert_eq!(pictures(&out).len(), 4);
    assert_eq!(modified(&first), at);
    // None was made twice: the last one's line is the job's.
    let made: Vec<Value> = written("picture");
    let files: std::collections::BTreeSet<String> = made
        .iter()
        .map(|line| line["images"][0]["file"].to_string())
        .collect();
    assert!(files.len() == 3 && made.len() == 3, "{made:?}");
    assert_eq!(written("done").len(), 1);
    let (code, stdout, _) = run(&mut command());
    assert!(code == Some(0) && lines(&stdout)[0]["earlier"] == true);
}

#[test]
fn a_file_without_jobs_is_told() {
    let dir = folder();
    fs::write(dir.path().join("jobs.jsonl"), "\n \n").unwrap();
    let (code, stdout, stderr) = run(&mut batch(dir.path()));
    assert_eq!((code, stdout.as_str()), (Some(0), ""), "{stderr}");
    assert!(
        stderr.contains("jobs.jsonl: there are no jobs in it"),
        "{stderr}"
    );
}

/// A pipe as a file of noise would be waited for.
#[test]
#[cfg(unix)]
fn pipes_of_noise_keep_nobody_waiting() {
    let dir = folder();
    let made = Command::new("mkfifo").arg(dir.path().join("pipe")).status();
    assert!(made.unwrap().success());
    let job = |seed: usize, field: &str, value: &str| with(small(seed), &json!({field: value}));
    let jobs = [
        job(1, "initial_noise", "pipe"),
        job(2, "noise", "image:pipe"),
        job(3, "initial_noise", "/dev/zero"),
        small(4),
    ];
    write_jobs(dir.path(), &jobs);
    let (code, stdout, stderr) = run(batch(dir.path()).arg("--keep-going"));
    assert_eq!(code, Some(1), "{stderr}");
    let results = lines(&stdout);
    let failed = results.iter().filter(|line| line["status"] == "failed");
    let errors: Vec<String> = failed.map(|line| line["error"].to_string()).collect();
    assert_eq!(errors.len(), 3, "{stdout}");
    assert!(
        errors
            .iter()
            .all(|error| error.contains("a pipe or a device")),
        "{errors:?}"
    );
}

#[test]
fn who_goes_on_with_other_instructions_is_told() {
    let dir = folder();
    write_jobs(dir.path(), &[small(1)]);
    assert_eq!(run(&mut batch(dir.path())).0, Some(0));
    let (code, _, same) = run(&mut batch(dir.path()));
    assert_eq!(code, Some(0), "{same}");
    let (code, stdout, other) = run(batch(dir.path()).args(["--instructions", "scalar"]));
    assert_eq!(code, Some(0), "{other}");
    assert_eq!(lines(&stdout)[0]["earlier"], true);
    let is_told = |stderr: &str| stderr.contains("pictures of an earlier run stay as they are");
    let results = fs::read_to_string(dir.path().join("out/results.jsonl")).unwrap();
    let then = lines(&results)[0]["computed"]["Instructions"].clone();
    assert!(then.is_string(), "{results}");
    assert_eq!((is_told(&same), is_told(&other)), (false, then != "scalar"));
}

/// Who writes JSON is told of fields and of memory that jobs may have, not of options that there are not.
#[test]
fn hints_are_in_the_words_of_a_line() {
    let dir = folder();
    let lora = with(small(1), &json!({"prompt": "a circle <lora:foo:1>"}));
    write_jobs(dir.path(), &[lora]);
    let (code, _, stderr) = run(&mut batch(dir.path()));
    assert!(
        code == Some(2)
            && stderr.contains("`\"ignore_lora_tags\": true`")
            && !stderr.contains("--ignore-lora-tags"),
        "{stderr}"
    );
    write_jobs(dir.path(), &[small(1)]);
    let (code, _, stderr) = run(batch(dir.path()).args(["--max-ram", "1MB"]));
    assert!(
        code == Some(2) && stderr.contains("there are 1 MB; `--max-ram "),
        "{stderr}"
    );
    let enough = stderr.split("`--max-ram ").nth(1).unwrap();
    let enough = enough.split('`').next().unwrap();
    let (code, _, stderr) = run(batch(dir.path()).args(["--max-ram", enough]));
    assert_eq!(code, Some(0), "{stderr}");
}

/// A ceiling that nothing could hold is refused before anything is made.
#[test]
fn a_ceiling_needs_a_sensor() {
    use sd_runtime::sensors::{Energy, Sensors, Thermometer};
    let dir = folder();
    write_jobs(dir.path(), &[small(1)]);
    let sensors = Sensors::default();
    for (option, is_there) in [
        ("--max-watts", Energy::read(&sensors).is_some()),
        ("--max-temp", Thermometer::find(&sensors).is_some()),
    ] {
        let (code, _, stderr) = run(batch(dir.path()).args([option, "0"]));
        assert!(code == Some(2) && stderr.contains("above 0"), "{stderr}");
        if is_there {
            println!("skipped: this machine has what {option} needs");
            continue;
        }
        for command in [vec!["batch", "jobs.jsonl"], vec!["txt2img", "-p", "a cat"]] {
            let mut program = sdrun(dir.path());
            program.args(command).args(["-o", "out", option, "50"]);
            let (code, _, stderr) = run(&mut program);
            assert!(
                code == Some(1) && stderr.contains(option) && stderr.contains("cannot be read"),
                "{stderr}"
            );
        }
        assert!(!dir.path().join("out").exists());
    }
}

#[test]
#[cfg(target_os = "linux")]
fn pinned_workers_make_the_same_pictures() {
    let dir = folder();
    write_jobs(dir.path(), &[small(1), small(2)]);
    let made = |output: &str, args: &[&str]| {
        let mut command = sdrun(dir.path());
        command
            .args(["batch", "jobs.jsonl", "-o", output])
            .args(args);
        let (code, _, stderr) = run(&mut command);
        assert_eq!(code, Some(0), "{stderr}");
        ["000001.png", "000002.png"]
            .map(|name| fs::read(dir.path().join(output).join(name)).unwrap())
    };
    let free = made("free", &[]);
    for workers in ["1", "2"] {
        assert!(made(workers, &["--pin", "--workers", workers]) == free);
    }
}

#[test]
fn who_stops_reading_results_ends_no_jobs() {
    let dir = folder();
    let jobs: Vec<Value> = (0..6).map(small).collect();
    write_jobs(dir.path(), &jobs);
    let mut child = batch(dir.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(pictures(&dir.path().join("out")).len(), 6);
    let results = fs::read_to_string(dir.path().join("out/results.jsonl")).unwrap();
    assert_eq!(lines(&results).len(), 6);
}

#[test]
fn there_are_no_more_workers_than_threads() {
    let dir = folder();
    write_jobs(dir.path(), &[small(1)]);
    let (code, _, stderr) = run(batch(dir.path()).args(["--threads", "1", "--workers", "3"]));
    assert!(
        code == Some(0) && stderr.contains("--workers 3: there is one thread"),
        "{stderr}"
    );
}

/// A file that cannot grow any more has whole lines only.
#[test]
#[cfg(unix)]
fn a_batch_goes_on_after_a_full_disk() {
    let dir = folder();
    let long = "a red circle, ".repeat(150);
    let jobs: Vec<Value> = (0..12)
        .map(|seed| with(small(seed), &json!({"prompt": long})))
        .collect();
    // The model is converted, and files are as large as they will be.
    write_jobs(dir.path(), &jobs[..1]);
    assert_eq!(run(&mut batch(dir.path())).0, Some(0));
    write_jobs(dir.path(), &jobs);
    let program = batch(dir.path());
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 40; exec \"$0\" \"$@\""])
        .arg(program.get_program())
        .args(program.get_args());
    for (name, value) in program.get_envs() {
        limited.env(name, value.unwrap());
    }
    let (code, _, stderr) = run(limited.current_dir(dir.path()));
    assert!(
        code == Some(1) && stderr.contains("results.jsonl"),
        "{stderr}"
    );
    let results = fs::read_to_string(dir.path().join("out/results.jsonl")).unwrap();
    assert!(results.ends_with('\n') && lines(&results).len() > 1);
    let (code, stdout, stderr) = run(&mut batch(dir.path()));
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(lines(&stdout).len(), 12);
    assert!(lines(&stdout).iter().any(|line| line["earlier"] == true));
    assert_eq!(pictures(&dir.path().join("out")).len(), 12);
}

#[test]
fn a_folder_that_goes_away_is_named() {
    let dir = folder();
    let jobs: Vec<Value> = (0..40)
        .map(|seed| with(small(seed), &json!({"steps": 20})))
        .collect();
    write_jobs(dir.path(), &jobs);
    let mut child = batch(dir.path())
        .arg("--keep-going")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    // Whatever is written there at this moment.
    while dir.path().join("out").exists() {
        let _ = fs::remove_dir_all(dir.path().join("out"));
    }
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1), "{stderr}");
    assert!(
        stderr.contains("cannot write out") && !stderr.contains("panicked"),
        "{stderr}"
    );
}

#[test]
#[cfg(unix)]
fn an_interrupt_ends_with_130_and_the_batch_goes_on_later() {
    let dir = folder();
    let long = with(
        small(1),
        &json!({"width": 256, "height": 256, "steps": 1000}),
    );
    write_jobs(dir.path(), &[small(2), long]);
    let mut child = batch(dir.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(130));
    write_jobs(dir.path(), &[small(2), small(1)]);
    let (code, stdout, stderr) = run(&mut batch(dir.path()));
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(lines(&stdout)[0]["earlier"], true);
    assert_eq!(pictures(&dir.path().join("out")).len(), 2);
}

/// 200 jobs, of which some fail, by processes that are killed at any moment: in the end every picture is there, was made once,
/// and is the one that an undisturbed process makes.
#[test]
#[cfg(unix)]
fn two_hundred_jobs_survive_kills() {
    const JOBS: usize = 200;
    let dir = folder();
    // The model is converted once.
    assert_eq!(
        run(sdrun(dir.path()).args(["txt2img", "-p", "x", "--steps", "1"])).0,
        Some(0)
    );
    fs::write(dir.path().join("broken.safetensors"), "no tensors").unwrap();
    let fails = |i: usize| i % 23 == 7;
    let job = |i: usize| match fails(i) {
        true => with(small(i), &json!({"initial_noise": "broken.safetensors"})),
        false => with(
            small(i),
            &json!({"client": (i % 2).to_string(), "priority": (i % 3)}),
        ),
    };
    let jobs: Vec<Value> = (0..JOBS).map(job).collect();
    write_jobs(dir.path(), &jobs);
    let out = dir.path().join("out");
    let mut kills = 0;
    // A fixed sequence of moments, which fall anywhere in a job.
    let mut moment = 12_345_u64;
    let code = loop {
        let mut command = batch(dir.path());
        command.args(["--keep-going", "--workers", "2", "-q"]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        moment = moment
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        if kills < 12 {
            thread::sleep(Duration::from_millis(300 + (moment >> 33) % 2500));
            if child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                kills += 1;
            }
        }
        let status = child.wait().unwrap();
        if out.exists() {
            pictures(&out);
        }
        if let Some(code) = status.code() {
            break code;
        }
    };
    assert_eq!(code, 1);
    let good: Vec<String> = (0..JOBS)
        .filter(|&i| !fails(i))
        .map(|i| format!("{:06}.png", i + 1))
        .collect();
    assert_eq!(pictures(&out), good);
    let mut done: BTreeMap<String, usize> = BTreeMap::new();
    let results = fs::read_to_string(out.join("results.jsonl")).unwrap();
    for record in lines(&results) {
        if record["status"] == "done" {
            *done
                .entry(record["images"][0]["file"].as_str().unwrap().to_owned())
                .or_default() += 1;
        }
    }
    assert!(
        done.values().all(|&times| times == 1) && done.keys().eq(&good),
        "{done:?}"
    );
    for i in [0, 100, 198] {
        let (seed, file) = (i.to_string(), format!("{i}.png"));
        let args = [
            "txt2img",
            "-p",
            "a red circle",
            "-W",
            "64",
            "-H",
            "64",
            "--steps",
            "1",
            "--seed",
            &seed,
            "-o",
            &file,
        ];
        assert_eq!(run(sdrun(dir.path()).args(args)).0, Some(0));
        let bytes = |path: &Path| fs::read(path).unwrap();
        assert!(
            bytes(&dir.path().join(&file)) == bytes(&out.join(format!("{:06}.png", i + 1))),
            "{i}"
        );
    }
    println!("{kills} kills");
}
