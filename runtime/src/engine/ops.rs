//! Our kernels as ONNX Runtime operators of the domain `sdrt`: the operators of `native.onnx`.
//!
//! Each reads its weights where ONNX Runtime has them, which is the mapped data file, and runs on ONNX Runtime's threads.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use half::{bf16, f16};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::{Outlet, TensorElementType, ValueRef};
use ort::{Error, Result};
use sd_kernels::{
    self as kernels, Activation, Compute, Floats, Isa, Order, OutOfMemory, Pool, Run, Scratch,
};
use sd_models::graph::custom;

use super::Observed;
use super::chain::{self, Chain};

/// The domain's operators for one session, which `observed` may look on, with that for a chain if its graph has one.
pub(super) fn domain(
    compute: Compute,
    threads: usize,
    observed: Option<Arc<Observed>>,
    chain: Option<Chain>,
) -> Result<OperatorDomain> {
    let shared = Arc::new(Shared {
        isa: Isa::detect(),
        compute,
        threads,
        observed,
        scratch: Mutex::new(Scratch::new()),
    });
    let domain = OperatorDomain::new(custom::DOMAIN)?
        .add(Op::<Conv>::new(&shared))?
        .add(Op::<Linear>::new(&shared))?
        .add(Op::<GroupNorm>::new(&shared))?
        .add(Op::<LayerNorm>::new(&shared))?
        .add(Op::<Attention>::new(&shared))?
        .add(Op::<Concat>::new(&shared))?;
    match chain {
        Some(chain) => domain.add(chain::Op { chain, shared }),
        None => Ok(domain),
    }
}

/// What a session's operators have in common. They run one after the other, so they share scratch memory.
pub(super) struct Shared {
    isa: Isa,
    compute: Compute,
    threads: usize,
    observed: Option<Arc<Observed>>,
    scratch: Mutex<Scratch>,
}

impl Shared {
    /// Lends a node what kernels run with.
    pub(super) fn lend<T>(
        &self,
        context: &ComputeContext,
        work: impl FnOnce(&mut Run<'_>) -> T,
    ) -> T {
        let scratch = self.scratch.lock();
        let mut scratch = scratch.unwrap_or_else(PoisonError::into_inner);
        work(&mut Run {
            isa: self.isa,
            compute: self.compute,
            pool: &Workers {
                context,
                count: self.threads,
            },
            scratch: &mut scratch,
        })
    }
}

/// What goes into a node.
pub(super) fn inputs(context: &ComputeContext) -> Result<Vec<ValueRef<'_>>> {
    let count = context.num_inputs()?;
    let inputs = (0..count).map(|i| {
        let input = context.input(i)?;
        input.ok_or_else(|| Error::new(format!("input {i} is missing")))
    });
    inputs.collect()
}

/// One of the operators.
trait Layer: Sized + Send + Sync + 'static {
    /// Name in the domain.
    const NAME: &'static str;
    /// Inputs of single precision that come first.
    const ACTIVATIONS: usize;
    /// Whether inputs of any type follow: weights, and what may be absent.
    const WEIGHTS: bool;
    /// Whether the first of them is a matrix that the first input is multiplied by.
    const MULTIPLIES: bool = false;

    /// Reads a node's attributes.
    fn new(node: &Attributes<'_, '_>) -> Result<Self>;

    /// Computes the output from the inputs.
    fn compute(
        &self,
        inputs: &[ValueRef<'_>],
        output: &Output<'_>,
        run: &mut Run<'_>,
    ) -> Result<()>;
}

struct Op<L>(Arc<Shared>, PhantomData<L>);

impl<L> Op<L> {
    fn new(shared: &Arc<Shared>) -> Self {
        Self(Arc::clone(shared), PhantomData)
    }
}

impl<L: Layer> Operator for Op<L> {
    type Kernel<'node> = Node<L>;

