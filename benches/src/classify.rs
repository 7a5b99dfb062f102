//! What kind of work a node does, and how much: by its operator and its tensors' shapes.

use sd_runtime::engine::NodeRun;

/// The class of a node's work, and its operations (a multiplication and an addition are two).
///
/// Convolutions are `conv3x3 HxW` by kernel and size of the result, products with weights `linear`, those of two
/// activations `attention`. The operators of the native graph (domain `sdrt`: `Conv`, `Linear`, `GroupNorm`, `LayerNorm`,
/// `Attention`, `Concat`) are counted with the ordinary ones: what may be absent (bias, residual) follows what is read
/// here. Only products and convolutions have operations that are counted.
pub(crate) fn classify(node: &NodeRun) -> (String, f64) {
    let named = |class: &str| (class.to_owned(), 0.0);
    match node.operator.as_str() {
        "Conv" | "FusedConv" | "NhwcFusedConv" | "ConvTranspose" => convolution(node),
        "MatMul" | "FusedMatMul" | "Gemm" | "FusedGemm" | "Linear" | "MatMulNBits" => product(node),
        "MultiHeadAttention" | "Attention" | "QAttention" => attention(node),
        "Softmax" => named("attention"),
        name if name.contains("Norm") => named("norm"),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Sqrt" | "Erf" | "Exp" | "Sigmoid" | "Tanh"
        | "Relu" | "Clip" | "Gelu" | "QuickGelu" | "FastGelu" | "BiasGelu" | "Sin" | "Cos"
        | "Cast" | "Neg" => named("elementwise"),
        _ => named("other"),
    }
}

fn elements(shape: &[usize]) -> f64 {
    shape.iter().map(|&n| n as f64).product()
}

fn output(node: &NodeRun) -> &[usize] {
    node.outputs.first().map_or(&[], Vec::as_slice)
}

/// Weight [O, C / groups, k, k]; results are [N, O, h, w], or [N, h, w, O] in the native graph.
fn convolution(node: &NodeRun) -> (String, f64) {
    let out = output(node);
    let (Some(weight @ &[o, _, rows, columns]), &[_, a, b, c]) =
        (node.inputs.get(1).map(Vec::as_slice), out)
    else {
        return ("conv".to_owned(), 0.0);
    };
    // An input's channels decide where a result's channels could be either.
    let channels_first = a == o && (c != o || node.inputs[0].get(1) == weight.get(1));
    let (height, width) = if channels_first { (b, c) } else { (a, b) };
    let class = format!("conv{rows}x{columns} {height}x{width}");
    (class, 2.0 * elements(out) * elements(&weight[1..]))
}

/// A [.., M, K] times B [K, N]. B is not listed where its kernel has packed it; what is listed second then, if anything,
/// is a bias. `Linear` lists weight [M, K] or [K, M].
fn product(node: &NodeRun) -> (String, f64) {
    let Some((a, others)) = node.inputs.split_first() else {
        return ("linear".to_owned(), 0.0);
    };
    let of_activations = node.operator != "Linear" && others.first().is_some_and(|b| b.len() > 2);
    let class = if of_activations {
        "attention"
    } else {
        "linear"
    };
    let inner = a.last().copied().unwrap_or(0) as f64;
    // With `geglu` the weight has two columns for each of the result's.
    let columns = match (node.operator.as_str(), others.first()) {
        ("Linear", Some(weight)) if inner > 0.0 => elements(weight) / inner,
        _ => output(node).last().copied().unwrap_or(0) as f64,
    };
    let rows = elements(output(node).split_last().map_or(&[], |(_, rows)| rows));
    (class.to_owned(), 2.0 * rows * inner * columns)
}

