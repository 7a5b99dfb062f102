//! Operators of our own, which the runtime's kernels compute. Every activation is single precision and channels-last:
//! pictures [N, h, w, C], tokens [N, s, C]. Weights are read in the type and orientation that they are stored in.
//!
//! Operands that are absent leave no gap: attributes of their names (`bias`, `time`, `residual`, `like`) say which are there.
//! Attributes are always written, but for `scales`, which only weights of whole numbers have: graphs without them are what they
//! were before there were any.

use std::ops::RangeInclusive;

use super::layer::upsampled;
use super::{Attr, Conv, DType, Dim, Graph, GraphBuilder, Node, Op, Result, Value};

/// Their operator domain.
pub const DOMAIN: &str = "sdrt";

/// Versions of the domain that graphs may need. The second one has weights of whole numbers, which programs of the first one do not
/// read; a graph needs the least version that has all of its operators.
pub const VERSIONS: RangeInclusive<i64> = 1..=SCALED;

/// Least version with weights of whole numbers and their scales.
const SCALED: i64 = 2;

/// How manifests write that a graph needs a version: `sdrt:1`.
#[must_use]
pub fn requirement(version: i64) -> String {
    format!("{DOMAIN}:{version}")
}

/// Whether a manifest's requirement is a version of [`VERSIONS`].
#[must_use]
pub fn is_known(required: &str) -> bool {
    VERSIONS.map(requirement).any(|known| known == required)
}

/// Nonlinearity at the end of an operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// The value itself.
    #[default]
    None,
    /// `max(x, 0)`
    Relu,
    /// `x * sigmoid(x)`
    Silu,
    /// `x * Phi(x)`
    Gelu,
    /// `x * sigmoid(1.702 x)`
    QuickGelu,
    /// The first half of the channels, times the GELU of the second.
    Geglu,
}

impl Activation {
    /// Value of the attribute `activation`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Relu => "relu",
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::QuickGelu => "quick_gelu",
            Self::Geglu => "geglu",
        }
    }
}

/// `activation(conv(x) + bias + time) + residual` -> [N, h', w', O]
#[derive(Clone, Debug)]
pub struct ConvNode {
    /// Kernel, stride, padding.
    pub conv: Conv,
    /// `None`, `Relu` or `Silu`.
    pub activation: Activation,
    /// Picture [N, h, w, C].
    pub x: Value,
    /// [O, C, k, k].
    pub weight: Value,
    /// `[O]`, where weights are whole numbers.
    pub scales: Option<Value>,
    /// `[O]`.
    pub bias: Option<Value>,
    /// [1 or N, O], added to every pixel.
    pub time: Option<Value>,
    /// [1 or N, h', w', O].
    pub residual: Option<Value>,
    /// [_, H, W, _]: `x` is first enlarged to this height and width, by nearest neighbours.
    pub like: Option<Value>,
}

/// `activation(x W + bias) + residual` -> [.., M]
#[derive(Clone, Debug)]
pub struct LinearNode {
    /// `None`, `Silu`, `Gelu`, `QuickGelu` or `Geglu`.
    pub activation: Activation,
    /// [.., K].
    pub x: Value,
    /// A matrix [K, M], or a 1x1 convolution's [M, K, 1, 1].
    pub weight: Value,
    /// `[M]`, where weights are whole numbers.
    pub scales: Option<Value>,
    /// `[M]`.
    pub bias: Option<Value>,
    /// The result's shape; the batch may be 1.
    pub residual: Option<Value>,
}

/// GroupNorm of a picture, then `activation`.
#[derive(Clone, Debug)]
pub struct GroupNormNode {
    /// Groups of channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// `None` or `Silu`.
    pub activation: Activation,
    /// [N, h, w, C].
    pub x: Value,
    /// `[C]`.
    pub weight: Value,
    /// `[C]`.
    pub bias: Value,
}

impl Graph {
    /// The version of [`DOMAIN`] that it needs, if any of its operators is our own.
    #[must_use]
    pub fn custom_version(&self) -> Option<i64> {
        let version = |node: &Node| {
            let custom = matches!(node.op, Op::Custom(_));
            let scaled = node.attributes.iter().any(|(name, _)| *name == "scales");
            custom.then_some(if scaled { SCALED } else { 1 })
        };
        self.nodes.iter().filter_map(version).max()
    }
}

