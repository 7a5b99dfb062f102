//! Every kind of adapter, against the libraries that define it: files and merged weights of `golden/adapters_reference.py`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use common::synthetic;
use safetensors::tensor::{SafeTensors, TensorView};
use sd_converter::checkpoint::Dtype;
use sd_converter::lora::{LoraSpec, Options, WithLoras};
use sd_converter::model::{Model, Name};
use sd_converter::weights::Weights;
use sd_models::keys::Component;
use serde::Deserialize;

/// Largest relative distance to the library's weights, which it mostly computes in single precision.
const TOLERANCE: f64 = 1e-6;

#[derive(Deserialize)]
struct Case {
    family: String,
    strength: f64,
    metadata: HashMap<String, String>,
    adapter_config: Option<serde_json::Value>,
}

fn component(name: &str) -> Component {
    let known = Component::ALL.into_iter();
    known.clone().find(|c| c.name() == name).unwrap()
}

/// Writes a case's file as its library saves it.
fn write_file(golden: &SafeTensors<'_>, name: &str, case: &Case, dir: &Path) -> PathBuf {
    let prefix = format!("{name}/file/");
    let tensors: Vec<(String, TensorView<'_>)> = golden
        .iter()
        .filter_map(|(key, view)| Some((key.strip_prefix(&prefix)?.to_owned(), view)))
        .collect();
    assert!(!tensors.is_empty(), "{name}");
    let dir = dir.join(name);
    fs::create_dir_all(&dir).unwrap();
    let path = match &case.adapter_config {
        None => dir.join("adapter.safetensors"),
        Some(config) => {
            fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
            dir.join("adapter_model.safetensors")
        }
    };
    let metadata = Some(case.metadata.clone()).filter(|m| !m.is_empty());
    safetensors::serialize_to_file(tensors, metadata, &path).unwrap();
    path
}

#[test]
fn every_kind_gives_the_weights_of_its_library() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapters.safetensors");
    let golden = fs::read(golden).unwrap();
    let (_, header) = SafeTensors::read_metadata(&golden).unwrap();
    let cases = &header.metadata().as_ref().unwrap()["cases"];
    let cases: BTreeMap<String, Case> = serde_json::from_str(cases).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut bases: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (name, case) in &cases {
        let path = write_file(&golden, name, case, dir.path());
        let base = bases.entry(case.family.clone());
        let base = base.or_insert_with(|| synthetic(dir.path(), &case.family, 0));
        let open = || Box::new(Weights::open(base, None).unwrap());
        let options = Options {
            storage: Some(Dtype::F32),
            ..Options::default()
        };
        let spec = LoraSpec::new(path, case.strength);
        let model = match WithLoras::new(open(), &[spec], options) {
            Ok(model) => model,
            Err(e) => {
                wrong.push(format!("{name}: {e}"));
                continue;
            }
        };
        let plain = open();
        let mut expected_changes = BTreeSet::new();
        for (key, expected) in golden.iter() {
            let Some(rest) = key.strip_prefix(&format!("{name}/merged/")) else {
                continue;
            };
            let (of, canonical) = rest.split_once('/').unwrap();
            let weight: Name = (component(of), canonical.to_owned());
            let found = model.read_f32(&weight).unwrap();
            let expected: Vec<f32> = expected
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            assert_eq!(found.len(), expected.len(), "{key}");
            let error = relative(&found, &expected);
            if error > TOLERANCE {
                let change = relative(&plain.read_f32(&weight).unwrap(), &expected);
                wrong.push(format!(
                    "{key}: relative L2 {error:.1e} (change {change:.1e})"
                ));
            }
            expected_changes.insert(weight);
        }
        let changed = model
            .entries()
            .keys()
            .filter(|weight| model.read_f32(weight).unwrap() != plain.read_f32(weight).unwrap());
        let changed: BTreeSet<Name> = changed.cloned().collect();
        if changed != expected_changes {
            let difference: Vec<_> = changed.symmetric_difference(&expected_changes).collect();
            wrong.push(format!(
                "{name}: other weights than expected: {difference:?}"
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

/// Distance over the norm of what is expected.
fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let distance = found
        .iter()
        .zip(expected)
        .map(|(a, b)| square(f64::from(*a) - f64::from(*b)));
    let norm = expected.iter().map(|x| square(f64::from(*x)));
    (distance.sum::<f64>() / norm.sum::<f64>()).sqrt()
}
