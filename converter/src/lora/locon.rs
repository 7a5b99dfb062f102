//! LoRA (Hu et al. 2021, arXiv:2106.09685) and its convolutions, LoCon (`LyCORIS`).
//! `dW = alpha / rank * up down`, with `up` [out, rank] and `down` [rank, in * kh * kw]. With a Tucker core `mid`
//! [r1, r2, kh, kw] between `up` [out, r1] and `down` [r2, in]:
//! `dW[o, i, x, y] = alpha / r2 * sum_m sum_n up[o, m] mid[m, n, x, y] down[n, i]`.

use faer::Mat;
use rayon::prelude::*;

use super::{Group, LoraError, Part, values};
use crate::checkpoint::TensorSource;

/// A module, by the keys of its parts.
#[derive(Debug)]
pub(super) struct LoCon {
    up: String,
    down: String,
    mid: Option<String>,
    scale: f64,
    target: Vec<usize>,
}

impl LoCon {
    /// Checks that the parts fit each other and the target.
    pub(super) fn read(
        source: &dyn TensorSource,
        module: &str,
        group: &Group,
        target: &[usize],
        guess: &dyn Fn() -> String,
    ) -> Result<Self, LoraError> {
        let part = |part, name| {
            group
                .parts
                .get(&part)
                .cloned()
                .ok_or(LoraError::Incomplete {
                    module: module.to_owned(),
                    part: name,
                })
        };
        let (up, down) = (part(Part::Up, "up")?, part(Part::Down, "down")?);
        let mid = group.parts.get(&Part::Mid).cloned();
        let shape = |key: &String| source.tensors()[key].shape.clone();
        let misfit = || LoraError::Shape {
            module: module.to_owned(),
            found: match &mid {
                Some(mid) => format!(
                    "up {:?}, mid {:?}, down {:?}",
                    shape(&up),
                    shape(mid),
                    shape(&down)
                ),
                None => format!("up {:?}, down {:?}", shape(&up), shape(&down)),
            },
            target: target.to_vec(),
            guess: guess(),
        };
        let product = |shape: &[usize]| shape.iter().product::<usize>();
        let (up_shape, down_shape) = (shape(&up), shape(&down));
        let (&[rows, up_rank, ref up_rest @ ..], &[rank, ref columns @ ..]) =
            (&up_shape[..], &down_shape[..])
        else {
            return Err(misfit());
        };
        let fits = match mid.as_ref().map(shape) {
            None => up_rank == rank && product(columns) == product(&target[1..]),
            Some(mid) => {
                let core = mid.len() == 4 && mid[..2] == [up_rank, rank];
                core && target.len() == 4
                    && mid[2..] == target[2..]
                    && product(columns) == target[1]
            }
        };
        let fits = fits && rank > 0 && product(up_rest) == 1 && rows == target[0];
        // A flat `down` on a convolution is no broadcast: its columns were counted.
        if !fits {
            return Err(misfit());
        }
        let number = |part| match group.parts.get(&part) {
            Some(key) => Ok(values(source, key)?.first().copied()),
            None => Ok(None),
        };
        let alpha = number(Part::Alpha).map_err(|_: LoraError| LoraError::BadAlpha {
            module: module.to_owned(),
            alpha: f32::NAN,
        })?;
        let scale = match (number(Part::Scale)?, alpha) {
            (Some(scale), _) => f64::from(scale),
            (None, Some(alpha)) if alpha < 0.0 => {
                return Err(LoraError::BadAlpha {
                    module: module.to_owned(),
                    alpha,
                });
            }
            // Zero stands for "not set", as in the trainers' constructors.
            (None, None | Some(0.0)) => 1.0,
            (None, Some(alpha)) => f64::from(alpha) / rank as f64,
        };
        Ok(Self {
            up,
            down,
            mid,
            scale,
            target: target.to_vec(),
        })
    }

    /// Whether any value of it is not zero.
    pub(super) fn changes_something(&self, source: &dyn TensorSource) -> Result<bool, LoraError> {
        let mut changes = self.scale != 0.0;
        for key in [Some(&self.up), Some(&self.down), self.mid.as_ref()]
            .into_iter()
            .flatten()
        {
            changes &= values(source, key)?.iter().any(|&x| x != 0.0);
        }
        Ok(changes)
    }

    /// The change of the weight at strength 1, in the order of its elements.
    pub(super) fn delta(&self, source: &dyn TensorSource) -> Result<Vec<f64>, LoraError> {
        let rank = source.tensors()[&self.down].shape[0];
        let up = transposed(&values(source, &self.up)?, self.target[0]);
        let down = transposed(&values(source, &self.down)?, rank);
        let mut delta = vec![0.0; self.target.iter().product()];
        let Some(mid) = &self.mid else {
            // Columns of the transposed product lie in memory as rows of the weight do.
            let product = down * up;
            let rows = delta.par_chunks_mut(product.nrows()).enumerate();
            rows.for_each(|(i, row)| {
                for (value, product) in row.iter_mut().zip(product.col(i).iter()) {
                    *value = self.scale * product;
                }
            });
            return Ok(delta);
        };
        // One product per place of the kernel.
        let core = values(source, mid)?;
        let (inputs, kernel) = (self.target[1], self.target[2] * self.target[3]);
        let up_rank = up.nrows();
        for place in 0..kernel {
            let tap = Mat::from_fn(rank, up_rank, |n, m| {
                f64::from(core[(m * rank + n) * kernel + place])
            });
            let product = &down * tap * &up;
            for (i, row) in delta.chunks_mut(inputs * kernel).enumerate() {
                for (j, product) in product.col(i).iter().enumerate() {
                    row[j * kernel + place] = self.scale * product;
                }
            }
        }
        Ok(delta)
    }
}

/// A row-major matrix of so many rows, transposed: in the order in which its elements lie.
fn transposed(values: &[f32], rows: usize) -> Mat<f64> {
    let columns = values.len() / rows;
    Mat::from_fn(columns, rows, |j, i| f64::from(values[i * columns + j]))
}
