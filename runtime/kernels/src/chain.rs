//! Convolutions one after the other, with norms and residuals between them, over pictures whose activations do not fit into memory
//! in single precision: the VAE's blocks of large pictures.
//!
//! Each convolution is one pass over bands of rows. A band's input is widened with the rows around it that the kernel reads,
//! normalized, convolved, and what comes out is rounded ([`Compact`]). Norms need moments of the whole picture: they are taken
//! from what comes out, band by band, while it is at hand, so nothing is computed twice. Rows are freed once nobody reads them any more, so a
//! value goes while the next one comes, and the most that lies in memory are the two largest values that are needed at the same time.

use std::ops::Range;

use crate::compact::{Compact, Narrow, Widen, filled};
use crate::conv::{Conv, conv};
use crate::group_norm::{GroupNorm, Moments, moments, normalize};
use crate::pool::for_each_task;
use crate::scratch::Shared;
use crate::{OutOfMemory, Run};

/// A convolution of a chain: `conv(norm(x)) + residual`. What goes into the chain is value 0, what step `i` makes is value `i + 1`.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The value that it reads.
    pub x: usize,
    /// What that goes through first.
    pub norm: Option<GroupNorm<'a>>,
    /// How many times higher and wider the value is made before the convolution, by nearest neighbours.
    pub enlarge: usize,
    /// The convolution, which enlarges nothing itself.
    pub conv: Conv<'a>,
    /// The value that is added.
    pub residual: Option<usize>,
}

impl Step<'_> {
    /// Height and width of what comes out for a value of this height and width.
    fn output_size(&self, (height, width): (usize, usize)) -> (usize, usize) {
        let enlarged = (height * self.enlarge, width * self.enlarge);
        self.conv.output_size(enlarged)
    }

    /// Rows of the enlarged value, `height` rows in all, that make rows `out`; and the rows of zeros above and below them.
    fn input_rows(&self, out: &Range<usize>, height: usize) -> (Range<usize>, usize, usize) {
        let above = self.conv.pads[0];
        let first = out.start * self.conv.stride;
        let last = (out.end - 1) * self.conv.stride + self.conv.kernel;
        let rows = first.saturating_sub(above)..last.saturating_sub(above).min(height);
        let zeros_above = above.saturating_sub(first);
        (
            rows.clone(),
            zeros_above,
            last - first - zeros_above - rows.len(),
        )
    }
}

