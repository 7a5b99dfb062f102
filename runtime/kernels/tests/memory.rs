//! Every kernel at small sizes that fill no vector, tile or panel, with threads. Nothing is read or written that is
//! not a kernel's own: Miri sees whether that holds.
//!
//! ```text
//! MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test -p sd_kernels --test memory
//! ```
//!
//! Miri has the scalar level only. Elsewhere the levels that the machine has are compared with it; that the formulas are right is
//! tested beside the kernels.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use half::{bf16, f16};
use sd_kernels::{
    Activation, Attention, Compute, Conv, Floats, GroupNorm, Isa, LayerNorm, Linear, Order, Run,
    Scratch, Step, Threads, attention, chain, concat, conv, group_norm, layer_norm, linear,
};

/// Numbers of -1/2 to 1/2 that every stored type holds exactly.
fn numbers(count: usize) -> Vec<f32> {
    let number = |i: usize| ((i * i + 37 * i) % 61) as f32 / 64.0 - 0.5;
    (0..count).map(number).collect()
}

/// Calls `test` with weights in the stored type of number `kind`.
fn with_type(kind: usize, weights: &[f32], test: impl FnOnce(Floats<'_>)) {
    match kind % 3 {
        0 => test(Floats::F32(weights)),
        1 => {
            let half: Vec<f16> = weights.iter().map(|&w| f16::from_f32(w)).collect();
            test(Floats::F16(&half));
        }
        _ => {
            let half: Vec<bf16> = weights.iter().map(|&w| bf16::from_f32(w)).collect();
            test(Floats::Bf16(&half));
        }
    }
}

/// Runs a kernel that writes `count` numbers in single precision, and what multiplies also in whole numbers, at every level: the
/// same ones come out up to roundings, and none is left out.
fn check(computes: &[Compute], count: usize, mut kernel: impl FnMut(&mut Run<'_>, &mut [f32])) {
    let mut expected: Option<Vec<f32>> = None;
    for isa in Isa::available() {
        for &compute in computes {
            let mut y = vec![f32::NAN; count];
            let mut run = Run {
                isa,
                compute,
                pool: &Threads(3),
                scratch: &mut Scratch::new(),
            };
            kernel(&mut run, &mut y);
            let expected = expected.get_or_insert_with(|| y.clone());
            let tolerance = match compute {
                Compute::F32 => 1e-4,
                _ => 1e-2,
            };
            for (i, (y, expected)) in y.iter().zip(expected).enumerate() {
                let distance = (y - *expected).abs();
                assert!(
                    distance <= tolerance * (1.0 + expected.abs()),
                    "{isa}, {compute:?}: number {i} is {y}, not {expected}"
                );
            }
        }
    }
}

/// Numbers of kernels that multiply.
const PRODUCTS: [Compute; 2] = [Compute::F32, Compute::Int16];

/// A convolution with everything that is added to its sums.
fn check_conv(
    kind: usize,
    layer: &Conv<'_>,
    (pictures, height, width): (usize, usize, usize),
    many: usize,
) {
    let (out_height, out_width) = layer.output_size((height, width));
    let picture = out_height * out_width * layer.outputs;
    let weights = numbers(layer.outputs * layer.inputs * layer.kernel * layer.kernel);
    let x = numbers(pictures * height * width * layer.inputs);
    let (bias, time) = (numbers(layer.outputs), numbers(many * layer.outputs));
    let residual = numbers(picture);
    with_type(kind, &weights, |weight| {
        let bias = Some(&bias[..]);
        let layer = Conv {
            weight,
            bias,
            ..*layer
        };
        check(&PRODUCTS, many * picture, |run, y| {
            let shape = (pictures, height, width);
            let (time, residual) = (Some(&time[..]), Some(&residual[..]));
            conv(run, &layer, &x, shape, time, residual, y).unwrap();
        });
    });
}

/// A layer of 3 x 3, whose weights and bias are not there yet.
const KERNEL_3: Conv<'_> = Conv {
    weight: Floats::F32(&[]),
    bias: None,
    inputs: 16,
    outputs: 17,
    kernel: 3,
    stride: 1,
    pads: [1; 4],
    activation: Activation::Relu,
    enlarge: None,
};

#[test]
fn convolutions_with_few_tiles() {
    check_conv(0, &KERNEL_3, (1, 3, 5), 1);
    let layer = Conv {
        inputs: 19,
        ..KERNEL_3
    };
    check_conv(2, &layer, (1, 4, 3), 2);
    // More inputs and outputs than blocks of weights have.
    let layer = Conv {
        inputs: 53,
        outputs: 35,
        ..KERNEL_3
    };
    check_conv(1, &layer, (1, 3, 3), 1);
}

#[test]
#[cfg_attr(miri, ignore = "takes half an hour there")]
fn convolutions_with_many_tiles() {
    let weight = numbers(16 * 17 * 9);
    let layer = Conv {
        weight: Floats::F32(&weight),
        ..KERNEL_3
    };
    // 13 x 15 tiles, the last ones of 3 x 2 pixels.
    let (height, width) = (51, 58);
    let x = numbers(height * width * 16);
    check(&PRODUCTS, height * width * 17, |run, y| {
        conv(run, &layer, &x, (1, height, width), None, None, y).unwrap();
    });
}

#[test]
fn convolutions_of_an_enlarged_picture() {
    let layer = Conv {
        enlarge: Some((3, 5)),
        ..KERNEL_3
    };
    check_conv(2, &layer, (1, 2, 2), 1);
}

#[test]
fn convolutions_that_gather() {
    let layers = [
        (3, 5, 3, 1, [1; 4]),
        (9, 10, 3, 2, [0, 0, 1, 1]),
        (4, 9, 1, 2, [0; 4]),
        (7, 3, 5, 3, [2; 4]),
        (5, 18, 2, 2, [1, 0, 2, 1]),
    ];
    for (case, (inputs, outputs, kernel, stride, pads)) in layers.into_iter().enumerate() {
        let layer = Conv {
            inputs,
            outputs,
            kernel,
            stride,
            pads,
            ..KERNEL_3
        };
        check_conv(case, &layer, (1, 4, 5), 2);
    }
}

#[test]
fn linear_layers() {
    let activations = [
        Activation::None,
        Activation::Gelu,
        Activation::QuickGelu,
        Activation::Silu,
    ];
    let sizes = [
        (1, 1, 1),
        (3, 7, 5),
        (5, 17, 9),
        (98, 1, 3),
        (2, 330, 3),
        (2, 16, 33),
    ];
    for (case, (rows, inputs, outputs)) in sizes.into_iter().enumerate() {
        let geglu = case % 3 == 2;
        let columns = outputs * (1 + usize::from(geglu));
        let (x, weights) = (numbers(rows * inputs), numbers(inputs * columns));
        let (bias, residual) = (numbers(columns), numbers(outputs));
        for (number, order) in [Order::InputsFirst, Order::OutputsFirst]
            .into_iter()
            .enumerate()
        {
            with_type(case + number, &weights, |weight| {
                let layer = Linear {
                    weight,
                    order,
                    inputs,
                    outputs,
                    bias: Some(&bias),
                    activation: if geglu {
                        Activation::None
                    } else {
                        activations[case % 4]
                    },
                    geglu,
                };
                check(&PRODUCTS, rows * outputs, |run, y| {
                    linear(run, &layer, &x, Some(&residual), y).unwrap();
                });
            });
        }
    }
}

#[test]
fn attention_layers() {
    // (sequences of queries, of keys), queries, keys, heads, width
    for ((batch_q, batch_kv), queries, keys, heads, width) in [
        ((1, 1), 1, 1, 1, 1),
        ((2, 2), 3, 5, 2, 3),
        ((1, 2), 5, 7, 1, 8),
        ((2, 1), 2, 66, 1, 2),
        ((1, 1), 50, 3, 1, 1),
        ((1, 1), 1, 2, 1, 330),
    ] {
        let layer = Attention {
            batch_q,
            batch_kv,
            queries,
            keys,
            heads,
            width,
        };
        let token = heads * width;
        let q = numbers(batch_q * queries * token);
        let k = numbers(batch_kv * keys * token);
        let v: Vec<f32> = k.iter().rev().copied().collect();
        check(
            &PRODUCTS,
            batch_q.max(batch_kv) * queries * token,
            |run, y| {
                attention(run, &layer, &q, &k, &v, y).unwrap();
            },
        );
    }
}

#[test]
fn norms() {
    for (batch, pixels, groups, size) in [(1, 1, 1, 1), (2, 5, 3, 3), (1, 3, 2, 10), (1, 260, 1, 1)]
    {
        let channels = groups * size;
        let x = numbers(batch * pixels * channels);
        let (weight, bias) = (numbers(channels), numbers(channels));
        check(&[Compute::F32], x.len(), |run, y| {
            let layer = GroupNorm {
                groups,
                epsilon: 1e-2,
                weight: &weight,
                bias: &bias,
                activation: Activation::None,
            };
            group_norm(run, &layer, batch, &x, y).unwrap();
        });
        check(&[Compute::F32], x.len(), |run, y| {
            let layer = LayerNorm {
                epsilon: 1e-2,
                weight: &weight,
                bias: &bias,
            };
            layer_norm(run, &layer, &x, y);
        });
    }
}

#[test]
fn pictures_side_by_side() {
    for (rows_a, rows_b, widths) in [(1, 1, (1, 1)), (6, 3, (5, 2)), (2, 6, (3, 7))] {
        let rows = rows_a.max(rows_b);
        let (a, b) = (numbers(rows_a * widths.0), numbers(rows_b * widths.1));
        check(&[Compute::F32], rows * (widths.0 + widths.1), |run, y| {
            concat(run, widths, &a, &b, y);
        });
    }
}

#[test]
fn chains_in_bands() {
    let (weights, shortcut) = (numbers(3 * 5 * 9), numbers(3 * 5));
    let (scale, shift) = (numbers(5), numbers(5));
    let conv = Conv {
        weight: Floats::F32(&weights),
        inputs: 5,
        outputs: 3,
        ..KERNEL_3
    };
    let first = Step {
        x: 0,
        norm: Some(GroupNorm {
            groups: 1,
            epsilon: 1.0,
            weight: &scale,
            bias: &shift,
            activation: Activation::None,
        }),
        enlarge: 2,
        conv,
        residual: None,
    };
    let second = Step {
        norm: None,
        conv: Conv {
            weight: Floats::F32(&shortcut),
            kernel: 1,
            pads: [0; 4],
            ..conv
        },
        ..first
    };
    let last = Step {
        x: 1,
        norm: None,
        enlarge: 1,
        conv: Conv {
            weight: Floats::F32(&weights[..81]),
            inputs: 3,
            ..conv
        },
        residual: Some(2),
    };
    let x = numbers(5 * 3 * 5);
    check(&[Compute::F32], 10 * 6 * 3, |run, y| {
        let steps = [first, second, last];
        let whole = chain(run, &steps, &x, (5, 3), 1, y, &mut |_, _| true);
        assert_eq!(whole, Ok(true));
    });
}
