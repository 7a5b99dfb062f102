//! Where a picture's noise comes from: a generator of its own, or its part of what a batch draws as one tensor.

use super::{NoiseSource, Rng};

/// A generator, and a picture's place in the batch that draws from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// What draws.
    pub rng: Rng,
    /// The picture's place in the batch, from 0.
    pub index: usize,
    /// How many pictures draw at once; 1 where every picture has a generator of its own.
    pub count: usize,
}

impl From<Rng> for Origin {
    /// A generator for one picture.
    fn from(rng: Rng) -> Self {
        Self {
            rng,
            index: 0,
            count: 1,
        }
    }
}

impl Origin {
    /// Starts the generator. Its draws are the picture's parts of draws for the whole batch.
    #[must_use]
    pub fn source(self, seed: u64) -> Box<dyn NoiseSource + Send> {
        let source = self.rng.source(seed);
        match self.count {
            1 => source,
            _ => Box::new(Part {
                source,
                origin: self,
            }),
        }
    }
}

struct Part {
    source: Box<dyn NoiseSource + Send>,
    origin: Origin,
}

impl NoiseSource for Part {
    fn normal(&mut self, out: &mut [f32]) {
        let Origin { index, count, .. } = self.origin;
        let mut whole = vec![0.0; count * out.len()];
        self.source.normal(&mut whole);
        out.copy_from_slice(&whole[index * out.len()..][..out.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_draw_their_parts_of_a_batch() {
        // 3 x 7 numbers: torch draws less than 16, and the end of what is no multiple of 16, in ways of their own.
        for (rng, length) in Rng::ALL.into_iter().flat_map(|rng| [(rng, 7), (rng, 256)]) {
            let mut source = rng.source(5);
            for draw in 0..2 {
                let mut whole = vec![0.0; 3 * length];
                source.normal(&mut whole);
                for index in 0..3 {
                    let mut part = Origin {
                        rng,
                        index,
                        count: 3,
                    }
                    .source(5);
                    let mut out = vec![0.0; length];
                    (0..=draw).for_each(|_| part.normal(&mut out));
                    assert_eq!(out, whole[index * length..][..length]);
                }
            }
        }
    }
}