/// Height and width of every value of a chain.
///
/// ```
/// use sd_kernels::{Activation, Conv, Floats, Step, chain_sizes};
///
/// let conv = Conv {
///     weight: Floats::F32(&[0.0; 9]),
///     bias: None,
///     inputs: 1,
///     outputs: 1,
///     kernel: 3,
///     stride: 1,
///     pads: [1; 4],
///     activation: Activation::None,
///     enlarge: None,
/// };
/// let step = Step { x: 0, norm: None, enlarge: 2, conv, residual: None };
/// assert_eq!(chain_sizes(&[step], (5, 7)), [(5, 7), (10, 14)]);
/// ```
#[must_use]
pub fn chain_sizes(steps: &[Step<'_>], size: (usize, usize)) -> Vec<(usize, usize)> {
    let mut sizes = vec![size];
    for step in steps {
        sizes.push(step.output_size(sizes[step.x]));
    }
    sizes
}

/// A picture `x` [h, w, C] -> `y` [h', w', C'], what the last step makes. `band` is about how many numbers of a value are in single precision at
/// a time. Steps that follow one another and read the same value are computed together.
///
/// `watch` is told, before each band, how many numbers of all values are made, of how many, and ends the work by returning false; then
/// `y` is not complete. Returns whether it is.
///
/// # Errors
/// There is no memory for the values.
///
/// # Panics
/// Lengths that do not fit together, values that are read before they are made or whose sizes differ from what is added, and
/// groups that differ between norms of one value; no steps.
pub fn chain(
    run: &mut Run<'_>,
    steps: &[Step<'_>],
    x: &[f32],
    size: (usize, usize),
    band: usize,
    y: &mut [f32],
    watch: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<bool, OutOfMemory> {
    let sizes = chain_sizes(steps, size);
    check(steps, &sizes, x, y);
    let mut chain = Chain {
        steps,
        values: Vec::new(),
        band,
        made: 0,
        all: 0,
    };
    for (i, &size) in sizes.iter().enumerate() {
        let value = chain.value(i, size);
        chain.all += value.rows.len() * value.row();
        chain.values.push(value);
    }
    let input = &mut chain.values[0];
    input.keep(run, 0..size.0, x)?;
    input.measure(run, x)?;
    let mut first = 0;
    while first < steps.len() {
        let together = |step: &Step<'_>| {
            let leader = &steps[first];
            step.x == leader.x
                && step.enlarge == leader.enlarge
                && sizes[first + 1] == step.output_size(sizes[step.x])
        };
        let count = steps[first..].iter().take_while(|step| together(step));
        let last = first + count.count();
        if !chain.pass(run, first..last, y, watch)? {
            return Ok(false);
        }
        first = last;
    }
    Ok(true)
}

fn check(steps: &[Step<'_>], sizes: &[(usize, usize)], x: &[f32], y: &[f32]) {
    let channels = |value: usize| match value {
        0 => steps[0].conv.inputs,
        _ => steps[value - 1].conv.outputs,
    };
    let count = |value: usize| sizes[value].0 * sizes[value].1 * channels(value);
    for (i, step) in steps.iter().enumerate() {
        assert!(step.x <= i, "step {i} reads what is not there yet");
        assert_eq!(step.conv.inputs, channels(step.x), "channels of step {i}");
        assert!(step.enlarge > 0 && step.conv.enlarge.is_none(), "step {i}");
        assert!(count(i + 1) > 0, "step {i} makes nothing");
        if let Some(norm) = &step.norm {
            assert_eq!(norm.weight.len(), step.conv.inputs, "norm of step {i}");
            assert_eq!(norm.bias.len(), step.conv.inputs, "norm of step {i}");
        }
        if let Some(residual) = step.residual {
            assert!(residual <= i, "step {i} adds what is not there yet");
            assert_eq!(
                (sizes[residual], channels(residual)),
                (sizes[i + 1], step.conv.outputs),
                "what step {i} adds"
            );
        }
    }
    assert_eq!(x.len(), count(0), "x");
    assert_eq!(y.len(), count(steps.len()), "y");
}

/// What a step makes, row by row.
struct Value {
    width: usize,
    channels: usize,
    /// Those that were not made yet or are not needed any more are `None`.
    rows: Vec<Option<Compact>>,
    /// Of the groups in which it is normalized, if it is.
    moments: Vec<Moments>,
    /// The last step that reads it.
    last: Option<usize>,
}

impl Value {
    /// Numbers of a row.
    fn row(&self) -> usize {
        self.width * self.channels
    }

    /// Keeps rows.
    fn keep(&mut self, run: &Run<'_>, rows: Range<usize>, x: &[f32]) -> Result<(), OutOfMemory> {
        let length = self.row();
        let rows = &mut self.rows[rows];
        for row in &mut *rows {
            *row = Some(Compact::zeros(length)?);
        }
        let (isa, count) = (run.isa, rows.len());
        let rows = Shared::new(rows);
        for_each_task(run.pool, count, &|i, _| {
            // SAFETY: tasks are different rows.
            let to = unsafe { (*rows.at(i)).as_mut() };
            let to = to.expect("it was made above");
            let x = &x[i * length..][..length];
            isa.dispatch(Narrow { x, to });
        });
        Ok(())
    }

    /// Gives rows back, enlarged.
    fn widen(&self, run: &Run<'_>, rows: Range<usize>, enlarge: usize, to: &mut [f32]) {
        let (isa, stored, length) = (run.isa, self.row(), self.row() * enlarge);
        let to = Shared::new(&mut to[..rows.len() * length]);
        for_each_task(run.pool, rows.len(), &|i, _| {
            // SAFETY: tasks are different rows.
            let to = unsafe { std::slice::from_raw_parts_mut(to.at(i * length), length) };
            let row = self.rows[(rows.start + i) / enlarge].as_ref();
            let x = row.expect("rows are kept until nobody reads them");
            // Pixels move to the front, none past one that did not move yet.
            let behind = length - stored;
            let end = &mut to[behind..];
            isa.dispatch(Widen { x, to: end });
            if enlarge > 1 {
                for pixel in (0..length).step_by(self.channels) {
                    let from = behind + pixel / self.channels / enlarge * self.channels;
                    to.copy_within(from..from + self.channels, pixel);
                }
            }
        });
    }

    /// Takes more numbers into the moments.
    fn measure(&mut self, run: &mut Run<'_>, x: &[f32]) -> Result<(), OutOfMemory> {
        if !self.moments.is_empty() {
            let more = moments(run, self.channels, self.moments.len(), 1, x)?;
            for (all, more) in self.moments.iter_mut().zip(more) {
                *all = all.and(more);
            }
        }
        Ok(())
    }
}

struct Chain<'a> {
    steps: &'a [Step<'a>],
    values: Vec<Value>,
    band: usize,
    /// Numbers of values that are made, and all of them.
    made: usize,
    all: usize,
}

impl Chain<'_> {
    /// Value `i`, of which nothing is made.
    fn value(&self, i: usize, (height, width): (usize, usize)) -> Value {
        let normed = self.steps.iter().filter(|step| step.x == i);
        let groups: Vec<usize> = normed.filter_map(|step| Some(step.norm?.groups)).collect();
        assert!(
            groups.windows(2).all(|two| two[0] == two[1]),
            "groups of value {i}"
        );
        let reads = |step: &Step<'_>| step.x == i || step.residual == Some(i);
        Value {
            width,
            channels: match i {
                0 => self.steps[0].conv.inputs,
                _ => self.steps[i - 1].conv.outputs,
            },
            rows: (0..height).map(|_| None).collect(),
            moments: vec![Moments::default(); groups.first().copied().unwrap_or(0)],
            last: self.steps.iter().rposition(reads),
        }
    }

    /// Computes steps that read the same value.
    fn pass(
        &mut self,
        run: &mut Run<'_>,
        steps: Range<usize>,
        y: &mut [f32],
        watch: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<bool, OutOfMemory> {
        let (all, enlarge) = (self.steps, self.steps[steps.start].enlarge);
        let input = &self.values[all[steps.start].x];
        let (height, row) = (input.rows.len() * enlarge, input.row() * enlarge);
        let output = &self.values[steps.start + 1];
        let out_height = output.rows.len();
        let outputs = steps.clone().map(|i| self.values[i + 1].row()).max();
        let out_row = outputs.unwrap_or(0);
        // Whole tiles of convolutions.
        let band = (self.band / row.max(out_row)).max(1).next_multiple_of(4);
        let rows_of = |out: &Range<usize>| {
            let rows = all[steps.clone()].iter();
            let rows = rows.map(|step| step.input_rows(out, height).0);
            rows.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
                .expect("a pass has steps")
        };
        let bands = (0..out_height).step_by(band);
        let bands: Vec<_> = bands
            .map(|first| first..out_height.min(first + band))
            .collect();
        let most = bands.iter().map(|out| rows_of(out).len()).max();
        let most = most.unwrap_or(0) * row;
        let some_norm = all[steps.clone()].iter().any(|step| step.norm.is_some());
        let some_residual = all[steps.clone()]
            .iter()
            .any(|step| step.residual.is_some());
        let out_most = band.min(out_height) * out_row;
        let mut widened = filled(most, 0.0)?;
        let mut normed = filled(if some_norm { most } else { 0 }, 0.0)?;
        let mut added = filled(if some_residual { out_most } else { 0 }, 0.0)?;
        let mut made = filled(out_most, 0.0)?;
        for (i, out) in bands.iter().enumerate() {
            if !watch(self.made, self.all) {
                return Ok(false);
            }
            let rows = rows_of(out);
            let input = all[steps.start].x;
            self.values[input].widen(run, rows.clone(), enlarge, &mut widened);
            for number in steps.clone() {
                let step = &all[number];
                let (own, above, below) = step.input_rows(out, height);
                let part = (own.start - rows.start) * row..(own.end - rows.start) * row;
                let mut x = &widened[part.clone()];
                if let Some(norm) = &step.norm {
                    let moments = &self.values[input].moments;
                    normalize(run, norm, moments, x, &mut normed[part.clone()])?;
                    x = &normed[part];
                }
                let length = out.len() * self.values[number + 1].row();
                let residual = step.residual.map(|value| {
                    self.values[value].widen(run, out.clone(), 1, &mut added);
                    &added[..length]
                });
                let [_, left, _, right] = step.conv.pads;
                let layer = Conv {
                    pads: [above, left, below, right],
                    ..step.conv
                };
                let is_last = number + 1 == all.len();
                let made = match is_last {
                    true => &mut y[out.start * self.values[number + 1].row()..][..length],
                    false => &mut made[..length],
                };
                let size = (1, own.len(), row / step.conv.inputs);
                conv(run, &layer, x, size, None, residual, made)?;
                self.made += length;
                if !is_last {
                    let value = &mut self.values[number + 1];
                    value.measure(run, made)?;
                    value.keep(run, out.clone(), made)?;
                }
            }
            let next = bands.get(i + 1);
            let read = next.map_or(height, |out| rows_of(out).start) / enlarge;
            self.free(&steps, input, read);
            for residual in all[steps.clone()].iter().filter_map(|step| step.residual) {
                self.free(
                    &steps,
                    residual,
                    if residual == input { read } else { out.end },
                );
            }
        }
        Ok(true)
    }

    /// Rows of a value before `from` are needed no more, if `steps` are its last ones.
    fn free(&mut self, steps: &Range<usize>, value: usize, from: usize) {
        let value = &mut self.values[value];
        if value.last.is_some_and(|last| steps.contains(&last)) {
            value.rows[..from].fill_with(|| None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, close, every_level};
    use crate::{Activation, Compute, Floats, Isa, Scratch, Serial, group_norm};

    /// Weights of a step.
    struct Weights {
        norm: Option<[Vec<f32>; 2]>,
        weight: Vec<f32>,
        bias: Vec<f32>,
    }

    /// A step without its weights.
    struct Sketch {
        x: usize,
        normed: bool,
        enlarge: usize,
        channels: [usize; 2],
        /// Kernel, stride, padding.
        conv: (usize, usize, [usize; 4]),
        residual: Option<usize>,
    }

    const K3: (usize, usize, [usize; 4]) = (3, 1, [1; 4]);
    const K1: (usize, usize, [usize; 4]) = (1, 1, [0; 4]);

    fn sketch(x: usize, normed: bool, channels: [usize; 2], residual: Option<usize>) -> Sketch {
        Sketch {
            x,
            normed,
            enlarge: 1,
            channels,
            conv: K3,
            residual,
        }
    }

    /// A residual block, an enlargement, a block with a shortcut, and the decoder's end.
    fn decoder() -> Vec<Sketch> {
        let enlarged = Sketch {
            enlarge: 2,
            ..sketch(2, false, [32, 32], None)
        };
        let shortcut = Sketch {
            conv: K1,
            ..sketch(3, false, [32, 16], None)
        };
        vec![
            sketch(0, true, [32, 32], None),
            sketch(1, true, [32, 32], Some(0)),
            enlarged,
            sketch(3, true, [32, 16], None),
            shortcut,
            sketch(4, true, [16, 16], Some(5)),
            sketch(6, true, [16, 3], None),
        ]
    }

    /// The encoder's beginning.
    fn encoder() -> Vec<Sketch> {
        let halved = Sketch {
            conv: (3, 2, [0, 0, 1, 1]),
            ..sketch(3, false, [16, 16], None)
        };
        vec![
            sketch(0, false, [3, 16], None),
            sketch(1, true, [16, 16], None),
            sketch(2, true, [16, 16], Some(1)),
            halved,
            sketch(4, true, [16, 16], None),
        ]
    }

    fn weights(sketches: &[Sketch], random: &mut Random) -> Vec<Weights> {
        let of = |sketch: &Sketch| {
            let [inputs, outputs] = sketch.channels;
            let terms = inputs * sketch.conv.0 * sketch.conv.0;
            let weight = random.normals(outputs * terms);
            Weights {
                norm: sketch
                    .normed
                    .then(|| [random.normals(inputs), random.normals(inputs)]),
                weight: weight.iter().map(|w| w / (terms as f32).sqrt()).collect(),
                bias: random.normals(outputs),
            }
        };
        sketches.iter().map(of).collect()
    }

    fn steps<'a>(sketches: &[Sketch], weights: &'a [Weights]) -> Vec<Step<'a>> {
        let step = |(sketch, weights): (&Sketch, &'a Weights)| {
            let (kernel, stride, pads) = sketch.conv;
            Step {
                x: sketch.x,
                norm: weights.norm.as_ref().map(|[weight, bias]| GroupNorm {
                    groups: 8,
                    epsilon: 1e-6,
                    weight,
                    bias,
                    activation: Activation::Silu,
                }),
                enlarge: sketch.enlarge,
                conv: Conv {
                    weight: Floats::F32(&weights.weight),
                    bias: Some(&weights.bias),
                    inputs: sketch.channels[0],
                    outputs: sketch.channels[1],
                    kernel,
                    stride,
                    pads,
                    activation: Activation::None,
                    enlarge: None,
                },
                residual: sketch.residual,
            }
        };
        sketches.iter().zip(weights).map(step).collect()
    }

    /// Every value as a whole and in single precision.
    fn twin(steps: &[Step<'_>], x: &[f32], size: (usize, usize)) -> Vec<f64> {
        let mut run = Run {
            isa: Isa::Scalar,
            compute: Compute::F32,
            pool: &Serial,
            scratch: &mut Scratch::new(),
        };
        let sizes = chain_sizes(steps, size);
        let mut values = vec![x.to_vec()];
        for (i, step) in steps.iter().enumerate() {
            let mut x = values[step.x].clone();
            if let Some(norm) = &step.norm {
                let mut y = vec![f32::NAN; x.len()];
                group_norm(&mut run, norm, 1, &x, &mut y).unwrap();
                x = y;
            }
            let ((height, width), out) = (sizes[step.x], sizes[i + 1]);
            let layer = Conv {
                enlarge: Some((height * step.enlarge, width * step.enlarge)),
                ..step.conv
            };
            let mut y = vec![f32::NAN; out.0 * out.1 * layer.outputs];
            let residual = step.residual.map(|value| &values[value][..]);
            let shape = (1, height, width);
            conv(&mut run, &layer, &x, shape, None, residual, &mut y).unwrap();
            values.push(y);
        }
        values[steps.len()].iter().map(|&y| f64::from(y)).collect()
    }

    #[test]
    fn bands_equal_the_whole_at_every_level() {
        let mut random = Random::new(12);
        for sketches in [decoder(), encoder()] {
            let weights = weights(&sketches, &mut random);
            let steps = steps(&sketches, &weights);
            for size in [(2, 3), (3, 17), (13, 10), (33, 8)] {
                let inputs = steps[0].conv.inputs;
                let normals = random.normals(size.0 * size.1 * inputs);
                // Mean and deviation as in the last layers of the VAE's decoder.
                let x: Vec<f32> = normals.iter().map(|x| 30.0 + 10.0 * x).collect();
                let expected = twin(&steps, &x, size);
                for band in [1, 1000, 1 << 20] {
                    every_level(|run| {
                        let mut y = vec![f32::NAN; expected.len()];
                        let (mut before, mut of) = (None, 0);
                        let mut watch = |made, all| {
                            assert!(before < Some(made) && made < all);
                            (before, of) = (Some(made), all);
                            true
                        };
                        let done = chain(run, &steps, &x, size, band, &mut y, &mut watch);
                        assert_eq!(done, Ok(true));
                        close(&y, &expected, 2e-4);
                        y
                    });
                }
            }
        }
    }

    #[test]
    fn rows_go_when_nobody_reads_them_any_more() {
        let sketches = decoder();
        let weights = weights(&sketches, &mut Random::new(13));
        let steps = steps(&sketches, &weights);
        let size = (40, 8);
        let mut chain = Chain {
            steps: &steps,
            values: Vec::new(),
            band: 1,
            made: 0,
            all: 0,
        };
        let sizes = chain_sizes(&steps, size);
        let values = sizes.iter().enumerate();
        chain.values = values.map(|(i, &size)| chain.value(i, size)).collect();
        let mut run = Run {
            isa: Isa::detect(),
            compute: Compute::F32,
            pool: &Serial,
            scratch: &mut Scratch::new(),
        };
        let x = Random::new(14).normals(size.0 * size.1 * 32);
        chain.values[0].keep(&run, 0..size.0, &x).unwrap();
        chain.values[0].measure(&mut run, &x).unwrap();
        let kept = |chain: &Chain<'_>| -> Vec<usize> {
            let values = chain.values.iter();
            let rows = values.map(|value| value.rows.iter().flatten().count());
            rows.collect()
        };
        let y = &mut vec![0.0; 80 * 16 * 3];
        let mut pass = |chain: &mut Chain<'_>, steps: Range<usize>, passes: usize| {
            let mut left = passes;
            let mut watch = |_, _| {
                left -= 1;
                left > 0
            };
            chain.pass(&mut run, steps, y, &mut watch).unwrap()
        };
        assert!(pass(&mut chain, 0..1, 99));
        assert_eq!(kept(&chain), [40, 40, 0, 0, 0, 0, 0, 0]);
        // After five bands of four rows; the kernel reads one row more.
        assert!(!pass(&mut chain, 1..2, 6));
        assert_eq!(kept(&chain), [20, 21, 20, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn whoever_watches_can_end_it() {
        let sketches = decoder();
        let weights = weights(&sketches, &mut Random::new(15));
        let steps = steps(&sketches, &weights);
        let x = Random::new(16).normals(9 * 32);
        let mut run = Run {
            isa: Isa::detect(),
            compute: Compute::F32,
            pool: &Serial,
            scratch: &mut Scratch::new(),
        };
        let mut seen = 0;
        let mut watch = |_, _| {
            seen += 1;
            seen < 3
        };
        let y = &mut [0.0; 36 * 3];
        let done = chain(&mut run, &steps, &x, (3, 3), 1, y, &mut watch);
        assert_eq!((done, seen), (Ok(false), 3));
    }
}
