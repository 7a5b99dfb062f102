//! The arithmetic of merging: weights of several models in, one weight out.
//!
//! Methods look at whole tensors only through a few sums and thresholds (their *survey*), so that a tensor passes in pieces
//! and memory does not grow with it. Elements are single precision; coefficients are double and rounded once.

use rayon::prelude::*;

use crate::ConvertError;
use crate::random;

/// Elements that are worked on at once.
pub(super) const PIECE: usize = 1 << 16;

/// How models become one. `a` is the first model, `b` the second, `c` the third.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `a + alpha (b - a)`
    WeightedSum,
    /// `a + alpha (b - c)`
    AddDifference,
    /// `t + beta (c - t)` with `t = a + alpha (b - a)`
    SumTwice,
    /// `(1 - alpha - beta) a + alpha b + beta c`
    TripleSum,
    /// `a + 1.8 alpha m (b - c)` with `m = |b - a| / (|b - a| + |b - c|)`: little where `a` already has it (hako-mikan)
    TrainDifference,
    /// On the arc between the tensors as vectors (Shoemake 1985), with the length interpolated
    Slerp,
    /// `a + k (b - a)` with `k = 1 - clamp(similarity - alpha, 0, 1)`, the cosine of normalized columns (hako-mikan)
    CosineA,
    /// The same with the mean of the columns' and the tensors' cosine
    CosineB,
    /// The largest of each difference to `a`, where they agree in sign (Yadav et al. 2023)
    Ties,
    /// A random part of each difference to `a`, scaled up (Yu et al. 2023)
    Dare,
    /// `sum w_i m_i / sum w_i`
    Average,
}

impl Method {
    /// Names on command lines and in recipes.
    pub const NAMES: [(&'static str, Self); 11] = [
        ("weighted-sum", Self::WeightedSum),
        ("add-difference", Self::AddDifference),
        ("sum-twice", Self::SumTwice),
        ("triple-sum", Self::TripleSum),
        ("train-difference", Self::TrainDifference),
        ("slerp", Self::Slerp),
        ("cosine-a", Self::CosineA),
        ("cosine-b", Self::CosineB),
        ("ties", Self::Ties),
        ("dare", Self::Dare),
        ("average", Self::Average),
    ];

    /// The method called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let found = Self::NAMES.into_iter().find(|(n, _)| *n == name);
        found.map(|(_, method)| method)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::NAMES.into_iter().find(|(_, m)| *m == self);
        found.expect("every method has a name").0
    }

    /// How many models it takes, at least and at most.
    #[must_use]
    pub fn inputs(self) -> (usize, usize) {
        match self {
            Self::WeightedSum | Self::Slerp | Self::CosineA | Self::CosineB => (2, 2),
            Self::AddDifference | Self::SumTwice | Self::TripleSum | Self::TrainDifference => {
                (3, 3)
            }
            Self::Ties | Self::Dare | Self::Average => (2, 16),
        }
    }

    /// Whether it takes `alpha`.
    #[must_use]
    pub fn has_alpha(self) -> bool {
        self != Self::Average
    }

    /// Whether it keeps a part of each difference only.
    #[must_use]
    pub fn has_density(self) -> bool {
        matches!(self, Self::Ties | Self::Dare)
    }

    /// Whether chance decides something.
    #[must_use]
    pub fn has_seed(self) -> bool {
        self == Self::Dare
    }

    /// Checks how many models it gets.
    ///
    /// # Errors
    /// Too few or too many.
    pub fn check_inputs(self, got: usize) -> Result<(), ConvertError> {
        let (least, most) = self.inputs();
        if (least..=most).contains(&got) {
            return Ok(());
        }
        Err(ConvertError::MergeInputs {
            method: self.name(),
            got,
            want: if least == most {
                least.to_string()
            } else {
                format!("{least} to {most}")
            },
        })
    }

    /// Whether it takes `beta`.
    #[must_use]
    pub fn has_beta(self) -> bool {
        matches!(self, Self::SumTwice | Self::TripleSum)
    }
}

