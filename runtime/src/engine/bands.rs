//! Native graphs whose convolutions are computed in bands of rows, so that large pictures need less memory: how the VAE's encoder
//! and decoder get that way when they are loaded.
//!
//! The longest run of a graph that consists of convolutions, with norms before them and residuals behind, becomes one node, the
//! operator [`super::chain`]. It reads the same weights; the file on disk stays as it is. The rest is computed as before: the attention
//! with what comes before it in the decoder, and behind it in the encoder, on pictures of an eighth of the size.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use sd_kernels::Activation;
use sd_models::graph::custom;

use super::graph::{Node, changed, parts};
use super::protobuf::{Field, Fields, NO_GRAPH, bytes};

/// What is done with the convolutions; numbers of operands are the node's inputs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Planned {
    /// Value that is read: 0 is the node's first input, others are made by the steps before.
    pub(super) x: usize,
    pub(super) norm: Option<Norm>,
    pub(super) enlarge: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) pads: [usize; 4],
    pub(super) activation: Activation,
    pub(super) weight: usize,
    pub(super) scales: Option<usize>,
    pub(super) bias: Option<usize>,
    /// Value that is added.
    pub(super) residual: Option<usize>,
}

/// The norm before a convolution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Norm {
    pub(super) groups: usize,
    pub(super) epsilon: f32,
    pub(super) activation: Activation,
    pub(super) weight: usize,
    pub(super) bias: usize,
}

/// Name of the operator.
pub(super) const OPERATOR: &str = "Chain";

const NO_CHAIN: &str =
    "it has no run of convolutions and norms, which are what is computed in bands";
const BRANCHES: &str =
    "its convolutions read more than one value of the rest, or the rest reads theirs";

/// The graph with that node, and what the node does.
///
/// # Errors
/// It is no graph of the native dialect, or has no such run.
pub(super) fn in_bands(model: &[u8]) -> Result<(Vec<u8>, Vec<Planned>), &'static str> {
    changed(model, change)
}

fn change(graph: &[u8]) -> Result<(Vec<u8>, Vec<Planned>), &'static str> {
    let (nodes, tensors) = parts(graph)?;
    let named = tensors
        .into_iter()
        .map(|tensor| Ok((name_of(tensor)?, tensor)));
    let tensors: HashMap<_, _> = named.collect::<Result<_, &'static str>>()?;
    let (first, last) = longest_run(&nodes).ok_or(NO_CHAIN)?.into_inner();
    let mut plan = Plan {
        tensors: &tensors,
        input: None,
        made: HashMap::new(),
        operands: Vec::new(),
        steps: Vec::new(),
    };
    for node in &nodes[first..=last] {
        plan.node(node)?;
    }
    let (input, output) = (plan.input.ok_or(NO_CHAIN)?, nodes[last].output()?);
    let rest = || nodes[..first].iter().chain(&nodes[last + 1..]);
    let mut read = rest().flat_map(|node| &node.inputs);
    if read.any(|&name| name != output && name != input && plan.made.contains_key(name)) {
        return Err(BRANCHES);
    }

    let mut node = Vec::new();
    for name in [input].iter().chain(&plan.operands) {
        bytes(&mut node, 1, name);
    }
    bytes(&mut node, 2, output);
    bytes(&mut node, 3, b"chain");
    bytes(&mut node, 4, OPERATOR.as_bytes());
    bytes(&mut node, 7, custom::DOMAIN.as_bytes());
    let read: HashSet<&[u8]> = rest().flat_map(|node| &node.inputs).copied().collect();
    let is_read = |tensor: &[u8]| read.contains(tensor) || plan.operands.contains(&tensor);
    let (mut changed, mut place) = (Vec::with_capacity(graph.len()), 0);
    for field in Fields(graph) {
        let field = field?;
        match field {
            Field {
                number: 1,
                bytes: Some(_),
                ..
            } => {
                match place {
                    _ if place == last => bytes(&mut changed, 1, &node),
                    _ if (first..last).contains(&place) => {}
                    _ => changed.extend_from_slice(field.raw),
                }
                place += 1;
            }
            Field {
                number: 5,
                bytes: Some(tensor),
                ..
            } if !is_read(name_of(tensor)?) => {}
            _ => changed.extend_from_slice(field.raw),
        }
    }
    Ok((changed, plan.steps))
}

