use super::*;
use crate::testing::{Random, close, every_level, stored};
use crate::{Compute, Isa, Scratch, Serial};

/// What a convolution gets besides its weights.
struct Case {
    shape: (usize, usize, usize),
    many: usize,
    x: Vec<f32>,
    time: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
}

/// The formula, in double precision.
fn twin(layer: &Conv<'_>, case: &Case) -> Vec<f64> {
    let (pictures, h, w) = case.shape;
    let (large_h, large_w) = layer.enlarge.unwrap_or((h, w));
    let (out_h, out_w) = layer.output_size((h, w));
    let (c, o, k) = (layer.inputs, layer.outputs, layer.kernel);
    let weight = layer.weight.to_f32(Order::OutputsFirst);
    let mut y = vec![];
    for n in 0..case.many {
        for i in 0..out_h {
            for j in 0..out_w {
                let mut sums = match layer.bias {
                    Some(bias) => bias.iter().map(|&b| f64::from(b)).collect(),
                    None => vec![0.0; o],
                };
                for tap in 0..k * k {
                    let a = (i * layer.stride + tap / k).wrapping_sub(layer.pads[0]);
                    let b = (j * layer.stride + tap % k).wrapping_sub(layer.pads[1]);
                    if a >= large_h || b >= large_w {
                        continue;
                    }
                    let (a, b) = (a * h / large_h, b * w / large_w);
                    let pixel = ((n % pictures * h) + a) * w + b;
                    for (out, sum) in sums.iter_mut().enumerate() {
                        for input in 0..c {
                            *sum += f64::from(case.x[pixel * c + input])
                                * f64::from(weight[(out * c + input) * k * k + tap]);
                        }
                    }
                }
                for (out, mut sum) in sums.into_iter().enumerate() {
                    if let Some(time) = &case.time {
                        sum += f64::from(time[(n * o + out) % time.len()]);
                    }
                    let residual = case
                        .residual
                        .as_ref()
                        .map_or(0.0, |r| f64::from(r[y.len() % r.len()]));
                    y.push(layer.activation.of(sum) + residual);
                }
            }
        }
    }
    y
}

fn check(layer: &Conv<'_>, case: &Case, tolerance: f64) {
    check_in(Compute::F32, layer, case, tolerance);
}

fn check_in(compute: Compute, layer: &Conv<'_>, case: &Case, tolerance: f64) {
    let expected = twin(layer, case);
    every_level(|run| {
        run.compute = compute;
        let mut y = vec![f32::NAN; expected.len()];
        let (time, residual) = (case.time.as_deref(), case.residual.as_deref());
        conv(run, layer, &case.x, case.shape, time, residual, &mut y).unwrap();
        close(&y, &expected, tolerance);
        y
    });
}

/// Single precision, sums of some thousand terms: 1e-6; transforms multiply that by two or three.
const TOLERANCE: f64 = 3e-6;

/// A random layer and what it gets, from kernels, strides and so on that are asked for.
fn random_case(random: &mut Random, number: usize, kernel: usize, stride: usize, most: [usize; 4]) {
    random_case_in(
        Compute::F32,
        TOLERANCE,
        random,
        number,
        (kernel, stride),
        most,
    );
}

fn random_case_in(
    compute: Compute,
    tolerance: f64,
    random: &mut Random,
    number: usize,
    (kernel, stride): (usize, usize),
    most: [usize; 4],
) {
    let [size, inputs, outputs, pictures] = most;
    let (h, w) = (random.size(size), random.size(size));
    let (inputs, outputs) = (random.size(inputs), random.size(outputs));
    let many = random.size(pictures);
    let n = if number.is_multiple_of(5) { 1 } else { many };
    let pads = match kernel {
        1 => [0; 4],
        3 => [[1; 4], [1; 4], [0, 0, 1, 1], [1, 0, 2, 1]][number % 4 * usize::from(stride > 1)],
        _ => [kernel / 2; 4],
    };
    let enlarge = [
        None,
        Some((2 * h, 2 * w)),
        None,
        Some((2 * h - 1, 2 * w - 1)),
        None,
        None,
        Some((h + 1, 3 * w)),
    ][number % 7];
    let w_stored = stored(
        &random.normals(outputs * inputs * kernel * kernel),
        number,
        Order::OutputsFirst,
        outputs,
    );
    let bias = random.normals(outputs);
    let layer = Conv {
        weight: w_stored.floats(),
        bias: (!number.is_multiple_of(3)).then_some(&bias),
        inputs,
        outputs,
        kernel,
        stride,
        pads,
        activation: [Activation::None, Activation::Silu, Activation::Relu][number / 2 % 3],
        enlarge,
    };
    let (out_h, out_w) = layer.output_size((h, w));
    let picture = out_h * out_w * outputs;
    let times = if number % 4 < 2 { 1 } else { many };
    let residuals = if number % 6 < 3 { 1 } else { many };
    let case = Case {
        shape: (n, h, w),
        many,
        x: random.normals(n * h * w * inputs),
        time: (number % 3 != 1).then(|| random.normals(times * outputs)),
        residual: (number % 4 != 1).then(|| random.normals(residuals * picture)),
    };
    check_in(compute, &layer, &case, tolerance);
}

/// At some levels it is single precision.
#[test]
fn kernels_of_3_in_16_bit_numbers_are_close_to_the_formula() {
    let mut random = Random::new(7);
    for number in 0..40 {
        let compute = [Compute::Bf16, Compute::Int16][number % 2];
        let most = [[25, 120, 150, 4], [70, 90, 70, 1]][number % 5 / 4];
        random_case_in(compute, 2e-3, &mut random, number, (3, 1), most);
    }
}

