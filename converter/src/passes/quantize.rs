//! Which weights become whole numbers of 8 bits, and how: `weight = number * scale` with a scale for each output channel.
//!
//! Scales are those of the largest weights, rounding is to nearest. Clipping the largest weights of a channel for a smaller
//! error of the others gains nothing at 8 bits.
//!
//! What stays is small, or all else depends on it: norms and biases, tables of embeddings, the embeddings of time and other
//! conditions, a network's first and last convolutions. So do shortcuts, whose inputs are the features of both sides of a UNet
//! (Li et al. 2023, arXiv:2302.04304): they are 3 % of SD 1.5's weights and made half of the squared error. In VAEs no norm follows
//! the convolutions between levels: with them and the shortcuts rounded, pictures had 44 dB instead of 69.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use sd_models::graph::{Graph, Layer, Op, Param, Value};
use sd_models::keys::Component;
use serde::Serialize;

use crate::checkpoint::{Dtype, read_f32};

/// Layers whose weights stay, by a part of their names.
const STAYS: [&str; 8] = [
    "add_embedding",
    "controlnet_cond_embedding",
    "conv_in",
    "conv_out",
    "conv_shortcut",
    "post_quant_conv",
    "quant_conv",
    "time_embedding",
];

/// More of them in autoencoders.
const STAYS_IN_VAE: [&str; 2] = ["downsamplers", "upsamplers"];

/// Names of the parameters of a layered graph that become whole numbers: weights that only linear layers and convolutions read.
pub(crate) fn quantizable(graph: &Graph, component: Component) -> BTreeSet<String> {
    let mut weighs: HashMap<Value, bool> = HashMap::new();
    for node in &graph.nodes {
        let multiplies = matches!(node.op, Op::Layer(Layer::Conv2d(_) | Layer::Linear));
        for (place, &value) in node.inputs.iter().flatten().enumerate() {
            *weighs.entry(value).or_insert(true) &= multiplies && place == 1;
        }
    }
    let stay: Vec<&str> = match component {
        Component::Vae => [&STAYS[..], &STAYS_IN_VAE].concat(),
        _ => STAYS.to_vec(),
    };
    let stays = |param: &Param| param.name.split('.').any(|part| stay.contains(&part));
    let chosen = |param: &&Param| weighs.get(&param.value) == Some(&true) && !stays(param);
    let params = graph.params.iter().filter(chosen);
    match component {
        // Tiny already, and trained without a margin for errors.
        Component::Taesd => BTreeSet::new(),
        _ => params.map(|param| param.name.clone()).collect(),
    }
}

/// A weight as whole numbers.
pub(crate) struct Quantized {
    /// Bytes of `i8`, in the weight's order.
    pub(crate) numbers: Vec<u8>,
    /// One for each output.
    pub(crate) scales: Vec<f32>,
    pub(crate) rounding: Rounding,
}

/// What rounding did to weights.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rounding {
    count: u64,
    squares: f64,
    error_squares: f64,
}

/// What rounding did to the weights of a kind of layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rounded {
    /// How many they are.
    pub weights: u64,
    /// Norm of the rounding errors over that of the weights.
    pub relative_error: f64,
}

impl Rounding {
    fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            squares: self.squares + other.squares,
            error_squares: self.error_squares + other.error_squares,
        }
    }

    fn rounded(self) -> Rounded {
        let ratio = self.error_squares / self.squares.max(f64::MIN_POSITIVE);
        Rounded {
            weights: self.count,
            relative_error: ratio.sqrt(),
        }
    }
}

/// What rounding did to each weight. Threads add to it; nobody else sees its lock, which must not be held while other threads are
/// waited for.
#[derive(Debug, Default)]
pub(crate) struct Roundings(Mutex<BTreeMap<String, Rounding>>);

impl Roundings {
    pub(crate) fn add(&self, name: &str, rounding: Rounding) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.to_owned(), rounding);
    }

    /// By kind of layer, added up in the order of names, whatever threads there were.
    pub(crate) fn finish(self) -> BTreeMap<&'static str, Rounded> {
        let all = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut groups: BTreeMap<&'static str, Rounding> = BTreeMap::new();
        for (name, rounding) in &all {
            let sum = groups.entry(group(name)).or_default();
            *sum = sum.and(*rounding);
        }
        let rows = groups.into_iter();
        rows.map(|(name, sum)| (name, sum.rounded())).collect()
    }
}

/// The kind of layer that a weight belongs to.
fn group(name: &str) -> &'static str {
    let has = |parts: &[&str]| name.split('.').any(|part| parts.contains(&part));
    if has(&["attn1", "self_attn"]) {
        "self-attention"
    } else if has(&["attn2"]) {
        "cross-attention"
    } else if has(&["ff", "mlp"]) {
        "feed-forward"
    } else if has(&["to_q", "to_k", "to_v", "to_out"]) {
        "self-attention"
    } else if has(&["resnets", "downsamplers", "upsamplers"]) {
        "convolution"
    } else {
        "projection"
    }
}

