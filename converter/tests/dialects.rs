//! Graphs of converted models: the portable dialect stays what it is, bit for bit, and the native one reads the same weights.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{converted, sdconvert, synthetic, text};
use prost::Message;
use sd_converter::onnx::proto::{EXTERNAL, ModelProto};
use sd_models::manifest::{self, Manifest, hex};
use sha2::{Digest, Sha256};

fn model_proto(path: &Path) -> ModelProto {
    ModelProto::decode(&*fs::read(path).unwrap()).unwrap()
}

/// SHA-256 of the graph in a file, without the name and version of the program that wrote it.
fn graph_hash(path: &Path) -> String {
    let model = model_proto(path);
    hex(&Sha256::digest(model.graph.unwrap().encode_to_vec()))
}

/// Hashes of a conversion made before networks were built of layers; the text encoder's is from when it came to look for the end
/// token in single precision.
#[test]
fn portable_graphs_are_the_same_bytes_as_ever() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("model");
    let data = converted(&synthetic(dir.path(), "sd15", 0), &target);
    let graphs = [
        (
            "text_encoder/model.onnx",
            "4ea7da136db4d33c61fcb0fe80c62356f0b3e8f6040b0bd4199be7ed74b26f04",
        ),
        (
            "unet/controlnet.onnx",
            "92fe0bed60e50d10b48137b1dfb68632276aaad13979eb4160cbdbf09828a245",
        ),
        (
            "unet/model.onnx",
            "7c2f9bacebcab132f2090a711b0684e72613c86e7ee93c58ed5afe3115ff99b9",
        ),
        (
            "vae_decoder/model.onnx",
            "36246b1316c13128a28ae8684e9af0eec89740e8991569e3039c7b221fed187c",
        ),
        (
            "vae_encoder/model.onnx",
            "6b38d3e1e2ed309f442aabc21fd4eec79d57b51c37d555a48329b949f0915c21",
        ),
    ];
    for (file, hash) in graphs {
        assert_eq!(graph_hash(&target.join(file)), hash, "{file}");
    }
    let weights = [
        (
            "text_encoder",
            "0845385c56ad9cccb63fb3926636c12a68b14c500daa3af132088d6fcf5ce366",
        ),
        (
            "unet",
            "039e22b6b6ab4b2e21991a29024d2ce0544af4e103510f07754ff40f30c94fbc",
        ),
        (
            "vae_decoder",
            "fc921b5b5f7941c185f8218c0f0b393c4d3e1b6712b4f5c039f626908ace26a8",
        ),
        (
            "vae_encoder",
            "c828251e5bf1e7d0962f3e516c8e3f7b60e9d61c2377db0015dccaa92dcc9b2b",
        ),
    ];
    for (folder, hash) in weights {
        assert_eq!(hex(&Sha256::digest(&data[folder])), hash, "{folder}");
    }
}

/// A converted tiny checkpoint, and its manifest.
fn model(dir: &Path, family: &str) -> (PathBuf, Manifest) {
    let target = dir.join("model");
    converted(&synthetic(dir, family, 0), &target);
    let text = fs::read_to_string(target.join(manifest::FILE_NAME)).unwrap();
    (target, serde_json::from_str(&text).unwrap())
}

#[test]
fn the_manifest_says_what_each_graph_needs() {
    let dir = tempfile::tempdir().unwrap();
    let (_, manifest) = model(dir.path(), "sd15");
    let needs = |folder: &str| -> Vec<(String, String, String)> {
        let variants = &manifest.components[folder].variants;
        let row = |(name, v): (&String, &manifest::Variant)| {
            (name.clone(), v.custom_domains.join(" "), v.needs.join(" "))
        };
        variants.iter().map(row).collect()
    };
    let row = |name: &str, domains: &str, needs: &str| {
        (name.to_owned(), domains.to_owned(), needs.to_owned())
    };
    let parts = "native.prompt.onnx native.time.onnx";
    let unet = [
        row("controlnet.onnx", "", ""),
        row("model.onnx", "", ""),
        row("native.controlnet.onnx", "sdrt:1", parts),
        row("native.onnx", "sdrt:1", parts),
        row("native.prompt.onnx", "sdrt:1", ""),
        row("native.time.onnx", "sdrt:1", ""),
    ];
    assert_eq!(needs("unet"), unet);
    let whole = [row("model.onnx", "", ""), row("native.onnx", "sdrt:1", "")];
    for folder in ["text_encoder", "vae_decoder", "vae_encoder"] {
        assert_eq!(needs(folder), whole, "{folder}");
    }
}

/// A tensor as a graph file declares it: type, shape, whether its bytes are elsewhere, and where.
type Declared = (i32, Vec<i64>, bool, String);

