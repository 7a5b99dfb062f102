//! The native dialect: layers as operators of our own, on channels-last pictures.
//!
//! A layer waits before it is written as long as one other node reads it: that node may become part of it. So norms take in
//! activations; convolutions and linear layers the time, activations and residuals; convolutions the enlargement before them.
//! Pictures are [N, h, w, C] everywhere inside, which is the memory of tokens [N, h * w, C]: going from one to the other is a
//! reshape, and a 1x1 convolution is a linear layer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sd_models::graph::custom::{Activation, ConvNode, GroupNormNode, LinearNode};
use sd_models::graph::{
    Conv, Copier, DType, Dim, Graph, GraphBuilder, GraphError, Layer, Node, Op, Param, Value,
};
use serde::Serialize;

/// What became of the layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// How many layers were taken into others, by kind: `silu into GroupNorm`.
    pub(crate) fused: BTreeMap<String, usize>,
    /// Layers that stay ONNX operators, and why.
    pub(crate) skipped: Vec<String>,
}

/// A layered graph in the native dialect; parameters that are `quantized` have scales.
///
/// # Errors
/// None in practice: the layers were checked when they were built.
pub(crate) fn native(
    graph: &Graph,
    quantized: &BTreeSet<String>,
) -> Result<(Graph, Report), GraphError> {
    let mut pass = Pass::new(graph, quantized);
    for &input in &graph.inputs {
        pass.input(input)?;
    }
    for node in &graph.nodes {
        pass.node(node)?;
    }
    Ok((pass.copy.finish(), pass.report))
}

/// A layer that is not written yet.
enum Waiting {
    Conv(ConvNode),
    Linear(LinearNode),
    GroupNorm(GroupNormNode),
    Upsample { x: Value, like: Option<Value> },
}

/// A waiting layer and where it stands in the network.
struct Place<'a> {
    scope: &'a str,
    layer: Waiting,
}

struct Pass<'a> {
    graph: &'a Graph,
    copy: Copier<'a>,
    params: HashMap<Value, &'a Param>,
    /// Names of parameters that are stored as whole numbers.
    quantized: &'a BTreeSet<String>,
    /// How many operands each value is.
    uses: HashMap<Value, usize>,
    /// By the value that the layer makes, which one node reads.
    waiting: HashMap<Value, Place<'a>>,
    /// Parameters in single precision, for ONNX operators.
    widened: HashMap<Value, Value>,
    report: Report,
}

/// Operators that compute each element alone.
const ELEMENTWISE: [&str; 6] = ["Add", "Mul", "Div", "Relu", "Sigmoid", "Tanh"];

const TO_CHANNELS_LAST: [usize; 4] = [0, 2, 3, 1];
const TO_CHANNELS_FIRST: [usize; 4] = [0, 3, 1, 2];

impl<'a> Pass<'a> {
    fn new(graph: &'a Graph, quantized: &'a BTreeSet<String>) -> Self {
        let mut uses = HashMap::new();
        for &value in graph.nodes.iter().flat_map(|node| &node.inputs).flatten() {
            *uses.entry(value).or_default() += 1;
        }
        Self {
            graph,
            copy: Copier::new(graph, &graph.name),
            params: graph.params.iter().map(|p| (p.value, p)).collect(),
            quantized,
            uses,
            waiting: HashMap::new(),
            widened: HashMap::new(),
            report: Report::default(),
        }
    }

