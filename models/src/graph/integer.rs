//! Products of whole numbers of 8 bits, in the operators that ONNX has for them since opset 11.
//!
//! What is multiplied is unsigned on the left, signed on the right: the one pair that processors, and runtimes, have fast
//! products for.

use super::{ConstantData, Conv, DType, Dim, GraphBuilder, Op, Result, Value};

/// A tensor as whole numbers: `(numbers - zero) * scale`.
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    /// Unsigned, 8 bits.
    pub numbers: Value,
    /// A scalar.
    pub scale: Value,
    /// The number that stands for 0, a scalar.
    pub zero: Value,
}

/// Up to this index a slice goes to the end.
const END: i64 = i64::MAX;

impl GraphBuilder {
    /// `x` as whole numbers between its least and its largest value, which are looked for when the graph runs.
    pub fn dynamic_quantize(&mut self, x: Value) -> Whole {
        let shape = self.shape(x).to_vec();
        let outputs = vec![
            (DType::U8, shape),
            (DType::F32, vec![]),
            (DType::U8, vec![]),
        ];
        let op = Op::Onnx("DynamicQuantizeLinear");
        let made = self.any_node(op, vec![Some(x)], outputs, vec![]);
        Whole {
            numbers: made[0],
            scale: made[1],
            zero: made[2],
        }
    }

    /// `x` as the nearest `(number - zero) * scale` of a number of 8 bits, in single precision again. Runtimes that find these two
    /// operators before a product with weights of whole numbers multiply whole numbers.
    pub fn rounded(&mut self, x: Value, scale: f32, zero: u8) -> Value {
        let shape = self.shape(x).to_vec();
        let scale = self.scalar(scale);
        let zero = self.constant_of(DType::U8, vec![], ConstantData::U8(vec![zero]));
        let inputs = [x, scale, zero].map(Some).to_vec();
        let numbers = self.typed_node("QuantizeLinear", inputs, DType::U8, shape.clone(), vec![]);
        let inputs = [numbers, scale, zero].map(Some).to_vec();
        self.typed_node("DequantizeLinear", inputs, DType::F32, shape, vec![])
    }

    /// `x` [.., in] times a matrix [in, out] of whole numbers with `scales` `[out]`, in single precision. Sums are exact before
    /// they are scaled.
    ///
    /// # Errors
    /// Inner dimensions that differ.
    pub fn matmul_integer(&mut self, x: Whole, weight: Value, scales: Value) -> Result<Value> {
        let shape = self.matmul_shape(x.numbers, weight)?;
        let inputs = [x.numbers, weight, x.zero].map(Some).to_vec();
        let sums = self.typed_node("MatMulInteger", inputs, DType::I32, shape, vec![]);
        let sums = self.cast_to_f32(sums);
        let scales = self.mul(x.scale, scales)?;
        self.mul(sums, scales)
    }

    /// `x` [N, C, h, w] with the zeros around it that a convolution wants.
    ///
    /// They are added before numbers become whole ones, which all have a zero among them: OpenVINO 2026.4 pads whole numbers
    /// wrongly where the number that stands for 0 is not known before the graph runs.
    ///
    /// # Errors
    /// `x` of unknown channels.
    pub fn pad_for(&mut self, x: Value, conv: Conv) -> Result<Value> {
        if conv.pads == [0; 4] {
            return Ok(x);
        }
        let [top, left, bottom, right] = conv.pads;
        let mut shape = self.shape(x).to_vec();
        shape[1] = self.fixed_dim(x, 1)?.into();
        for (dim, added) in [(2, top + bottom), (3, left + right)] {
            shape[dim] = match shape[dim] {
                Dim::Fixed(n) => Dim::Fixed(n + added),
                _ => Dim::Unknown,
            };
        }
        let pads = [0, 0, top, left, 0, 0, bottom, right].map(|n| n as i64);
        let pads = self.constant_i64(&pads);
        Ok(self.node("Pad", [x, pads], shape, vec![]))
    }