impl GraphBuilder {
    /// `sdrt.Conv`
    ///
    /// # Errors
    /// Channels that differ.
    pub fn custom_conv(&mut self, node: &ConvNode) -> Result<Value> {
        let (x, w) = (self.shape(node.x), self.shape(node.weight));
        if x.len() != 4 || w.len() != 4 || !x[3].agrees(&w[1]) {
            let problem = "the picture's channels must be the weight's second dimension";
            return Err(self.impossible("sdrt.Conv", &[node.x, node.weight], problem));
        }
        let from = node.like.map_or(x, |like| self.shape(like));
        let side = |axis: usize| node.conv.output(&from[axis + 1], axis);
        let shape = vec![x[0].clone(), side(0), side(1), w[0].clone()];
        let Conv {
            kernel,
            stride,
            pads,
        } = node.conv;
        let optional = [
            ("bias", node.bias),
            ("time", node.time),
            ("residual", node.residual),
            ("like", node.like),
        ];
        let mut attributes = vec![
            ("kernel", Attr::Int(kernel as i64)),
            ("stride", Attr::Int(stride as i64)),
            ("pads", Attr::Ints(pads.map(|n| n as i64).to_vec())),
            ("activation", Attr::Text(node.activation.name())),
        ];
        attributes.extend(scaled(node.scales));
        attributes.extend(presence(&optional));
        let inputs = present(&[node.x, node.weight], node.scales, &optional);
        Ok(self.custom("Conv", inputs, shape, attributes))
    }

    /// `sdrt.Linear`
    ///
    /// # Errors
    /// Widths that differ.
    pub fn custom_linear(&mut self, node: &LinearNode) -> Result<Value> {
        let (mut shape, weight) = (self.shape(node.x).to_vec(), self.shape(node.weight));
        let (transposed, from, to) = match weight.len() {
            2 => (1, &weight[0], &weight[1]),
            _ => (0, &weight[1], &weight[0]),
        };
        let last = shape.len() - 1;
        if !shape[last].agrees(from) {
            let problem = "the width must be the one that the weight takes";
            return Err(self.impossible("sdrt.Linear", &[node.x, node.weight], problem));
        }
        shape[last] = match (node.activation, to) {
            (Activation::Geglu, Dim::Fixed(n)) => Dim::Fixed(n / 2),
            _ => to.clone(),
        };
        let optional = [("bias", node.bias), ("residual", node.residual)];
        let mut attributes = vec![
            ("transposed", Attr::Int(transposed)),
            ("activation", Attr::Text(node.activation.name())),
        ];
        attributes.extend(scaled(node.scales));
        attributes.extend(presence(&optional));
        let inputs = present(&[node.x, node.weight], node.scales, &optional);
        Ok(self.custom("Linear", inputs, shape, attributes))
    }

    /// `sdrt.GroupNorm`
    pub fn custom_group_norm(&mut self, node: &GroupNormNode) -> Value {
        let shape = self.shape(node.x).to_vec();
        let attributes = vec![
            ("groups", Attr::Int(node.groups as i64)),
            ("epsilon", Attr::Float(node.epsilon)),
            ("activation", Attr::Text(node.activation.name())),
        ];
        let inputs = [node.x, node.weight, node.bias].map(Some).to_vec();
        self.custom("GroupNorm", inputs, shape, attributes)
    }

    /// `sdrt.LayerNorm` of `x` [.., C]
    pub fn custom_layer_norm(&mut self, [x, weight, bias]: [Value; 3], epsilon: f32) -> Value {
        let shape = self.shape(x).to_vec();
        let attributes = vec![("epsilon", Attr::Float(epsilon))];
        self.custom(
            "LayerNorm",
            [x, weight, bias].map(Some).to_vec(),
            shape,
            attributes,
        )
    }

    /// `sdrt.Attention`: `softmax(q k^T / sqrt(d)) v`; a batch of 1 is repeated.
    pub fn custom_attention(&mut self, [q, k, v]: [Value; 3], heads: usize) -> Value {
        let mut shape = self.shape(q).to_vec();
        shape[0] = larger(&shape[0], &self.shape(k)[0]);
        let attributes = vec![("heads", Attr::Int(heads as i64))];
        self.custom("Attention", [q, k, v].map(Some).to_vec(), shape, attributes)
    }

    /// `sdrt.Concat` of two pictures' channels; a batch of 1 is repeated.
    ///
    /// # Errors
    /// Sizes that differ.
    pub fn custom_concat(&mut self, a: Value, b: Value) -> Result<Value> {
        let (sa, sb) = (self.shape(a), self.shape(b));
        if !sa[1].agrees(&sb[1]) || !sa[2].agrees(&sb[2]) {
            return Err(self.impossible("sdrt.Concat", &[a, b], "the sizes must agree"));
        }
        let channels = self.fixed_dim(a, 3)? + self.fixed_dim(b, 3)?;
        let batch = larger(&sa[0], &sb[0]);
        let shape = vec![batch, sa[1].clone(), sa[2].clone(), channels.into()];
        Ok(self.custom("Concat", vec![Some(a), Some(b)], shape, vec![]))
    }

