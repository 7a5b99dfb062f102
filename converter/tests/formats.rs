//! Containers: PyTorch's files of several times, pipeline folders, and what hostile ones get.
//!
//! `golden/torch_files.py` made the small files that PyTorch itself wrote.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use common::{converted, error_of, sdconvert, synthetic, text, values, write_raw};
use sd_converter::build::{BuildOptions, BuildPlan};
use sd_converter::checkpoint::{Dtype, open, to_f32};
use sd_converter::embedding::Embedding;
use sd_converter::progress::Unwatched;
use sd_converter::weights::Weights;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn golden(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    folder.join(name)
}

#[test]
fn files_that_pytorch_wrote_hold_what_was_put_in() {
    for name in ["zip.ckpt", "legacy.ckpt", "bare.bin"] {
        let file = open(&golden(name)).unwrap();
        let counted = |n: usize| (0..n).map(|i| i as f32).collect::<Vec<_>>();
        for (tensor, dtype, shape) in [
            ("f32", Dtype::F32, vec![2, 3]),
            ("f16", Dtype::F16, vec![2, 3]),
            ("bf16", Dtype::Bf16, vec![5]),
            ("f64", Dtype::F64, vec![3]),
            ("shared.whole", Dtype::F32, vec![4, 6]),
            ("parameter", Dtype::F32, vec![2]),
            ("empty", Dtype::F32, vec![0, 3]),
        ] {
            let info = &file.tensors()[tensor];
            assert_eq!(
                (info.dtype, &info.shape),
                (dtype, &shape),
                "{name} {tensor}"
            );
            let count = shape.iter().product();
            assert_eq!(values(&*file, tensor), counted(count), "{name} {tensor}");
        }
        assert_eq!(file.tensors()["i64"].dtype, Dtype::I64);
        assert_eq!(file.tensors()["scalar"].shape, [0usize; 0]);
        assert_eq!(values(&*file, "scalar"), [2.5]);
        assert_eq!(values(&*file, "transposed"), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        assert_eq!(values(&*file, "shared.rows")[..2], [6.0, 7.0]);
        assert_eq!(values(&*file, "shared.columns"), [2.0, 8.0, 14.0, 20.0]);
        assert_eq!(file.tensors().len(), 12);
        let step = file.metadata().get("global_step").map(String::as_str);
        assert_eq!(step, (name != "bare.bin").then_some("875000"));
    }
    let file = open(&golden("f8.pt")).unwrap();
    assert_eq!(values(&*file, "e4m3"), [0.0, 1.0, 2.0]);
    assert_eq!(values(&*file, "e5m2"), [0.0, 1.0, 2.0]);
    assert!(error_of(&golden("script.pt")).contains("TorchScript"));
}

#[test]
fn an_embedding_is_the_same_in_every_layout() {
    let dir = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..2 * 768)
        .flat_map(|i| (i as f32).to_le_bytes())
        .collect();
    let mut paths = vec![golden("embedding.pt"), golden("embedding-parameters.pt")];
    for key in ["emb_params", "<thing>"] {
        let view =
            |shape| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &data);
        let path = dir.path().join(format!("{}.safetensors", key.len()));
        safetensors::serialize_to_file([(key, view(vec![2, 768]).unwrap())], None, &path).unwrap();
        paths.push(path);
    }
    let read: Vec<Embedding> = paths.iter().map(|p| Embedding::open(p).unwrap()).collect();
    for embedding in &read {
        assert_eq!(embedding.vectors, read[0].vectors);
        assert_eq!(
            (embedding.vectors[0].tokens(), embedding.vectors[0].width),
            (2, 768)
        );
    }
    assert_eq!(read[0].name.as_deref(), Some("thing"));
    assert_eq!(read[3].name.as_deref(), Some("<thing>"));
    assert!(Embedding::open(&golden("zip.ckpt")).is_err());
}

