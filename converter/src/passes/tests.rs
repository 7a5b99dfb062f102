//! The native dialect of every network, by its nodes.

use std::collections::{BTreeMap, BTreeSet};

use sd_models::arch::{
    ControlNetConfig, TaesdConfig, VaeConfig, clip_text_encoder, controlled_unet, controlnet,
    taesd_decoder, taesd_encoder, unet, vae_decoder, vae_encoder,
};
use sd_models::graph::{DType, Graph, GraphBuilder, Layer, Node, Op, lower};
use sd_models::presets::{PRESETS, Preset};

use super::{Report, Split, native, split};
use crate::design::PARTS;

/// The graphs that a layered graph becomes, the rest last.
fn graphs(layered: &Graph) -> (Vec<Graph>, Report) {
    let (graph, report) = native(layered, &BTreeSet::new()).unwrap();
    let Split { parts, rest } = split(&graph, &PARTS.map(|(_, part)| part)).unwrap();
    (parts.into_iter().flatten().chain([rest]).collect(), report)
}

fn dump(layered: &Graph) -> String {
    let (graphs, report) = graphs(layered);
    let graphs: Vec<String> = graphs.iter().map(ToString::to_string).collect();
    let report = serde_json::to_string_pretty(&report).unwrap();
    format!("{}\n{report}\n", graphs.join("\n"))
}