    fn shape(&self, old: Value) -> &'a [Dim] {
        &self.graph.info(old).shape
    }

    fn is_picture(&self, old: Value) -> bool {
        self.shape(old).len() == 4 && !self.params.contains_key(&old)
    }

    fn input(&mut self, input: Value) -> Result<(), GraphError> {
        self.copy.input(input)?;
        if self.is_picture(input) {
            let picture = self.copy.get(input);
            let name = &self.graph.info(input).name;
            let build = |g: &mut GraphBuilder| g.transpose(picture, TO_CHANNELS_LAST);
            let picture = self.copy.builder.at(name, build)?;
            self.copy.bind(input, picture);
        }
        Ok(())
    }

    /// The new value of an old one: what waits is written, and parameters are declared when they are first read.
    fn value(&mut self, old: Value) -> Result<Value, GraphError> {
        if let Some(place) = self.waiting.remove(&old) {
            return self.write(old, &place);
        }
        if let Some(new) = self.copy.find(old) {
            return Ok(new);
        }
        let Some(param) = self.params.get(&old) else {
            return Ok(self.copy.get(old));
        };
        let new = self.copy.builder.param_like(param, DType::Stored)?;
        self.copy.bind(old, new);
        Ok(new)
    }

    /// The scales of a weight, if it is stored as whole numbers.
    fn scales(&mut self, weight: Value) -> Result<Option<Value>, GraphError> {
        let param = self.params.get(&weight).copied();
        let scaled = param.filter(|param| self.quantized.contains(&param.name));
        let declare = |param| self.copy.builder.scales_of(param);
        scaled.map(declare).transpose()
    }

    /// The new value of an old one for an ONNX operator, which reads parameters in single precision.
    fn widened(&mut self, old: Value) -> Result<Value, GraphError> {
        let value = self.value(old)?;
        let Some(param) = self.params.get(&old) else {
            return Ok(value);
        };
        let builder = &mut self.copy.builder;
        let cast = || builder.at(&param.name, |g| g.cast_to_f32(value));
        Ok(*self.widened.entry(old).or_insert_with(cast))
    }

    /// Writes a layer.
    fn write(&mut self, old: Value, place: &Place<'_>) -> Result<Value, GraphError> {
        let skipped = &mut self.report.skipped;
        let new = self.copy.builder.at(place.scope, |g| match &place.layer {
            Waiting::Conv(node) => g.custom_conv(node),
            Waiting::Linear(node) => g.custom_linear(node),
            Waiting::GroupNorm(node) => Ok(g.custom_group_norm(node)),
            Waiting::Upsample { x, like } => {
                let reason = "it is not read by one convolution only";
                skipped.push(format!("/{}.Upsample: {reason}", place.scope));
                g.enlarged(*x, *like)
            }
        })?;
        self.copy.bind(old, new);
        Ok(new)
    }

    /// Lets a layer wait if one node reads it, or writes it.
    fn wait(&mut self, old: Value, scope: &'a str, layer: Waiting) -> Result<(), GraphError> {
        let place = Place { scope, layer };
        if self.uses.get(&old) == Some(&1) {
            self.waiting.insert(old, place);
        } else {
            self.write(old, &place)?;
        }
        Ok(())
    }

    fn fused(&mut self, what: &str, into: &str) {
        *self
            .report
            .fused
            .entry(format!("{what} into {into}"))
            .or_default() += 1;
    }

    fn skip(&mut self, node: &Node, reason: &str) {
        self.report.skipped.push(format!("{}: {reason}", node.name));
    }

    fn node(&mut self, node: &'a Node) -> Result<(), GraphError> {
        let operands: Vec<Value> = node.inputs.iter().flatten().copied().collect();
        match node.op {
            Op::Layer(layer) => self.layer(node, layer, &operands),
            Op::Onnx("Relu") => self.activation(node, Activation::Relu, operands[0]),
            Op::Onnx("Add") => self.add(node, [operands[0], operands[1]]),
            Op::Onnx("Concat") if operands.iter().all(|&v| self.is_picture(v)) => {
                self.concat(node, &operands)
            }
            Op::Onnx("Gather") if self.params.contains_key(&operands[0]) => {
                self.gather(node, [operands[0], operands[1]])
            }
            Op::Onnx(_) | Op::Custom(_) => self.onnx(node),
        }
    }

    fn layer(
        &mut self,
        node: &'a Node,
        layer: Layer,
        operands: &[Value],
    ) -> Result<(), GraphError> {
        let (x, output, scope) = (operands[0], node.outputs[0], node.scope.as_str());
        let result = match layer {
            Layer::Conv2d(Conv::K1) | Layer::Linear => return self.linear(node, operands),
            Layer::Conv2d(conv) => return self.conv(node, conv, operands),
            Layer::GroupNorm { groups, epsilon } => {
                let norm = GroupNormNode {
                    groups,
                    epsilon,
                    activation: Activation::None,
                    x: self.value(x)?,
                    weight: self.value(operands[1])?,
                    bias: self.value(operands[2])?,
                };
                return self.wait(output, scope, Waiting::GroupNorm(norm));
            }
            Layer::Silu => return self.activation(node, Activation::Silu, x),
            Layer::Gelu => return self.activation(node, Activation::Gelu, x),
            Layer::QuickGelu => return self.activation(node, Activation::QuickGelu, x),
            Layer::Geglu => return self.activation(node, Activation::Geglu, x),
            Layer::AddVector => return self.add_vector(node, [x, operands[1]]),
            Layer::ToPixels => return self.pixels(node, [x, operands[1]]),
            Layer::Upsample => {
                let like = operands.get(1).map(|&like| self.value(like)).transpose()?;
                let x = self.value(x)?;
                return self.wait(output, scope, Waiting::Upsample { x, like });
            }
            Layer::LayerNorm { epsilon } => {
                let operands = [x, operands[1], operands[2]];
                let operands = self.values(operands)?;
                self.at(node, |g| Ok(g.custom_layer_norm(operands, epsilon)))?
            }
            Layer::Attention { heads, .. } if operands.len() == 3 => {
                let qkv = self.values([x, operands[1], operands[2]])?;
                self.at(node, |g| Ok(g.custom_attention(qkv, heads)))?
            }
            Layer::Attention { .. } => {
                self.skip(node, "it has a mask");
                return self.lowered(node, layer, operands);
            }
            Layer::ToTokens => {
                let picture = self.value(x)?;
                self.at(node, |g| {
                    let channels = g.fixed_dim(picture, 3)?;
                    g.reshape(picture, &[0, -1, channels as i64])
                })?
            }
        };
        self.copy.bind(output, result);
        Ok(())
    }

    fn at(
        &mut self,
        node: &Node,
        build: impl FnOnce(&mut GraphBuilder) -> Result<Value, GraphError>,
    ) -> Result<Value, GraphError> {
        self.copy.builder.at(&node.scope, build)
    }

    fn values<const N: usize>(&mut self, old: [Value; N]) -> Result<[Value; N], GraphError> {
        let mut new = old;
        for value in &mut new {
            *value = self.value(*value)?;
        }
        Ok(new)
    }

    /// A layer as ONNX operators.
    fn lowered(&mut self, node: &Node, layer: Layer, operands: &[Value]) -> Result<(), GraphError> {
        let operands = operands.iter().map(|&v| self.widened(v));
        let operands = operands.collect::<Result<Vec<_>, _>>()?;
        let result = self.at(node, |g| g.lower_layer(layer, &operands))?;
        self.copy.bind(node.outputs[0], result);
        Ok(())
    }

    fn conv(&mut self, node: &'a Node, conv: Conv, operands: &[Value]) -> Result<(), GraphError> {
        let waiting = self.waiting.get(&operands[0]).map(|place| &place.layer);
        let (x, like) = if let Some(&Waiting::Upsample { x, like }) = waiting {
            self.waiting.remove(&operands[0]);
            self.fused("Upsample", "Conv");
            let like = match like {
                Some(like) => like,
                None => self.at(node, |g| twice(g, x))?,
            };
            (x, Some(like))
        } else {
            (self.value(operands[0])?, None)
        };
        let conv = ConvNode {
            conv,
            activation: Activation::None,
            x,
            weight: self.value(operands[1])?,
            scales: self.scales(operands[1])?,
            bias: operands.get(2).map(|&bias| self.value(bias)).transpose()?,
            time: None,
            residual: None,
            like,
        };
        self.wait(node.outputs[0], &node.scope, Waiting::Conv(conv))
    }

    fn linear(&mut self, node: &'a Node, operands: &[Value]) -> Result<(), GraphError> {
        let linear = LinearNode {
            activation: Activation::None,
            x: self.value(operands[0])?,
            weight: self.value(operands[1])?,
            scales: self.scales(operands[1])?,
            bias: operands.get(2).map(|&bias| self.value(bias)).transpose()?,
            residual: None,
        };
        self.wait(node.outputs[0], &node.scope, Waiting::Linear(linear))
    }

    /// An activation, in the layer that makes its operand if that can end in it.
    fn activation(
        &mut self,
        node: &'a Node,
        activation: Activation,
        x: Value,
    ) -> Result<(), GraphError> {
        use Activation::{Geglu, Gelu, None as Identity, QuickGelu, Relu, Silu};
        let into = match self.waiting.get_mut(&x).map(|place| &mut place.layer) {
            Some(Waiting::GroupNorm(norm)) if norm.activation == Identity && activation == Silu => {
                norm.activation = activation;
                Ok("GroupNorm")
            }
            Some(Waiting::Conv(conv))
                if conv.activation == Identity
                    && conv.residual.is_none()
                    && matches!(activation, Relu | Silu) =>
            {
                conv.activation = activation;
                Ok("Conv")
            }
            Some(Waiting::Linear(linear))
                if linear.activation == Identity
                    && linear.residual.is_none()
                    && matches!(activation, Silu | Gelu | QuickGelu | Geglu) =>
            {
                linear.activation = activation;
                Ok("Linear")
            }
            Some(_) => Err("what it follows cannot end in it"),
            None => Err("it follows no layer that only it reads"),
        };
        match (into, node.op) {
            (Ok(into), _) => {
                self.fused(activation.name(), into);
                self.pass_on(x, node.outputs[0])
            }
            (Err(reason), Op::Layer(layer)) => {
                self.skip(node, reason);
                self.lowered(node, layer, &[x])
            }
            (Err(reason), _) => {
                self.skip(node, reason);
                self.onnx(node)
            }
        }
    }

    /// A waiting layer took in the node that read it: it now makes that node's output.
    fn pass_on(&mut self, from: Value, to: Value) -> Result<(), GraphError> {
        let place = self.waiting.remove(&from);
        let place = place.expect("only a layer that waits takes in another");
        self.wait(to, place.scope, place.layer)
    }

    fn add_vector(&mut self, node: &'a Node, [x, vector]: [Value; 2]) -> Result<(), GraphError> {
        let vector = self.value(vector)?;
        match self.waiting.get_mut(&x).map(|place| &mut place.layer) {
            Some(Waiting::Conv(conv))
                if conv.time.is_none()
                    && conv.residual.is_none()
                    && conv.activation == Activation::None =>
            {
                conv.time = Some(vector);
                self.fused("time", "Conv");
                self.pass_on(x, node.outputs[0])
            }
            _ => {
                self.skip(node, "it follows no convolution that only it reads");
                let x = self.value(x)?;
                let sum = self.at(node, |g| {
                    let channels = g.fixed_dim(vector, 1)?;
                    let vector = g.reshape(vector, &[0, 1, 1, channels as i64])?;
                    g.add(x, vector)
                })?;
                self.copy.bind(node.outputs[0], sum);
                Ok(())
            }
        }
    }

    /// A sum, in the layer that makes one of the terms if that is as large as the other.
    fn add(&mut self, node: &'a Node, terms: [Value; 2]) -> Result<(), GraphError> {
        for [x, residual] in [[terms[1], terms[0]], [terms[0], terms[1]]] {
            if x == residual || !fits(self.shape(x), self.shape(residual)) {
                continue;
            }
            let into = match self.waiting.get(&x).map(|place| &place.layer) {
                Some(Waiting::Conv(conv)) if conv.residual.is_none() => "Conv",
                Some(Waiting::Linear(linear)) if linear.residual.is_none() => "Linear",
                _ => continue,
            };
            let residual = self.widened(residual)?;
            if let Some(place) = self.waiting.get_mut(&x) {
                match &mut place.layer {
                    Waiting::Conv(conv) => conv.residual = Some(residual),
                    Waiting::Linear(linear) => linear.residual = Some(residual),
                    Waiting::GroupNorm(_) | Waiting::Upsample { .. } => {}
                }
            }
            self.fused("residual", into);
            return self.pass_on(x, node.outputs[0]);
        }
        if terms.iter().any(|&term| self.shape(term).len() > 2) {
            self.skip(node, "neither term is a layer that could take in the other");
        }
        self.onnx(node)
    }

    /// Tokens as a picture. A linear layer before it works on the picture as well, and may then take in a residual.
    fn pixels(&mut self, node: &'a Node, [x, like]: [Value; 2]) -> Result<(), GraphError> {
        let like = self.value(like)?;
        let waiting = self.waiting.get(&x).map(|place| &place.layer);
        if let Some(Waiting::Linear(linear)) = waiting
            && linear.residual.is_none()
        {
            let tokens = linear.x;
            let picture = self.at(node, |g| g.tokens_to_pixels(tokens, like))?;
            if let Some(place) = self.waiting.get_mut(&x)
                && let Waiting::Linear(linear) = &mut place.layer
            {
                linear.x = picture;
            }
            return self.pass_on(x, node.outputs[0]);
        }
        let x = self.value(x)?;
        let picture = self.at(node, |g| g.tokens_to_pixels(x, like))?;
        self.copy.bind(node.outputs[0], picture);
        Ok(())
    }

    fn concat(&mut self, node: &Node, parts: &[Value]) -> Result<(), GraphError> {
        let mut whole = self.value(parts[0])?;
        for &part in &parts[1..] {
            let part = self.value(part)?;
            whole = self.at(node, |g| g.custom_concat(whole, part))?;
        }
        self.copy.bind(node.outputs[0], whole);
        Ok(())
    }

    /// Rows of a table, which are widened when they are picked, so that the table is not.
    fn gather(&mut self, node: &Node, [table, rows]: [Value; 2]) -> Result<(), GraphError> {
        let [table, rows] = self.values([table, rows])?;
        let rows = self.at(node, |g| {
            let rows = g.gather_rows(table, rows);
            Ok(g.cast_to_f32(rows))
        })?;
        self.copy.bind(node.outputs[0], rows);
        Ok(())
    }

    /// An ONNX operator. Those that know of dimensions see pictures as they were.
    fn onnx(&mut self, node: &Node) -> Result<(), GraphError> {
        let is_output = self.graph.outputs.contains(&node.outputs[0]);
        let elementwise = matches!(node.op, Op::Onnx(name) if ELEMENTWISE.contains(&name))
            && node
                .inputs
                .iter()
                .flatten()
                .all(|&v| matches!(self.shape(v).len(), 0 | 4));
        let mut inputs = Vec::new();
        for &input in &node.inputs {
            let Some(old) = input else {
                inputs.push(None);
                continue;
            };
            let mut value = self.widened(old)?;
            if self.is_picture(old) && !elementwise {
                value = self.at(node, |g| g.transpose(value, TO_CHANNELS_FIRST))?;
            }
            inputs.push(Some(value));
        }
        if let ([Some(returned)], true) = (&inputs[..], is_output) {
            let name = &self.graph.info(node.outputs[0]).name;
            return self.copy.builder.output(name, *returned);
        }
        let mut outputs = Vec::new();
        for &output in &node.outputs {
            let info = self.graph.info(output);
            let shape = &info.shape;
            outputs.push(match elementwise && shape.len() == 4 {
                true => (
                    info.dtype,
                    TO_CHANNELS_LAST.map(|i| shape[i].clone()).to_vec(),
                ),
                false => (info.dtype, shape.clone()),
            });
        }
        let new = self.copy.builder.copy_of(node, inputs, outputs);
        for (&old, mut new) in node.outputs.iter().zip(new) {
            if self.is_picture(old) && !elementwise {
                new = self.at(node, |g| g.transpose(new, TO_CHANNELS_LAST))?;
            }
            self.copy.bind(old, new);
        }
        Ok(())
    }
}

/// One channel of `x`, twice as large: the size that `x` is enlarged to.
fn twice(g: &mut GraphBuilder, x: Value) -> Result<Value, GraphError> {
    let one = g.constant_i64(&[1]);
    let channel = g.take_first(x, one, 3);
    g.enlarged(channel, None)
}

/// Whether `residual` has the shape of `x`, but for a batch of 1.
fn fits(x: &[Dim], residual: &[Dim]) -> bool {
    let one = Dim::Fixed(1);
    let same = |(a, b): (&Dim, &Dim)| a.agrees(b) && (*a == one) == (*b == one);
    x.len() == residual.len()
        && (residual[..1] == [one.clone()] || x[..1] == residual[..1])
        && x.iter().zip(residual).skip(1).all(same)
}