/// What a method is told for one tensor.
#[derive(Clone, Debug)]
pub(super) struct Settings<'a> {
    pub(super) alpha: f64,
    pub(super) beta: f64,
    /// Part of each difference that TIES and DARE keep, 0..1.
    pub(super) density: f64,
    /// Weights of an average.
    pub(super) weights: &'a [f64],
    /// Decides, with the tensor's name, what DARE drops.
    pub(super) seed: u64,
    pub(super) name: &'a str,
}

/// Reads elements `start..start + length` of input `i` in single precision.
pub(super) trait Pieces: Sync {
    fn read(&self, i: usize, start: usize, length: usize) -> Vec<f32>;
    fn inputs(&self) -> usize;
    fn len(&self) -> usize;
    /// Elements in one entry of the first dimension.
    fn columns(&self) -> usize;
}

/// What a method has to know of a tensor before it can compute a part of it.
enum Survey {
    Nothing,
    /// Coefficients of `a` and `b`.
    Arc(f32, f32),
    /// How far each column goes towards `b`.
    Columns(Vec<f32>),
    /// Least magnitude that is kept of each difference.
    Thresholds(Vec<f32>),
}

/// Merges one tensor, piece by piece; `store` gets each piece's place and elements.
pub(super) fn merge(
    method: Method,
    settings: &Settings<'_>,
    pieces: &impl Pieces,
    output: &mut [u8],
    element_size: usize,
    store: impl Fn(&[f32], &mut [u8]) + Sync,
) {
    let survey = survey(method, settings, pieces);
    let key = random::key(settings.seed, settings.name);
    output
        .par_chunks_mut(PIECE * element_size)
        .enumerate()
        .for_each(|(n, output)| {
            let (start, length) = (n * PIECE, output.len() / element_size);
            let inputs: Vec<Vec<f32>> = (0..pieces.inputs())
                .map(|i| pieces.read(i, start, length))
                .collect();
            let place = Place { start, key };
            let merged = combine(method, settings, &survey, &inputs, place, pieces.columns());
            store(&merged, output);
        });
}

/// Where a piece lies, and what its random numbers follow from.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    key: u64,
}

fn combine(
    method: Method,
    settings: &Settings<'_>,
    survey: &Survey,
    inputs: &[Vec<f32>],
    place: Place,
    columns: usize,
) -> Vec<f32> {
    let (alpha, beta) = (settings.alpha as f32, settings.beta as f32);
    let a = &inputs[0];
    let with_b = |f: &dyn Fn(f32, f32) -> f32| {
        let pairs = a.iter().zip(&inputs[1]);
        pairs.map(|(&a, &b)| f(a, b)).collect::<Vec<f32>>()
    };
    let with_c = |f: &dyn Fn(f32, f32, f32) -> f32| {
        let triples = a.iter().zip(&inputs[1]).zip(&inputs[2]);
        triples
            .map(|((&a, &b), &c)| f(a, b, c))
            .collect::<Vec<f32>>()
    };
    match (method, survey) {
        (Method::WeightedSum, _) => with_b(&|a, b| a + alpha * (b - a)),
        (Method::AddDifference, _) => with_c(&|a, b, c| a + alpha * (b - c)),
        (Method::SumTwice, _) => with_c(&|a, b, c| {
            let t = a + alpha * (b - a);
            t + beta * (c - t)
        }),
        (Method::TripleSum, _) => {
            let rest = (1.0 - settings.alpha - settings.beta) as f32;
            with_c(&|a, b, c| rest * a + alpha * b + beta * c)
        }
        (Method::TrainDifference, _) => {
            let factor = (1.8 * settings.alpha) as f32;
            with_c(&|a, b, c| {
                let (to_a, to_c) = ((b - a).abs(), (b - c).abs());
                if to_c == 0.0 || to_a == 0.0 {
                    a
                } else {
                    a + factor * (to_a / (to_a + to_c)) * (b - c)
                }
            })
        }
        (Method::Slerp, Survey::Arc(of_a, of_b)) => with_b(&|a, b| of_a * a + of_b * b),
        (Method::CosineA | Method::CosineB, Survey::Columns(k)) => {
            let column = |i: usize| k[(place.start + i) % columns];
            let pairs = a.iter().zip(&inputs[1]).enumerate();
            pairs.map(|(i, (&a, &b))| a + column(i) * (b - a)).collect()
        }
        (Method::Ties, Survey::Thresholds(thresholds)) => ties(inputs, thresholds, alpha),
        (Method::Dare, _) => dare(settings, inputs, place),
        (Method::Average, _) => average(inputs, settings.weights),
        _ => unreachable!("`survey` makes what the method needs"),
    }
}

