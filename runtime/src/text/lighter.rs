//! compel's rule for weights below 1: embeddings go towards those of the prompt without the words, by `tan((1 - weight) pi / 2)`
//! to 1, so that a weight of 0.5 is half-way. Its mode `REMOVE`: words are taken out and those behind them move up, since text
//! encoders here have no input that hides tokens.

use std::f64::consts::FRAC_PI_2;

use super::Chunk;

/// The chunk without each run of tokens whose weight is below 1, and how much that counts where the whole chunk counts 1. `pad`
/// fills the end.
pub(super) fn without_light(chunk: &Chunk, pad: u32) -> Vec<(Chunk, f64)> {
    let mut found = Vec::new();
    let mut start = 0;
    for run in chunk.weights.chunk_by(|a, b| a == b) {
        let end = start + run.len();
        if run[0] < 1.0 {
            let weight = f64::from(run[0]).max(1e-9);
            let counts = ((1.0 - weight) * FRAC_PI_2).tan();
            found.push((without(chunk, start, end, pad), counts));
        }
        start = end;
    }
    found
}

/// A chunk without the tokens from `start` to `end`.
fn without(chunk: &Chunk, start: usize, end: usize, pad: u32) -> Chunk {
    let mut rest = chunk.clone();
    rest.ids.drain(start..end);
    rest.ids.resize(chunk.ids.len(), pad);
    rest.weights.drain(start..end);
    rest.weights.resize(chunk.weights.len(), 1.0);
    rest.vectors.retain(|(at, _)| !(start..end).contains(at));
    for (at, _) in &mut rest.vectors {
        *at -= if *at >= end { end - start } else { 0 };
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_out_with_what_belongs_to_them() {
        let chunk = Chunk {
            ids: vec![9, 1, 2, 3, 0, 8, 7, 7],
            weights: vec![1.0, 0.5, 0.5, 1.0, 1.3, 1.0, 1.0, 1.0],
            vectors: vec![(2, vec![0.0]), (4, vec![1.0])],
        };
        let found = without_light(&chunk, 6);
        let expected = Chunk {
            ids: vec![9, 3, 0, 8, 7, 7, 6, 6],
            weights: vec![1.0, 1.0, 1.3, 1.0, 1.0, 1.0, 1.0, 1.0],
            vectors: vec![(2, vec![1.0])],
        };
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, expected);
        assert!((found[0].1 - 1.0).abs() < 1e-12);
        let none = Chunk {
            weights: vec![1.0, 2.0],
            ..chunk
        };
        assert!(without_light(&none, 6).is_empty());
    }
}
