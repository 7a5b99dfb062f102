//! Graphs as plain data: nodes over [`Value`]s, parameters declared by name and shape, never with bytes.
//!
//! Graphs are made by [`GraphBuilder`], which checks shapes as nodes are added. Networks are built of [`Layer`]s and ONNX
//! operators; [`lower`] writes layers as ONNX operators (the portable dialect), and the converter's native pass as operators
//! of our own. Serializing graphs is the converter's job.

mod builder;
mod copy;
pub mod custom;
mod dump;
mod integer;
mod layer;
mod lower;
mod ops;

use std::fmt;

pub use builder::{GraphBuilder, Scope};
pub use copy::Copier;
pub use integer::Whole;
pub use layer::{Layer, Scores};
pub use lower::lower;
pub use ops::Conv;

/// The ONNX opset of all graphs: the lowest with `LayerNormalization`, so that old runtimes and providers load them.
pub const OPSET: i64 = 17;

/// A tensor in a [`Graph`]: an input, a parameter, a constant or a node's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(u32);

impl Value {
    /// Position in [`Graph::values`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Element type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 8-bit integer.
    U8,
    /// True or false.
    Bool,
    /// A parameter in the type that it is stored in: half precision of either kind, single precision, or whole numbers with
    /// scales ([`GraphBuilder::scales_of`]).
    Stored,
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::U8 => "u8",
            Self::Bool => "bool",
            Self::Stored => "stored",
        })
    }
}

/// One dimension of a shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// Known when the graph is built.
    Fixed(usize),
    /// A size the caller chooses, such as `batch` or `height`.
    Symbol(&'static str),
    /// Follows from symbols at run time.
    Unknown,
}

impl Dim {
    /// The value, if fixed.
    #[must_use]
    pub fn fixed(&self) -> Option<usize> {
        match self {
            Self::Fixed(n) => Some(*n),
            _ => None,
        }
    }

    /// Whether both can be the same size.
    #[must_use]
    pub fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fixed(a), Self::Fixed(b)) => a == b,
            _ => true,
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Self::Fixed(n)
    }
}

impl From<&'static str> for Dim {
    fn from(symbol: &'static str) -> Self {
        Self::Symbol(symbol)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Symbol(s) => f.write_str(s),
            Self::Unknown => f.write_str("?"),
        }
    }
}

/// What the builder knows of a value.
#[derive(Clone, Debug)]
pub struct ValueInfo {
    /// Unique in the graph.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<Dim>,
}

/// A model parameter: its name is the canonical checkpoint key.
#[derive(Clone, Debug)]
pub struct Param {
    /// The value that nodes read; it has the shape in which the graph wants the data.
    pub value: Value,
    /// Canonical name, such as `down_blocks.0.resnets.1.conv1.weight`.
    pub name: String,
    /// Shape in the checkpoint.
    pub shape: Vec<usize>,
    /// Whether the graph reads the matrix transposed, `[in, out]` instead of `[out, in]`.
    pub transposed: bool,
}

impl Param {
    /// Name of its scales, if it is stored as whole numbers.
    #[must_use]
    pub fn scales_name(&self) -> String {
        format!("{}_scale", self.name)
    }
}

/// A tensor fixed by the architecture.
#[derive(Clone, Debug)]
pub struct Constant {
    /// The value that nodes read.
    pub value: Value,
    /// Its elements, in C order.
    pub data: ConstantData,
}

/// Elements of a [`Constant`].
#[derive(Clone, Debug, PartialEq)]
pub enum ConstantData {
    /// Single-precision numbers.
    F32(Vec<f32>),
    /// Integers: shapes, axes, indices.
    I64(Vec<i64>),
    /// Whole numbers of 8 bits.
    U8(Vec<u8>),
}

/// An attribute of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// One number.
    Float(f32),
    /// One integer.
    Int(i64),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A keyword.
    Text(&'static str),
}

/// What a node computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// An operator of the default ONNX domain.
    Onnx(&'static str),
    /// A layer, which is a formula and not yet operators.
    Layer(Layer),
    /// An operator of the domain [`custom::DOMAIN`].
    Custom(&'static str),
}

impl Op {
    /// Name of the operator or layer, without its domain.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Onnx(name) | Self::Custom(name) => name,
            Self::Layer(layer) => layer.name(),
        }
    }
}

/// An operator or layer applied to values.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Unique in the graph: the scope, and the operator.
    pub name: String,
    /// Where in the network it was built, such as `down_blocks.0.resnets.1.conv1`.
    pub scope: String,
    /// Operands; `None` is an omitted optional one.
    pub inputs: Vec<Option<Value>>,
    /// Results.
    pub outputs: Vec<Value>,
    /// Attributes that differ from the operator's defaults.
    pub attributes: Vec<(&'static str, Attr)>,
}

/// A complete graph.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Which network this is, such as `unet`.
    pub name: String,
    /// Values given at run time.
    pub inputs: Vec<Value>,
    /// Values returned; their names are the output names.
    pub outputs: Vec<Value>,
    /// In execution order.
    pub nodes: Vec<Node>,
    /// In order of first use.
    pub params: Vec<Param>,
    /// Shared by value.
    pub constants: Vec<Constant>,
    /// Names, types and shapes, indexed by [`Value::index`].
    pub values: Vec<ValueInfo>,
}

impl Graph {
    /// Name, type and shape of a value.
    #[must_use]
    pub fn info(&self, value: Value) -> &ValueInfo {
        &self.values[value.index()]
    }

    /// Number of weights and biases.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.params
            .iter()
            .map(|p| p.shape.iter().product::<usize>())
            .sum()
    }
}

/// A layer that does not fit its input, found while a graph is built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// Operands whose shapes the operator cannot take.
    #[error("{scope}: {op} of {shapes} is impossible: {reason}")]
    Shape {
        /// Where in the network.
        scope: String,
        /// Operator.
        op: &'static str,
        /// Shapes of the operands.
        shapes: String,
        /// What was expected.
        reason: String,
    },
    /// The same parameter declared twice with different shapes.
    #[error("parameter `{name}` is declared as {first:?} and as {second:?}")]
    ParamConflict {
        /// Canonical name.
        name: String,
        /// Shape of the first declaration.
        first: Vec<usize>,
        /// Shape of the second.
        second: Vec<usize>,
    },
    /// Two inputs or outputs of one name.
    #[error("the name `{name}` is used twice in the graph")]
    DuplicateName {
        /// The name.
        name: String,
    },
}

/// Result of building.
pub type Result<T, E = GraphError> = std::result::Result<T, E>;
