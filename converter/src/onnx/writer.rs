//! Writes a graph as `model.onnx` with weights in `model.onnx_data`, a few tensors in memory at a time.
//!
//! Storage and compute type are separate: a weight stays in the 16 bits it was published in. Where a graph reads it in single
//! precision, a `Cast` node, which runtimes fold when they load the graph, makes it so; where the graph reads it as it is
//! stored, nothing does. Whole numbers have scales beside them, and `DequantizeLinear` in place of the `Cast`. Small tensors are
//! inline and, if they are no whole numbers, single precision.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use prost::Message;
use rayon::prelude::*;
use sd_models::graph::{
    Attr, ConstantData, DType, Dim, Graph, Node, OPSET, Op, Param, Value, custom,
};
use sd_models::manifest::{DATA_FILE, hex};
use sha2::{Digest, Sha256};

use super::external_data::{ExternalData, PAGE, write_external_data};
use super::proto::{
    AttributeProto, DimensionProto, DimensionValue, EXTERNAL, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto,
    TypeProto, ValueInfoProto, attribute_type, data_type,
};

/// ONNX IR version that came with opset 17.
const IR_VERSION: i64 = 8;

/// Bytes that are read at the same time: enough to keep every core busy, little beside a model.
const GROUP: usize = 32 << 20;

/// Type in which a weight's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stored {
    /// IEEE half precision.
    F16,
    /// Truncated single precision.
    Bf16,
    /// IEEE single precision.
    F32,
    /// Whole numbers with a scale for each output.
    I8,
}

impl Stored {
    /// The name used in manifests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F32 => "F32",
            Self::I8 => "I8",
        }
    }

    /// That of a number of ONNX's types, if weights are stored in such.
    pub(crate) fn of_onnx(number: i32) -> Option<Self> {
        let all = [Self::F16, Self::Bf16, Self::F32, Self::I8];
        all.into_iter().find(|stored| stored.onnx() == number)
    }

    fn onnx(self) -> i32 {
        match self {
            Self::F16 => data_type::FLOAT16,
            Self::Bf16 => data_type::BFLOAT16,
            Self::F32 => data_type::FLOAT,
            Self::I8 => data_type::INT8,
        }
    }

    /// The type and bytes of a small tensor.
    fn inline(self, bytes: &[u8]) -> (Self, Vec<u8>) {
        let halves = |decode: fn([u8; 2]) -> f32| {
            bytes
                .as_chunks()
                .0
                .iter()
                .flat_map(|&b| decode(b).to_le_bytes())
                .collect::<Vec<u8>>()
        };
        match self {
            Self::F16 => (Self::F32, halves(|b| half::f16::from_le_bytes(b).to_f32())),
            Self::Bf16 => (Self::F32, halves(|b| half::bf16::from_le_bytes(b).to_f32())),
            Self::F32 | Self::I8 => (self, bytes.to_vec()),
        }
    }
}

/// A parameter's data.
#[derive(Debug)]
pub struct Weight<'a> {
    /// Type of its elements.
    pub stored: Stored,
    /// Little-endian bytes of the parameter in its checkpoint shape, or transposed if it is stored so, in C order.
    pub bytes: Cow<'a, [u8]>,
    /// One for each output, if its elements are whole numbers.
    pub scales: Option<Vec<f32>>,
}

/// Where the bytes of parameters come from.
pub trait WeightReader {
    /// What can go wrong.
    type Error: Send;

    /// A parameter's data.
    ///
    /// # Errors
    /// The tensor cannot be read, or the user interrupted.
    fn read(&self, param: &Param) -> Result<Weight<'_>, Self::Error>;
}

/// A graph that could not be written.
#[derive(Debug)]
pub enum WriteError<E> {
    /// The output folder cannot be written.
    Io(io::Error),
    /// A weight cannot be had.
    Weight(E),
}

impl<E> From<io::Error> for WriteError<E> {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// SHA-256 and length of each graph's file.
    pub graphs: BTreeMap<String, (String, u64)>,
    /// SHA-256 and length of `model.onnx_data`.
    pub data: (String, u64),
    /// Types that weights are stored in.
    pub storage: BTreeSet<Stored>,
}