/// Where the differences that remain agree with the sign of their sum, their mean.
fn ties(inputs: &[Vec<f32>], thresholds: &[f32], alpha: f32) -> Vec<f32> {
    let element = |i: usize| {
        let a = inputs[0][i];
        let kept = inputs[1..]
            .iter()
            .zip(thresholds)
            .map(|(input, &threshold)| {
                let difference = input[i] - a;
                if difference.abs() >= threshold {
                    difference
                } else {
                    0.0
                }
            });
        let sum: f32 = kept.clone().sum();
        let agreeing = kept.filter(|&d| d * sum > 0.0);
        let (total, count) = agreeing.fold((0.0, 0), |(t, n), d| (t + d, n + 1));
        match count {
            0 => a,
            n => a + alpha * total / n as f32,
        }
    };
    (0..inputs[0].len()).map(element).collect()
}

/// Each difference keeps an element with probability `density`, which then counts `1 / density` times.
fn dare(settings: &Settings<'_>, inputs: &[Vec<f32>], place: Place) -> Vec<f32> {
    let scale = (settings.alpha / settings.density) as f32;
    let kept = |input: usize, i: usize| {
        let counter = ((place.start + i) * inputs.len() + input) as u64;
        f64::from(random::unit(place.key, counter)) < settings.density
    };
    let element = |i: usize| {
        let a = inputs[0][i];
        let differences = (1..inputs.len())
            .filter(|&input| kept(input, i))
            .map(|input| inputs[input][i] - a);
        a + scale * differences.sum::<f32>()
    };
    (0..inputs[0].len()).map(element).collect()
}

fn average(inputs: &[Vec<f32>], weights: &[f64]) -> Vec<f32> {
    let total: f64 = weights.iter().sum();
    let element = |i: usize| {
        let products = inputs.iter().zip(weights);
        let sum: f64 = products.map(|(input, w)| w * f64::from(input[i])).sum();
        (sum / total) as f32
    };
    (0..inputs[0].len()).map(element).collect()
}

fn survey(method: Method, settings: &Settings<'_>, pieces: &impl Pieces) -> Survey {
    match method {
        Method::Slerp => arc(settings.alpha, pieces),
        Method::CosineA | Method::CosineB => Survey::Columns(towards_b(method, settings, pieces)),
        Method::Ties => {
            let kept = (settings.density * pieces.len() as f64).round() as usize;
            let threshold = |i| threshold(pieces, i, kept);
            Survey::Thresholds((1..pieces.inputs()).map(threshold).collect())
        }
        _ => Survey::Nothing,
    }
}

/// Pieces of the whole tensor, as places and lengths.
fn places(length: usize) -> impl IndexedParallelIterator<Item = (usize, usize)> {
    let count = length.div_ceil(PIECE);
    (0..count)
        .into_par_iter()
        .map(move |n| (n * PIECE, PIECE.min(length - n * PIECE)))
}

/// Sums of `a b`, `a a` and `b b` over the tensor.
fn dots(pieces: &impl Pieces) -> [f64; 3] {
    let partial = |(start, length)| {
        let (a, b) = (pieces.read(0, start, length), pieces.read(1, start, length));
        let mut sums = [0.0; 3];
        for (a, b) in a.iter().zip(&b) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            sums[0] += a * b;
            sums[1] += a * a;
            sums[2] += b * b;
        }
        sums
    };
    // In the order of the pieces: the same bits on any number of threads.
    let partials: Vec<[f64; 3]> = places(pieces.len()).map(partial).collect();
    let add = |s: [f64; 3], p: &[f64; 3]| [s[0] + p[0], s[1] + p[1], s[2] + p[2]];
    partials.iter().fold([0.0; 3], add)
}

