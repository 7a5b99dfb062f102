//! How much larger numbers of one kind are than those of another, with an interval that holds whatever their distribution is.
//!
//! The estimate is that of Hodges and Lehmann (1963): the median of all quotients of a number of `b` and one of `a`. Its
//! interval are those factors that the exact rank-sum test of Mann and Whitney (1947) does not rule out, as in Hollander, Wolfe
//! and Chicken, "Nonparametric Statistical Methods" (2014), sections 4.2 and 4.3, taken over logarithms: what disturbs a
//! measurement of time is a factor. Equal numbers make the interval wider, never narrower.

use serde::{Deserialize, Serialize};

use crate::report::median;

/// By what factor numbers are larger than others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ratio {
    pub(crate) estimate: f64,
    /// The interval's ends.
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Ratio {
    /// The ratio of `b` to `a`, positive numbers in any order, with an interval that holds the true one with a probability of at
    /// least `confidence`, 0 to 1. None if there are too few numbers for that.
    pub(crate) fn of(a: &[f64], b: &[f64], confidence: f64) -> Option<Self> {
        let rank = lower_rank(a.len(), b.len(), (1.0 - confidence) / 2.0)?;
        let of_all = b
            .iter()
            .flat_map(|b| a.iter().map(move |a| b.ln() - a.ln()));
        let mut logs: Vec<f64> = of_all.collect();
        logs.sort_by(f64::total_cmp);
        Some(Self {
            estimate: median(&logs)?.exp(),
            low: logs[rank - 1].exp(),
            high: logs[logs.len() - rank].exp(),
        })
    }

    /// Whether there may be no difference.
    pub(crate) fn is_noise(&self) -> bool {
        self.low <= 1.0 && 1.0 <= self.high
    }
}

/// The place, from 1, of the interval's lower end among all quotients: the smallest `u` for which the rank-sum statistic of `n` and `m`
/// numbers is at most `u` with a probability of at least `tail`. None where even 0 is that likely.
fn lower_rank(n: usize, m: usize, tail: f64) -> Option<usize> {
    let mut below = 0.0;
    for (u, probability) in distribution(n, m).into_iter().enumerate() {
        below += probability;
        if below >= tail {
            return (u > 0).then_some(u);
        }
    }
    None
}