    fn name(&self) -> &str {
        L::NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let activation = || OperatorInput::required(TensorElementType::Float32);
        let activations = std::iter::repeat_with(activation).take(L::ACTIVATIONS);
        activations.chain(L::WEIGHTS.then(|| OperatorInput::variadic(1)))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'node>(&self, node: &KernelContext<'node>) -> Result<Self::Kernel<'node>> {
        let name = node.node_name()?;
        let layer = L::new(&Attributes { node, name: &name })?;
        let observed = match &self.0.observed {
            Some(observed) if L::MULTIPLIES => Some((Arc::clone(observed), layer_name(node)?)),
            _ => None,
        };
        Ok(Node {
            layer,
            name,
            shared: Arc::clone(&self.0),
            observed,
        })
    }
}

/// A node of the graph.
struct Node<L> {
    layer: L,
    name: String,
    shared: Arc<Shared>,
    /// Who wants to know its inputs, and under what name.
    observed: Option<(Arc<Observed>, String)>,
}

/// The name of a node's layer: that of its weight, without what the weight is called there.
fn layer_name(node: &KernelContext<'_>) -> Result<String> {
    let inputs = node.inputs()?;
    let weight = inputs.get(1).map(Outlet::name).unwrap_or_default();
    let layer = weight.strip_suffix(".weight").unwrap_or(weight);
    Ok(layer.to_owned())
}

impl<L: Layer> Kernel for Node<L> {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let output = Output(context);
        let computed = inputs(context).and_then(|inputs| {
            if let (Some((observed, layer)), Some(x)) = (&self.observed, inputs.first()) {
                observed.see(layer, numbers(x)?);
            }
            self.shared
                .lend(context, |run| self.layer.compute(&inputs, &output, run))
        });
        computed.map_err(|e| Error::new(format!("{}: {e}", self.name)))
    }
}

/// ONNX Runtime's threads.
struct Workers<'a> {
    context: &'a ComputeContext,
    count: usize,
}

impl Pool for Workers<'_> {
    fn workers(&self) -> usize {
        self.count
    }

    fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        let ran = self.context.par_for(self.count, 0, work);
        ran.expect("ONNX Runtime has had ParallelFor since 1.17");
    }
}

/// A node's attributes.
struct Attributes<'a, 'node> {
    node: &'a KernelContext<'node>,
    name: &'a str,
}

impl Attributes<'_, '_> {
    /// A whole number that must be there.
    fn int(&self, attribute: &str) -> Result<usize> {
        let value: Option<i64> = self.node.get(attribute);
        let value = value.and_then(|n| usize::try_from(n).ok());
        value.ok_or_else(|| self.missing(attribute))
    }

    /// Whether a flag is set.
    fn flag(&self, attribute: &str) -> bool {
        self.node.get::<i64>(attribute).is_some_and(|n| n != 0)
    }

    /// A number that must be there.
    fn float(&self, attribute: &str) -> Result<f32> {
        self.node
            .get(attribute)
            .ok_or_else(|| self.missing(attribute))
    }

    /// Four whole numbers that must be there.
    fn four(&self, attribute: &str) -> Result<[usize; 4]> {
        let values: Vec<i64> = self
            .node
            .get(attribute)
            .ok_or_else(|| self.missing(attribute))?;
        let values = values
            .into_iter()
            .map(usize::try_from)
            .collect::<Result<Vec<_>, _>>();
        let values = values.ok().and_then(|v| <[usize; 4]>::try_from(v).ok());
        values.ok_or_else(|| self.missing(attribute))
    }

    /// The activation, and whether it is a gated one.
    fn activation(&self) -> Result<(Activation, bool)> {
        let name: String = self.node.get("activation").unwrap_or_default();
        Ok(match name.as_str() {
            "" | "none" => (Activation::None, false),
            "relu" => (Activation::Relu, false),
            "silu" => (Activation::Silu, false),
            "gelu" => (Activation::Gelu, false),
            "quick_gelu" => (Activation::QuickGelu, false),
            "geglu" => (Activation::None, true),
            other => {
                return Err(Error::new(format!(
                    "{}: there is no activation `{other}`",
                    self.name
                )));
            }
        })
    }