/// Writes pickles, opcode by opcode.
#[derive(Default)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn new() -> Self {
        Self(vec![0x80, 2])
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        let length = (text.len() as u32).to_le_bytes();
        self.raw(b"X").raw(&length).raw(text.as_bytes())
    }

    fn int(self, n: usize) -> Self {
        self.raw(b"J").raw(&(n as i32).to_le_bytes())
    }

    fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    fn counts(mut self, counts: &[usize]) -> Self {
        self = self.raw(b"(");
        for &n in counts {
            self = self.int(n);
        }
        self.raw(b"t")
    }

    /// A tensor of half precision that is a view of the storage `key`.
    fn tensor(self, key: &str, numel: usize, shape: &[usize], stride: &[usize]) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"((")
            .text("storage")
            .global("torch", "HalfStorage")
            .text(key)
            .text("cpu")
            .int(numel)
            .raw(b"tQ")
            .int(0)
            .counts(shape)
            .counts(stride)
            .raw(b"\x89")
            .global("collections", "OrderedDict")
            .raw(b")RtR")
    }
}

/// One tensor `w` of two elements, with `more` as a further entry of the dictionary.
fn small(more: impl FnOnce(Pickle) -> Pickle) -> Vec<u8> {
    let one = Pickle::new()
        .raw(b"}")
        .text("w")
        .tensor("0", 2, &[2], &[1])
        .raw(b"s");
    more(one).raw(b".").0
}

type Entries<'a> = Vec<(&'a str, Vec<u8>)>;

fn write_zip(path: &Path, entries: &Entries<'_>, method: CompressionMethod) {
    let mut zip = ZipWriter::new(fs::File::create(path).unwrap());
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, content) in entries {
        zip.start_file(*name, options).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap();
}

fn small_zip(pickle: Vec<u8>) -> Entries<'static> {
    vec![("a/data.pkl", pickle), ("a/data/0", vec![0, 0x3C, 0, 0x40])]
}

#[test]
fn pickles_that_ask_to_run_something_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let call = |module: &'static str, name: &'static str| {
        move |p: Pickle| {
            p.text("_")
                .global(module, name)
                .text("id")
                .raw(b"\x85R")
                .raw(b"s")
        }
    };
    let stack_global = |p: Pickle| {
        // The names come through the memo.
        p.text("_")
            .text("posix")
            .raw(b"q\x01")
            .text("system")
            .raw(b"q\x02")
            .raw(b"00")
            .raw(b"h\x01h\x02\x93")
            .text("id")
            .raw(b"\x85Rs")
    };
    let dotted = |p: Pickle| {
        p.text("_")
            .text("torch")
            .text("Size.__init__")
            .raw(b"\x93")
            .raw(b"s")
    };
    let mut attacks = vec![
        (small(stack_global), "posix.system"),
        (small(dotted), "torch.Size.__init__"),
        (
            b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.".to_vec(),
            "posix.system",
        ),
    ];
    for (module, name) in [
        ("posix", "system"),
        ("nt", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("__builtin__", "exec"),
        ("runpy", "_run_code"),
        ("webbrowser", "open"),
        ("torch.hub", "load"),
        ("operator", "attrgetter"),
        ("torch.storage", "_load_from_bytes"),
        ("torch", "load"),
        ("os", "path.os.system"),
    ] {
        let named: &'static str = Box::leak(format!("{module}.{name}").into_boxed_str());
        attacks.push((small(call(module, name)), named));
    }
    for (i, (pickle, global)) in attacks.into_iter().enumerate() {
        let zip = dir.path().join(format!("{i}.ckpt"));
        write_zip(&zip, &small_zip(pickle.clone()), CompressionMethod::Stored);
        let legacy = dir.path().join(format!("{i}.pt"));
        fs::write(&legacy, pickle).unwrap();
        for path in [zip, legacy] {
            let error = error_of(&path);
            assert!(error.contains(&format!("`{global}`")), "{error}");
            assert!(error.contains("will not be loaded"), "{error}");
        }
    }
    let error = error_of(&dir.path().join("2.pt"));
    assert!(error.contains("at byte 2 "), "{error}");
}