#[test]
fn native_graphs_read_the_same_bytes_without_widening_them() {
    let dir = tempfile::tempdir().unwrap();
    let (target, manifest) = model(dir.path(), "sdxl");
    let declared = |path: &Path| -> BTreeMap<String, Declared> {
        let tensors = model_proto(path).graph.unwrap().initializer.into_iter();
        let weights = tensors.filter(|t| !t.name.starts_with("constant."));
        let place = |t: &sd_converter::onnx::proto::TensorProto| format!("{:?}", t.external_data);
        weights
            .map(|t| {
                let external = t.data_location == EXTERNAL;
                (
                    t.name.clone(),
                    (t.data_type, t.dims.clone(), external, place(&t)),
                )
            })
            .collect()
    };
    for (folder, component) in &manifest.components {
        let folder = target.join(folder);
        let portable = declared(&folder.join("model.onnx"));
        let mut native = BTreeMap::new();
        for name in component
            .variants
            .keys()
            .filter(|name| name.starts_with("native."))
        {
            native.extend(declared(&folder.join(name)));
            let graph = model_proto(&folder.join(name)).graph.unwrap();
            let casts = graph.node.iter().filter(|node| node.op_type == "Cast");
            let casts: Vec<&str> = casts.map(|node| &*node.input[0]).collect();
            // Tokens after they are picked, positions before, and ids to look for the end token in.
            let expected = usize::from(folder.ends_with("text_encoder"))
                + usize::from(folder.ends_with("text_encoder_2"));
            assert_eq!(casts.len(), 3 * expected, "{}: {casts:?}", folder.display());
        }
        assert_eq!(native, portable, "{}", folder.display());
    }
}

/// Directories converted before there were native graphs.
#[test]
fn a_directory_without_native_graphs_is_whole_and_one_that_lost_a_part_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (target, mut manifest) = model(dir.path(), "sd15");
    let verify = || sdconvert(&["verify", target.to_str().unwrap()]);
    assert!(verify().status.success(), "{}", text(&verify().stderr));

    let write = |manifest: &Manifest| {
        let json = serde_json::to_string(manifest).unwrap();
        fs::write(target.join(manifest::FILE_NAME), json).unwrap();
    };
    let unet = manifest.components.get_mut("unet").unwrap();
    fs::remove_file(target.join("unet/native.time.onnx")).unwrap();
    unet.files.remove("native.time.onnx");
    unet.variants.remove("native.time.onnx");
    write(&manifest);
    let error = text(&verify().stderr);
    assert!(error.contains("native.time.onnx"), "{error}");

    for (folder, component) in &mut manifest.components {
        for name in component.variants.keys() {
            if name.starts_with("native.") {
                fs::remove_file(target.join(folder).join(name)).unwrap();
                component.files.remove(name);
            }
        }
        component
            .variants
            .retain(|name, _| !name.starts_with("native."));
    }
    write(&manifest);
    assert!(verify().status.success(), "{}", text(&verify().stderr));

    manifest.components.remove("vae_decoder");
    write(&manifest);
    let error = text(&verify().stderr);
    assert!(error.contains("does not list `vae_decoder`"), "{error}");
}

#[test]
fn a_manifest_that_says_other_types_than_the_graphs_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let (target, whole) = model(dir.path(), "sd15");
    let said = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = whole.clone();
        change(&mut manifest);
        let json = serde_json::to_string(&manifest).unwrap();
        fs::write(target.join(manifest::FILE_NAME), json).unwrap();
        let output = sdconvert(&["verify", target.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    let unet = |change: &dyn Fn(&mut manifest::Component)| {
        said(&|manifest| change(manifest.components.get_mut("unet").unwrap()))
    };
    for storage in [&["I8"][..], &["F16", "I8"], &[]] {
        let storage: Vec<String> = storage.iter().map(|&s| s.to_owned()).collect();
        let error = unet(&|unet| unet.storage.clone_from(&storage));
        assert!(
            error.contains("sdrt.json") && error.contains("unet: "),
            "{error}"
        );
    }
    let error = unet(&|unet| "fp16".clone_into(&mut unet.precision));
    assert!(error.contains("\"fp32\""), "{error}");
    // Names that lead out of the directory are not followed.
    for name in ["../x", "/etc/passwd", "..", "a\\b"] {
        let file = whole.components["unet"].files["model.onnx"].clone();
        let error = unet(&|unet| drop(unet.files.insert(name.to_owned(), file.clone())));
        assert!(error.contains(&format!("it lists `{name}`")), "{error}");
        let error = said(&|manifest| {
            let unet = manifest.components.remove("unet").unwrap();
            manifest.components.insert(name.to_owned(), unet);
        });
        assert!(error.contains(&format!("it lists `{name}`")), "{error}");
    }
}

#[test]
#[cfg(unix)]
fn a_data_file_may_be_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let (target, _) = model(dir.path(), "sd15");
    let data = target.join("unet/model.onnx_data");
    fs::rename(&data, dir.path().join("blob")).unwrap();
    let verify = |link: &Path| {
        let _ = fs::remove_file(&data);
        std::os::unix::fs::symlink(link, &data).unwrap();
        let output = sdconvert(&["verify", target.to_str().unwrap()]);
        (output.status.code(), text(&output.stderr))
    };
    for link in [Path::new("../../blob"), &dir.path().join("blob")] {
        let (code, said) = verify(link);
        assert_eq!(code, Some(0), "{said}");
    }
}

#[test]
fn inspect_lists_the_graphs_and_what_they_need() {
    let dir = tempfile::tempdir().unwrap();
    let (target, _) = model(dir.path(), "sd15");
    let listed = text(&sdconvert(&["inspect", target.to_str().unwrap()]).stdout);
    let native = "native.onnx with operators sdrt:1, native.prompt.onnx, native.time.onnx";
    assert!(listed.contains(native), "{listed}");
}