/// The nodes from the first that may be a part of the chain to the last convolution, where most convolutions follow one another.
fn longest_run(nodes: &[Node<'_>]) -> Option<RangeInclusive<usize>> {
    let is_conv = |node: &Node<'_>| node.is(custom::DOMAIN, "Conv") && node.is_for_bands();
    let mut end = 0;
    let runs = nodes.chunk_by(|a, b| a.is_for_bands() == b.is_for_bands());
    let runs = runs.filter_map(|run| {
        let first = end;
        end += run.len();
        let last = first + run.iter().rposition(is_conv)?;
        let convs = run.iter().filter(|node| is_conv(node)).count();
        Some((convs, first..=last))
    });
    let longest = runs.max_by_key(|(convs, _)| *convs);
    longest.map(|(_, run)| run)
}

/// A value of the run.
#[derive(Clone, Copy)]
enum Made {
    /// What a step makes, or the node's input.
    Value(usize),
    /// The same, normalized.
    Normed(usize, Norm),
    /// One channel of it.
    Channel(usize),
    /// That at twice its size, which tells convolutions what to enlarge it to.
    Twice(usize),
}

/// Steps so far.
struct Plan<'a> {
    tensors: &'a HashMap<&'a [u8], &'a [u8]>,
    input: Option<&'a [u8]>,
    made: HashMap<&'a [u8], Made>,
    operands: Vec<&'a [u8]>,
    steps: Vec<Planned>,
}