    fn missing(&self, attribute: &str) -> Error {
        Error::new(format!(
            "{}: attribute `{attribute}` is missing or negative",
            self.name
        ))
    }
}

/// Where a node's output goes.
pub(super) struct Output<'a>(pub(super) &'a ComputeContext);

impl Output<'_> {
    /// Makes room for a tensor of this shape and writes it.
    pub(super) fn write(
        &self,
        shape: &[usize],
        write: impl FnOnce(&mut [f32]) -> Result<(), OutOfMemory>,
    ) -> Result<()> {
        let dims: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let output = self.0.output(0, dims)?;
        let mut output = output.ok_or_else(|| Error::new("there is no room for the output"))?;
        let written = write(output.try_extract_tensor_mut::<f32>()?.1);
        written.map_err(|e| Error::new(e.to_string()))
    }
}

/// A tensor's lengths.
pub(super) fn shape(value: &ValueRef<'_>) -> Vec<usize> {
    value.shape().iter().map(|&n| n as usize).collect()
}

/// A tensor's numbers, which are single precision.
pub(super) fn numbers<'a>(value: &'a ValueRef<'_>) -> Result<&'a [f32]> {
    Ok(value.try_extract_tensor::<f32>()?.1)
}

/// A tensor's numbers as they are stored.
fn stored<'a>(value: &'a ValueRef<'_>) -> Result<Floats<'a>> {
    match value.data_type() {
        TensorElementType::Float32 => Ok(Floats::F32(numbers(value)?)),
        TensorElementType::Float16 => Ok(Floats::F16(value.try_extract_tensor::<f16>()?.1)),
        TensorElementType::Bfloat16 => Ok(Floats::Bf16(value.try_extract_tensor::<bf16>()?.1)),
        other => Err(Error::new(format!(
            "weights are floating-point numbers, not {other}"
        ))),
    }
}

/// Weights as they are stored: whole numbers have scales, others have none.
pub(super) fn weights<'a>(
    weight: &'a ValueRef<'_>,
    scales: Option<&'a ValueRef<'_>>,
) -> Result<Floats<'a>> {
    let dtype = *weight.data_type();
    match (dtype, scales) {
        (TensorElementType::Int8, Some(scales)) => Ok(Floats::Int8 {
            numbers: weight.try_extract_tensor::<i8>()?.1,
            scales: numbers(scales)?,
        }),
        (TensorElementType::Int8, None) => Err(Error::new("weights of int8 lack their scales")),
        (_, None) => stored(weight),
        (other, Some(_)) => Err(Error::new(format!("weights of {other} have no scales"))),
    }
}

/// A short tensor in single precision.
pub(super) fn widened<'a>(value: &'a ValueRef<'_>) -> Result<Cow<'a, [f32]>> {
    Ok(match stored(value)? {
        Floats::F32(numbers) => Cow::Borrowed(numbers),
        other => Cow::Owned(other.to_f32(Order::OutputsFirst)),
    })
}

/// Operands by their places: those that are there follow one another.
fn operands<'a, 'v, const N: usize>(
    inputs: &'a [ValueRef<'v>],
    there: [bool; N],
) -> [Option<&'a ValueRef<'v>>; N] {
    let mut rest = inputs.iter();
    there.map(|there| there.then(|| rest.next()).flatten())
}

