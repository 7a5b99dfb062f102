//! One method per ONNX operator, with the shape rule of the operator.

use super::layer::upsampled;
use super::{Attr, DType, Dim, GraphBuilder, Result, Value};

/// Attributes of a 2-D convolution. `pads` are top, left, bottom, right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Zeros added at top, left, bottom, right.
    pub pads: [usize; 4],
}

impl Conv {
    /// 1x1, which mixes channels only.
    pub const K1: Self = Self {
        kernel: 1,
        stride: 1,
        pads: [0; 4],
    };
    /// 3x3 that keeps the size.
    pub const K3: Self = Self {
        kernel: 3,
        stride: 1,
        pads: [1; 4],
    };
    /// 3x3 that halves the size.
    pub const K3_STRIDE_2: Self = Self {
        kernel: 3,
        stride: 2,
        pads: [1; 4],
    };

    pub(super) fn output(self, dim: &Dim, axis: usize) -> Dim {
        match dim {
            Dim::Fixed(n) => {
                let padded = n + self.pads[axis] + self.pads[axis + 2];
                Dim::Fixed(padded.saturating_sub(self.kernel) / self.stride + 1)
            }
            _ if self.stride == 1 && self.pads[axis] + self.pads[axis + 2] + 1 == self.kernel => {
                dim.clone()
            }
            _ => Dim::Unknown,
        }
    }
}

fn ints<const N: usize>(values: [usize; N]) -> Attr {
    Attr::Ints(values.iter().map(|&n| n as i64).collect())
}

impl GraphBuilder {
    /// `x` [N, C, h, w], `weight` [O, C, k, k], maybe `bias` `[O]` -> [N, O, h', w']
    ///
    /// # Errors
    /// Channels that differ.
    pub fn conv2d(
        &mut self,
        x: Value,
        weight: Value,
        bias: Option<Value>,
        conv: Conv,
    ) -> Result<Value> {
        let shape = self.conv_shape(x, weight, conv)?;
        let attributes = vec![
            ("kernel_shape", ints([conv.kernel, conv.kernel])),
            ("strides", ints([conv.stride, conv.stride])),
            ("pads", ints(conv.pads)),
        ];
        let mut inputs = vec![Some(x), Some(weight)];
        inputs.extend(bias.map(Some));
        Ok(self.typed_node("Conv", inputs, DType::F32, shape, attributes))
    }

    pub(super) fn conv_shape(&self, x: Value, weight: Value, conv: Conv) -> Result<Vec<Dim>> {
        let (xs, ws) = (self.shape(x), self.shape(weight));
        if xs.len() != 4 || ws.len() != 4 || !xs[1].agrees(&ws[1]) {
            return Err(self.impossible(
                "Conv",
                &[x, weight],
                "the input's channels must be the weight's second dimension",
            ));
        }
        let side = |axis: usize| conv.output(&xs[axis + 2], axis);
        Ok(vec![xs[0].clone(), ws[0].clone(), side(0), side(1)])
    }

    /// Matrix product over the last two dimensions; leading ones broadcast.
    ///
    /// # Errors
    /// Inner dimensions that differ.
    pub fn matmul(&mut self, a: Value, b: Value) -> Result<Value> {
        let shape = self.matmul_shape(a, b)?;
        Ok(self.node("MatMul", [a, b], shape, vec![]))
    }

    pub(super) fn matmul_shape(&self, a: Value, b: Value) -> Result<Vec<Dim>> {
        let (sa, sb) = (self.shape(a), self.shape(b));
        if sa.len() < 2 || sb.len() < 2 || !sa[sa.len() - 1].agrees(&sb[sb.len() - 2]) {
            return Err(self.impossible("MatMul", &[a, b], "the inner dimensions must be equal"));
        }
        let lead = if sa.len() >= sb.len() { sa } else { sb };
        let mut shape = lead[..lead.len() - 2].to_vec();
        shape.push(sa[sa.len() - 2].clone());
        shape.push(sb[sb.len() - 1].clone());
        Ok(shape)
    }

