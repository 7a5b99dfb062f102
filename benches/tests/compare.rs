//! `sdbench compare` and `sdbench report` on reports that are whole, broken and foreign.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use sdrt_tests::{demo_model, engine};
use serde_json::{Value, json};
use tempfile::TempDir;

fn sdbench(args: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sdbench"))
        .args(args)
        .env("ORT_DYLIB_PATH", &engine().library().path)
        .output()
        .unwrap()
}

/// What is written to standard output, or to stderr with the exit code if it is not 0.
fn said(args: &[&Path]) -> Result<String, (i32, String)> {
    let output = sdbench(args);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    match output.status.code() {
        Some(0) => Ok(text(output.stdout)),
        code => Err((code.unwrap(), text(output.stderr))),
    }
}

/// A report of the demo model, measured once.
fn report() -> &'static Value {
    static REPORT: OnceLock<Value> = OnceLock::new();
    REPORT.get_or_init(|| {
        let args = ["run", "--size", "64", "--steps", "1", "--runs", "1"];
        let more = ["--rounds", "1", "--warm-up", "0", "--threads", "1", "-m"];
        let mut args: Vec<&Path> = args.iter().chain(&more).map(Path::new).collect();
        args.push(demo_model());
        serde_json::from_str(&said(&args).unwrap()).unwrap()
    })
}

/// The report as if its picture and UNet had taken `seconds`, and others what they always take.
fn with_times(report: &Value, seconds: &[f64]) -> Value {
    let spread = |all: &[f64]| json!({"runs": all.len(), "min": null, "median": all[0], "max": null, "all": all});
    let mut report = report.clone();
    let measured = &mut report["configurations"][0]["measured"];
    let constant = vec![0.5; seconds.len()];
    measured["start_s"] = spread(&constant);
    for (name, value) in measured["picture"].as_object_mut().unwrap() {
        match name.as_str() {
            "total_s" => *value = spread(seconds),
            name if name.ends_with("_s") => *value = spread(&constant),
            _ => {}
        }
    }
    for (name, network) in measured["networks"].as_object_mut().unwrap() {
        let times = if name == "unet" { seconds } else { &constant };
        network["pass_s"] = spread(times);
        network["load_s"] = spread(&constant);
    }
    report
}

const TIMES: [f64; 5] = [1.0, 1.004, 0.996, 1.002, 0.998];

/// A folder with reports, and `a.json` among them.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("a.json", &with_times(report(), &TIMES).to_string());
        folder
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Compares `a.json` with another report: the table, and the JSON.
    fn compare(&self, b: &str, more: &[&str]) -> Result<(String, Value), (i32, String)> {
        let [a, b, json] = ["a.json", b, "out.json"].map(|name| self.path(name));
        let mut args: Vec<&Path> = vec!["compare".as_ref(), &a, &b, "--json".as_ref(), &json];
        args.extend(more.iter().map(Path::new));
        let text = said(&args)?;
        let json = fs::read_to_string(&json).unwrap();
        Ok((text, serde_json::from_str(&json).unwrap()))
    }
}

#[test]
fn slow_downs_are_told_from_noise() {
    let folder = Folder::new();
    for (factor, verdict, words) in [
        (1.10, "more", "slower: +10.0 %"),
        (1.03, "more", "slower: +3.0 %"),
        (0.97, "less", "faster: -3.0 %"),
        (1.001, "noise", "no difference beyond noise"),
    ] {
        let times = TIMES.map(|time| time * factor);
        folder.write("b.json", &with_times(report(), &times).to_string());
        let (text, json) = folder.compare("b.json", &[]).unwrap();
        assert!(text.contains(words), "{factor}: {text}");
        let figures = json["pairs"][0]["figures"].as_array().unwrap();
        let found = |name: &str| {
            figures
                .iter()
                .find(|figure| figure["name"] == name)
                .unwrap()
        };
        for name in ["picture", "unet: pass"] {
            let figure = found(name);
            assert_eq!(figure["verdict"], verdict, "{factor} {name}");
            let ratio = figure["ratio"]["estimate"].as_f64().unwrap();
            assert!(
                (ratio / factor - 1.0).abs() < 1e-9,
                "{factor} {name}: {ratio}"
            );
        }
        assert_eq!(found("vae_decoder: pass")["verdict"], "noise");
    }
    // A single round says nothing.
    folder.write("single.json", &report().to_string());
    let (text, _) = folder.compare("single.json", &[]).unwrap();
    assert!(text.contains("too few rounds"), "{text}");
}