/// An error that says which shapes do not fit.
pub(super) fn misfit(inputs: &[ValueRef<'_>]) -> Error {
    let shapes: Vec<String> = inputs.iter().map(|v| format!("{:?}", shape(v))).collect();
    Error::new(format!(
        "inputs of shapes {} do not fit together",
        shapes.join(", ")
    ))
}

/// Whether batches are equal, or a single one meets some.
fn repeat(a: usize, b: usize) -> bool {
    a == b || a.min(b) == 1
}

/// `x` [.., K], weight, scales?, bias?, residual? -> [.., M]
struct Linear {
    order: Order,
    scales: bool,
    bias: bool,
    residual: bool,
    activation: Activation,
    geglu: bool,
}

impl Layer for Linear {
    const NAME: &'static str = "Linear";
    const ACTIVATIONS: usize = 1;
    const WEIGHTS: bool = true;
    const MULTIPLIES: bool = true;

    fn new(node: &Attributes<'_, '_>) -> Result<Self> {
        let (activation, geglu) = node.activation()?;
        Ok(Self {
            order: if node.flag("transposed") {
                Order::InputsFirst
            } else {
                Order::OutputsFirst
            },
            scales: node.flag("scales"),
            bias: node.flag("bias"),
            residual: node.flag("residual"),
            activation,
            geglu,
        })
    }

    fn compute(
        &self,
        inputs: &[ValueRef<'_>],
        output: &Output<'_>,
        run: &mut Run<'_>,
    ) -> Result<()> {
        let there = [true, true, self.scales, self.bias, self.residual];
        let [x, weight, scales, bias, residual] = operands(inputs, there);
        let (Some(x), Some(weight)) = (x, weight) else {
            return Err(misfit(inputs));
        };
        let (mut lengths, dims) = (shape(x), shape(weight));
        let (Some(last), &[a, b, ..]) = (lengths.last_mut(), &dims[..]) else {
            return Err(misfit(inputs));
        };
        let (k, columns) = if self.order == Order::InputsFirst {
            (a, b)
        } else {
            (b, a)
        };
        let halves = 1 + usize::from(self.geglu);
        let outputs = columns / halves;
        if *last != k || k == 0 || outputs == 0 || columns != halves * outputs {
            return Err(misfit(inputs));
        }
        *last = outputs;
        let bias = bias.map(widened).transpose()?;
        let layer = kernels::Linear {
            weight: weights(weight, scales)?,
            order: self.order,
            inputs: k,
            outputs,
            bias: bias.as_deref(),
            activation: self.activation,
            geglu: self.geglu,
        };
        let (x, residual) = (numbers(x)?, residual.map(numbers).transpose()?);
        let length: usize = lengths.iter().product();
        // Whole rows, some number of times.
        let repeats =
            |part: usize| part > 0 && part.is_multiple_of(outputs) && length.is_multiple_of(part);
        if !layer.weight.fit(columns)
            || layer.bias.is_some_and(|b| b.len() != columns)
            || !residual.is_none_or(|r| repeats(r.len()))
        {
            return Err(misfit(inputs));
        }
        output.write(&lengths, |y| kernels::linear(run, &layer, x, residual, y))
    }
}

/// `x` [N, h, w, C], weight [O, C, k, k], scales?, bias?, time?, residual?, like? -> [N, h', w', O]
struct Conv {
    kernel: usize,
    stride: usize,
    pads: [usize; 4],
    activation: Activation,
    scales: bool,
    bias: bool,
    time: bool,
    residual: bool,
    like: bool,
}

impl Layer for Conv {
    const NAME: &'static str = "Conv";
    const ACTIVATIONS: usize = 1;
    const WEIGHTS: bool = true;
    const MULTIPLIES: bool = true;

    fn new(node: &Attributes<'_, '_>) -> Result<Self> {
        Ok(Self {
            kernel: node.int("kernel")?,
            stride: node.int("stride")?,
            pads: node.four("pads")?,
            activation: node.activation()?.0,
            scales: node.flag("scales"),
            bias: node.flag("bias"),
            time: node.flag("time"),
            residual: node.flag("residual"),
            like: node.flag("like"),
        })
    }

    fn compute(
        &self,
        inputs: &[ValueRef<'_>],
        output: &Output<'_>,
        run: &mut Run<'_>,
    ) -> Result<()> {
        let (scales, bias, time) = (self.scales, self.bias, self.time);
        let there = [true, true, scales, bias, time, self.residual, self.like];
        let [x, weight, scales, bias, time, residual, like] = operands(inputs, there);
        let (Some(x), Some(weight)) = (x, weight) else {
            return Err(misfit(inputs));
        };
        let (&[n, h, w, c], &[o, channels, k, k2]) = (&shape(x)[..], &shape(weight)[..]) else {
            return Err(misfit(inputs));
        };
        let enlarge = match like.map(shape).as_deref() {
            Some(&[_, h, w, _]) => Some((h, w)),
            _ => None,
        };
        let (bias, time) = (
            bias.map(widened).transpose()?,
            time.map(widened).transpose()?,
        );
        let residual = residual.map(numbers).transpose()?;
        let layer = kernels::Conv {
            weight: weights(weight, scales)?,
            bias: bias.as_deref(),
            inputs: c,
            outputs: o,
            kernel: self.kernel,
            stride: self.stride,
            pads: self.pads,
            activation: self.activation,
            enlarge,
        };
        let (height, width) = layer.output_size((h, w));
        let picture = height * width * o;
        let times = time.as_ref().map_or(1, |t| t.len() / o.max(1));
        let residuals = residual.map_or(1, |r| r.len() / picture.max(1));
        let batch = n.max(times).max(residuals);
        let fits = |count: usize| count == 1 || count == batch;
        if c != channels
            || (k, k2) != (self.kernel, self.kernel)
            || self.stride == 0
            || self.kernel == 0
            || c == 0
            || picture == 0
            || (enlarge.is_some() && h * w == 0)
            || !layer.weight.fit(o)
            || !fits(n)
            || bias.as_ref().is_some_and(|b| b.len() != o)
            || !time
                .as_ref()
                .is_none_or(|t| t.len() == times * o && fits(times))
            || !residual.is_none_or(|r| r.len() == residuals * picture && fits(residuals))
        {
            return Err(misfit(inputs));
        }
        let x = numbers(x)?;
        output.write(&[batch, height, width, o], |y| {
            kernels::conv(run, &layer, x, (n, h, w), time.as_deref(), residual, y)
        })
    }
}

/// `x` [N, h, w, C], weight, bias -> like `x`
struct GroupNorm {
    groups: usize,
    epsilon: f32,
    activation: Activation,
}

impl Layer for GroupNorm {
    const NAME: &'static str = "GroupNorm";
    const ACTIVATIONS: usize = 1;
    const WEIGHTS: bool = true;

    fn new(node: &Attributes<'_, '_>) -> Result<Self> {
        Ok(Self {
            groups: node.int("groups")?,
            epsilon: node.float("epsilon")?,
            activation: node.activation()?.0,
        })
    }

    fn compute(
        &self,
        inputs: &[ValueRef<'_>],
        output: &Output<'_>,
        run: &mut Run<'_>,
    ) -> Result<()> {
        let [x, weight, bias] = inputs else {
            return Err(misfit(inputs));
        };
        let (lengths, weight, bias) = (shape(x), widened(weight)?, widened(bias)?);
        let (Some(&batch), Some(&channels)) = (lengths.first(), lengths.last()) else {
            return Err(misfit(inputs));
        };
        let divides = self.groups > 0 && channels.is_multiple_of(self.groups);
        if [weight.len(), bias.len()] != [channels; 2] || channels == 0 || !divides {
            return Err(misfit(inputs));
        }
        let layer = kernels::GroupNorm {
            groups: self.groups,
            epsilon: self.epsilon,
            weight: &weight,
            bias: &bias,
            activation: self.activation,
        };
        let x = numbers(x)?;
        output.write(&lengths, |y| kernels::group_norm(run, &layer, batch, x, y))
    }
}

/// `x` [.., C], weight, bias -> like `x`
struct LayerNorm {
    epsilon: f32,
}

impl Layer for LayerNorm {
    const NAME: &'static str = "LayerNorm";
    const ACTIVATIONS: usize = 1;
    const WEIGHTS: bool = true;

    fn new(node: &Attributes<'_, '_>) -> Result<Self> {
        Ok(Self {
            epsilon: node.float("epsilon")?,
        })
    }

    fn compute(
        &self,
        inputs: &[ValueRef<'_>],
        output: &Output<'_>,
        run: &mut Run<'_>,
    ) -> Result<()> {
        let [x, weight, bias] = inputs else {
            return Err(misfit(inputs));
        };
        let (lengths, weight, bias) = (shape(x), widened(weight)?, widened(bias)?);
        let columns = lengths.last().copied().unwrap_or_default();
        if [weight.len(), bias.len()] != [columns; 2] || columns == 0 {
            return Err(misfit(inputs));
        }
        let layer = kernels::LayerNorm {
            epsilon: self.epsilon,
            weight: &weight,
            bias: &bias,
        };
        let x = numbers(x)?;
        output.write(&lengths, |y| {
            kernels::layer_norm(run, &layer, x, y);
            Ok(())
        })
    }
}

/// `q` [N, s, heads d], `k` and `v` [M, t, heads d] -> [max(N, M), s, heads d]
struct Attention {
    heads: usize,
}

impl Layer for Attention {
    const NAME: &'static str = "Attention";
    const ACTIVATIONS: usize = 3;
    const WEIGHTS: bool = false;

    fn new(node: &Attributes<'_, '_>) -> Result<Self> {
        Ok(Self {
            heads: node.int("heads")?,
        })
    }

    fn compute(
        &self,
        inputs: &[ValueRef<'_>],
        output: &Output<'_>,
        run: &mut Run<'_>,
    ) -> Result<()> {
        let [q, k, v] = inputs else {
            return Err(misfit(inputs));
        };
        let shapes = [q, k, v].map(shape);
        let [&[n, queries, width], &[m, keys, kw], values] =
            [&shapes[0][..], &shapes[1][..], &shapes[2][..]]
        else {
            return Err(misfit(inputs));
        };
        let divides = self.heads > 0 && width.is_multiple_of(self.heads);
        if !repeat(n, m) || !divides || kw != width || keys == 0 || values != shapes[1] {
            return Err(misfit(inputs));
        }
        let layer = kernels::Attention {
            batch_q: n,
            batch_kv: m,
            queries,
            keys,
            heads: self.heads,
            width: width / self.heads,
        };
        let (q, k, v) = (numbers(q)?, numbers(k)?, numbers(v)?);
        output.write(&[n.max(m), queries, width], |y| {
            kernels::attention(run, &layer, q, k, v, y)
        })
    }
}

/// `a` [N, h, w, A], `b` [M, h, w, B] -> [max(N, M), h, w, A + B]
struct Concat;

impl Layer for Concat {
    const NAME: &'static str = "Concat";
    const ACTIVATIONS: usize = 2;
    const WEIGHTS: bool = false;

    fn new(_: &Attributes<'_, '_>) -> Result<Self> {
        Ok(Self)
    }

    fn compute(
        &self,
        inputs: &[ValueRef<'_>],
        output: &Output<'_>,
        run: &mut Run<'_>,
    ) -> Result<()> {
        let [a, b] = inputs else {
            return Err(misfit(inputs));
        };
        let (&[n, h, w, c], &[m, height, width, d]) = (&shape(a)[..], &shape(b)[..]) else {
            return Err(misfit(inputs));
        };
        if !repeat(n, m) || (h, w) != (height, width) || c == 0 || d == 0 {
            return Err(misfit(inputs));
        }
        let (a, b) = (numbers(a)?, numbers(b)?);
        output.write(&[n.max(m), h, w, c + d], |y| {
            kernels::concat(run, (c, d), a, b, y);
            Ok(())
        })
    }
}