    /// `a + b` with broadcasting.
    ///
    /// # Errors
    /// Shapes that do not broadcast.
    pub fn add(&mut self, a: Value, b: Value) -> Result<Value> {
        self.elementwise("Add", a, b)
    }

    /// `a * b` with broadcasting.
    ///
    /// # Errors
    /// Shapes that do not broadcast.
    pub fn mul(&mut self, a: Value, b: Value) -> Result<Value> {
        self.elementwise("Mul", a, b)
    }

    /// `a / b` with broadcasting.
    ///
    /// # Errors
    /// Shapes that do not broadcast.
    pub fn div(&mut self, a: Value, b: Value) -> Result<Value> {
        self.elementwise("Div", a, b)
    }

    fn elementwise(&mut self, op: &'static str, a: Value, b: Value) -> Result<Value> {
        let (sa, sb) = (self.shape(a), self.shape(b));
        let rank = sa.len().max(sb.len());
        let from_end = |s: &[Dim], i: usize| {
            s.len()
                .checked_sub(i + 1)
                .map_or(Dim::Fixed(1), |j| s[j].clone())
        };
        let mut shape = Vec::with_capacity(rank);
        for i in (0..rank).rev() {
            shape.push(match (from_end(sa, i), from_end(sb, i)) {
                (Dim::Fixed(1), d) | (d, Dim::Fixed(1) | Dim::Unknown) => d,
                (da, db) if da.agrees(&db) => match da {
                    Dim::Fixed(_) => da,
                    _ => db,
                },
                _ => return Err(self.impossible(op, &[a, b], "the shapes must broadcast")),
            });
        }
        Ok(self.node(op, [a, b], shape, vec![]))
    }

    /// Elementwise function `op`, which must be a unary operator of ONNX.
    fn unary(&mut self, op: &'static str, x: Value) -> Value {
        let shape = self.shape(x).to_vec();
        self.node(op, [x], shape, vec![])
    }

    /// `1 / (1 + exp(-x))`
    pub fn sigmoid(&mut self, x: Value) -> Value {
        self.unary("Sigmoid", x)
    }

    /// Hyperbolic tangent.
    pub fn tanh(&mut self, x: Value) -> Value {
        self.unary("Tanh", x)
    }

    /// `max(x, 0)`
    pub fn relu(&mut self, x: Value) -> Value {
        self.unary("Relu", x)
    }

    /// Gauss error function.
    pub fn erf(&mut self, x: Value) -> Value {
        self.unary("Erf", x)
    }

    /// Sine of radians.
    pub fn sin(&mut self, x: Value) -> Value {
        self.unary("Sin", x)
    }

    /// Cosine of radians.
    pub fn cos(&mut self, x: Value) -> Value {
        self.unary("Cos", x)
    }

    /// Softmax over the last dimension.
    pub fn softmax(&mut self, x: Value) -> Value {
        let shape = self.shape(x).to_vec();
        self.node("Softmax", [x], shape, vec![("axis", Attr::Int(-1))])
    }

    /// Reorders dimensions: output dimension `i` is input dimension `order[i]`.
    ///
    /// # Errors
    /// `order` has another rank than `x`.
    pub fn transpose<const N: usize>(&mut self, x: Value, order: [usize; N]) -> Result<Value> {
        if self.shape(x).len() != N {
            return Err(self.impossible("Transpose", &[x], &format!("rank {N} expected")));
        }
        let shape = order.iter().map(|&i| self.shape(x)[i].clone()).collect();
        Ok(self.node("Transpose", [x], shape, vec![("perm", ints(order))]))
    }