/// Writes graphs of one network and their weights into `folder`. `params` are those of all graphs together, in the order and
/// orientation in which weights are stored.
///
/// # Errors
/// The folder cannot be written, or `weights` fails.
pub fn write_model<R: WeightReader + Sync>(
    params: &[Param],
    graphs: &[(&str, &Graph)],
    weights: &R,
    folder: &Path,
) -> Result<Written, WriteError<R::Error>> {
    let (written, data) = write_external_data(&folder.join(DATA_FILE), |data| {
        let mut written = Params::default();
        for group in groups(params) {
            let read = group.par_iter().map(|param| weights.read(param));
            let read: Vec<_> = read.collect();
            for (param, weight) in group.iter().zip(read) {
                written.write(param, weight.map_err(WriteError::Weight)?, data);
            }
            data.flush()?;
        }
        Ok::<_, WriteError<R::Error>>(written)
    })?;
    let mut files = BTreeMap::new();
    for (name, graph) in graphs {
        let bytes = model_proto(graph, &written).encode_to_vec();
        let mut file = File::create(folder.join(name))?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        let hash = hex(&Sha256::digest(&bytes));
        files.insert((*name).to_owned(), (hash, bytes.len() as u64));
    }
    Ok(Written {
        graphs: files,
        data,
        storage: written.storage,
    })
}

/// Parameters that are read at the same time: neighbours of together at most [`GROUP`] bytes in single precision.
fn groups(params: &[Param]) -> impl Iterator<Item = &[Param]> {
    let size = |param: &Param| 4 * param.shape.iter().product::<usize>();
    let mut rest = params;
    std::iter::from_fn(move || {
        let mut total = 0;
        let fits = |param: &&Param| {
            total += size(param);
            total <= GROUP
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (group, others) = rest.split_at_checked(count)?;
        rest = others;
        Some(group)
    })
}

fn model_proto(graph: &Graph, params: &Params) -> ModelProto {
    let mut names: Vec<String> = graph.values.iter().map(|info| info.name.clone()).collect();
    let mut tensors = Vec::new();
    let mut casts = Vec::new();
    for param in &graph.params {
        let tensor = &params.tensors[&param.name];
        tensors.push(tensor.clone());
        let widened = graph.info(param.value).dtype == DType::F32;
        if widened && tensor.data_type != data_type::FLOAT {
            let cast = format!("{}:f32", param.name);
            let scales = params.tensors.get(&param.scales_name());
            tensors.extend(scales.cloned());
            casts.push(match scales {
                Some(scales) => dequantize(param, &scales.name, &cast),
                None => cast_to_f32(&param.name, &cast),
            });
            names[param.value.index()] = cast;
        }
    }
    let constants = graph
        .constants
        .iter()
        .map(|c| constant_tensor(graph, c.value, &c.data));
    let nodes = graph.nodes.iter().map(|node| node_proto(node, &names));
    let mut domains = vec![(String::new(), OPSET)];
    if let Some(version) = graph.custom_version() {
        domains.push((custom::DOMAIN.to_owned(), version));
    }
    ModelProto {
        ir_version: IR_VERSION,
        producer_name: "sdconvert".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(GraphProto {
            name: graph.name.clone(),
            initializer: constants.chain(tensors).collect(),
            node: casts.into_iter().chain(nodes).collect(),
            input: graph.inputs.iter().map(|&v| value_info(graph, v)).collect(),
            output: graph
                .outputs
                .iter()
                .map(|&v| value_info(graph, v))
                .collect(),
        }),
        opset_import: domains
            .into_iter()
            .map(|(domain, version)| OperatorSetIdProto { domain, version })
            .collect(),
    }
}

/// Parameters as graph files declare them, by name.
#[derive(Default)]
struct Params {
    tensors: BTreeMap<String, TensorProto>,
    storage: BTreeSet<Stored>,
}

impl Params {
    fn write<'a>(&mut self, param: &Param, weight: Weight<'a>, data: &mut ExternalData<'a>) {
        let mut dims = param.shape.clone();
        if param.transposed {
            dims.reverse();
        }
        self.tensor(&param.name, &dims, (weight.stored, weight.bytes), data);
        if let Some(scales) = weight.scales {
            let bytes: Vec<u8> = scales.iter().flat_map(|x| x.to_le_bytes()).collect();
            let stored = (Stored::F32, bytes.into());
            self.tensor(&param.scales_name(), &[scales.len()], stored, data);
            self.storage.insert(weight.stored);
        }
    }

    /// Small tensors go into the graph file; others to external data as they are stored.
    fn tensor<'a>(
        &mut self,
        name: &str,
        dims: &[usize],
        (stored, bytes): (Stored, Cow<'a, [u8]>),
        data: &mut ExternalData<'a>,
    ) {
        let mut tensor = TensorProto {
            dims: dims.iter().map(|&n| n as i64).collect(),
            name: name.to_owned(),
            ..TensorProto::default()
        };
        if bytes.len() < PAGE {
            let (stored, bytes) = stored.inline(&bytes);
            tensor.data_type = stored.onnx();
            tensor.raw_data = Some(bytes);
        } else {
            let length = bytes.len();
            tensor.data_type = stored.onnx();
            tensor.data_location = EXTERNAL;
            tensor.external_data = location(data.append(bytes), length);
            self.storage.insert(stored);
        }
        self.tensors.insert(name.to_owned(), tensor);
    }
}

