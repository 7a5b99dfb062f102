//! The portable dialect whose products are of whole numbers, for runtimes and providers with fast ones of their own.
//!
//! Linear layers and convolutions multiply the weights as they are stored by activations of 8 bits, whose range is looked for when
//! the graph runs: no range has to be known before, and none is ever left. A convolution is the product of what each of its
//! pixels is made from: runtimes have `ConvInteger`, but slowly, and `QLinearConv`, which rounds results to 8 bits, too.
//!
//! Networks that are called once a picture stay in single precision: little is gained there, and decoders of 8-bit
//! activations show it. So do the keys and values of cross-attention: few rows, whose first token is ten times as large as the
//! others (Zhao et al. 2024, arXiv:2405.17873), and the one row that time is. Of the other layers, the second ones of feed-forwards, whose inputs are products
//! with long tails, and projections would make errors of 2.9 and 2.7 % a call of Stable Diffusion 1.5's UNet each, with a tenth of the
//! work; without them it is 2.2 %.

use std::collections::{BTreeSet, HashMap};

use sd_models::graph::{Copier, DType, Graph, GraphBuilder, GraphError, Layer, Op, Value, Whole};
use sd_models::keys::Component;

/// Layers that multiply single precision, by a part of their names.
const STAY_SINGLE: [&str; 6] = [
    "attn2.to_k.",
    "attn2.to_v.",
    "ff.net.2.",
    "proj_in.",
    "proj_out.",
    "time_emb_proj.",
];

/// Names of the parameters, among those that are whole numbers, that are multiplied as such.
pub(crate) fn multiplied(quantized: &BTreeSet<String>, component: Component) -> BTreeSet<String> {
    let stays = |name: &str| STAY_SINGLE.iter().any(|part| name.contains(part));
    match component {
        Component::UNet | Component::ControlNet => {
            let names = quantized.iter().filter(|name| !stays(name));
            names.cloned().collect()
        }
        _ => BTreeSet::new(),
    }
}

/// A layered graph as ONNX operators. Of the parameters that are `quantized`, those that are `multiplied` are so as they are
/// stored; others are scaled first, which runtimes do when they load the graph.
///
/// # Errors
/// None in practice: the layers were checked when they were built.
pub(crate) fn integer(
    graph: &Graph,
    quantized: &BTreeSet<String>,
    multiplied: &BTreeSet<String>,
) -> Result<Graph, GraphError> {
    let mut copy = Copier::new(graph, &graph.name);
    for &input in &graph.inputs {
        copy.input(input)?;
    }
    let mut weights = HashMap::new();
    for param in &graph.params {
        let builder = &mut copy.builder;
        let new = if quantized.contains(&param.name) {
            let weight = Weight {
                numbers: builder.param_like(param, DType::Stored)?,
                scales: builder.scales_of(param)?,
            };
            if multiplied.contains(&param.name) {
                weights.insert(param.value, weight);
                continue;
            }
            builder.at(&param.name, |g| g.scaled(weight.numbers, weight.scales))?
        } else {
            builder.param_like(param, DType::F32)?
        };
        copy.bind(param.value, new);
    }
    let mut whole = HashMap::new();
    for node in &graph.nodes {
        let Op::Layer(layer) = node.op else {
            copy.node(node)?;
            continue;
        };
        let old: Vec<Value> = node.inputs.iter().flatten().copied().collect();
        let weight = old.get(1).and_then(|value| weights.get(value));
        let result = match weight {
            Some(weight) => {
                let x = copy.get(old[0]);
                let bias = old.get(2).map(|&bias| copy.get(bias));
                copy.builder.at(&node.scope, |g| {
                    let x = match layer {
                        Layer::Conv2d(conv) => g.pad_for(x, conv)?,
                        _ => x,
                    };
                    // Queries, keys and values are of the same tokens.
                    let x = *whole.entry(x).or_insert_with(|| g.dynamic_quantize(x));
                    product(g, layer, x, *weight, bias)
                })?
            }
            None => {
                let operands: Vec<Value> = old.iter().map(|&v| copy.get(v)).collect();
                let builder = &mut copy.builder;
                builder.at(&node.scope, |g| g.lower_layer(layer, &operands))?
            }
        };
        copy.bind(node.outputs[0], result);
    }
    Ok(copy.finish())
}

/// A weight as whole numbers and the scales of its outputs.
#[derive(Clone, Copy)]
struct Weight {
    numbers: Value,
    scales: Value,
}

/// A linear layer or convolution of whole numbers, which have the convolution's zeros around them.
fn product(
    g: &mut GraphBuilder,
    layer: Layer,
    x: Whole,
    weight: Weight,
    bias: Option<Value>,
) -> Result<Value, GraphError> {
    let Layer::Conv2d(conv) = layer else {
        return biased(g, x, weight, bias);
    };
    let pixels = Whole {
        numbers: g.transpose(x.numbers, [0, 2, 3, 1])?,
        ..x
    };
    let unfolded = g.unfold(pixels, conv)?;
    let matrix = Weight {
        numbers: g.unfolded_weight(weight.numbers)?,
        ..weight
    };
    let y = biased(g, unfolded, matrix, bias)?;
    g.transpose(y, [0, 3, 1, 2])
}

fn biased(
    g: &mut GraphBuilder,
    x: Whole,
    weight: Weight,
    bias: Option<Value>,
) -> Result<Value, GraphError> {
    let y = g.matmul_integer(x, weight.numbers, weight.scales)?;
    match bias {
        Some(bias) => g.add(y, bias),
        None => Ok(y),
    }
}
