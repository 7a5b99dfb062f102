//! Textual inversions of every layout and at every place give the embeddings of torch's encoders with the vectors in place
//! (`golden/embeddings.py`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{Array2, Axis, Slice};
use sd_converter::embedding::Embedding;
use sd_runtime::engine::{Dialect, memory};
use sd_runtime::pipeline::{ModelDir, Models, Plans, Request};
use sd_runtime::sampler::EULER;
use sd_runtime::text::Embeddings;
use sdrt_tests::{Reference, dumped, relative_l2, repository, synthetic};

/// Single precision adds up in another order in every library.
const EMBEDDINGS: f64 = 1e-5;

/// Every so many tokens are in the reference.
const EVERY: isize = 11;

fn folder(name: &str) -> PathBuf {
    repository("tests/golden/embeddings").join(name)
}

/// As `sdrun` reads them.
fn listed(folders: &[PathBuf]) -> Embeddings {
    let read = |path: &Path| {
        let vectors = Embedding::open_any(path)?.vectors.into_iter();
        let rows = vectors.map(|v| Array2::from_shape_vec((v.tokens(), v.width), v.values));
        Ok(rows.collect::<Result<_, _>>()?)
    };
    Embeddings::list(folders, Box::new(read)).unwrap()
}

fn models(model: &Path, folders: &[PathBuf]) -> Models {
    Models {
        embeddings: listed(folders),
        ..Models::one(ModelDir::open(model).unwrap())
    }
}

fn request(prompt: &str, negative: &str) -> Request {
    Request {
        prompt: prompt.to_owned(),
        negative_prompt: Some(negative.to_owned()),
        width: Some(64),
        height: Some(64),
        steps: Some(1),
        sampler: Some(&EULER),
        ..Request::default()
    }
}

/// Name, prompt and negative prompt: those of the generator.
type Case = (&'static str, String, &'static str);

fn cases_are_those_of_torch(family: &str, cases: &[Case]) {
    let (_dir, model) = synthetic(family);
    let models = models(&model, &[folder(family)]);
    let golden = Reference::open(&folder("reference.safetensors"));
    for graph in [Dialect::Portable, Dialect::Auto] {
        for (name, prompt, negative) in cases {
            let request = Request {
                graph,
                ..request(prompt, negative)
            };
            let (_, dump) = dumped(&models, &request);
            for (kind, suffix) in [("cond", ""), ("uncond", "_uncond")] {
                let Some(expected) = golden.find(&format!("{name}.{kind}")) else {
                    continue;
                };
                let found = dump.get(&format!("text_embeddings{suffix}"));
                let mut found = found.remove_axis(Axis(0));
                found.slice_axis_inplace(Axis(0), Slice::new(0, None, EVERY));
                let error = relative_l2(&found.to_owned(), &expected);
                assert!(error < EMBEDDINGS, "{name} {kind}: {error:.2e}");
                if let Some(pooled) = golden.find(&format!("{name}.{kind}.pooled")) {
                    let found = dump.get(&format!("pooled{suffix}"));
                    let error = relative_l2(&found, &pooled);
                    assert!(error < EMBEDDINGS, "{name} {kind} pooled: {error:.2e}");
                }
            }
        }
    }
}