    fn custom(
        &mut self,
        op: &'static str,
        inputs: Vec<Option<Value>>,
        shape: Vec<Dim>,
        attributes: Vec<(&'static str, Attr)>,
    ) -> Value {
        let outputs = vec![(DType::F32, shape)];
        self.any_node(Op::Custom(op), inputs, outputs, attributes)[0]
    }

    /// The channels-last picture `x`, enlarged by nearest neighbours to the size of `like`, or to twice its size.
    ///
    /// # Errors
    /// `x` of unknown channels.
    pub fn enlarged(&mut self, x: Value, like: Option<Value>) -> Result<Value> {
        let nchw = |s: &[Dim]| [0, 3, 1, 2].map(|i: usize| s[i].clone());
        let like_shape = like.map(|like| nchw(self.shape(like)));
        let shape = upsampled(
            &nchw(self.shape(x)),
            like_shape.as_ref().map(<[Dim; 4]>::as_slice),
        );
        let shape = [0, 2, 3, 1].map(|i: usize| shape[i].clone()).to_vec();
        let inputs = match like {
            Some(like) => {
                let sizes = self.size_of(x, like)?;
                vec![Some(x), None, None, Some(sizes)]
            }
            None => {
                let scales = self.constant_f32(&[4], vec![1.0, 2.0, 2.0, 1.0]);
                vec![Some(x), None, Some(scales)]
            }
        };
        Ok(self.resize(inputs, shape))
    }

    /// Tokens `x` [N, h * w, C] as a channels-last picture of the height and width of `like`.
    ///
    /// # Errors
    /// `x` of unknown channels.
    pub fn tokens_to_pixels(&mut self, x: Value, like: Value) -> Result<Value> {
        let shape = self.shape(like);
        let shape = [&self.shape(x)[0], &shape[1], &shape[2], &self.shape(x)[2]];
        let shape = shape.map(Dim::clone).to_vec();
        let sizes = self.size_of(x, like)?;
        Ok(self.node("Reshape", [x, sizes], shape, vec![]))
    }

    /// Batch and channels of `x`, height and width of the channels-last picture `like`, `[4]` i64.
    fn size_of(&mut self, x: Value, like: Value) -> Result<Value> {
        let channels = self.fixed_dim(x, self.shape(x).len() - 1)?;
        let (whole, other) = (self.shape_of(x), self.shape_of(like));
        let batch = self.slice_1d(whole, 0, 1);
        let size = self.slice_1d(other, 1, 3);
        let channels = self.constant_i64(&[channels as i64]);
        self.concat(&[batch, size, channels], 0)
    }

    /// Single precision of whatever `x` is stored in.
    pub fn cast_to_f32(&mut self, x: Value) -> Value {
        /// The number of `FLOAT` among ONNX's types.
        const FLOAT: i64 = 1;
        let shape = self.shape(x).to_vec();
        let to = vec![("to", Attr::Int(FLOAT))];
        self.typed_node("Cast", vec![Some(x)], DType::F32, shape, to)
    }
}

/// Attributes that say which operands are there.
fn presence<'a>(
    optional: &'a [(&'static str, Option<Value>)],
) -> impl Iterator<Item = (&'static str, Attr)> + 'a {
    let flag = |&(name, operand): &(&'static str, Option<Value>)| {
        (name, Attr::Int(i64::from(operand.is_some())))
    };
    optional.iter().map(flag)
}

/// The attribute that says that a weight has scales.
fn scaled(scales: Option<Value>) -> Option<(&'static str, Attr)> {
    scales.map(|_| ("scales", Attr::Int(1)))
}

/// Operands without gaps: scales follow the weight.
fn present(
    required: &[Value],
    scales: Option<Value>,
    optional: &[(&str, Option<Value>)],
) -> Vec<Option<Value>> {
    let there = optional.iter().filter_map(|(_, operand)| *operand);
    let operands = required.iter().copied().chain(scales).chain(there);
    operands.map(Some).collect()
}

/// The size that two batches have together, of which one may be 1.
fn larger(a: &Dim, b: &Dim) -> Dim {
    match a {
        Dim::Fixed(1) => b.clone(),
        _ => a.clone(),
    }
}