#[test]
fn opcodes_and_sizes_that_no_checkpoint_needs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ckpt");
    let refuse = |entries: &Entries<'_>, method, said: &str| {
        write_zip(&path, entries, method);
        let error = error_of(&path);
        assert!(error.contains(said), "`{said}` is not in: {error}");
    };
    let stored = CompressionMethod::Stored;
    for opcode in [b'i', b'o', 0x92, 0x82, 0x83, 0x84, b'P', 0x97, 0x98] {
        let pickle = small(|p| p.raw(&[opcode]));
        refuse(
            &small_zip(pickle),
            stored,
            &format!("opcode 0x{opcode:02x}"),
        );
    }
    let old = b"(dp0\n.".to_vec();
    refuse(&small_zip(old), stored, "protocol");
    let endless = small(|p| p.raw(b"X\xff\xff\xff\x7f"));
    refuse(&small_zip(endless), stored, "1 MiB");
    let popped = Pickle::new().raw(b"00.").0;
    refuse(&small_zip(popped), stored, "the stack is empty");
    let no_memo = Pickle::new().raw(b"h\x05.").0;
    refuse(&small_zip(no_memo), stored, "never kept");
    let cut = small(|p| p)[..20].to_vec();
    refuse(&small_zip(cut), stored, "damaged");
    let second = [small(|p| p), small(|p| p)].concat();
    refuse(&small_zip(second), stored, "behind its pickle");
    let list = Pickle::new().raw(b"].").0;
    refuse(&small_zip(list), stored, "no dictionary");

    // A list that holds itself, and one of lists of lists: neither recursion nor copies.
    let itself = small(|p| p.text("l").raw(b"]q\x09h\x09as"));
    write_zip(&path, &small_zip(itself), stored);
    assert_eq!(open(&path).unwrap().tensors().len(), 1);
    let deep = small(|p| {
        p.text("l")
            .raw(&b"]".repeat(100_000))
            .raw(&b"a".repeat(99_999))
            .raw(b"s")
    });
    write_zip(&path, &small_zip(deep), stored);
    assert_eq!(open(&path).unwrap().tensors().len(), 1);
    // Few bytes that copy a long list again and again.
    let mut copies = Pickle::new()
        .raw(b"](")
        .raw(&b"N".repeat(100_000))
        .raw(b"eq\x010");
    for _ in 0..1000 {
        copies = copies.global("builtins", "list").raw(b"h\x01\x85R0");
    }
    refuse(&small_zip(copies.raw(b"}.").0), stored, "too much to do");
    let many = Pickle::new().raw(&b"N".repeat(1_000_001)).raw(b".").0;
    refuse(&small_zip(many), stored, "too many values");
}

#[test]
fn tensors_must_lie_in_their_storages() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ckpt");
    let refuse = |numel, shape: &[usize], stride: &[usize], said: &str| {
        let pickle = Pickle::new()
            .raw(b"}")
            .text("w")
            .tensor("0", numel, shape, stride);
        let entries = small_zip(pickle.raw(b"s.").0);
        write_zip(&path, &entries, CompressionMethod::Stored);
        let error = error_of(&path);
        assert!(
            error.contains(said) && error.contains("`w`"),
            "`{said}` is not in: {error}"
        );
    };
    refuse(2, &[3], &[1], "more elements than its storage");
    refuse(2, &[2], &[2], "beyond its storage");
    refuse(2, &[2, 1], &[1], "do not belong together");
    refuse(1000, &[1000], &[1], "has 4 bytes, but 2000 are needed");
    refuse(2, &[2_000_000_000, 2], &[0, 0], "more elements");
}

#[test]
fn archives_that_are_no_checkpoints_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ckpt");
    let good = || small_zip(small(|p| p));
    let (stored, deflated) = (CompressionMethod::Stored, CompressionMethod::Deflated);
    let refuse = |entries: Entries<'_>, method, said: &str| {
        write_zip(&path, &entries, method);
        let error = error_of(&path);
        assert!(error.contains(said), "`{said}` is not in: {error}");
    };
    let with = |name: &'static str, content: &[u8]| {
        let mut entries = good();
        entries.push((name, content.to_vec()));
        entries
    };
    refuse(with("b/data.pkl", &small(|p| p)), stored, "2 `data.pkl`");
    refuse(good()[1..].to_vec(), stored, "0 `data.pkl`");
    refuse(with("a/../../etc/passwd", b""), stored, "etc/passwd");
    refuse(with("/a/data/1", b""), stored, "not a name");
    refuse(with("a/data/..", b""), stored, "not a name");
    refuse(with("a/notes.txt", b""), stored, "notes.txt");
    refuse(with("a/byteorder", b"big"), stored, "big-endian");
    refuse(with("a/code/x.py", b""), stored, "TorchScript");
    refuse(
        with("a/data/1", &vec![0; 10 << 20]),
        deflated,
        "would unpack",
    );
    write_zip(&path, &good(), deflated);
    let file = open(&path).unwrap();
    assert_eq!(values(&*file, "w"), [1.0, 2.0]);

    // Two entries of one name: the zip crate writes none, so the second is renamed afterwards.
    write_zip(&path, &with("a/data/1", b"hidden"), stored);
    let bytes = fs::read(&path).unwrap();
    let renamed = bytes
        .windows(8)
        .enumerate()
        .filter(|(_, w)| w == b"a/data/1");
    let at: Vec<usize> = renamed.map(|(i, _)| i + 7).collect();
    let mut bytes = bytes.clone();
    for i in at {
        bytes[i] = b'0';
    }
    fs::write(&path, &bytes).unwrap();
    let error = error_of(&path);
    assert!(error.contains("same name"), "{error}");

    // Truncated anywhere, it is an error and no panic.
    write_zip(&path, &good(), stored);
    let whole = fs::read(&path).unwrap();
    for length in 2..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = error_of(&path);
        assert!(error.contains("hint: the file may be truncated"), "{error}");
    }
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    fs::write(&path, &tar).unwrap();
    assert!(error_of(&path).contains("oldest format"));
}