fn arc(alpha: f64, pieces: &impl Pieces) -> Survey {
    let [ab, aa, bb] = dots(pieces);
    let (length_a, length_b) = (aa.sqrt(), bb.sqrt());
    let cos = (ab / (length_a * length_b)).clamp(-1.0, 1.0);
    let angle = cos.acos();
    if angle.is_nan() || angle.sin() < 1e-6 {
        return Survey::Arc((1.0 - alpha) as f32, alpha as f32);
    }
    let length = length_a + alpha * (length_b - length_a);
    let of_a = ((1.0 - alpha) * angle).sin() / angle.sin() * length / length_a;
    let of_b = (alpha * angle).sin() / angle.sin() * length / length_b;
    Survey::Arc(of_a as f32, of_b as f32)
}

/// `k` of every column. A column is what remains of the tensor when the first dimension is summed over.
fn towards_b(method: Method, settings: &Settings<'_>, pieces: &impl Pieces) -> Vec<f32> {
    let columns = pieces.columns();
    let mut sums = vec![[0f64; 3]; columns];
    for start in (0..pieces.len()).step_by(PIECE) {
        let length = PIECE.min(pieces.len() - start);
        let (a, b) = (pieces.read(0, start, length), pieces.read(1, start, length));
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            let (a, b) = (f64::from(*a), f64::from(*b));
            let sums = &mut sums[(start + i) % columns];
            sums[0] += a * b;
            sums[1] += a * a;
            sums[2] += b * b;
        }
    }
    // As PyTorch's cosine_similarity: vectors shorter than 1e-8 are taken to be that long.
    let cosine = |[ab, aa, bb]: [f64; 3]| ab / (aa.sqrt().max(1e-8) * bb.sqrt().max(1e-8));
    let whole = match method {
        Method::CosineB => {
            let add = |s: [f64; 3], p: &[f64; 3]| [s[0] + p[0], s[1] + p[1], s[2] + p[2]];
            Some(cosine(sums.iter().fold([0.0; 3], add)))
        }
        _ => None,
    };
    let k = |sums: &[f64; 3]| {
        let similarity = match whole {
            Some(whole) => f64::midpoint(cosine(*sums), whole),
            None => cosine(*sums),
        };
        (1.0 - (similarity - settings.alpha).clamp(0.0, 1.0)) as f32
    };
    sums.iter().map(k).collect()
}