impl<'a> Plan<'a> {
    /// What the run makes under this name; the first one that it does not make is what goes in.
    fn made(&mut self, name: &'a [u8]) -> Result<Made, &'static str> {
        match self.made.get(name) {
            Some(&made) => Ok(made),
            None if self.input.is_none() && !self.tensors.contains_key(name) => {
                self.input = Some(name);
                self.made.insert(name, Made::Value(0));
                Ok(Made::Value(0))
            }
            None => Err(BRANCHES),
        }
    }

    fn value(&mut self, name: &'a [u8]) -> Result<usize, &'static str> {
        match self.made(name)? {
            Made::Value(value) => Ok(value),
            _ => Err(NO_CHAIN),
        }
    }

    /// The node's input for a weight.
    fn operand(&mut self, name: &'a [u8]) -> Result<usize, &'static str> {
        if !self.tensors.contains_key(name) {
            return Err(BRANCHES);
        }
        self.operands.push(name);
        Ok(self.operands.len())
    }

    fn node(&mut self, node: &Node<'a>) -> Result<(), &'static str> {
        let mut inputs = node.inputs.iter().copied();
        let mut next = || inputs.next().ok_or(NO_GRAPH);
        let x = next()?;
        let made = match node.operator {
            b"GroupNorm" => {
                let value = self.value(x)?;
                let norm = Norm {
                    groups: node.int("groups")?,
                    epsilon: node.attribute("epsilon")?.float,
                    activation: node.activation()?,
                    weight: self.operand(next()?)?,
                    bias: self.operand(next()?)?,
                };
                Made::Normed(value, norm)
            }
            b"Slice" => Made::Channel(self.value(x)?),
            b"Resize" => {
                let Made::Channel(value) = self.made(x)? else {
                    return Err(NO_CHAIN);
                };
                let (_, scales) = (next()?, next()?);
                let scales = self.tensors.get(scales).ok_or(NO_CHAIN)?;
                if numbers_of(scales)? != [1.0, 2.0, 2.0, 1.0] {
                    return Err(NO_CHAIN);
                }
                Made::Twice(value)
            }
            _ => {
                let (x, norm) = match self.made(x)? {
                    Made::Value(value) => (value, None),
                    Made::Normed(value, norm) => (value, Some(norm)),
                    Made::Channel(_) | Made::Twice(_) => return Err(NO_CHAIN),
                };
                let weight = self.operand(next()?)?;
                let mut optional = |there: bool| {
                    let name = there.then(&mut next).transpose()?;
                    name.map(|name| self.operand(name)).transpose()
                };
                let scales = optional(node.flag("scales"))?;
                let bias = optional(node.flag("bias"))?;
                let residual = node.flag("residual").then(&mut next).transpose()?;
                let residual = residual.map(|name| self.value(name)).transpose()?;
                let like = node.flag("like").then(&mut next).transpose()?;
                let enlarge = match like.map(|name| self.made(name)).transpose()? {
                    None => 1,
                    Some(Made::Twice(value)) if value == x => 2,
                    Some(_) => return Err(NO_CHAIN),
                };
                let linear = node.operator == b"Linear";
                self.steps.push(Planned {
                    x,
                    norm,
                    enlarge,
                    kernel: if linear { 1 } else { node.int("kernel")? },
                    stride: if linear { 1 } else { node.int("stride")? },
                    pads: if linear { [0; 4] } else { node.four("pads")? },
                    activation: node.activation()?,
                    weight,
                    scales,
                    bias,
                    residual,
                });
                Made::Value(self.steps.len())
            }
        };
        self.made.insert(node.output()?, made);
        Ok(())
    }
}

impl Node<'_> {
    /// Whether it may be a part of the chain.
    fn is_for_bands(&self) -> bool {
        if self.domain != custom::DOMAIN.as_bytes() {
            return [&b"Slice"[..], b"Resize"].contains(&self.operator);
        }
        match self.operator {
            b"Conv" => !self.flag("time"),
            b"GroupNorm" => true,
            // Those that are convolutions of 1x1.
            b"Linear" => !self.flag("transposed") && self.activation().is_ok(),
            _ => false,
        }
    }

    fn activation(&self) -> Result<Activation, &'static str> {
        match self.attribute("activation")?.text {
            b"none" => Ok(Activation::None),
            b"relu" => Ok(Activation::Relu),
            b"silu" => Ok(Activation::Silu),
            _ => Err(NO_CHAIN),
        }
    }
}

fn name_of(tensor: &[u8]) -> Result<&[u8], &'static str> {
    let mut found = &b""[..];
    for field in Fields(tensor) {
        let field = field?;
        if let (8, Some(name)) = (field.number, field.bytes) {
            found = name;
        }
    }
    Ok(found)
}

/// The numbers of a tensor that holds them itself.
fn numbers_of(tensor: &[u8]) -> Result<Vec<f32>, &'static str> {
    let mut found = Vec::new();
    for field in Fields(tensor) {
        let field = field?;
        if let (9, Some(raw)) = (field.number, field.bytes) {
            let numbers = raw.as_chunks().0.iter();
            found = numbers.map(|&number| f32::from_le_bytes(number)).collect();
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::protobuf::number;
    use super::*;

    enum Is<'a> {
        Int(u64),
        Ints(&'a [u64]),
        Text(&'a str),
        Float(f32),
    }

    fn node(
        (domain, operator): (&str, &str),
        inputs: &[&str],
        output: &str,
        attributes: &[(&str, Is<'_>)],
    ) -> Vec<u8> {
        let mut node = Vec::new();
        for name in inputs {
            bytes(&mut node, 1, name.as_bytes());
        }
        bytes(&mut node, 2, output.as_bytes());
        bytes(&mut node, 4, operator.as_bytes());
        for (name, value) in attributes {
            let mut attribute = Vec::new();
            bytes(&mut attribute, 1, name.as_bytes());
            match value {
                Is::Int(int) => number(&mut attribute, 3, *int),
                Is::Ints(ints) => ints.iter().for_each(|&n| number(&mut attribute, 8, n)),
                Is::Text(text) => bytes(&mut attribute, 4, text.as_bytes()),
                Is::Float(float) => {
                    // Field 2, four bytes.
                    attribute.push(2 << 3 | 5);
                    attribute.extend(float.to_le_bytes());
                }
            }
            bytes(&mut node, 5, &attribute);
        }
        bytes(&mut node, 7, domain.as_bytes());
        node
    }

    fn conv(inputs: &[&str], output: &str, flag: &str) -> Vec<u8> {
        let attributes = [
            ("kernel", Is::Int(3)),
            ("stride", Is::Int(1)),
            ("pads", Is::Ints(&[1, 1, 1, 1])),
            ("activation", Is::Text("none")),
            (flag, Is::Int(1)),
        ];
        node(("sdrt", "Conv"), inputs, output, &attributes)
    }

    fn norm(x: &str, output: &str) -> Vec<u8> {
        let attributes = [
            ("groups", Is::Int(32)),
            ("epsilon", Is::Float(1e-6)),
            ("activation", Is::Text("silu")),
        ];
        node(("sdrt", "GroupNorm"), &[x, "g", "o"], output, &attributes)
    }

    /// A decoder's end after `head`; `enlarged` is what the last convolution is enlarged to.
    fn nodes(head: &[u8], enlarged: &str) -> Vec<Vec<u8>> {
        let one = [("transposed", Is::Int(0)), ("activation", Is::Text("none"))];
        vec![
            head.to_vec(),
            norm("head", "n1"),
            conv(&["n1", "w1", "b1"], "c1", "bias"),
            norm("c1", "n2"),
            node(("sdrt", "Linear"), &["head", "w2"], "s", &one),
            conv(&["n2", "w3", "s"], "c2", "residual"),
            node(("", "Slice"), &["c2", "i", "i", "i"], "channel", &[]),
            node(("", "Resize"), &["channel", "", "twice"], "like", &[]),
            conv(&["c2", "w4", enlarged], "c3", "like"),
            node(("", "Transpose"), &["c3"], "sample", &[]),
        ]
    }

    fn attention() -> Vec<u8> {
        node(("sdrt", "Attention"), &["q", "k", "v"], "head", &[])
    }

    fn model(nodes: &[Vec<u8>], scale: f32) -> Vec<u8> {
        let (mut graph, mut model) = (Vec::new(), Vec::new());
        nodes.iter().for_each(|node| bytes(&mut graph, 1, node));
        for name in [
            "g", "o", "w1", "b1", "w2", "w3", "w4", "i", "twice", "unused",
        ] {
            let mut tensor = Vec::new();
            let scales = [1.0, scale, scale, 1.0].map(f32::to_le_bytes).concat();
            bytes(&mut tensor, 8, name.as_bytes());
            bytes(&mut tensor, 9, &scales);
            bytes(&mut graph, 5, &tensor);
        }
        number(&mut model, 1, 8);
        bytes(&mut model, 7, &graph);
        model
    }

    /// A node's operator, inputs and output.
    type Left = (String, Vec<String>, String);

    /// The nodes of a model, and the names of its weights.
    fn changed_nodes(model: &[u8]) -> (Vec<Left>, Vec<String>) {
        let text = |name: &[u8]| String::from_utf8(name.to_vec()).unwrap();
        let graph = Fields(model).find_map(|field| field.unwrap().bytes);
        let (mut nodes, mut tensors) = (Vec::new(), Vec::new());
        for field in Fields(graph.unwrap()).map(Result::unwrap) {
            match (field.number, field.bytes) {
                (1, Some(node)) => {
                    let node = Node::read(node).unwrap();
                    let inputs = node.inputs.iter().map(|name| text(name)).collect();
                    nodes.push((text(node.operator), inputs, text(node.output().unwrap())));
                }
                (5, Some(tensor)) => tensors.push(text(name_of(tensor).unwrap())),
                _ => {}
            }
        }
        (nodes, tensors)
    }

    #[test]
    fn what_follows_the_attention_is_one_node() {
        let (changed, steps) = in_bands(&model(&nodes(&attention(), "like"), 2.0)).unwrap();
        let normed = |weight| {
            Some(Norm {
                groups: 32,
                epsilon: 1e-6,
                activation: Activation::Silu,
                weight,
                bias: weight + 1,
            })
        };
        let first = Planned {
            x: 0,
            norm: normed(1),
            enlarge: 1,
            kernel: 3,
            stride: 1,
            pads: [1; 4],
            activation: Activation::None,
            weight: 3,
            scales: None,
            bias: Some(4),
            residual: None,
        };
        let shortcut = Planned {
            norm: None,
            kernel: 1,
            pads: [0; 4],
            weight: 7,
            bias: None,
            ..first.clone()
        };
        let second = Planned {
            x: 1,
            norm: normed(5),
            weight: 8,
            bias: None,
            residual: Some(2),
            ..first.clone()
        };
        let last = Planned {
            x: 3,
            enlarge: 2,
            kernel: 3,
            pads: [1; 4],
            weight: 9,
            ..shortcut.clone()
        };
        assert_eq!(steps, [first, shortcut, second, last]);

        let (left, tensors) = changed_nodes(&changed);
        let operators = left.iter().map(|(operator, ..)| &**operator);
        assert_eq!(
            operators.collect::<Vec<_>>(),
            ["Attention", "Chain", "Transpose"]
        );
        let inputs = ["head", "g", "o", "w1", "b1", "g", "o", "w2", "w3", "w4"];
        assert_eq!(left[1].1, inputs);
        assert_eq!(left[1].2, "c3");
        let read = ["g", "o", "w1", "b1", "w2", "w3", "w4"];
        assert_eq!(tensors, read);
    }

    /// An encoder: most convolutions come before the attention, which reads the last one's output twice.
    #[test]
    fn what_comes_before_the_attention_is_one_node() {
        let nodes = [
            node(("", "Transpose"), &["sample"], "x", &[]),
            conv(&["x", "w1", "b1"], "c1", "bias"),
            norm("c1", "n1"),
            conv(&["n1", "w3"], "c2", "none"),
            norm("c2", "n2"),
            node(("sdrt", "Attention"), &["n2", "n2", "n2"], "a", &[]),
            node(("", "Add"), &["a", "c2"], "sum", &[]),
            conv(&["sum", "w4"], "latent_parameters", "none"),
        ];
        let (changed, steps) = in_bands(&model(&nodes, 1.0)).unwrap();
        assert_eq!(steps.iter().map(|step| step.x).collect::<Vec<_>>(), [0, 1]);
        let (left, _) = changed_nodes(&changed);
        let chain = ["x", "w1", "b1", "g", "o", "w3"].map(str::to_owned);
        let expected = [
            ("Transpose", "x"),
            ("Chain", "c2"),
            ("GroupNorm", "n2"),
            ("Attention", "a"),
            ("Add", "sum"),
            ("Conv", "latent_parameters"),
        ];
        let found = left
            .iter()
            .map(|(operator, _, output)| (&**operator, &**output));
        assert_eq!(found.collect::<Vec<_>>(), expected);
        assert_eq!(left[1].1, chain);
    }

    #[test]
    fn other_graphs_and_damaged_ones_are_errors() {
        let problem = |nodes: &[Vec<u8>], scale| in_bands(&model(nodes, scale)).err();
        assert_eq!(problem(&[attention()], 2.0), Some(NO_CHAIN));
        // Enlarged to something else than twice the size.
        assert_eq!(problem(&nodes(&attention(), "like"), 3.0), Some(NO_CHAIN));
        assert_eq!(problem(&nodes(&attention(), "c1"), 2.0), Some(NO_CHAIN));
        // What comes before is read in two places.
        assert_eq!(problem(&nodes(&attention(), "q"), 2.0), Some(BRANCHES));
        let mut more = nodes(&attention(), "like");
        more.push(node(("", "Add"), &["c1", "c3"], "sum", &[]));
        assert_eq!(problem(&more, 2.0), Some(BRANCHES));
        assert_eq!(in_bands(b""), Err(NO_GRAPH));
        let whole = model(&nodes(&attention(), "like"), 2.0);
        for length in 1..whole.len() {
            // Whatever comes of it.
            let _ = in_bands(&whole[..length]);
        }
    }
}