/// Rounds a weight of so many outputs; its values are finite.
///
/// # Errors
/// A value too large for single precision; the text says which.
pub(crate) fn quantize(dtype: Dtype, bytes: &[u8], outputs: usize) -> Result<Quantized, String> {
    let row = bytes.len() / dtype.size() / outputs.max(1);
    let mut numbers = vec![0; row * outputs];
    let mut scales = vec![0.0; outputs];
    let rows = numbers
        .par_chunks_mut(row.max(1))
        .zip(bytes.par_chunks((row * dtype.size()).max(1)))
        .zip(&mut scales);
    let rounded = rows.map_init(
        || vec![0.0; row],
        |values, ((numbers, bytes), scale)| {
            read_f32(dtype, bytes, values)?;
            Ok(round(values, numbers, scale))
        },
    );
    // Sums in the order of rows, whatever threads there are.
    let rounded = rounded.collect::<Result<Vec<_>, String>>()?;
    Ok(Quantized {
        numbers,
        scales,
        rounding: rounded.into_iter().fold(Rounding::default(), Rounding::and),
    })
}

/// Numbers that are computed side by side, so that compilers make vectors of them.
const LANES: usize = 16;

/// Added to a small number, it leaves the nearest whole one in the last bits, ties to even.
const WHOLE: f32 = 12_582_912.0;

/// Rounds an output's weights. The scale of zeros is as good as any that is no zero.
fn round(values: &[f32], numbers: &mut [u8], scale: &mut f32) -> Rounding {
    *scale = (largest(values) / 127.0).max(f32::MIN_POSITIVE);
    // Sums of squares of ratios, which neither overflow nor vanish.
    let (mut squares, mut error_squares) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (values, numbers) in values.chunks(LANES).zip(numbers.chunks_mut(LANES)) {
        let sums = squares.iter_mut().zip(&mut error_squares);
        for ((x, number), (square, error_square)) in values.iter().zip(numbers).zip(sums) {
            let x = x / *scale;
            let shifted = x + WHOLE;
            *number = shifted.to_bits() as u8;
            let error = x - (shifted - WHOLE);
            *square += x * x;
            *error_square += error * error;
        }
    }
    let square = f64::from(*scale).powi(2);
    let total = |sums: [f32; LANES]| sums.into_iter().map(f64::from).sum::<f64>() * square;
    Rounding {
        count: values.len() as u64,
        squares: total(squares),
        error_squares: total(error_squares),
    }
}

/// The largest absolute value.
fn largest(values: &[f32]) -> f32 {
    let mut largest = [0.0f32; LANES];
    for values in values.chunks(LANES) {
        for (largest, x) in largest.iter_mut().zip(values) {
            let x = x.abs();
            *largest = if x > *largest { x } else { *largest };
        }
    }
    largest.into_iter().fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized(values: &[f32], outputs: usize) -> Quantized {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        quantize(Dtype::F32, &bytes, outputs).unwrap()
    }

    #[test]
    fn weights_are_the_nearest_multiples_of_their_outputs_scales() {
        let found = quantized(&[0.5, -1.27, 0.004, 2.54, 0.03, -0.01], 2);
        assert_eq!(found.scales, [0.01, 0.02]);
        let numbers: Vec<i8> = found.numbers.iter().map(|&b| b as i8).collect();
        assert_eq!(numbers, [50, -127, 0, 127, 2, 0]);
        let errors = [0.0, 0.0, 0.004, 0.0, 0.01, 0.01f64];
        let norm: f64 = [0.5, 1.27, 0.004, 2.54, 0.03, 0.01f64]
            .iter()
            .map(|x| x * x)
            .sum();
        let expected = (errors.iter().map(|x| x * x).sum::<f64>() / norm).sqrt();
        let rounded = found.rounding.rounded();
        assert!((rounded.relative_error - expected).abs() < 1e-5);
        assert_eq!(rounded.weights, 6);
    }

    #[test]
    fn zeros_subnormal_and_huge_weights_have_finite_scales() {
        for row in [
            [0.0; 3],
            [1e-44, -1e-44, 0.0],
            [1e4, 1e-3, -1.0],
            [3e38, -3e38, 1.0],
        ] {
            let found = quantized(&row, 1);
            let scale = found.scales[0];
            assert!(scale > 0.0 && scale.is_finite());
            for (x, number) in row.iter().zip(&found.numbers) {
                let back = f32::from(*number as i8) * scale;
                assert!((x - back).abs() <= 0.5001 * scale, "{x} became {back}");
            }
            assert!(found.rounding.rounded().relative_error <= 1.0);
        }
    }

    #[test]
    fn an_output_of_outliers_costs_the_others_nothing() {
        let found = quantized(&[1e4, 1.0, 0.5, 0.25], 2);
        let back = |i: usize| f32::from(found.numbers[i] as i8) * found.scales[i / 2];
        assert_eq!(back(0), 1e4);
        assert!((back(3) - 0.25).abs() < 0.003);
    }
}