    /// What each pixel of a convolution's result is made from, side by side: `x` [N, h, w, C] with the zeros of
    /// [`Self::pad_for`] -> [N, h', w', k * k * C].
    ///
    /// # Errors
    /// `x` of unknown channels.
    pub fn unfold(&mut self, x: Whole, conv: Conv) -> Result<Whole> {
        if conv.kernel == 1 && conv.stride == 1 {
            return Ok(x);
        }
        let padded = x.numbers;
        let channels = self.fixed_dim(padded, 3)?;
        let shape = self.shape(padded).to_vec();
        let valid = Conv {
            pads: [0; 4],
            ..conv
        };
        let out = |axis: usize| valid.output(&shape[axis + 1], axis);
        let part = vec![shape[0].clone(), out(0), out(1), channels.into()];
        let axes = self.constant_i64(&[1, 2]);
        let steps = self.constant_i64(&[conv.stride as i64; 2]);
        // The last place of the kernel ends where the picture does, others as far before.
        let end = |at: usize| match conv.kernel - 1 - at {
            0 => END,
            before => -(before as i64),
        };
        let mut parts = Vec::new();
        for row in 0..conv.kernel {
            for column in 0..conv.kernel {
                let starts = self.constant_i64(&[row as i64, column as i64]);
                let ends = self.constant_i64(&[end(row), end(column)]);
                let inputs = [padded, starts, ends, axes, steps];
                parts.push(self.node("Slice", inputs, part.clone(), vec![]));
            }
        }
        let numbers = self.concat(&parts, 3)?;
        Ok(Whole { numbers, ..x })
    }

    /// A convolution's weight [O, C, k, k] as the matrix [k * k * C, O] that what [`Self::unfold`] makes is multiplied by.
    ///
    /// # Errors
    /// A weight of another rank.
    pub fn unfolded_weight(&mut self, weight: Value) -> Result<Value> {
        let outputs = self.fixed_dim(weight, 0)?;
        let last = self.transpose(weight, [2, 3, 1, 0])?;
        self.reshape(last, &[-1, outputs as i64])
    }

    /// Whole numbers times the scales of their outputs, in single precision: what runtimes compute once, when they load the
    /// graph. Outputs are the last dimension of matrices, the first of convolutions' weights.
    ///
    /// # Errors
    /// Scales that do not fit.
    pub fn scaled(&mut self, weight: Value, scales: Value) -> Result<Value> {
        let numbers = self.cast_to_f32(weight);
        let scales = match self.shape(weight).len() {
            2 => scales,
            _ => self.reshape(scales, &[-1, 1, 1, 1])?,
        };
        self.mul(numbers, scales)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfolded_pictures_have_the_sizes_of_convolved_ones() {
        let mut g = GraphBuilder::new("test");
        let shape = ["batch".into(), 4.into(), 7.into(), 6.into()];
        let x = g.input("x", DType::F32, shape).unwrap();
        let size = |g: &mut GraphBuilder, conv| {
            let padded = g.pad_for(x, conv).unwrap();
            let whole = g.dynamic_quantize(padded);
            let last = g.transpose(whole.numbers, [0, 2, 3, 1]).unwrap();
            let numbers = Whole {
                numbers: last,
                ..whole
            };
            let unfolded = g.unfold(numbers, conv).unwrap();
            g.shape(unfolded.numbers)[1..].to_vec()
        };
        assert_eq!(size(&mut g, Conv::K3), [7.into(), 6.into(), 36.into()]);
        let half = size(&mut g, Conv::K3_STRIDE_2);
        assert_eq!(half, [4.into(), 3.into(), 36.into()]);
        assert_eq!(size(&mut g, Conv::K1), [7.into(), 6.into(), 4.into()]);
        let weight = g.param("w", [8, 4, 3, 3]).unwrap();
        let matrix = g.unfolded_weight(weight).unwrap();
        assert_eq!(g.shape(matrix), [Dim::Unknown, 8.into()]);
    }
}
