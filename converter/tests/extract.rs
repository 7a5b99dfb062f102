//! LoRA extraction: what the factors give back, at full and lower rank, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{sdconvert, synthetic, text};
use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sd_converter::merge::{BlockWeights, Merged, Method, Plan};
use sd_converter::model::{Model, Name};
use sd_converter::progress::Unwatched;
use sd_converter::save::save;
use sd_converter::weights::Weights;
use sd_models::keys::Component;
use sd_models::keys::kohya::{self, Target};
use sd_models::keys::layout::Layout;
use sd_models::presets::Preset;
use tempfile::TempDir;

struct Place {
    dir: TempDir,
    base: PathBuf,
    tuned: PathBuf,
}

impl Place {
    /// A model, and one that is 0.3 of the way to another.
    fn new(family: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let synth = |seed| synthetic(dir.path(), family, seed);
        let (base, other) = (synth(0), synth(1));
        let tuned = dir.path().join("tuned.safetensors");
        let plan = Plan::new(Method::WeightedSum, BlockWeights::Uniform(0.3));
        let merged = Merged::new(vec![open(&base), open(&other)], plan).unwrap();
        save(&merged, &tuned, None, false, &Unwatched).unwrap();
        Self { dir, base, tuned }
    }

    fn extract(&self, more: &[&str]) -> (Output, Lora) {
        let path = self.dir.path().join("lora.safetensors");
        let mut args = vec!["extract", "--force", "--base", self.base.to_str().unwrap()];
        args.extend(["--tuned", self.tuned.to_str().unwrap()]);
        args.extend(["-o", path.to_str().unwrap()]);
        args.extend(more);
        let output = sdconvert(&args);
        assert!(output.status.success(), "{}", text(&output.stderr));
        (output, Lora::read(&path))
    }
}

fn open(path: &Path) -> Box<dyn Model> {
    Box::new(Weights::open(path, None).unwrap())
}

/// Values and shapes by name.
struct Lora(HashMap<String, (Vec<usize>, Vec<f32>)>);

impl Lora {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |(name, view): (&str, TensorView<'_>)| {
            assert_eq!(view.dtype(), Dtype::F16);
            let halves = view.data().as_chunks().0.iter();
            let values = halves.map(|b| f16::from_le_bytes(*b).to_f32()).collect();
            (name.to_owned(), (view.shape().to_vec(), values))
        };
        Self(file.iter().map(tensor).collect())
    }

    fn rank(&self, module: &str) -> usize {
        self.0[&format!("{module}.lora_down.weight")].0[0]
    }

    /// `alpha / rank * up * down`
    fn delta(&self, module: &str) -> Vec<f32> {
        let get = |part: &str| &self.0[&format!("{module}.{part}")];
        let ((up_shape, up), (down_shape, down)) = (get("lora_up.weight"), get("lora_down.weight"));
        let (rank, alpha) = (down_shape[0], get("alpha").1[0]);
        assert_eq!(up_shape[1], rank);
        let columns = down.len() / rank;
        let mut delta = vec![0.0; up_shape[0] * columns];
        for (i, row) in delta.chunks_mut(columns).enumerate() {
            for k in 0..rank {
                let factor = f64::from(alpha) / rank as f64 * f64::from(up[i * rank + k]);
                for (j, value) in row.iter_mut().enumerate() {
                    *value += factor * f64::from(down[k * columns + j]);
                }
            }
        }
        delta.into_iter().map(|x| x as f32).collect()
    }
}

/// The weights that a LoRA may change, by their modules' names.
fn targets(family: &str, model: &dyn Model, kind: Target) -> Vec<(String, Name)> {
    let preset = Preset::named(family).unwrap();
    let layout = Layout::single_file(preset.family(), &preset.unet(true), 4, false);
    let names = model.entries().keys();
    let of_kind = names.filter(|name| kohya::target(name.0, &name.1) == Some(kind));
    of_kind
        .map(|name| {
            let module = kohya::module(preset.family(), &layout, name.0, &name.1);
            (module.unwrap(), name.clone())
        })
        .collect()
}

