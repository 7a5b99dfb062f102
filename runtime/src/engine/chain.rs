//! The operator that computes convolutions in bands of rows; [`super::bands`] puts it into graphs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
};
use ort::value::{TensorElementType, ValueRef};
use ort::{Error, Result};
use sd_kernels::{self as kernels, Step};

use super::bands::{OPERATOR, Planned};
use super::ops::{self, Output, Shared, misfit, numbers, shape, weights, widened};

/// About how many numbers of an activation are in single precision at a time: 16 MB, some thousand pixels.
const BAND: usize = 4 << 20;

/// What a chain does, and who ends it early.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) steps: Arc<Vec<Planned>>,
    /// The wish to stop, which ONNX Runtime looks for between nodes only.
    pub(super) stop: Arc<AtomicBool>,
}

/// `x` [1, h, w, C], weights -> [1, h', w', O]
pub(super) struct Op {
    pub(super) chain: Chain,
    pub(super) shared: Arc<Shared>,
}

impl Operator for Op {
    type Kernel<'node> = Node;

    fn name(&self) -> &str {
        OPERATOR
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let x = OperatorInput::required(TensorElementType::Float32);
        [x, OperatorInput::variadic(1)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'node>(&self, _: &KernelContext<'node>) -> Result<Self::Kernel<'node>> {
        Ok(Node {
            chain: self.chain.clone(),
            shared: Arc::clone(&self.shared),
        })
    }
}

/// The node of a graph.
pub(super) struct Node {
    chain: Chain,
    shared: Arc<Shared>,
}

/// Whether a convolution goes with what the steps before make of a picture of `channels`.
fn fits(
    planned: &Planned,
    steps: &[Step<'_>],
    channels: usize,
    [outputs, inputs, height, width]: [usize; 4],
) -> bool {
    let channels_of = |value: usize| match value {
        0 => Some(channels),
        made => Some(steps.get(made - 1)?.conv.outputs),
    };
    let mut same_value = steps.iter().filter(|step| step.x == planned.x);
    let normed = same_value.find_map(|step| Some(step.norm?.groups));
    let groups_fit = planned.norm.is_none_or(|norm| {
        norm.groups > 0
            && inputs.is_multiple_of(norm.groups)
            && normed.is_none_or(|groups| groups == norm.groups)
    });
    channels_of(planned.x) == Some(inputs)
        && planned
            .residual
            .is_none_or(|value| channels_of(value) == Some(outputs))
        && [height, width] == [planned.kernel; 2]
        && planned.stride > 0
        && planned.enlarge > 0
        && groups_fit
}

impl Kernel for Node {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let inputs = ops::inputs(context)?;
        let &[batch, height, width, channels] = &shape(&inputs[0])[..] else {
            return Err(misfit(&inputs[..1]));
        };
        // Vectors that are not stored in single precision live here.
        let vector = |place: usize| match inputs.get(place) {
            Some(value) => widened(value),
            None => Err(misfit(&inputs[..1])),
        };
        let planned = self.chain.steps.iter();
        let vectors = planned.map(|step| {
            let norm = step.norm.as_ref();
            let norm = norm.map(|norm| Ok::<_, Error>([vector(norm.weight)?, vector(norm.bias)?]));
            Ok((norm.transpose()?, step.bias.map(vector).transpose()?))
        });
        let vectors = vectors.collect::<Result<Vec<_>>>()?;
        let mut steps: Vec<Step<'_>> = Vec::new();
        for (planned, (norm, bias)) in self.chain.steps.iter().zip(&vectors) {
            let weight: Option<&ValueRef<'_>> = inputs.get(planned.weight);
            let dims = weight.map(shape).unwrap_or_default();
            let (Some(weight), &[outputs, of, kernel, kernel_wide]) = (weight, &dims[..]) else {
                return Err(misfit(&inputs[..1]));
            };
            let scales = planned.scales.and_then(|place| inputs.get(place));
            let weight = weights(weight, scales)?;
            let vectors = norm.iter().flatten().map(|vector| vector.len());
            if !fits(
                planned,
                &steps,
                channels,
                [outputs, of, kernel, kernel_wide],
            ) || !weight.fit(outputs)
                || bias.as_ref().is_some_and(|bias| bias.len() != outputs)
                || vectors.into_iter().any(|length| length != of)
            {
                return Err(misfit(&[]));
            }
            steps.push(Step {
                x: planned.x,
                norm: planned
                    .norm
                    .zip(norm.as_ref())
                    .map(|(norm, [weight, bias])| kernels::GroupNorm {
                        groups: norm.groups,
                        epsilon: norm.epsilon,
                        weight,
                        bias,
                        activation: norm.activation,
                    }),
                enlarge: planned.enlarge,
                conv: kernels::Conv {
                    weight,
                    bias: bias.as_deref(),
                    inputs: of,
                    outputs,
                    kernel,
                    stride: planned.stride,
                    pads: planned.pads,
                    activation: planned.activation,
                    enlarge: None,
                },
                residual: planned.residual,
            });
        }
        let sizes = kernels::chain_sizes(&steps, (height, width));
        let (Some(&(high, wide)), Some(last)) = (sizes.last(), steps.last()) else {
            return Err(misfit(&inputs[..1]));
        };
        let adds_other_size = |(i, step): (usize, &Step<'_>)| {
            let residual = step.residual;
            residual.is_some_and(|residual| sizes[residual] != sizes[i + 1])
        };
        if batch != 1
            || sizes.iter().any(|&(height, width)| height * width == 0)
            || steps.iter().enumerate().any(adds_other_size)
        {
            return Err(misfit(&inputs[..1]));
        }
        let x = numbers(&inputs[0])?;
        let mut watch = |_, _| !self.chain.stop.load(Ordering::Relaxed);
        let mut done = false;
        Output(context).write(&[1, high, wide, last.conv.outputs], |y| {
            self.shared.lend(context, |run| {
                let size = (height, width);
                done = kernels::chain(run, &steps, x, size, BAND, y, &mut watch)?;
                Ok(())
            })
        })?;
        match done {
            true => Ok(()),
            false => Err(Error::new("stopped")),
        }
    }
}