/// Magnitude of the `kept`th largest difference between input `i` and the first: exact, by two counts over the bits of
/// the magnitudes, which order like the numbers.
fn threshold(pieces: &impl Pieces, i: usize, kept: usize) -> f32 {
    if kept == 0 {
        return f32::INFINITY;
    }
    let count = |upper: Option<u32>| {
        let mut counts = vec![0usize; 1 << 16];
        for start in (0..pieces.len()).step_by(PIECE) {
            let length = PIECE.min(pieces.len() - start);
            let (a, b) = (pieces.read(0, start, length), pieces.read(i, start, length));
            for (a, b) in a.iter().zip(&b) {
                let bits = (b - a).abs().to_bits();
                match upper {
                    None => counts[(bits >> 16) as usize] += 1,
                    Some(upper) if bits >> 16 == upper => counts[(bits & 0xFFFF) as usize] += 1,
                    Some(_) => {}
                }
            }
        }
        counts
    };
    // The bin, from above, in which the `left`th value lies, and how many of that bin are wanted.
    let find = |counts: &[usize], mut left: usize| {
        for (bin, &n) in counts.iter().enumerate().rev() {
            if n >= left {
                return (bin as u32, left);
            }
            left -= n;
        }
        (0, left)
    };
    let (upper, left) = find(&count(None), kept.min(pieces.len()));
    let (lower, _) = find(&count(Some(upper)), left);
    f32::from_bits(upper << 16 | lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Arrays<'a>(&'a [&'a [f32]], usize);

    impl Pieces for Arrays<'_> {
        fn read(&self, i: usize, start: usize, length: usize) -> Vec<f32> {
            self.0[i][start..start + length].to_vec()
        }
        fn inputs(&self) -> usize {
            self.0.len()
        }
        fn len(&self) -> usize {
            self.0[0].len()
        }
        fn columns(&self) -> usize {
            self.1
        }
    }

    fn run(method: Method, alpha: f64, beta: f64, inputs: &[&[f32]]) -> Vec<f32> {
        let settings = Settings {
            alpha,
            beta,
            density: 0.5,
            weights: &[1.0, 2.0, 1.0],
            seed: 0,
            name: "a",
        };
        let mut output = vec![0; 4 * inputs[0].len()];
        let store = |values: &[f32], output: &mut [u8]| {
            for (value, bytes) in values.iter().zip(output.as_chunks_mut::<4>().0) {
                *bytes = value.to_le_bytes();
            }
        };
        merge(method, &settings, &Arrays(inputs, 1), &mut output, 4, store);
        output
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()
    }

    #[test]
    fn scalars_are_merged_as_the_formulas_say() {
        let one = |method, alpha, beta, inputs: [f32; 3]| {
            let [a, b, c] = &inputs.map(|x| [x]);
            run(method, alpha, beta, &[a, b, c])[0]
        };
        assert_eq!(one(Method::TrainDifference, 1.0, 0.0, [1.0, 2.0, 1.5]), 1.6);
        assert_eq!(one(Method::TrainDifference, 1.0, 0.0, [2.0, 2.0, 1.5]), 2.0);
        assert_eq!(one(Method::TrainDifference, 1.0, 0.0, [3.0, 2.0, 2.0]), 3.0);
        assert_eq!(one(Method::AddDifference, 0.5, 0.0, [1.0, 5.0, 3.0]), 2.0);
        assert_eq!(one(Method::SumTwice, 0.5, 0.5, [1.0, 3.0, 6.0]), 4.0);
        assert_eq!(one(Method::TripleSum, 0.25, 0.5, [4.0, 8.0, 2.0]), 4.0);
        assert_eq!(one(Method::Average, 0.0, 0.0, [4.0, 8.0, 12.0]), 8.0);
        // Sum twice without beta is the weighted sum, and so is the triple sum.
        assert_eq!(one(Method::SumTwice, 0.25, 0.0, [1.0, 3.0, 9.0]), 1.5);
        assert_eq!(one(Method::TripleSum, 0.25, 0.0, [1.0, 3.0, 9.0]), 1.5);
        assert_eq!(one(Method::AddDifference, 1.0, 0.0, [1.0, 3.0, 1.0]), 3.0);
    }

    #[test]
    fn ties_keeps_the_largest_half_and_the_common_sign() {
        let a = [0.0f32; 4];
        let b = [4.0, -1.0, 3.0, 0.5];
        let c = [1.0, -2.0, -8.0, 0.1];
        // Of b 4 and 3 remain, of c -2 and -8: alone, alone, and -8 outvotes 3.
        assert_eq!(
            run(Method::Ties, 1.0, 0.0, &[&a, &b, &c]),
            [4.0, -2.0, -8.0, 0.0]
        );
    }

    #[test]
    fn the_threshold_is_the_exact_order_statistic() {
        let a = vec![0.0f32; 200_000];
        let b: Vec<f32> = (0..200_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) % 200_000) as f32 - 1e5)
            .collect();
        let mut sorted: Vec<f32> = b.iter().map(|x| x.abs()).collect();
        sorted.sort_by(|x, y| y.total_cmp(x));
        for kept in [1, 2, 777, 100_000, 200_000] {
            let found = threshold(&Arrays(&[&a, &b], 1), 1, kept);
            assert_eq!(found, sorted[kept - 1]);
        }
        assert_eq!(threshold(&Arrays(&[&a, &b], 1), 1, 0), f32::INFINITY);
    }

    #[test]
    fn dare_keeps_the_expectation() {
        let a = vec![1.0f32; 100_000];
        let b = vec![2.0f32; 100_000];
        let merged = run(Method::Dare, 1.0, 0.0, &[&a, &b]);
        assert!(merged.iter().all(|&x| x == 1.0 || x == 3.0));
        let mean = merged.iter().sum::<f32>() / 1e5;
        assert!((mean - 2.0).abs() < 0.02, "{mean}");
    }
}
