//! Layers as ONNX operators: the portable dialect, which every runtime has.

use super::{Copier, DType, Graph, GraphBuilder, Layer, Op, Result, Scores, Value};

/// The graph with ONNX operators in place of its layers; all else stays as it is, in order and in name.
///
/// # Errors
/// None in practice: the layers were checked when they were built.
pub fn lower(graph: &Graph) -> Result<Graph> {
    let mut copy = Copier::new(graph, &graph.name);
    for &input in &graph.inputs {
        copy.input(input)?;
    }
    for param in &graph.params {
        let value = copy.builder.param_like(param, DType::F32)?;
        copy.bind(param.value, value);
    }
    for node in &graph.nodes {
        let Op::Layer(layer) = node.op else {
            copy.node(node)?;
            continue;
        };
        let operands: Vec<Value> = node.inputs.iter().flatten().map(|&v| copy.get(v)).collect();
        let builder = &mut copy.builder;
        let result = builder.at(&node.scope, |g| g.lower_layer(layer, &operands))?;
        copy.bind(node.outputs[0], result);
    }
    Ok(copy.finish())
}

impl GraphBuilder {
    /// A layer as ONNX operators.
    ///
    /// # Errors
    /// Operands whose shapes do not fit the layer.
    pub fn lower_layer(&mut self, layer: Layer, operands: &[Value]) -> Result<Value> {
        let x = operands[0];
        let operand = |i: usize| operands.get(i).copied();
        match layer {
            Layer::Conv2d(conv) => self.conv2d(x, operands[1], operand(2), conv),
            Layer::Linear => {
                let y = self.matmul(x, operands[1])?;
                match operand(2) {
                    Some(bias) => self.add(y, bias),
                    None => Ok(y),
                }
            }
            Layer::GroupNorm { groups, epsilon } => {
                group_norm(self, x, [operands[1], operands[2]], groups, epsilon)
            }
            Layer::LayerNorm { epsilon } => self.layer_norm(x, operands[1], operands[2], epsilon),
            Layer::Silu => {
                let gate = self.sigmoid(x);
                self.mul(x, gate)
            }
            Layer::Gelu => gelu(self, x),
            Layer::QuickGelu => {
                let factor = self.scalar(1.702);
                let z = self.mul(x, factor)?;
                let gate = self.sigmoid(z);
                self.mul(x, gate)
            }
            Layer::Geglu => {
                let last = self.shape(x).len() - 1;
                let halves = self.split(x, last, 2)?;
                let gate = gelu(self, halves[1])?;
                self.mul(halves[0], gate)
            }
            Layer::Attention { heads, scores } => {
                let qkv = [x, operands[1], operands[2]];
                match scores {
                    Scores::Together => attention(self, qkv, heads, operand(3)),
                    Scores::ByHead => attention_by_head(self, qkv, heads),
                }
            }
            Layer::ToTokens => {
                let channels = self.fixed_dim(x, 1)?;
                let pixels = self.reshape(x, &[0, channels as i64, -1])?;
                self.transpose(pixels, [0, 2, 1])
            }
            Layer::ToPixels => {
                let pixels = self.transpose(x, [0, 2, 1])?;
                Ok(self.reshape_like(pixels, operands[1]))
            }
            Layer::Upsample => match operand(1) {
                Some(like) => self.upsample_like(x, like),
                None => Ok(self.upsample_2x(x)),
            },
            Layer::AddVector => {
                let channels = self.fixed_dim(x, 1)?;
                let vector = self.reshape(operands[1], &[0, channels as i64, 1, 1])?;
                self.add(x, vector)
            }
        }
    }
}

/// There is no CPU kernel for ONNX's `GroupNormalization`; normalizing the rows of [N, groups, C/groups * h * w] is the same.
fn group_norm(
    g: &mut GraphBuilder,
    x: Value,
    [weight, bias]: [Value; 2],
    groups: usize,
    epsilon: f32,
) -> Result<Value> {
    let channels = g.fixed_dim(x, 1)? as i64;
    let rows = g.reshape(x, &[0, groups as i64, -1])?;
    let one = g.constant_f32(&[groups], vec![1.0; groups]);
    let zero = g.constant_f32(&[groups], vec![0.0; groups]);
    let normal = g.instance_norm(rows, one, zero, epsilon);
    let normal = g.reshape_like(normal, x);
    let weight = g.reshape(weight, &[channels, 1, 1])?;
    let bias = g.reshape(bias, &[channels, 1, 1])?;
    let y = g.mul(normal, weight)?;
    g.add(y, bias)
}

/// `x / 2 * (1 + erf(x / sqrt 2))`
fn gelu(g: &mut GraphBuilder, x: Value) -> Result<Value> {
    let sqrt_2 = g.scalar(std::f32::consts::SQRT_2);
    let z = g.div(x, sqrt_2)?;
    let erf = g.erf(z);
    let one = g.scalar(1.0);
    let phi_twice = g.add(erf, one)?;
    let y = g.mul(x, phi_twice)?;
    let half = g.scalar(0.5);
    g.mul(y, half)
}

fn attention(
    g: &mut GraphBuilder,
    [q, k, v]: [Value; 3],
    heads: usize,
    mask: Option<Value>,
) -> Result<Value> {
    let width = g.fixed_dim(q, 2)?;
    let q = scaled(g, q, heads)?;
    let q = split_heads(g, q, heads, [0, 2, 1, 3])?;
    let k = split_heads(g, k, heads, [0, 2, 3, 1])?;
    let v = split_heads(g, v, heads, [0, 2, 1, 3])?;
    let mut scores = g.matmul(q, k)?;
    if let Some(mask) = mask {
        scores = g.add(scores, mask)?;
    }
    let weights = g.softmax(scores);
    let y = g.matmul(weights, v)?;
    let y = g.transpose(y, [0, 2, 1, 3])?;
    g.reshape(y, &[0, 0, width as i64])
}

fn attention_by_head(g: &mut GraphBuilder, [q, k, v]: [Value; 3], heads: usize) -> Result<Value> {
    let q = scaled(g, q, heads)?;
    let k = g.transpose(k, [0, 2, 1])?;
    let (q, k, v) = (
        g.split(q, 2, heads)?,
        g.split(k, 1, heads)?,
        g.split(v, 2, heads)?,
    );
    let mut outputs = Vec::new();
    for i in 0..heads {
        let scores = g.matmul(q[i], k[i])?;
        let weights = g.softmax(scores);
        outputs.push(g.matmul(weights, v[i])?);
    }
    g.concat(&outputs, 2)
}

/// `q / sqrt(d)`: q is the smallest operand; exporters scale the scores.
fn scaled(g: &mut GraphBuilder, q: Value, heads: usize) -> Result<Value> {
    let head_width = g.fixed_dim(q, 2)? / heads;
    let scale = g.scalar(1.0 / (head_width as f32).sqrt());
    g.mul(q, scale)
}

/// `x` [N, s, heads * d], seen as [N, s, heads, d] and transposed by `order`.
fn split_heads(g: &mut GraphBuilder, x: Value, heads: usize, order: [usize; 4]) -> Result<Value> {
    let width = g.fixed_dim(x, 2)?;
    let x = g.reshape(x, &[0, 0, heads as i64, (width / heads) as i64])?;
    g.transpose(x, order)
}