#[test]
fn legacy_files_end_where_their_storages_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ckpt");
    let whole = fs::read(golden("legacy.ckpt")).unwrap();
    for (bytes, said) in [
        (
            whole[..whole.len() - 1].to_vec(),
            "truncated; fetch it again",
        ),
        (
            whole[..whole.len() / 2].to_vec(),
            "truncated; fetch it again",
        ),
        ([&whole[..], b"x"].concat(), "1 bytes before the file does"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = error_of(&path);
        assert!(error.contains(said), "{error}");
    }
    for length in (2..whole.len()).step_by(7) {
        fs::write(&path, &whole[..length]).unwrap();
        error_of(&path);
    }
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn write_safetensors(path: &Path, tensors: &Tensors) {
    let view = |(name, (shape, data)): (&String, &(Vec<usize>, Vec<u8>))| {
        let dtype = safetensors::Dtype::F16;
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), data);
        (name.clone(), view.unwrap().data().to_vec(), shape.clone())
    };
    let views: Vec<_> = tensors.iter().map(view).collect();
    let views = views.iter().map(|(name, data, shape)| {
        let dtype = safetensors::Dtype::F16;
        (
            name,
            safetensors::tensor::TensorView::new(dtype, shape.clone(), data).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn write_torch(path: &Path, tensors: &Tensors) {
    let mut pickle = Pickle::new().raw(b"}").text("state_dict").raw(b"}");
    for (i, (name, (shape, data))) in tensors.iter().enumerate() {
        let mut stride = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            stride[axis - 1] = stride[axis] * shape[axis];
        }
        let (key, numel) = (i.to_string(), data.len() / 2);
        pickle = pickle
            .text(name)
            .tensor(&key, numel, shape, &stride)
            .raw(b"s");
    }
    let names: Vec<String> = (0..tensors.len()).map(|i| format!("a/data/{i}")).collect();
    let mut entries: Entries<'_> = vec![("a/data.pkl", pickle.raw(b"s.").0)];
    for (name, (_, data)) in names.iter().zip(tensors.values()) {
        entries.push((name, data.clone()));
    }
    write_zip(path, &entries, CompressionMethod::Stored);
}

/// One model as a single file, a .ckpt file and a folder: sharded, with a variant, and with a .bin.
#[test]
fn the_layouts_of_a_model_convert_to_the_same_bytes() {
    for family in ["sd15", "sd21", "sdxl"] {
        let dir = tempfile::tempdir().unwrap();
        let single = synthetic(dir.path(), family, 0);
        let expected = converted(&single, &dir.path().join("single"));

        let file = open(&single).unwrap();
        let halves: Tensors = file
            .tensors()
            .iter()
            .filter(|(_, info)| info.dtype == Dtype::F16)
            .map(|(name, info)| {
                let data = file.bytes(name).unwrap().into_owned();
                (name.clone(), (info.shape.clone(), data))
            })
            .collect();
        let ckpt = dir.path().join("model.ckpt");
        write_torch(&ckpt, &halves);
        let found = converted(&ckpt, &dir.path().join("ckpt"));
        // The .ckpt has no marks of its own, so SD 2's prediction is found by the weights, as in the single file.
        assert!(found == expected, "{family}: the .ckpt differs");

        let folder = dir.path().join("pipeline");
        write_folder(&folder, &Weights::open(&single, None).unwrap());
        let found = converted(&folder, &dir.path().join("folder"));
        assert!(found == expected, "{family}: the folder differs");
    }
}

/// The canonical tensors as a pipeline folder.
fn write_folder(folder: &Path, weights: &Weights) {
    use sd_converter::model::Model;
    let mut components: BTreeMap<&str, Tensors> = BTreeMap::new();
    for (name, entry) in weights.entries() {
        let data = weights.read(name).unwrap().bytes.into_owned();
        let component = components.entry(name.0.name()).or_default();
        component.insert(name.1.clone(), (entry.shape.clone(), data));
    }
    for (name, tensors) in components {
        let folder = folder.join(name);
        fs::create_dir_all(&folder).unwrap();
        match name {
            "unet" => {
                let parts = [
                    "a-00001-of-00002.safetensors",
                    "a-00002-of-00002.safetensors",
                ];
                let mut shards = [Tensors::new(), Tensors::new()];
                let mut map = serde_json::Map::new();
                for (i, (name, tensor)) in tensors.into_iter().enumerate() {
                    map.insert(name.clone(), parts[i % 2].into());
                    shards[i % 2].insert(name, tensor);
                }
                for (part, shard) in parts.iter().zip(&shards) {
                    write_safetensors(&folder.join(part), shard);
                }
                let index = serde_json::json!({"metadata": {}, "weight_map": map});
                let path = folder.join("diffusion_pytorch_model.safetensors.index.json");
                fs::write(path, index.to_string()).unwrap();
            }
            "vae" => write_torch(&folder.join("diffusion_pytorch_model.bin"), &tensors),
            _ => write_safetensors(&folder.join("model.fp16.safetensors"), &tensors),
        }
    }
}

#[test]
fn folders_whose_parts_are_wrong_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let single = synthetic(dir.path(), "sd15", 0);
    let folder = dir.path().join("pipeline");
    write_folder(&folder, &Weights::open(&single, None).unwrap());
    let index = folder.join("unet/diffusion_pytorch_model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    let refuse = |text: &str, said: &str| {
        fs::write(&index, text).unwrap();
        let error = Weights::open(&folder, None).unwrap_err().to_string();
        assert!(error.contains(said), "`{said}` is not in: {error}");
    };
    let (one, two) = (
        "a-00001-of-00002.safetensors",
        "a-00002-of-00002.safetensors",
    );
    refuse(
        &text.replace(two, "b.safetensors"),
        "part `b.safetensors` is missing",
    );
    refuse(
        &text.replace(two, "../b.safetensors"),
        "not a plain file name",
    );
    refuse(
        &text.replace("conv_out.bias", "conv_out.bies"),
        "`conv_out.bies` is not in",
    );
    refuse(&text.replacen(two, one, 1), "is not in `a-00001");
    let without = text.replace(&format!("\"conv_in.bias\":\"{one}\","), "");
    refuse(&without, "holds tensor `conv_in.bias`");
    refuse("{}", "no `weight_map`");
    refuse("{\"weight_map\": {\"a\": 1}}", "is no text");
    refuse("[", "not JSON");
    fs::remove_file(&index).unwrap();
    let error = Weights::open(&folder, None).unwrap_err().to_string();
    assert!(error.contains("no weights"), "{error}");
}

#[test]
fn a_configuration_that_contradicts_the_weights_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let single = synthetic(dir.path(), "sd15", 0);
    let folder = dir.path().join("pipeline");
    write_folder(&folder, &Weights::open(&single, None).unwrap());
    for (component, config, said) in [
        (
            "unet",
            r#"{"cross_attention_dim": 768}"#,
            "cross_attention_dim = 768",
        ),
        (
            "unet",
            r#"{"attention_head_dim": 7}"#,
            "attention_head_dim = 7",
        ),
        (
            "text_encoder",
            r#"{"num_hidden_layers": 12}"#,
            "num_hidden_layers = 12",
        ),
    ] {
        let path = folder.join(component).join("config.json");
        fs::write(&path, config).unwrap();
        let weights = Weights::open(&folder, None).unwrap();
        let error = match BuildPlan::new(Box::new(weights), BuildOptions::default()) {
            Ok(_) => panic!("{config} was accepted"),
            Err(e) => e.to_string(),
        };
        assert!(error.contains(said), "`{said}` is not in: {error}");
        fs::remove_file(&path).unwrap();
    }
}

