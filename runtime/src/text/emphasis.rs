//! How the weights of a prompt act on its embeddings: A1111's "Original" rule.

/// Multiplies each token's embedding by its weight and restores the mean over the chunk.
///
/// `embeddings`: one chunk, [77, width]; `weights`: one per token. Weights of 1 throughout leave every bit as it is.
pub fn emphasize(embeddings: &mut [f32], weights: &[f32]) {
    if weights.iter().all(|&w| w == 1.0) {
        return;
    }
    let before = mean(embeddings);
    let width = embeddings.len() / weights.len();
    for (token, &weight) in embeddings.chunks_exact_mut(width).zip(weights) {
        token.iter_mut().for_each(|x| *x *= weight);
    }
    let ratio = before / mean(embeddings);
    // A mean of 0 has nothing to restore it by.
    if ratio.is_finite() {
        embeddings.iter_mut().for_each(|x| *x *= ratio as f32);
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_restored() {
        let mut z = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        emphasize(&mut z, &[1.0, 1.1, 0.9]);
        let expected = [
            1.019_417_4,
            2.038_834_8,
            3.364_077_6,
            4.485_437,
            4.587_378_5,
            5.504_853_7,
        ];
        // A few roundings to single precision.
        assert!(
            z.iter()
                .zip(expected)
                .all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6),
            "{z:?}"
        );
    }

    #[test]
    fn weights_of_one_change_nothing_and_a_mean_of_zero_is_no_accident() {
        let mut z = [0.1, -0.7, 0.3];
        emphasize(&mut z, &[1.0, 1.0, 1.0]);
        assert_eq!(z, [0.1, -0.7, 0.3]);
        let mut z = [1.0, 1.0];
        emphasize(&mut z, &[1.0, -1.0]);
        assert_eq!(z, [1.0, -1.0]);
    }
}