    /// Reshapes by ONNX's rule: 0 keeps the dimension at that place, one -1 takes what is left.
    ///
    /// # Errors
    /// A 0 beyond the rank of `x`.
    pub fn reshape(&mut self, x: Value, target: &[i64]) -> Result<Value> {
        let from = self.shape(x).to_vec();
        let mut shape = Vec::with_capacity(target.len());
        for (i, &t) in target.iter().enumerate() {
            shape.push(match t {
                0 => match from.get(i) {
                    Some(d) => d.clone(),
                    None => {
                        return Err(self.impossible("Reshape", &[x], "no dimension to keep there"));
                    }
                },
                -1 => Dim::Unknown,
                n => Dim::Fixed(n as usize),
            });
        }
        let target = self.constant_i64(target);
        Ok(self.node("Reshape", [x, target], shape, vec![]))
    }

    /// Reshapes to the run-time shape of `like`.
    pub fn reshape_like(&mut self, x: Value, like: Value) -> Value {
        let shape = self.shape(like).to_vec();
        let target = self.shape_of(like);
        self.node("Reshape", [x, target], shape, vec![])
    }

    /// The run-time shape of `x`, `[rank]` i64.
    pub fn shape_of(&mut self, x: Value) -> Value {
        let rank = self.shape(x).len();
        self.typed_node(
            "Shape",
            vec![Some(x)],
            DType::I64,
            vec![Dim::Fixed(rank)],
            vec![],
        )
    }

    /// Joins along `axis`; the other dimensions agree.
    ///
    /// # Errors
    /// Other dimensions that differ.
    pub fn concat(&mut self, parts: &[Value], axis: usize) -> Result<Value> {
        let mut shape = self.shape(parts[0]).to_vec();
        let agrees = |s: &[Dim]| {
            s.len() == shape.len() && (0..s.len()).all(|i| i == axis || shape[i].agrees(&s[i]))
        };
        if !parts.iter().all(|&part| agrees(self.shape(part))) {
            return Err(self.impossible("Concat", parts, "only the joined dimension may differ"));
        }
        let sizes = parts.iter().map(|&part| self.shape(part)[axis].fixed());
        shape[axis] = sizes
            .sum::<Option<usize>>()
            .map_or(Dim::Unknown, Dim::Fixed);
        let dtype = self.info(parts[0]).dtype;
        let inputs = parts.iter().copied().map(Some).collect();
        let attributes = vec![("axis", Attr::Int(axis as i64))];
        Ok(self.typed_node("Concat", inputs, dtype, shape, attributes))
    }

    /// Splits dimension `axis`, of known size, into `count` equal parts.
    ///
    /// # Errors
    /// An unknown size, or one that is no multiple of `count`.
    pub fn split(&mut self, x: Value, axis: usize, count: usize) -> Result<Vec<Value>> {
        let size = self.fixed_dim(x, axis)?;
        if size % count != 0 {
            let problem = format!("dimension {axis} must be a multiple of {count}");
            return Err(self.impossible("Split", &[x], &problem));
        }
        let mut shape = self.shape(x).to_vec();
        shape[axis] = Dim::Fixed(size / count);
        let sizes = self.constant_i64(&vec![(size / count) as i64; count]);
        let attributes = vec![("axis", Attr::Int(axis as i64))];
        Ok(self.multi_output_node("Split", [x, sizes], &shape, count, attributes))
    }

    /// The first `count` (an i64 `[1]` value) entries along `axis`.
    pub fn take_first(&mut self, x: Value, count: Value, axis: usize) -> Value {
        let mut shape = self.shape(x).to_vec();
        shape[axis] = Dim::Unknown;
        let start = self.constant_i64(&[0]);
        let axis = self.constant_i64(&[axis as i64]);
        self.node("Slice", [x, start, count, axis], shape, vec![])
    }

    /// Entries `start..end` of a 1-D value.
    pub fn slice_1d(&mut self, x: Value, start: usize, end: usize) -> Value {
        let bounds = [start, end].map(|n| self.constant_i64(&[n as i64]));
        self.node(
            "Slice",
            [x, bounds[0], bounds[1]],
            vec![Dim::Fixed(end - start)],
            vec![],
        )
    }