#[test]
fn configurations_that_differ_are_compared_on_demand_only() {
    let folder = Folder::new();
    // Steps are 1 here and 2 there.
    let mut two = with_times(report(), &TIMES.map(|time| time * 1.1));
    two["configurations"][0]["case"]["picture"]["steps"] = 2.into();
    folder.write("two.json", &two.to_string());
    let (code, text) = folder.compare("two.json", &[]).unwrap_err();
    assert!(
        code == 1 && text.contains("no configuration in common"),
        "{text}"
    );
    assert!(
        text.contains("`steps` is 1 in the one and 2 in the other"),
        "{text}"
    );
    let (text, _) = folder.compare("two.json", &["--across", "steps"]).unwrap();
    assert!(text.contains("2 steps against 1 steps"), "{text}");

    // Both in one report.
    let one = with_times(report(), &TIMES)["configurations"][0].clone();
    two["configurations"].as_array_mut().unwrap().insert(0, one);
    folder.write("both.json", &two.to_string());
    let both = folder.path("both.json");
    let within = |axis: &str| {
        said(
            &["compare", "--across", axis]
                .map(Path::new)
                .iter()
                .copied()
                .chain([&*both])
                .collect::<Vec<_>>(),
        )
    };
    assert!(within("steps").unwrap().contains("2 steps against 1 steps"));
    let (code, text) = within("ep").unwrap_err();
    assert!(code == 1 && text.contains("differ in ep"), "{text}");
    let (code, text) = within("colour").unwrap_err();
    assert!(code == 2 && text.contains("compute"), "{text}");
    let (code, text) = folder
        .compare("both.json", &["--across", "steps"])
        .unwrap_err();
    assert!(code == 1 && text.contains("both.json"), "{text}");
    // What to compare in one report has to be said.
    let (code, text) = said(&["compare".as_ref(), &both]).unwrap_err();
    assert!(code == 2 && text.contains("--across"), "{text}");
}

#[test]
fn what_is_no_report_is_refused_by_file_and_field() {
    let folder = Folder::new();
    let changed = |change: fn(&mut Value)| {
        let mut json = report().clone();
        change(&mut json);
        json.to_string()
    };
    for (name, text, expected) in [
        ("empty.json", String::new(), "it is no JSON"),
        (
            "half.json",
            report().to_string()[..200].to_owned(),
            "it is no JSON",
        ),
        (
            "list.json",
            "[1, 2]".to_owned(),
            "it is no report of sdbench",
        ),
        (
            "old.json",
            changed(|json| json["schema"] = 1.into()),
            "`schema` is 1; expected 2",
        ),
        (
            "quality.json",
            changed(|json| json["command"] = "quality".into()),
            "`command` is \"quality\"; expected \"run\"",
        ),
        (
            "field.json",
            changed(|json| json["configurations"][0]["case"]["threads"] = "two".into()),
            "`configurations[0].case.threads`: invalid type",
        ),
        (
            "negative.json",
            changed(|json| {
                json["configurations"][0]["measured"]["start_s"]["all"][0] = (-1).into();
            }),
            "start is -1; expected more than 0",
        ),
    ] {
        folder.write(name, &text);
        let path = folder.path(name);
        for said in [
            folder.compare(name, &[]).unwrap_err(),
            said(&["report".as_ref(), &path]).unwrap_err(),
        ] {
            assert_eq!(said.0, 1, "{said:?}");
            assert!(
                said.1.contains(name) && said.1.contains(expected),
                "{said:?}"
            );
        }
    }
    let (code, text) = folder.compare("nowhere.json", &[]).unwrap_err();
    assert!(code == 1 && text.contains("nowhere.json"), "{text}");
}

#[test]
fn a_report_is_shown_as_markdown_and_as_a_page() {
    let folder = Folder::new();
    let [a, page] = ["a.json", "page.html"].map(|name| folder.path(name));
    let markdown = said(&["report".as_ref(), &a]).unwrap();
    assert!(
        markdown.contains("| unet |") && markdown.contains("per hour"),
        "{markdown}"
    );
    let before = fs::read(&a).unwrap();
    let (code, text) = said(&["report".as_ref(), &a, "--html".as_ref(), &a]).unwrap_err();
    assert!(code == 2 && text.contains("overwrite"), "{text}");
    assert!(before == fs::read(&a).unwrap(), "the report is still there");
    said(&["report".as_ref(), &a, "--html".as_ref(), &page]).unwrap();
    let page = fs::read_to_string(&page).unwrap();
    assert!(page.contains("<svg") && page.contains("prefers-color-scheme"));
}