/// The tuned weights come back to within the rounding of half precision: a unit of theirs, and those of the factors.
#[test]
fn full_rank_gives_the_tuned_model_back() {
    for family in ["sd15", "sdxl"] {
        let place = Place::new(family);
        let (output, lora) = place.extract(&["--rank", "100000", "--conv-rank", "100000"]);
        assert!(
            text(&output.stderr).contains("energy kept: 100.0 %"),
            "{}",
            text(&output.stderr)
        );
        let (base, tuned) = (open(&place.base), open(&place.tuned));
        let mut count = 0;
        for kind in [Target::Linear, Target::Conv] {
            for (module, name) in targets(family, &*base, kind) {
                let (b, t) = (
                    base.read_f32(&name).unwrap(),
                    tuned.read_f32(&name).unwrap(),
                );
                let delta = lora.delta(&module);
                let largest = t.iter().fold(0f32, |m, x| m.max(x.abs()));
                for ((b, t), delta) in b.iter().zip(&t).zip(&delta) {
                    let error = (b + delta - t).abs();
                    assert!(error <= largest * 2f32.powi(-11), "{module}: {error}");
                }
                count += 1;
            }
        }
        assert_eq!(lora.0.len(), 3 * count, "{family}");
    }
}

#[test]
fn lower_ranks_leave_the_discarded_singular_values() {
    let place = Place::new("sd15");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/extract.safetensors");
    let golden = fs::read(golden).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let weight = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight";
    let module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q";
    let sigmas = golden.tensor(weight).unwrap();
    let sigmas: Vec<f64> = sigmas
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|b| f64::from(f32::from_le_bytes(*b)))
        .collect();
    let name: Name = (Component::UNet, weight.to_owned());
    let (base, tuned) = (open(&place.base), open(&place.tuned));
    let (base, tuned) = (
        base.read_f32(&name).unwrap(),
        tuned.read_f32(&name).unwrap(),
    );
    for rank in [1usize, 8, 40] {
        let (_, lora) = place.extract(&["--rank", &rank.to_string()]);
        assert_eq!(lora.rank(module), rank);
        let delta = lora.delta(module);
        let errors = base.iter().zip(&tuned).zip(&delta);
        let squares = errors.map(|((b, t), d)| f64::from(t - b - d).powi(2));
        let left: f64 = sigmas[rank..].iter().map(|s| s * s).sum();
        let ratio = (squares.sum::<f64>() / left).sqrt();
        assert!((ratio - 1.0).abs() < 5e-4, "rank {rank}: {ratio}");
    }
    // By energy and by threshold: as few as it takes.
    let total: f64 = sigmas.iter().map(|s| s * s).sum();
    let mut sum = 0.0;
    let enough = sigmas.iter().position(|s| {
        sum += s * s;
        sum >= 0.7 * total
    });
    let (_, lora) = place.extract(&["--energy", "0.7"]);
    assert_eq!(lora.rank(module), enough.unwrap() + 1);
    let threshold = f64::midpoint(sigmas[9], sigmas[10]);
    let (_, lora) = place.extract(&["--threshold", &threshold.to_string()]);
    assert_eq!(lora.rank(module), 10);
    let (output, _) = place.extract(&["--rank", "1"]);
    assert!(
        text(&output.stderr).contains("--energy 0.9"),
        "{}",
        text(&output.stderr)
    );
    let (_, clamped) = place.extract(&["--rank", "8", "--clamp-quantile", "0.9"]);
    let (_, free) = place.extract(&["--rank", "8"]);
    let largest = |lora: &Lora| {
        let up = &lora.0[&format!("{module}.lora_down.weight")].1;
        up.iter().fold(0f32, |m, x| m.max(x.abs()))
    };
    assert!(largest(&clamped) < largest(&free));
}