/// q [N, s, H d] and k [M, t, H d]: q k^T, and its softmax times v [M, t, H d]. A batch of 1 is repeated.
fn attention(node: &NodeRun) -> (String, f64) {
    let keys = node.inputs.get(1).and_then(|k| k.get(1));
    let keys = keys.copied().unwrap_or(0) as f64;
    ("attention".to_owned(), 4.0 * elements(output(node)) * keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(operator: &str, inputs: &[&[usize]], output: &[usize]) -> (String, f64) {
        classify(&NodeRun {
            name: String::new(),
            operator: operator.to_owned(),
            seconds: 0.0,
            inputs: inputs.iter().map(|shape| shape.to_vec()).collect(),
            outputs: vec![output.to_vec()],
            bytes: 0,
        })
    }

    #[test]
    fn convolutions_in_both_layouts() {
        let flop = 2.0 * 320.0 * 64.0 * 64.0 * 4.0 * 9.0;
        let expected = ("conv3x3 64x64".to_owned(), flop);
        let weight: &[usize] = &[320, 4, 3, 3];
        assert_eq!(
            class("Conv", &[&[1, 4, 64, 64], weight], &[1, 320, 64, 64]),
            expected
        );
        assert_eq!(
            class("Conv", &[&[1, 64, 64, 4], weight], &[1, 64, 64, 320]),
            expected
        );
        // As many channels as rows.
        let (weight, out): (&[usize], &[usize]) = (&[64, 32, 1, 1], &[1, 64, 64, 64]);
        assert_eq!(
            class("Conv", &[&[1, 32, 64, 64], weight], out).0,
            "conv1x1 64x64"
        );
        assert_eq!(
            class("Conv", &[&[1, 64, 64, 32], weight], out).0,
            "conv1x1 64x64"
        );
    }

    #[test]
    fn native_convolutions_with_all_operands() {
        let (weight, out): (&[usize], &[usize]) = (&[32, 16, 3, 3], &[2, 8, 12, 32]);
        let (bias, time): (&[usize], &[usize]) = (&[32], &[1, 32]);
        // Enlarged from 4x6.
        let inputs = [&[2, 4, 6, 16], weight, bias, time, out, &[1, 8, 12, 8]];
        let flop = 2.0 * 2.0 * 8.0 * 12.0 * 32.0 * 16.0 * 9.0;
        assert_eq!(
            class("Conv", &inputs, out),
            ("conv3x3 8x12".to_owned(), flop)
        );
    }

    #[test]
    fn products_with_weights_and_of_activations() {
        let linear = ("linear".to_owned(), 2.0 * 77.0 * 768.0 * 320.0);
        let (x, out): (&[usize], &[usize]) = (&[1, 77, 768], &[1, 77, 320]);
        assert_eq!(class("MatMul", &[x], out), linear);
        assert_eq!(class("MatMul", &[x, &[768, 320]], out), linear);
        assert_eq!(class("Gemm", &[&[77, 768], &[320]], &[77, 320]), linear);
        assert_eq!(class("Linear", &[x, &[768, 320], &[320]], out), linear);
        assert_eq!(class("Linear", &[x, &[320, 768, 1, 1]], out), linear);
        // The value and the gate of `geglu`.
        let both = ("linear".to_owned(), 2.0 * linear.1);
        assert_eq!(class("Linear", &[x, &[640, 768]], out), both);
        let scores = ("attention".to_owned(), 2.0 * 8.0 * 256.0 * 40.0 * 77.0);
        assert_eq!(
            class("MatMul", &[&[8, 256, 40], &[8, 40, 77]], &[8, 256, 77]),
            scores
        );
    }

    #[test]
    fn attention_and_the_rest() {
        let inputs: [&[usize]; 3] = [&[2, 256, 320], &[1, 77, 320], &[1, 77, 320]];
        let both = 4.0 * 2.0 * 256.0 * 320.0 * 77.0;
        assert_eq!(
            class("Attention", &inputs, &[2, 256, 320]),
            ("attention".to_owned(), both)
        );
        assert_eq!(class("GroupNorm", &[], &[]).0, "norm");
        assert_eq!(class("InstanceNormalization", &[], &[]).0, "norm");
        assert_eq!(class("QuickGelu", &[], &[]).0, "elementwise");
        assert_eq!(class("ReorderInput", &[], &[]).0, "other");
        assert_eq!(class("Concat", &[], &[]).0, "other");
    }
}