/// Files that merge tools saved again: junk in what goes unused, positions that are no integers, mixed types, 8-bit weights.
#[test]
fn files_saved_again_by_other_tools_convert_to_the_same_network() {
    let dir = tempfile::tempdir().unwrap();
    let single = synthetic(dir.path(), "sd21", 0);
    let expected = converted(&single, &dir.path().join("single"));
    let file = open(&single).unwrap();
    let mut tensors: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, info) in file.tensors() {
        let data = file.bytes(name).unwrap().into_owned();
        let shape = info.shape.clone();
        let (dtype, data) = match info.dtype {
            Dtype::F16 if name.ends_with("ln_final.bias") => {
                let values = to_f32(Dtype::F16, &data).unwrap();
                let single = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                (safetensors::Dtype::F32, single)
            }
            Dtype::F16 => (safetensors::Dtype::F16, data),
            _ if name.ends_with("logit_scale") => (safetensors::Dtype::I32, data),
            _ => continue,
        };
        if name.contains("resblocks.1.") {
            let unused = name.replace("resblocks.1.", "resblocks.23.");
            let junk = vec![0x7F; data.len()];
            tensors.push((unused, dtype, shape.clone(), junk));
        }
        tensors.push((name.clone(), dtype, shape, data));
    }
    let positions = "cond_stage_model.transformer.text_model.embeddings.position_ids";
    let broken: Vec<u8> = (0..77).flat_map(|_| [0x1F, 0x51]).collect(); // 40.97 in half precision
    tensors.push((
        positions.to_owned(),
        safetensors::Dtype::F16,
        vec![1, 77],
        broken,
    ));
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), data);
        (name, view.unwrap())
    });
    let again = dir.path().join("again.safetensors");
    safetensors::serialize_to_file(views, None, &again).unwrap();
    let weights = Weights::open(&again, None).unwrap();
    let plan = BuildPlan::new(Box::new(weights), BuildOptions::default()).unwrap();
    let ignorable = &plan.residue().ignorable;
    assert!(ignorable.iter().any(|key| key == positions));
    plan.write(&dir.path().join("again"), &Unwatched).unwrap();
    let found = fs::read(dir.path().join("again/unet/model.onnx_data")).unwrap();
    assert!(found == expected["unet"]);
    let found = fs::read(dir.path().join("again/text_encoder/model.onnx_data")).unwrap();
    assert!(found == expected["text_encoder"]);
}