/// Nodes by operator; our own as `sdrt.Conv`.
fn operators(graphs: &[Graph]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for node in graphs.iter().flat_map(|graph| &graph.nodes) {
        let name = match node.op {
            Op::Custom(name) => format!("sdrt.{name}"),
            op => op.name().to_owned(),
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// Every network of a preset, full size, by name.
fn networks(preset: &Preset) -> Vec<(String, Graph)> {
    let cfg = preset.unet(false);
    let vae = preset.vae(false);
    let mut networks = vec![
        ("unet".to_owned(), unet(&cfg).unwrap()),
        ("controlled unet".to_owned(), controlled_unet(&cfg).unwrap()),
        (
            "controlnet".to_owned(),
            controlnet(&ControlNetConfig::of(cfg)).unwrap(),
        ),
        ("vae encoder".to_owned(), vae_encoder(&vae).unwrap()),
        ("vae decoder".to_owned(), vae_decoder(&vae).unwrap()),
    ];
    for (component, cfg) in preset.family().text_encoders(false) {
        networks.push((component.to_string(), clip_text_encoder(&cfg).unwrap()));
    }
    networks
}

fn tiny_autoencoder() -> [(String, Graph); 2] {
    let cfg = TaesdConfig {
        channels: 64,
        latent_channels: 4,
    };
    [
        ("taesd encoder".to_owned(), taesd_encoder(cfg).unwrap()),
        ("taesd decoder".to_owned(), taesd_decoder(cfg).unwrap()),
    ]
}

#[test]
fn tiny_unet_is_pinned() {
    let cfg = Preset::named("sd15").unwrap().unet(true);
    insta::assert_snapshot!(dump(&unet(&cfg).unwrap()));
}

#[test]
fn tiny_decoder_is_pinned() {
    insta::assert_snapshot!(dump(&vae_decoder(&VaeConfig::tiny()).unwrap()));
}

#[test]
fn every_preset_is_native_with_nothing_left_to_fuse() {
    for preset in PRESETS {
        for (network, layered) in networks(preset).into_iter().chain(tiny_autoencoder()) {
            let name = format!("{} {network}", preset.name);
            let (graphs, report) = graphs(&layered);
            let found = operators(&graphs);
            let count = |name: &str| found.get(name).copied().unwrap_or_default();
            let layers = |wanted: fn(Layer) -> bool| {
                let is = |op| matches!(op, Op::Layer(layer) if wanted(layer));
                layered.nodes.iter().filter(|node| is(node.op)).count()
            };
            let products = layers(|l| matches!(l, Layer::Conv2d(_) | Layer::Linear));
            assert_eq!(
                count("sdrt.Conv") + count("sdrt.Linear"),
                products,
                "{name}"
            );
            let norms = layers(|l| matches!(l, Layer::GroupNorm { .. }));
            assert_eq!(count("sdrt.GroupNorm"), norms, "{name}");
            let gates = report
                .fused
                .iter()
                .filter(|(kind, _)| kind.starts_with("silu"));
            let gates: usize = gates.map(|(_, n)| n).sum();
            // The sum of SDXL's time and added embedding is activated; no layer makes it.
            let left = usize::from(count("Sigmoid") > 0);
            assert!(left == 0 || layered.inputs.len() > 4, "{name}: {report:?}");
            assert_eq!(gates + left, layers(|l| l == Layer::Silu), "{name}");
            for operator in ["InstanceNormalization", "LayerNormalization", "Conv", "Erf"] {
                assert_eq!(count(operator), 0, "{name}: {operator}");
            }
            let is_masked = |node: &&Node| {
                let attention = matches!(node.op, Op::Layer(Layer::Attention { .. }));
                attention && node.inputs.len() == 4
            };
            let masked = layered.nodes.iter().filter(is_masked).count();
            assert_eq!(count("MatMul"), 2 * masked, "{name}");
        }
    }
}

#[test]
fn native_graphs_have_the_portable_parameters_as_they_are_stored() {
    let stored = |graph: &Graph| -> BTreeSet<(String, Vec<usize>, bool)> {
        let params = graph.params.iter();
        params
            .map(|p| (p.name.clone(), p.shape.clone(), p.transposed))
            .collect()
    };
    for preset in PRESETS {
        for (network, layered) in networks(preset).into_iter().chain(tiny_autoencoder()) {
            let (graphs, _) = graphs(&layered);
            let all: BTreeSet<_> = graphs.iter().flat_map(stored).collect();
            assert_eq!(
                all,
                stored(&lower(&layered).unwrap()),
                "{} {network}",
                preset.name
            );
            let of_type = |dtype| {
                graphs
                    .iter()
                    .all(|g| g.params.iter().all(|p| g.info(p.value).dtype == dtype))
            };
            assert!(of_type(DType::Stored), "{} {network}", preset.name);
        }
    }
}

#[test]
fn parts_depend_on_prompt_and_time_only_and_fit_the_rest() {
    let cfg = Preset::named("sdxl-lcm").unwrap().unet(true);
    let (plain, _) = graphs(&unet(&cfg).unwrap());
    let (controlled, _) = graphs(&controlled_unet(&cfg).unwrap());
    let names = |graph: &Graph, values: &[_]| -> Vec<String> {
        values.iter().map(|&v| graph.info(v).name.clone()).collect()
    };
    let [prompt, time, rest] = &plain[..] else {
        panic!("{} graphs", plain.len());
    };
    assert_eq!(names(prompt, &prompt.inputs), ["encoder_hidden_states"]);
    assert_eq!(
        names(time, &time.inputs),
        ["timestep", "timestep_cond", "text_embeds", "time_ids"]
    );
    let crossing = [names(prompt, &prompt.outputs), names(time, &time.outputs)].concat();
    let sorted = |names: Vec<String>| names.into_iter().collect::<BTreeSet<_>>();
    let (sample, others) = rest.inputs.split_at(1);
    assert_eq!(names(rest, sample), ["sample"]);
    assert_eq!(sorted(names(rest, others)), sorted(crossing));
    assert_eq!(names(rest, &rest.outputs), ["out_sample"]);
    let keys = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k".to_owned();
    assert!(names(prompt, &prompt.outputs).contains(&keys));
    let time_vector = "mid_block.resnets.1.time_emb_proj".to_owned();
    assert!(names(time, &time.outputs).contains(&time_vector));
    assert_eq!(controlled[0].to_string(), prompt.to_string());
    assert_eq!(controlled[1].to_string(), time.to_string());
}

#[test]
fn networks_without_prompt_and_time_stay_whole() {
    let (graphs, _) = graphs(&vae_encoder(&VaeConfig::tiny()).unwrap());
    assert_eq!(graphs.len(), 1);
}

/// What two nodes read is not taken into one of them, and what knows of dimensions sees pictures as they were.
#[test]
fn shared_values_and_unknown_operators_stay() {
    let mut g = GraphBuilder::new("test");
    let shape = ["batch".into(), 32.into(), "height".into(), "width".into()];
    let x = g.input("x", DType::F32, shape).unwrap();
    let [weight, bias] = ["weight", "bias"].map(|name| g.param(name, [32]).unwrap());
    let norm = Layer::GroupNorm {
        groups: 32,
        epsilon: 1e-6,
    };
    let normal = g.layer(norm, &[x, weight, bias]).unwrap();
    let gated = g.layer(Layer::Silu, &[normal]).unwrap();
    let sum = g.add(gated, normal).unwrap();
    let large = g.layer(Layer::Upsample, &[sum]).unwrap();
    let rows = g.reshape(large, &[0, 32, -1]).unwrap();
    g.output("y", rows).unwrap();
    insta::assert_snapshot!(dump(&g.finish()));
}