#[test]
fn kernels_of_3_equal_the_formula_at_every_level() {
    let mut random = Random::new(2);
    for number in 0..60 {
        random_case(&mut random, number, 3, 1, [19, 120, 150, 4]);
    }
    for number in 0..10 {
        random_case(&mut random, number, 3, 1, [5, 700, 70, 2]);
    }
}

#[test]
fn other_kernels_and_strides_equal_the_formula_at_every_level() {
    let mut random = Random::new(3);
    for number in 0..80 {
        let (kernel, stride) = [
            (3, 2),
            (1, 1),
            (3, 2),
            (1, 2),
            (5, 1),
            (2, 2),
            (4, 3),
            (3, 2),
        ][number % 8];
        random_case(&mut random, number, kernel, stride, [19, 90, 90, 4]);
    }
}

#[test]
fn many_tiles_equal_the_formula() {
    let mut random = Random::new(4);
    for number in 0..4 {
        random_case(&mut random, 6 + number, 3, 1, [300, 40, 40, 1]);
    }
    // 256 tiles: weights are transformed first.
    let (h, w, inputs, outputs) = (61, 67, 37, 71);
    let weight = stored(
        &random.normals(outputs * inputs * 9),
        1,
        Order::OutputsFirst,
        outputs,
    );
    let layer = Conv {
        weight: weight.floats(),
        bias: None,
        inputs,
        outputs,
        kernel: 3,
        stride: 1,
        pads: [1; 4],
        activation: Activation::None,
        enlarge: None,
    };
    let case = Case {
        shape: (1, h, w),
        many: 1,
        x: random.normals(h * w * inputs),
        time: None,
        residual: None,
    };
    check(&layer, &case, TOLERANCE);
}

/// Sums that leave the normal numbers, or come near the largest one, are as exact as others (in the largest number's unit).
#[test]
fn tiny_and_huge_numbers_are_numbers() {
    let mut random = Random::new(5);
    let (h, w, inputs, outputs) = (9, 10, 33, 35);
    for scale in [1e-40f32, 1e-37, 1e30, 1e35] {
        let weight = stored(
            &random.normals(outputs * inputs * 9),
            0,
            Order::OutputsFirst,
            outputs,
        );
        let layer = Conv {
            weight: weight.floats(),
            bias: None,
            inputs,
            outputs,
            kernel: 3,
            stride: 1,
            pads: [1; 4],
            activation: Activation::None,
            enlarge: None,
        };
        let x = random.normals(h * w * inputs);
        let case = Case {
            shape: (1, h, w),
            many: 1,
            x: x.iter().map(|x| x * scale).collect(),
            time: None,
            residual: None,
        };
        let expected = twin(&layer, &case);
        every_level(|run| {
            let mut y = vec![f32::NAN; expected.len()];
            conv(run, &layer, &case.x, case.shape, None, None, &mut y).unwrap();
            // Denormal numbers have fewer digits: 1.4e-45 is their unit.
            let unit = 1e-43 / f64::from(scale);
            let scaled: Vec<f32> = y
                .iter()
                .map(|&y| (f64::from(y) / f64::from(scale)) as f32)
                .collect();
            let expected: Vec<f64> = expected.iter().map(|y| y / f64::from(scale)).collect();
            close(&scaled, &expected, TOLERANCE + unit);
            y
        });
    }
}

/// Errors of layers one after another add up like independent ones, sqrt(20) of 2e-6.
#[test]
fn twenty_layers_stay_within_1e_5() {
    let mut random = Random::new(6);
    let (size, channels) = (12, 64);
    let mut run = Run {
        compute: Compute::F32,
        isa: Isa::detect(),
        pool: &Serial,
        scratch: &mut Scratch::new(),
    };
    let x = random.normals(size * size * channels);
    let mut exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let mut found = x;
    for number in 0..20 {
        let gain = 1.0 / (9.0 * channels as f32).sqrt();
        let normals = random.normals(channels * channels * 9);
        let weight: Vec<f32> = normals.iter().map(|w| w * gain).collect();
        let weight = stored(&weight, number, Order::OutputsFirst, channels);
        let layer = Conv {
            weight: weight.floats(),
            bias: None,
            inputs: channels,
            outputs: channels,
            kernel: 3,
            stride: 1,
            pads: [1; 4],
            activation: Activation::None,
            enlarge: None,
        };
        let mut y = vec![0.0; found.len()];
        conv(
            &mut run,
            &layer,
            &found,
            (1, size, size),
            None,
            None,
            &mut y,
        )
        .unwrap();
        found = y;
        exact = exact_layer(&layer, &exact, size);
    }
    close(&found, &exact, 1e-5);
}

/// One layer of 3 x 3 over one square picture, in double precision throughout.
fn exact_layer(layer: &Conv<'_>, x: &[f64], size: usize) -> Vec<f64> {
    let weight = layer.weight.to_f32(Order::OutputsFirst);
    let (c, o) = (layer.inputs, layer.outputs);
    let mut y = vec![0.0; size * size * o];
    for (place, sum) in y.iter_mut().enumerate() {
        let (pixel, out) = (place / o, place % o);
        for tap in 0..9 {
            let i = (pixel / size + tap / 3).wrapping_sub(1);
            let j = (pixel % size + tap % 3).wrapping_sub(1);
            if i < size && j < size {
                for input in 0..c {
                    *sum += x[(i * size + j) * c + input]
                        * f64::from(weight[(out * c + input) * 9 + tap]);
                }
            }
        }
    }
    y
}