    /// Rows of `table` [n, width] picked by `indices` [...] -> [..., width]
    pub fn gather_rows(&mut self, table: Value, indices: Value) -> Value {
        let mut shape = self.shape(indices).to_vec();
        shape.extend_from_slice(&self.shape(table)[1..]);
        self.node("Gather", [table, indices], shape, vec![])
    }

    /// `x` [N, s, C], `index` [N, 1] i64 -> [N, C]: one row of each batch entry.
    pub fn pick_row_per_batch(&mut self, x: Value, index: Value) -> Value {
        let s = self.shape(x);
        let shape = vec![s[0].clone(), s[2].clone()];
        self.node(
            "GatherND",
            [x, index],
            shape,
            vec![("batch_dims", Attr::Int(1))],
        )
    }

    /// Position of the first maximum along `axis`, which stays as 1. `x` is in single precision: CUDA has no kernel for integers.
    pub fn argmax(&mut self, x: Value, axis: usize) -> Value {
        let mut shape = self.shape(x).to_vec();
        shape[axis] = Dim::Fixed(1);
        self.typed_node(
            "ArgMax",
            vec![Some(x)],
            DType::I64,
            shape,
            vec![("axis", Attr::Int(axis as i64))],
        )
    }

    /// Position of the first `value` in the integers `x` along `axis`, which stays as 1; 0 where there is none.
    pub fn first_of(&mut self, x: Value, value: i64, axis: usize) -> Value {
        let value = self.constant_i64(&[value]);
        let shape = self.shape(x).to_vec();
        let inputs = vec![Some(x), Some(value)];
        let equal = self.typed_node("Equal", inputs, DType::Bool, shape, vec![]);
        let equal = self.cast_to_f32(equal);
        self.argmax(equal, axis)
    }

    /// LayerNorm over the last dimension.
    ///
    /// # Errors
    /// `scale` of another width.
    pub fn layer_norm(
        &mut self,
        x: Value,
        scale: Value,
        bias: Value,
        epsilon: f32,
    ) -> Result<Value> {
        self.same_width(x, scale)?;
        let shape = self.shape(x).to_vec();
        let attributes = vec![("axis", Attr::Int(-1)), ("epsilon", Attr::Float(epsilon))];
        Ok(self.node("LayerNormalization", [x, scale, bias], shape, attributes))
    }

    /// Checks that `scale` `[C]` is for the last dimension of `x`.
    pub(super) fn same_width(&self, x: Value, scale: Value) -> Result<()> {
        let shape = self.shape(x);
        if shape[shape.len() - 1].agrees(&self.shape(scale)[0]) {
            return Ok(());
        }
        let problem = "the scale must have the last dimension's size";
        Err(self.impossible("LayerNormalization", &[x, scale], problem))
    }

    /// Normalizes each `[n, c]` row of `x` [N, C, L] to zero mean and unit variance, then applies `scale`, `bias` `[C]`.
    pub fn instance_norm(&mut self, x: Value, scale: Value, bias: Value, epsilon: f32) -> Value {
        let shape = self.shape(x).to_vec();
        self.node(
            "InstanceNormalization",
            [x, scale, bias],
            shape,
            vec![("epsilon", Attr::Float(epsilon))],
        )
    }

    /// Nearest-neighbour enlargement of `x` [N, C, h, w] to twice its size.
    pub fn upsample_2x(&mut self, x: Value) -> Value {
        let shape = upsampled(self.shape(x), None);
        let scales = self.constant_f32(&[4], vec![1.0, 1.0, 2.0, 2.0]);
        self.resize(vec![Some(x), None, Some(scales)], shape)
    }

