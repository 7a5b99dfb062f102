//! Convolution of channels-last pictures: `activation(conv(x) + bias + time) + residual`.
//!
//! Weights lie as checkpoints have them, `[outputs, inputs, kernel, kernel]`. What most of a network's time goes to, kernels of
//! 3 with stride 1, is done by Winograd's algorithm ([`winograd`]), the rest as a product of matrices ([`direct`]).

mod direct;
#[cfg(test)]
mod tests;
mod winograd;

use crate::activation::Activation;
use crate::linear::{Linear, Order, linear};
use crate::scratch::Shared;
use crate::simd::Simd;
use crate::{Floats, OutOfMemory, Run};

/// A convolution.
#[derive(Clone, Copy, Debug)]
pub struct Conv<'a> {
    /// `[outputs, inputs, kernel, kernel]`
    pub weight: Floats<'a>,
    /// One number for each output channel.
    pub bias: Option<&'a [f32]>,
    /// Channels that go in.
    pub inputs: usize,
    /// Channels that come out.
    pub outputs: usize,
    /// Height and width of the kernel.
    pub kernel: usize,
    /// Pixels between two places of the kernel.
    pub stride: usize,
    /// Zeros around the picture: above, left, below, right.
    pub pads: [usize; 4],
    /// What follows.
    pub activation: Activation,
    /// Height and width that the picture is enlarged to first: pixel `i` of `H` is pixel `floor(i h / H)` of `h`, as ONNX's
    /// `Resize` has it with `nearest`, `asymmetric` and `floor`.
    pub enlarge: Option<(usize, usize)>,
}

impl Conv<'_> {
    /// Height and width of what comes out for a picture of this height and width; a kernel that does not fit makes them 0.
    #[must_use]
    pub fn output_size(&self, size: (usize, usize)) -> (usize, usize) {
        let (height, width) = self.enlarge.unwrap_or(size);
        let places = |size: usize, pads: usize| {
            let room = (size + pads).checked_sub(self.kernel);
            room.map_or(0, |room| room / self.stride + 1)
        };
        (
            places(height, self.pads[0] + self.pads[2]),
            places(width, self.pads[1] + self.pads[3]),
        )
    }
}

/// `x` [N, h, w, inputs] -> `y` [M, h', w', outputs], with h' and w' of [`Conv::output_size`].
///
/// `shape` is (N, h, w). `time`, [1 or M, outputs], is added to every pixel of a picture before the activation; `residual`, one
/// picture of the output's shape or M, is added after it. A single picture `x` is repeated M times.
///
/// # Errors
/// There is no memory for intermediate results.
///
/// # Panics
/// Lengths that do not fit together; no inputs, a kernel or a stride of 0; an empty picture that is enlarged.
pub fn conv(
    run: &mut Run<'_>,
    layer: &Conv<'_>,
    x: &[f32],
    shape: (usize, usize, usize),
    time: Option<&[f32]>,
    residual: Option<&[f32]>,
    y: &mut [f32],
) -> Result<(), OutOfMemory> {
    let (pictures, height, width) = shape;
    let &Conv {
        inputs, outputs, ..
    } = layer;
    assert!(inputs > 0 && layer.kernel > 0, "nothing to sum");
    assert!(layer.stride > 0, "stride");
    assert!(
        layer.enlarge.is_none() || height * width > 0,
        "nothing to enlarge"
    );
    assert_eq!(x.len(), pictures * height * width * inputs, "x");
    let weights = outputs * inputs * layer.kernel * layer.kernel;
    assert_eq!(layer.weight.len(), weights, "weights");
    assert!(layer.weight.fit(outputs), "scales");
    assert!(layer.bias.is_none_or(|b| b.len() == outputs), "bias");
    let size = layer.output_size((height, width));
    let picture = size.0 * size.1 * outputs;
    if y.is_empty() || picture == 0 {
        assert_eq!(y.len(), pictures * picture, "y");
        return Ok(());
    }
    let many = y.len() / picture;
    assert_eq!(y.len(), many * picture, "y");
    assert!(
        pictures == many || pictures == 1,
        "{pictures} pictures, {many} come out"
    );
    let one_or_many = |length: usize, one: usize| length == one || length == many * one;
    assert!(
        time.is_none_or(|t| one_or_many(t.len(), outputs)),
        "time embedding"
    );
    assert!(
        residual.is_none_or(|r| one_or_many(r.len(), picture)),
        "residual"
    );

    let plain = layer.kernel == 1 && layer.stride == 1 && layer.pads == [0; 4];
    if plain && layer.enlarge.is_none() && pictures == many && time.is_none() {
        // Every pixel is a row.
        let layer = Linear {
            weight: layer.weight,
            order: Order::OutputsFirst,
            inputs,
            outputs,
            bias: layer.bias,
            activation: layer.activation,
            geglu: false,
        };
        return linear(run, &layer, x, residual, y);
    }
    let pictures = Pictures {
        layer,
        x,
        repeated: pictures < many,
        stored: (height, width),
        enlarged: layer.enlarge.unwrap_or((height, width)),
        many,
        size,
        time,
        residual,
        y: Shared::new(y),
    };
    if winograd::pays(layer, &pictures) {
        run.isa.dispatch(winograd::Winograd { run, pictures })
    } else {
        run.isa.dispatch(direct::Direct { run, pictures })
    }
}