#[test]
fn a_difference_of_low_rank_is_found_exactly() {
    let place = Place::new("sd15");
    let weight = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight";
    let module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q";
    let bytes = fs::read(&place.base).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut changed = file.tensor(weight).unwrap().data().to_vec();
    for (i, value) in changed.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let (row, column) = (i / 64, i % 64);
        // Rank one, in steps that half precision holds exactly beside the weights.
        let step = if row % 3 == 0 && column % 5 == 0 {
            0.25
        } else {
            0.0
        };
        *value = f16::from_f32(f16::from_le_bytes(*value).to_f32() + step).to_le_bytes();
    }
    let views = file.iter().map(|(name, view)| {
        let data = if name == weight {
            &changed[..]
        } else {
            view.data()
        };
        (
            name,
            TensorView::new(view.dtype(), view.shape().to_vec(), data).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, &place.tuned).unwrap();
    let (output, lora) = place.extract(&["--energy", "0.99999"]);
    assert_eq!(lora.rank(module), 1);
    assert_eq!(lora.0.len(), 3);
    let stderr = text(&output.stderr);
    assert!(!stderr.contains("text encoders"), "{stderr}");
    for (i, delta) in lora.delta(module).into_iter().enumerate() {
        let expected = if (i / 64) % 3 == 0 && (i % 64) % 5 == 0 {
            0.25
        } else {
            0.0
        };
        assert!((delta - expected).abs() < 1e-3, "{i}: {delta}");
    }
}

#[test]
fn what_cannot_be_extracted_is_refused() {
    let place = Place::new("sd15");
    let out = place.dir.path().join("x.safetensors");
    let run = |base: &Path, tuned: &Path, more: &[&str]| {
        let (base, tuned) = (base.to_str().unwrap(), tuned.to_str().unwrap());
        let mut args = vec!["extract", "--base", base, "--tuned", tuned];
        args.extend(["-o", out.to_str().unwrap()]);
        args.extend(more);
        let output = sdconvert(&args);
        assert!(!out.exists());
        (output.status.code(), text(&output.stderr))
    };
    let (code, error) = run(&place.base, &place.base, &[]);
    assert!(
        code == Some(1) && error.contains("differ in no layer"),
        "{error}"
    );
    let other = Place::new("sd21");
    let (code, error) = run(&place.base, &other.base, &[]);
    assert!(
        code == Some(1) && error.contains("Stable Diffusion 2.x"),
        "{error}"
    );
    let (code, error) = run(&place.base, &place.tuned, &["--energy", "1.5"]);
    assert!(code == Some(2) && error.contains("--energy 1.5"), "{error}");
    assert_eq!(run(&place.base, &place.tuned, &["--rank", "0"]).0, Some(2));
}

#[test]
fn a_text_encoder_that_changed_little_is_left_out_loudly_and_kept_on_request() {
    let place = Place::new("sd15");
    let bytes = fs::read(&place.base).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let change = |changed: &[&str]| {
        let altered: HashMap<String, Vec<u8>> = file
            .iter()
            .map(|(name, view)| {
                let mut data = view.data().to_vec();
                if changed.iter().any(|part| name.contains(part)) {
                    // A unit in the last place, or more, of what is about 0.01.
                    for value in data.as_chunks_mut::<2>().0.iter_mut() {
                        let x = f16::from_le_bytes(*value).to_f32();
                        *value = f16::from_f32(x + 0.004).to_le_bytes();
                    }
                }
                (name.to_owned(), data)
            })
            .collect();
        let views = file.iter().map(|(name, view)| {
            let shape = view.shape().to_vec();
            (
                name,
                TensorView::new(view.dtype(), shape, &altered[name]).unwrap(),
            )
        });
        safetensors::serialize_to_file(views, None, &place.tuned).unwrap();
    };
    let words = "layers.0.self_attn.q_proj.weight";
    change(&[
        words,
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight",
    ]);
    let of_text = |lora: &Lora| lora.0.keys().filter(|k| k.starts_with("lora_te")).count();
    let (output, lora) = place.extract(&["--rank", "1"]);
    let said = text(&output.stderr);
    assert!(
        said.contains("warning: the text encoders are left out"),
        "{said}"
    );
    assert!(
        said.contains("more than 0.01") && said.contains("--min-diff 0"),
        "{said}"
    );
    assert_eq!((of_text(&lora), lora.0.len()), (0, 3));
    for least in ["0", "0.001"] {
        let (output, lora) = place.extract(&["--rank", "1", "--min-diff", least]);
        let said = text(&output.stderr);
        assert!(!said.contains("left out"), "{said}");
        assert_eq!((of_text(&lora), lora.0.len()), (3, 6));
    }
    // Nothing else changed.
    change(&[words]);
    let paths = [&place.base, &place.tuned].map(|path| path.to_str().unwrap());
    let args = ["extract", "--base", paths[0], "--tuned", paths[1], "-o"];
    let out = place.dir.path().join("nothing.safetensors");
    let output = sdconvert(&[&args, &[out.to_str().unwrap()][..]].concat());
    let said = text(&output.stderr);
    assert!(
        output.status.code() == Some(1) && said.contains("--min-diff 0"),
        "{said}"
    );
    let less = |name: &&str| !name.contains("attn1.to_q");
    let names = file.names().into_iter();
    let views = names
        .filter(less)
        .map(|name| (name, file.tensor(name).unwrap()));
    safetensors::serialize_to_file(views, None, &place.tuned).unwrap();
    let output = sdconvert(&[&args, &[out.to_str().unwrap()][..]].concat());
    let said = text(&output.stderr);
    assert!(
        said.contains("attn1.to_q") && !said.contains("--missing"),
        "{said}"
    );
}