    /// Nearest-neighbour resize of `x` [N, C, h, w] to the height and width of `like`.
    ///
    /// # Errors
    /// `x` of unknown channels.
    pub fn upsample_like(&mut self, x: Value, like: Value) -> Result<Value> {
        self.fixed_dim(x, 1)?;
        let shape = upsampled(self.shape(x), Some(self.shape(like)));
        let whole = self.shape_of(x);
        let batch_and_channels = self.slice_1d(whole, 0, 2);
        let whole = self.shape_of(like);
        let size = self.slice_1d(whole, 2, 4);
        let sizes = self.concat(&[batch_and_channels, size], 0)?;
        Ok(self.resize(vec![Some(x), None, None, Some(sizes)], shape))
    }

    pub(super) fn resize(&mut self, inputs: Vec<Option<Value>>, shape: Vec<Dim>) -> Value {
        let attributes = vec![
            ("mode", Attr::Text("nearest")),
            ("coordinate_transformation_mode", Attr::Text("asymmetric")),
            ("nearest_mode", Attr::Text("floor")),
        ];
        self.typed_node("Resize", inputs, DType::F32, shape, attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder(shape: [Dim; 4]) -> (GraphBuilder, Value) {
        let mut g = GraphBuilder::new("test");
        let x = g.input("x", DType::F32, shape).unwrap();
        (g, x)
    }

    #[test]
    fn conv_keeps_symbols_at_stride_1_and_forgets_them_at_stride_2() {
        let (mut g, x) = builder(["batch".into(), 4.into(), "height".into(), 9.into()]);
        let w = g.param("w", [8, 4, 3, 3]).unwrap();
        let b = g.param("b", [8]).unwrap();
        let same = g.conv2d(x, w, Some(b), Conv::K3).unwrap();
        assert_eq!(
            g.shape(same),
            ["batch".into(), 8.into(), "height".into(), 9.into()]
        );
        let half = g.conv2d(x, w, Some(b), Conv::K3_STRIDE_2).unwrap();
        assert_eq!(
            g.shape(half),
            ["batch".into(), 8.into(), Dim::Unknown, 5.into()]
        );
    }

    #[test]
    fn a_wrong_shape_names_scope_op_and_shapes() {
        let (mut g, x) = builder(["batch".into(), 4.into(), "height".into(), "width".into()]);
        let error = g
            .scope(("down_blocks", 1), |g| {
                let w = g.param("w", [8, 5, 3, 3])?;
                let b = g.param("b", [8])?;
                g.conv2d(x, w, Some(b), Conv::K3)
            })
            .unwrap_err();
        let expected = "down_blocks.1: Conv of [batch, 4, height, width] and [8, 5, 3, 3] is impossible: \
                        the input's channels must be the weight's second dimension";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn names_are_unique_and_params_shared_only_with_equal_shapes() {
        let (mut g, x) = builder([1.into(), 4.into(), 2.into(), 2.into()]);
        let a = g.add(x, x).unwrap();
        let b = g.add(a, x).unwrap();
        assert_ne!(g.info(a).name, g.info(b).name);
        let first = g.param("w", [2, 3]).unwrap();
        assert_eq!(g.param("w", [2, 3]).unwrap(), first);
        assert!(g.param("w", [3, 2]).is_err());
        assert!(g.param_transposed("w", [2, 3]).is_err());
        g.output("y", b).unwrap();
        assert!(g.output("y", a).is_err());
        assert!(g.input("x", DType::F32, []).is_err());
    }

    #[test]
    fn elementwise_broadcasts_and_refuses() {
        let (mut g, x) = builder(["batch".into(), 4.into(), "height".into(), "width".into()]);
        let bias = g.param("b", [4, 1, 1]).unwrap();
        let y = g.add(x, bias).unwrap();
        assert_eq!(g.shape(y), g.shape(x));
        let wrong = g.param("c", [5, 1, 1]).unwrap();
        assert!(g.add(x, wrong).is_err());
    }
}