/// Probabilities of 0, 1, .. of the rank-sum statistic of `n` and `m` numbers of one distribution without ties. The largest number of all is
/// one of the `n` with probability `n / (n + m)`, and then exceeds the `m` others (Mann and Whitney 1947, equation 2).
fn distribution(n: usize, m: usize) -> Vec<f64> {
    // For i numbers of the first kind and 0 to m of the second.
    let mut row = vec![vec![1.0]; m + 1];
    for i in 1..=n {
        row[0] = vec![1.0];
        for j in 1..=m {
            let (with, without) = (i as f64, j as f64);
            let all = with + without;
            let (fewer_first, fewer_second) = (&row[j], &row[j - 1]);
            let mut probabilities = vec![0.0; i * j + 1];
            for (u, p) in fewer_first.iter().enumerate() {
                probabilities[u + j] += with / all * p;
            }
            for (u, p) in fewer_second.iter().enumerate() {
                probabilities[u] += without / all * p;
            }
            row[j] = probabilities;
        }
    }
    row.pop().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use sd_runtime::noise::Rng;

    use super::*;

    /// `intervals.py` beside the file asks scipy which factors its own exact test rules out.
    #[test]
    fn intervals_are_those_that_scipys_test_leaves() {
        #[derive(Deserialize)]
        struct Golden {
            a: Vec<f64>,
            b: Vec<f64>,
            confidence: f64,
            ratio: Option<Ratio>,
        }
        let golden = include_str!("intervals.json");
        let golden: Vec<Golden> = serde_json::from_str(golden).unwrap();
        assert!(golden.len() > 10);
        for case in golden {
            let found = Ratio::of(&case.a, &case.b, case.confidence);
            assert_eq!(found.is_some(), case.ratio.is_some(), "{:?}", case.a);
            let Some((found, expected)) = found.zip(case.ratio) else {
                continue;
            };
            // Logarithms and exponentials of two libraries differ in the last places.
            let near = |x: f64, y: f64| (x / y - 1.0).abs() < 1e-12;
            assert!(
                near(found.estimate, expected.estimate)
                    && near(found.low, expected.low)
                    && near(found.high, expected.high),
                "{found:?} {expected:?}"
            );
        }
    }

    /// Times around `seconds` whose logarithms have the standard deviation `spread`.
    struct Times(Box<dyn sd_runtime::noise::NoiseSource + Send>);

    impl Times {
        fn new(seed: u64) -> Self {
            Self(Rng::TorchCpu.source(seed))
        }

        fn draw(&mut self, count: usize, seconds: f64, spread: f64) -> Vec<f64> {
            let mut normal = vec![0.0; count];
            self.0.normal(&mut normal);
            let time = |x: f32| seconds * (spread * f64::from(x)).exp();
            normal.into_iter().map(time).collect()
        }

        /// Share of comparisons that are no noise, if `b` takes `factor` times as long.
        fn found(&mut self, rounds: usize, spread: f64, factor: f64) -> f64 {
            const TRIES: usize = 2000;
            let is_found = |_: &usize| {
                let a = self.draw(rounds, 1.0, spread);
                let b = self.draw(rounds, factor, spread);
                !Ratio::of(&a, &b, 0.95).unwrap().is_noise()
            };
            (0..TRIES).filter(is_found).count() as f64 / TRIES as f64
        }
    }

    #[test]
    fn a_against_a_is_noise_19_times_in_20() {
        let mut times = Times::new(1);
        for rounds in [4, 5, 8, 20] {
            for spread in [0.002, 0.02, 0.3] {
                let share = times.found(rounds, spread, 1.0);
                // At most 0.05, and three standard deviations of 2000 tries.
                assert!(share < 0.065, "{rounds} {spread}: {share}");
                // Not by never finding anything: 4 and 4 numbers have 70 orders, so 2 of 70 are the least.
                assert!(share > 0.015, "{rounds} {spread}: {share}");
            }
        }
    }

    #[test]
    fn slow_downs_are_found_as_their_size_against_the_spread_warrants() {
        let mut times = Times::new(2);
        for (rounds, spread, factor, shares) in [
            // Far above the spread: always, even in the fewest rounds.
            (4, 0.005, 1.03, 0.99..=1.0),
            (5, 0.02, 1.10, 0.99..=1.0),
            (5, 0.01, 1.03, 0.9..=1.0),
            (5, 0.03, 1.10, 0.93..=1.0),
            // As large as the spread: more rounds find it.
            (5, 0.03, 1.03, 0.1..=0.4),
            (10, 0.03, 1.03, 0.4..=0.6),
            (20, 0.03, 1.03, 0.8..=0.9),
            (20, 0.10, 1.10, 0.75..=0.87),
            (20, 0.10, 1.03, 0.1..=0.2),
            // Far below it: as good as never.
            (5, 0.30, 1.03, 0.0..=0.07),
            (10, 0.30, 1.03, 0.0..=0.08),
        ] {
            let share = times.found(rounds, spread, factor);
            assert!(
                shares.contains(&share),
                "{rounds} rounds, {spread}, {factor}: {share}"
            );
            let faster = times.found(rounds, spread, 1.0 / factor);
            assert!(shares.contains(&faster), "{factor} faster: {faster}");
        }
    }

    #[test]
    fn the_interval_holds_the_true_ratio() {
        let mut times = Times::new(3);
        let held = |_: &usize| {
            let (a, b) = (times.draw(6, 2.0, 0.1), times.draw(8, 3.0, 0.1));
            let ratio = Ratio::of(&a, &b, 0.95).unwrap();
            assert!(ratio.low <= ratio.estimate && ratio.estimate <= ratio.high);
            ratio.low <= 1.5 && 1.5 <= ratio.high
        };
        let share = (0..2000).filter(held).count() as f64 / 2000.0;
        assert!((0.945..1.0).contains(&share), "{share}");
    }

    #[test]
    fn too_few_numbers_say_nothing_and_equal_ones_are_noise() {
        assert_eq!(Ratio::of(&[1.0; 3], &[2.0; 3], 0.95), None);
        assert_eq!(Ratio::of(&[], &[2.0; 3], 0.95), None);
        let same = Ratio::of(&[1.0; 4], &[1.0; 4], 0.95).unwrap();
        assert!(same.is_noise() && same.estimate == 1.0, "{same:?}");
    }
}
