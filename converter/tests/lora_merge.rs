//! One LoRA of several: what it does, and what cannot be merged.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::lora::{KOHYA, Place, SINGLE, Tensors, for_sdxl, kohya, low_rank, ramp};
use common::{sdconvert, text};
use safetensors::tensor::SafeTensors;
use sd_converter::lora::{LoraSpec, WithLoras};
use sd_converter::model::Model;
use sd_converter::weights::Weights;

/// Files of the demo model, whose layers are narrower than published ones.
fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../models/demo")
        .join(name)
}

/// Distance over the norm of what is expected, of everything that two models' UNet and text encoders hold.
fn distance(a: &dyn Model, b: &dyn Model, base: &dyn Model) -> f64 {
    let (mut distance, mut change) = (0.0, 0.0);
    for name in base.entries().keys() {
        let [a, b, base] = [a, b, base].map(|model| model.read_f32(name).unwrap());
        for ((a, b), base) in a.iter().zip(&b).zip(&base) {
            distance += f64::from(a - b).powi(2);
            change += f64::from(b - base).powi(2);
        }
    }
    (distance / change).sqrt()
}

#[test]
fn merged_loras_do_what_they_did_together() {
    let dir = tempfile::tempdir().unwrap();
    let (pixel, outline) = (
        demo("pixel-style.safetensors"),
        demo("outline-style.locon.safetensors"),
    );
    let base = || Box::new(Weights::open(&demo("tiny-shapes.safetensors"), None).unwrap());
    let with = |specs: &[LoraSpec]| WithLoras::new(base(), specs, SINGLE).unwrap();
    let strength = |path: &Path, at: f64| format!("{}:{at}", path.display());
    let merge = |args: &[&str], out: &Path| {
        let output = sdconvert(&[&["lora-merge"], args, &["-o", out.to_str().unwrap()]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let both = [strength(&pixel, 0.7), strength(&outline, -0.4)];
    let args: Vec<&str> = both.iter().map(String::as_str).collect();
    let exact = dir.path().join("exact.safetensors");
    merge(&args, &exact);
    let specs = [LoraSpec::new(&pixel, 0.7), LoraSpec::new(&outline, -0.4)];
    let together = with(&specs);
    // The factors are rounded to half precision.
    let error = distance(&with(&[LoraSpec::new(&exact, 1.0)]), &together, &*base());
    assert!(error < 1e-3, "{error:.1e}");
    let file = fs::read(&exact).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    assert!(file.names().iter().all(|name| name.starts_with("lora_")));
    // A rank that is large enough keeps everything; a low one keeps what it says.
    let whole = dir.path().join("whole.safetensors");
    assert!(merge(&[&args[..], &["--rank", "16"]].concat(), &whole).contains("kept: 100.0 %"));
    let error = distance(&with(&[LoraSpec::new(&whole, 1.0)]), &together, &*base());
    assert!(error < 1e-3, "{error:.1e}");
    let low = dir.path().join("low.safetensors");
    let said = merge(&[&args[..], &["--rank", "3"]].concat(), &low);
    let kept = said
        .split("kept: ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    let kept: f64 = kept.parse::<f64>().unwrap() / 100.0;
    let error = distance(&with(&[LoraSpec::new(&low, 1.0)]), &together, &*base());
    assert!((error - (1.0 - kept).sqrt()).abs() < 0.02, "{error} {kept}");
}

#[test]
fn loras_that_cannot_be_merged_are_refused() {
    let place = Place::new("sd15");
    let merge = |files: &[(&Tensors, &str)], more: &[&str]| {
        let paths = files.iter().map(|(tensors, name)| {
            let path = place.dir.path().join(name);
            fs::rename(place.write(tensors), &path).unwrap();
            path.to_str().unwrap().to_owned()
        });
        let paths: Vec<String> = paths.collect();
        let out = place.dir.path().join("out.safetensors");
        let files: Vec<&str> = paths.iter().map(String::as_str).collect();
        let args = [
            &["lora-merge"],
            &files[..],
            &["-o", out.to_str().unwrap()],
            more,
        ]
        .concat();
        let output = sdconvert(&args);
        assert_eq!(output.status.success(), out.exists());
        text(&output.stderr)
    };
    let mut full = Tensors::new();
    full.insert(
        format!("{KOHYA}.diff"),
        (vec![640, 640], ramp(640 * 640, 0.5)),
    );
    assert!(merge(&[(&full, "a")], &[]).contains("--rank N"));
    let mut dora = kohya(KOHYA);
    dora.insert(format!("{KOHYA}.dora_scale"), (vec![64, 1], ramp(64, 0.5)));
    assert!(merge(&[(&dora, "a")], &[]).contains("depends on the model"));
    let sdxl = for_sdxl();
    let mut sd15 = Tensors::new();
    low_rank(
        &mut sd15,
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
        320,
        &[768],
    );
    let said = merge(&[(&sd15, "a"), (&sdxl, "b")], &[]);
    assert!(
        said.contains("made for SDXL, the LoRAs before it for Stable Diffusion 1.x"),
        "{said}"
    );
    let mut opposite = kohya(KOHYA);
    opposite
        .get_mut(&format!("{KOHYA}.lora_up.weight"))
        .unwrap()
        .1
        .fill(0.0);
    assert!(merge(&[(&opposite, "a")], &[]).contains("changes nothing"));
    assert!(merge(&[(&kohya(KOHYA), "a"), (&full, "b")], &["--rank", "2"]).contains("[64, 64]"));
}

/// Writes LoRAs of published widths, a kilobyte each, and merges them.
fn merged(dir: &Path, files: &[&Tensors]) -> (Option<i32>, String, PathBuf) {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let out = dir.path().join("out.safetensors");
    let place = Place {
        base: PathBuf::new(),
        dir,
    };
    let mut args = vec!["lora-merge".to_owned()];
    for (i, tensors) in files.iter().enumerate() {
        let path = place.dir.path().join(i.to_string());
        fs::rename(place.write(tensors), &path).unwrap();
        args.push(format!("{}:0.5", path.display()));
    }
    args.extend(["-o".to_owned(), out.to_str().unwrap().to_owned()]);
    let output = sdconvert(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let (code, said) = (output.status.code(), text(&output.stderr));
    (code, said, place.dir.keep().join("out.safetensors"))
}

#[test]
fn loras_that_touch_other_layers_of_one_family_are_merged() {
    let dir = tempfile::tempdir().unwrap();
    let block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_";
    let sdxl_block = "lora_unet_input_blocks_4_1_transformer_blocks_0_";
    let lora = |modules: &[(String, usize, usize)]| {
        let mut tensors = Tensors::new();
        for (module, rows, columns) in modules {
            low_rank(&mut tensors, module, *rows, &[*columns]);
        }
        tensors
    };
    let own = format!("{block}attn1_to_q");
    let cross = format!("{block}attn2_to_k");
    let text = "lora_te_text_model_encoder_layers_0_mlp_fc1".to_owned();
    let slider = lora(&[(own.clone(), 320, 320)]);
    let usual = lora(&[(own.clone(), 320, 320), (cross.clone(), 320, 768)]);
    let words = lora(&[(text, 3072, 768)]);
    let sdxl_own = format!("{sdxl_block}attn1_to_q");
    let sdxl_slider = lora(&[(sdxl_own.clone(), 640, 640)]);
    let sdxl = lora(&[
        (sdxl_own, 640, 640),
        (format!("{sdxl_block}attn2_to_k"), 640, 2048),
    ]);
    for (files, modules) in [
        ([&slider, &usual], 2),
        ([&usual, &slider], 2),
        ([&usual, &words], 3),
        ([&slider, &words], 2),
        ([&sdxl_slider, &sdxl], 2),
        ([&sdxl, &sdxl_slider], 2),
    ] {
        let (code, said, out) = merged(dir.path(), &files);
        assert_eq!(code, Some(0), "{said}");
        let bytes = fs::read(out).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), 3 * modules);
        let down = |module: &str| file.tensor(&format!("{module}.lora_down.weight"));
        if let Ok(both) = down(&own).or_else(|_| down(&format!("{sdxl_block}attn1_to_q"))) {
            let in_both = files
                .iter()
                .filter(|t| t.keys().any(|k| k.contains("attn1")));
            assert_eq!(both.shape()[0], in_both.count());
        }
    }
    // What only the third contradicts is a contradiction, too.
    let sd2 = lora(&[(cross, 320, 1024)]);
    for files in [&[&usual, &sd2][..], &[&slider, &sd2, &usual]] {
        let (code, said, out) = merged(dir.path(), files);
        assert_eq!(code, Some(1));
        assert!(said.contains("it is made for Stable Diffusion"), "{said}");
        assert!(!out.exists());
    }
}

#[test]
fn differences_of_norms_are_added_up() {
    let dir = tempfile::tempdir().unwrap();
    let norm = "lora_unet_down_blocks_0_resnets_0_norm1";
    let mut norms = Tensors::new();
    for part in ["w_norm", "b_norm"] {
        norms.insert(format!("{norm}.{part}"), (vec![320], ramp(320, 0.25)));
    }
    let mut usual = norms.clone();
    usual.remove(&format!("{norm}.b_norm"));
    usual.insert(
        "bundle_emb.word.clip_l".to_owned(),
        (vec![1, 768], ramp(768, 0.5)),
    );
    let module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
    low_rank(&mut usual, module, 320, &[768]);
    let (code, said, out) = merged(dir.path(), &[&norms, &usual]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("1: the textual inversions in it are left out"),
        "{said}"
    );
    let bytes = fs::read(out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |part: &str| {
        let tensor = file.tensor(&format!("{norm}.{part}")).unwrap();
        let halves = tensor.data().as_chunks().0.iter();
        halves
            .map(|b| half::f16::from_le_bytes(*b).to_f32())
            .collect::<Vec<_>>()
    };
    assert_eq!((values("w_norm"), file.len()), (ramp(320, 0.25), 5));
    assert_eq!(values("b_norm"), ramp(320, 0.125));
}