fn location(offset: usize, length: usize) -> Vec<StringStringEntryProto> {
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: key.to_owned(),
        value,
    };
    vec![
        entry("location", DATA_FILE.to_owned()),
        entry("offset", offset.to_string()),
        entry("length", length.to_string()),
    ]
}

fn constant_tensor(graph: &Graph, value: Value, data: &ConstantData) -> TensorProto {
    let info = graph.info(value);
    let dims = info
        .shape
        .iter()
        .map(|d| d.fixed().expect("constants have fixed shapes") as i64)
        .collect();
    let (data_type, bytes) = match data {
        ConstantData::F32(v) => (
            data_type::FLOAT,
            v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        ConstantData::I64(v) => (
            data_type::INT64,
            v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        ConstantData::U8(v) => (data_type::UINT8, v.clone()),
    };
    TensorProto {
        dims,
        data_type,
        name: info.name.clone(),
        raw_data: Some(bytes),
        ..TensorProto::default()
    }
}

/// Whole numbers times the scales of their outputs, which are the first dimension, or the second one of a transposed matrix.
fn dequantize(param: &Param, scales: &str, to: &str) -> NodeProto {
    NodeProto {
        input: vec![param.name.clone(), scales.to_owned()],
        output: vec![to.to_owned()],
        name: format!("/{}/DequantizeLinear", param.name),
        op_type: "DequantizeLinear".to_owned(),
        attribute: vec![attribute_proto(
            "axis",
            &Attr::Int(i64::from(param.transposed)),
        )],
        ..NodeProto::default()
    }
}

fn cast_to_f32(from: &str, to: &str) -> NodeProto {
    NodeProto {
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        name: format!("/{from}/Cast"),
        op_type: "Cast".to_owned(),
        attribute: vec![AttributeProto {
            name: "to".to_owned(),
            i: Some(i64::from(data_type::FLOAT)),
            r#type: attribute_type::INT,
            ..AttributeProto::default()
        }],
        ..NodeProto::default()
    }
}

fn node_proto(node: &Node, names: &[String]) -> NodeProto {
    let name_of = |v: &Option<Value>| v.map(|v| names[v.index()].clone()).unwrap_or_default();
    NodeProto {
        input: node.inputs.iter().map(name_of).collect(),
        output: node
            .outputs
            .iter()
            .map(|v| names[v.index()].clone())
            .collect(),
        name: node.name.clone(),
        op_type: node.op.name().to_owned(),
        attribute: node
            .attributes
            .iter()
            .map(|(name, attr)| attribute_proto(name, attr))
            .collect(),
        domain: match node.op {
            Op::Custom(_) => custom::DOMAIN.to_owned(),
            Op::Onnx(_) | Op::Layer(_) => String::new(),
        },
    }
}

fn attribute_proto(name: &str, attr: &Attr) -> AttributeProto {
    let mut proto = AttributeProto {
        name: name.to_owned(),
        ..AttributeProto::default()
    };
    match attr {
        Attr::Float(x) => (proto.f, proto.r#type) = (Some(*x), attribute_type::FLOAT),
        Attr::Int(x) => (proto.i, proto.r#type) = (Some(*x), attribute_type::INT),
        Attr::Ints(x) => (proto.ints, proto.r#type) = (x.clone(), attribute_type::INTS),
        Attr::Text(x) => {
            (proto.s, proto.r#type) = (Some(x.as_bytes().to_vec()), attribute_type::STRING);
        }
    }
    proto
}

fn value_info(graph: &Graph, value: Value) -> ValueInfoProto {
    let info = graph.info(value);
    let elem_type = match info.dtype {
        DType::F32 => data_type::FLOAT,
        DType::I64 => data_type::INT64,
        DType::Bool => data_type::BOOL,
        DType::Stored | DType::I32 | DType::U8 => {
            unreachable!("graphs take and return numbers of known types")
        }
    };
    let dim = info
        .shape
        .iter()
        .map(|dim| DimensionProto {
            value: match dim {
                Dim::Fixed(n) => Some(DimensionValue::Fixed(*n as i64)),
                Dim::Symbol(s) => Some(DimensionValue::Symbol((*s).to_owned())),
                Dim::Unknown => None,
            },
        })
        .collect();
    let tensor_type = TensorTypeProto {
        elem_type,
        shape: Some(TensorShapeProto { dim }),
    };
    ValueInfoProto {
        name: info.name.clone(),
        r#type: Some(TypeProto {
            tensor_type: Some(tensor_type),
        }),
    }
}