/// What goes in and what comes out, checked.
struct Pictures<'a> {
    layer: &'a Conv<'a>,
    x: &'a [f32],
    /// Whether there is one picture in `x` for many in `y`.
    repeated: bool,
    /// Height and width of the pictures in `x`.
    stored: (usize, usize),
    /// What they are enlarged to.
    enlarged: (usize, usize),
    /// Pictures in `y`.
    many: usize,
    /// Their height and width.
    size: (usize, usize),
    time: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    y: Shared<'a, f32>,
}

impl Pictures<'_> {
    /// Pixels of one picture in `y`.
    fn pixels(&self) -> usize {
        self.size.0 * self.size.1
    }

    /// Where row `y` of the enlarged picture with its zeros around it is stored, if it is no row of zeros.
    #[inline(always)]
    fn row(&self, y: usize) -> Option<usize> {
        stored(y, self.layer.pads[0], self.enlarged.0, self.stored.0)
    }

    /// Where column `x` is stored.
    #[inline(always)]
    fn column(&self, x: usize) -> Option<usize> {
        stored(x, self.layer.pads[1], self.enlarged.1, self.stored.1)
    }

    /// The channels of a stored pixel, of zeros if it has no row or no column.
    #[inline(always)]
    fn pixel(
        &self,
        picture: usize,
        row: Option<usize>,
        column: Option<usize>,
        zeros: *const f32,
    ) -> *const f32 {
        let (Some(row), Some(column)) = (row, column) else {
            return zeros;
        };
        let picture = if self.repeated { 0 } else { picture };
        let pixel = (picture * self.stored.0 + row) * self.stored.1 + column;
        self.x[pixel * self.layer.inputs..].as_ptr()
    }

    /// Bias and time embedding of `n` output channels of a picture.
    #[inline(always)]
    unsafe fn offset<S: Simd>(&self, picture: usize, channel: usize, n: usize) -> S::V {
        let outputs = self.layer.outputs;
        unsafe {
            let bias = match self.layer.bias {
                Some(bias) => load::<S>(bias.as_ptr().add(channel), n),
                None => S::splat(0.0),
            };
            match self.time {
                Some(time) => {
                    let picture = if time.len() == outputs { 0 } else { picture };
                    let time = time.as_ptr().add(picture * outputs + channel);
                    S::add(bias, load::<S>(time, n))
                }
                None => bias,
            }
        }
    }

    /// Writes `n` channels of a pixel: `activation(sum) + residual`.
    #[inline(always)]
    unsafe fn finish<S: Simd>(
        &self,
        picture: usize,
        pixel: usize,
        channel: usize,
        n: usize,
        sum: S::V,
    ) {
        let place = pixel * self.layer.outputs + channel;
        let picture = picture * self.pixels() * self.layer.outputs;
        unsafe {
            let mut v = self.layer.activation.apply::<S>(sum);
            if let Some(residual) = self.residual {
                let one = residual.len() == self.pixels() * self.layer.outputs;
                let from = if one { place } else { picture + place };
                v = S::add(v, load::<S>(residual.as_ptr().add(from), n));
            }
            let to = self.y.at(picture + place);
            if n == S::LANES {
                S::store(to, v);
            } else {
                S::store_first(to, v, n);
            }
        }
    }
}

/// Where place `i` of a row of `enlarged` pixels, after a border of zeros, lies among `stored` ones.
#[inline(always)]
fn stored(i: usize, border: usize, enlarged: usize, stored: usize) -> Option<usize> {
    let i = i.checked_sub(border).filter(|&i| i < enlarged)?;
    Some(if enlarged == stored {
        i
    } else {
        i * stored / enlarged
    })
}

/// The first `n` numbers, and zeros.
#[inline(always)]
unsafe fn load<S: Simd>(from: *const f32, n: usize) -> S::V {
    unsafe {
        if n == S::LANES {
            S::load(from)
        } else {
            S::load_first(from, n)
        }
    }
}

/// At least `count` numbers, so that buffers of so many one after another do not all fall on the same cache lines: an odd number of
/// lines.
#[inline(always)]
const fn spread(count: usize) -> usize {
    const LINE: usize = 16;
    (count.div_ceil(LINE) | 1) * LINE
}
