//! `sdbench quality` from the command line to the page.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::{Command, Output};

use sd_converter::build::Precision;
use sd_converter::checkpoint::SafetensorsFile;
use sd_models::demo;
use sdrt_tests::{converted_as, demo_model, engine, synthetic};
use serde_json::Value;

fn quality(args: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sdbench"))
        .arg("quality")
        .args(args)
        .env("ORT_DYLIB_PATH", &engine().library().path)
        .output()
        .unwrap()
}

/// What is said of a command line that cannot be, and the exit code.
fn refused(args: &[&Path]) -> (i32, String) {
    let output = quality(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), said)
}

/// The pictures of data URLs.
fn embedded(page: &str) -> Vec<Vec<u8>> {
    let urls = page.split("data:image/png;base64,").skip(1);
    let decode = |text: &str| {
        let value = |c: char| match c {
            'A'..='Z' => u32::from(c) - 65,
            'a'..='z' => u32::from(c) - 71,
            '0'..='9' => u32::from(c) + 4,
            '+' => 62,
            _ => 63,
        };
        let text = text.split('"').next().unwrap();
        let (mut bytes, signs) = (Vec::new(), text.trim_end_matches('='));
        let (mut bits, mut count) = (0u32, 0);
        for c in signs.chars() {
            (bits, count) = (bits << 6 | value(c), count + 6);
            if count >= 8 {
                count -= 8;
                bytes.push((bits >> count) as u8);
            }
        }
        bytes
    };
    urls.map(decode).collect()
}

/// Checks that every element of a page is closed where it should be.
fn check_nesting(page: &str) {
    let mut open = Vec::new();
    for tag in page.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("every tag ends");
        let name = tag.split([' ', '\n']).next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "</{name}>"),
            None if ["!DOCTYPE", "meta", "img"].contains(&name) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn variants_of_the_demo_model_are_compared() {
    let source = SafetensorsFile::from_static(demo::FILE_NAME, demo::CHECKPOINT).unwrap();
    let (dir, int8) = converted_as(source, Precision::Int8);
    let [output, prompts, json] =
        ["out", "prompts.txt", "figures.json"].map(|name| dir.path().join(name));
    fs::write(&prompts, "a large red circle on a <blue> background\n").unwrap();
    let path = Path::new;
    let args = [
        path("-m"),
        demo_model(),
        path("--against"),
        demo_model(),
        path("--against"),
        &int8,
        path("--prompts"),
        &prompts,
        path("--steps"),
        path("4"),
        path("-o"),
        &output,
        path("--json"),
        &json,
    ];
    let done = quality(&args);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");

    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(
        (&report["schema"], &report["command"], &report["steps"]),
        (&2.into(), &"quality".into(), &4.into())
    );
    assert_eq!(report["reference"]["hits"], Value::Null, "{report}");
    let [same, rounded] = report["variants"].as_array().unwrap().as_slice() else {
        panic!("{report}");
    };
    assert_eq!(
        (&same["equal"], &same["ssim_worst"]),
        (&1.into(), &1.0.into())
    );
    assert_eq!(same["psnr_mean_db"], Value::Null);
    assert_eq!(rounded["equal"], 0);
    let figures = &rounded["pictures"][0];
    assert_eq!(figures["psnr_db"], rounded["psnr_worst_db"]);
    assert!(figures["psnr_db"].as_f64().unwrap() > 20.0, "{rounded}");
    let ssim = figures["ssim"].as_f64().unwrap();
    assert!(0.5 < ssim && ssim < 1.0, "{rounded}");
    let kept: Value =
        serde_json::from_slice(&fs::read(output.join("report.json")).unwrap()).unwrap();
    assert_eq!(kept["variants"], report["variants"]);
    let table = String::from_utf8_lossy(&done.stdout);
    assert!(
        table.contains("| equal | equal | 1 of 1 | 1.0000 |"),
        "{table}"
    );

    let page = fs::read_to_string(output.join("report.html")).unwrap();
    check_nesting(&page);
    assert!(page.contains("&lt;blue&gt;"));
    let pictures = embedded(&page);
    // The reference, and two of each variant.
    assert_eq!(pictures.len(), 5);
    let files = [
        "0-f32/000-0.png",
        "1-f32/000-0.png",
        "1-f32/000-0-difference.png",
        "2-f32/000-0.png",
        "2-f32/000-0-difference.png",
    ];
    let mut pixels = Vec::new();
    for (picture, file) in pictures.iter().zip(files) {
        assert_eq!(
            picture,
            &fs::read(output.join("pictures").join(file)).unwrap(),
            "{file}"
        );
        let mut reader = png::Decoder::new(Cursor::new(picture)).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut rgb).unwrap();
        assert_eq!(rgb.len(), 128 * 128 * 3);
        pixels.push(rgb);
    }
    assert_eq!(pixels[0], pixels[1]);
    assert!(pixels[2].iter().all(|&x| x == 0));
    assert!(pixels[4].iter().any(|&x| x > 0));

    // What is there stays.
    let (code, said) = refused(&args);
    assert!(code == 1 && said.contains("not empty"), "{code}: {said}");
}

#[test]
fn the_demo_models_pictures_are_judged() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("prompts.txt");
    let text = "a large red circle on a blue background\nsomething else\n";
    fs::write(&prompts, text).unwrap();
    let path = Path::new;
    let done = quality(&[
        path("-m"),
        demo_model(),
        path("--against"),
        demo_model(),
        path("--prompts"),
        &prompts,
        path("--seeds"),
        path("2"),
        path("--steps"),
        path("8"),
        path("--json"),
        path("-"),
    ]);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["seeds"], serde_json::json!([0, 1]));
    assert_eq!(
        report["variants"][0]["pictures"].as_array().unwrap().len(),
        4
    );
    for hits in [&report["reference"]["hits"], &report["variants"][0]["hits"]] {
        assert_eq!(
            (&hits["judged"], &hits["colour_percent"]),
            (&2.into(), &100.0.into())
        );
    }
    // Figures went to standard output, so the table is told beside it.
    assert!(said.contains("(reference)"), "{said}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [empty, missing] = ["empty.txt", "missing.txt"].map(|name| dir.path().join(name));
    fs::write(&empty, "# nothing yet\n\n").unwrap();
    let (_sdxl_dir, sdxl) = synthetic("sdxl");
    let (model, path) = (demo_model(), Path::new);
    let same = [path("-m"), model, path("--against"), model];
    let twice = [path("--prompts"), &empty, path("--json"), &empty];
    let cases: [(&[&Path], &[&Path], i32, &str); 7] = [
        (&same[..2], &[], 2, "nothing to compare"),
        (&same, &[path("--prompts"), &empty], 2, "empty.txt"),
        (&same, &[path("--prompts"), &missing], 1, "missing.txt"),
        (&same, &twice, 1, "these are the prompts"),
        (&same, &[path("--size"), path("100")], 2, "104"),
        (&same, &[path("--compute"), path("f16")], 2, "f16"),
        (&same[..2], &[path("--against"), &sdxl], 1, "family"),
    ];
    for (first, then, code, text) in cases {
        let args = [first, then].concat();
        let (found, said) = refused(&args);
        assert!(
            found == code && said.contains(text),
            "{args:?}: {found}: {said}"
        );
    }
}