#[test]
fn files_of_stable_diffusion_1_are_those_of_torch() {
    let after = |count: usize, text: &str| format!("{}{text}", "cat ".repeat(count));
    let own = str::to_owned;
    cases_are_those_of_torch(
        "sd15",
        &[
            ("a1111", own("a photo of styleone"), ""),
            ("legacy", own("styletwo, a cat"), ""),
            ("half", own("a cat by stylehalf at night"), ""),
            ("safetensors", own("stylethree stylethree"), ""),
            ("bin", own("a cat-toy on a mat"), ""),
            ("multi", own("multitoy"), "a multitoy"),
            ("concept", own("CONCEPT art"), ""),
            ("tensor", own("a (plaintensor:1.3), a [concept]"), ""),
            ("fits", after(65, "longten"), ""),
            ("next", after(66, "longten and a dog"), ""),
            ("border", after(74, "styleone, (stylethree:0.7)"), ""),
            (
                "carried",
                after(60, &format!(", concept {}", "dog ".repeat(20))),
                "",
            ),
            ("whole", own("a wholechunk b"), ""),
            ("break", own("styleone BREAK stylethree BREAK cat-toy"), ""),
            ("negative", own("a house"), "bad-style, styleone"),
            ("longest", own("a bad-style and a bad-style-two, bad"), ""),
            ("spaces", own("in my own style, my own"), ""),
            (
                "explicit",
                own("a embedding:styleone and embedding:stylethree.safetensors, embedding:concept"),
                "",
            ),
        ],
    );
}

#[test]
fn files_of_sdxl_are_those_of_torch() {
    cases_are_those_of_torch(
        "sdxl",
        &[
            ("pair", "a pairstyle house".to_owned(), "pairstyle"),
            (
                "pickled pair",
                "(pairpickle:1.2) in rain, pairstyle".to_owned(),
                "",
            ),
            (
                "long pair",
                format!("{}pairpickle", "cat ".repeat(72)),
                "a pairstyle BREAK b",
            ),
        ],
    );
}

#[test]
fn what_cannot_be_used_is_named_when_it_is_asked_for() {
    let (_dir, model) = synthetic("sd15");
    let models = models(&model, &[folder("bad"), folder("sdxl")]);
    let error = |prompt: &str| {
        let plans = Plans::resolve(&request(prompt, ""), &models, memory::limit());
        plans.unwrap_err().to_string()
    };
    for (prompt, file, problem) in [
        ("runscode", "runscode.pt", "system"),
        (
            "a nanstyle",
            "nanstyle.safetensors",
            "1 of its values are NaN",
        ),
        (
            "widestyle",
            "widestyle.safetensors",
            "width 32, but this model takes 64",
        ),
        ("endless", "endless.safetensors", "76 vectors"),
        ("twotensors", "twotensors.safetensors", ""),
        ("truncated", "truncated.safetensors", ""),
        (
            "pairstyle",
            "pairstyle.safetensors",
            "width 64 and 128, but this model takes 64",
        ),
    ] {
        let said = error(prompt);
        assert!(said.contains(file) && said.contains(problem), "{said}");
    }
    // Nobody asks for them.
    Plans::resolve(&request("a cat", ""), &models, memory::limit()).unwrap();
}

#[test]
fn settings_have_the_hashes_of_what_was_used_and_words_stay_words() {
    let (_dir, model) = synthetic("sd15");
    let of_both = models(&model, &[folder("sd15"), folder("bad")]);
    let (made, _) = dumped(&of_both, &request("a cat-toy", "styleone and bad-hands-5"));
    let infotext = &made.infotext();
    let hash = |file: &str| {
        use sha2::{Digest, Sha256};
        let bytes = fs::read(folder("sd15").join(file)).unwrap();
        let hash = Sha256::digest(&bytes);
        hash[..6]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let expected = format!(
        "TI hashes: \"cat-toy: {}, styleone: {}\"",
        hash("cat-toy.bin"),
        hash("styleone.pt")
    );
    assert!(infotext.contains(&expected), "{infotext}");
    let told = "`bad-hands-5` is taken as words";
    assert!(
        made.notes.iter().any(|note| note.contains(told)),
        "{:?}",
        made.notes
    );
    // Without inversions in a prompt, graphs and pictures are what they were.
    let (plain, _) = dumped(&of_both, &request("a cat", "ugly"));
    let (none, _) = dumped(&models(&model, &[]), &request("a cat", "ugly"));
    assert_eq!(plain.pictures[0].rgb, none.pictures[0].rgb);
    assert_eq!(plain.plans[0].infotext, none.plans[0].infotext);
}
