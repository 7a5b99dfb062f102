//! Channels whose numbers are much larger than those of the others.
//!
//! A row of whole numbers has one scale, which such a channel would set: little would be left of the others. So products with
//! it are computed in single precision (`LLM.int8()`, Dettmers et al. 2022, arXiv:2208.07339), where a few of many channels
//! cost little.

/// Most channels that are taken out.
pub(crate) const MOST: usize = 16;

/// Channels whose largest number is more than `ratio` times that of the median channel; if there are too many, the largest.
pub(crate) fn outliers(largest: &[f32], ratio: f32) -> Vec<usize> {
    let mut sorted = largest.to_vec();
    let middle = sorted.len() / 2;
    let (_, median, _) = sorted.select_nth_unstable_by(middle, f32::total_cmp);
    let limit = ratio * median.max(f32::MIN_POSITIVE);
    let mut found: Vec<usize> = (0..largest.len()).filter(|&k| largest[k] > limit).collect();
    found.sort_by(|&a, &b| largest[b].total_cmp(&largest[a]));
    found.truncate(MOST);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_those_far_above_the_median_are_found() {
        let mut largest = vec![1.0; 100];
        assert!(outliers(&largest, 16.0).is_empty());
        largest[7] = 17.0;
        largest[50] = 15.0;
        largest[99] = f32::INFINITY;
        assert_eq!(outliers(&largest, 16.0), [99, 7]);
        for (k, x) in largest.iter_mut().enumerate().take(40) {
            *x = 100.0 + k as f32;
        }
        let found = outliers(&largest, 16.0);
        assert_eq!((found.len(), found[0], found[1]), (MOST, 99, 39));
        // What only few channels have is all that there is.
        assert_eq!(outliers(&[0.0, 0.0, 0.0, 2.0], 16.0), [3]);
    }
}