#[test]
#[cfg(unix)]
fn pipes_and_devices_are_refused_by_name_before_they_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    for path in [&fifo, Path::new("/dev/zero")] {
        let error = error_of(path);
        assert!(error.contains("a pipe or device, not a file"), "{error}");
    }
    let error = error_of(dir.path());
    assert!(error.contains("a folder, not a file"), "{error}");
}

#[test]
fn a_flipped_byte_in_a_zipped_checkpoint_is_noticed() {
    let mut bytes = fs::read(golden("zip.ckpt")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flipped.ckpt");
    let whole = open(&golden("zip.ckpt")).unwrap();
    let data = whole.bytes("f64").unwrap().into_owned();
    let at = bytes.windows(data.len()).position(|w| w == data).unwrap();
    bytes[at + 3] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let opened = open(&path).unwrap();
    let error = opened.bytes("f64").unwrap_err().to_string();
    assert!(
        error.contains("checksum") && error.contains("data/"),
        "{error}"
    );
    assert!(opened.check().is_err() && whole.check().is_ok());
    let output = sdconvert(&["verify", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn files_of_nothing_or_of_text_are_called_that() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.ckpt");
    for (content, said) in [
        (&b""[..], "an empty file"),
        (
            br#"{"error":"Invalid username or password."}"#,
            "a text file",
        ),
        (b"\n\n  <head><title>502", "a text file"),
        (&[9, 0, 0, 0, 0], "truncated"),
    ] {
        fs::write(&path, content).unwrap();
        let error = error_of(&path);
        assert!(error.contains(said), "{error}");
    }
    write_raw(&path, &BTreeMap::new());
    let error = Weights::open(&path, None).unwrap_err().to_string();
    assert!(error.contains("it holds no tensors"), "{error}");
}

/// A folder's merge with itself, which is a single file, holds every weight of the folder.
#[test]
fn a_merge_of_a_folder_keeps_every_weight_of_every_family() {
    use sd_converter::model::Model;
    for family in [
        "sd15",
        "sd15-lcm",
        "sd21",
        "sd-turbo",
        "sdxl",
        "sdxl-refiner",
        "ssd-1b",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pipeline");
        let single = Weights::open(&synthetic(dir.path(), family, 0), None).unwrap();
        write_folder(&folder, &single);
        let merged = dir.path().join("merged.safetensors");
        let [path, output] = [&folder, &merged].map(|path| path.to_str().unwrap());
        let made = sdconvert(&["merge", path, path, "--alpha", "0", "-o", output]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let [expected, found] = [&folder, &merged].map(|path| Weights::open(path, None).unwrap());
        assert!(
            found.entries().keys().eq(expected.entries().keys()),
            "{family}"
        );
        assert!(found.residue().unknown.is_empty(), "{family}");
        for name in expected.entries().keys() {
            let [found, expected] = [&found, &expected].map(|m| m.read(name).unwrap());
            assert!(found.bytes == expected.bytes, "{family}: {name:?}");
        }
        BuildPlan::new(Box::new(found), BuildOptions::default()).unwrap();
    }
}

/// What only a folder's configuration says is not lost in a single file.
#[test]
fn a_merge_of_a_folder_that_predicts_velocity_predicts_velocity() {
    use sd_converter::model::Model;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("pipeline");
    let single = Weights::open(&synthetic(dir.path(), "sdxl", 0), None).unwrap();
    write_folder(&folder, &single);
    fs::create_dir(folder.join("scheduler")).unwrap();
    let config = r#"{"prediction_type": "v_prediction", "rescale_betas_zero_snr": true}"#;
    fs::write(folder.join("scheduler/scheduler_config.json"), config).unwrap();
    let [merged, again] =
        ["merged", "again"].map(|n| dir.path().join(n).with_extension("safetensors"));
    for (input, output) in [(&folder, &merged), (&merged, &again)] {
        let [input, path] = [input, output].map(|path| path.to_str().unwrap());
        let made = sdconvert(&["merge", input, input, "-o", path]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let weights = Weights::open(output, None).unwrap();
        assert!(weights.hints().zero_snr);
        let plan = BuildPlan::new(Box::new(weights), BuildOptions::default()).unwrap();
        assert!(plan.basis().contains("v_prediction"), "{}", plan.basis());
    }
}

/// What diffusers' own script writes of a Stable Diffusion 2 folder: no 24th block, no projection, no logit scale.
#[test]
fn a_file_with_23_open_clip_blocks_keeps_them_all() {
    let dir = tempfile::tempdir().unwrap();
    let file = open(&synthetic(dir.path(), "sd21-base", 0)).unwrap();
    let path = dir.path().join("blocks.safetensors");
    let layers = [23, 24].map(|blocks| {
        let mut tensors = Tensors::new();
        for (name, info) in file.tensors() {
            let tensor = (info.shape.clone(), file.bytes(name).unwrap().into_owned());
            if name.contains("resblocks.0.") {
                for n in 0..blocks {
                    let block = name.replace("resblocks.0.", &format!("resblocks.{n}."));
                    tensors.insert(block, tensor.clone());
                }
            } else if info.dtype == Dtype::F16 && !name.contains("resblocks.") {
                let unused = blocks == 23 && name.ends_with("text_projection");
                tensors.extend((!unused).then(|| (name.clone(), tensor)));
            }
        }
        write_safetensors(&path, &tensors);
        let target = dir.path().join(blocks.to_string());
        converted(&path, &target);
        let config = fs::read_to_string(target.join("text_encoder/config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["num_hidden_layers"].as_u64().unwrap()
    });
    assert_eq!(layers, [23, 23]);
}

/// A whole pipeline in one file, under the names of its folders.
#[test]
fn a_pipeline_flattened_into_one_file_is_understood() {
    use sd_converter::model::Model;
    let dir = tempfile::tempdir().unwrap();
    let single = synthetic(dir.path(), "sdxl", 0);
    let expected = converted(&single, &dir.path().join("single"));
    let weights = Weights::open(&single, None).unwrap();
    let flat: Tensors = weights
        .entries()
        .iter()
        .map(|(name, entry)| {
            let data = weights.read(name).unwrap().bytes.into_owned();
            let key = format!("{}.{}", name.0.name(), name.1);
            (key, (entry.shape.clone(), data))
        })
        .collect();
    let path = dir.path().join("flat.safetensors");
    write_safetensors(&path, &flat);
    let found = converted(&path, &dir.path().join("flat"));
    assert!(found == expected);
}
