//! A comparison for people.

use std::fmt::Write;

use super::{Comparison, Pair, Ratio, Verdict};
use crate::page::markdown_table;
use crate::run::Unit;

/// `+3.1 %` for a factor of 1.031, and `2.5 x` for one that is far from 1.
pub(crate) fn percent(factor: f64) -> String {
    match factor {
        0.5..2.0 => format!("{:+.1} %", 100.0 * (factor - 1.0)),
        0.1..10.0 => format!("{factor:.2} x"),
        1.0.. => format!("{factor:.0} x"),
        _ => format!("{factor:.3} x"),
    }
}

/// A ratio's interval.
pub(crate) fn interval(ratio: &Ratio) -> String {
    format!("{} to {}", percent(ratio.low), percent(ratio.high))
}

impl Verdict {
    pub(crate) fn words(self, unit: Unit) -> &'static str {
        match (self, unit) {
            (Self::More, Unit::Seconds) => "slower",
            (Self::Less, Unit::Seconds) => "faster",
            (Self::More, Unit::Joules) => "more",
            (Self::Less, Unit::Joules) => "less",
            (Self::Noise, _) => "noise",
            (Self::TooFew, _) => "too few rounds",
        }
    }
}

impl Pair {
    /// What its first figure says.
    pub(crate) fn summary(&self) -> String {
        let (a, b) = (&self.a, &self.b);
        let who = match a == b {
            true => a.clone(),
            false => format!("{b} against {a}"),
        };
        let Some(first) = self.figures.first() else {
            return format!("{who}: no figure in common");
        };
        let of = &first.name;
        match (first.ratio, first.verdict) {
            (None, _) => format!("{who}: too few rounds to say; at least 4 of each are needed"),
            (Some(ratio), Verdict::Noise) => format!(
                "{who}: no difference beyond noise in {of} ({})",
                interval(&ratio)
            ),
            (Some(ratio), verdict) => format!(
                "{who}: {of} {}: {} ({})",
                verdict.words(first.unit),
                percent(ratio.estimate),
                interval(&ratio)
            ),
        }
    }

    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let head = ["", &self.a, &self.b, "difference", "interval", "verdict"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for figure in &self.figures {
            let median =
                |value: Option<f64>| value.map_or(String::new(), |value| figure.unit.show(value));
            let ratio = figure.ratio.as_ref();
            rows.push(vec![
                figure.name.clone(),
                median(figure.a_median),
                median(figure.b_median),
                ratio.map_or(String::new(), |ratio| percent(ratio.estimate)),
                ratio.map_or(String::new(), interval),
                figure.verdict.words(figure.unit).to_owned(),
            ]);
        }
        rows
    }
}

impl Comparison {
    /// How to read it.
    pub(crate) fn explanation(&self) -> String {
        let all = self.pairs.iter().map(|pair| pair.figures.len());
        let count: usize = all.sum();
        let share = 1.0 - self.confidence_percent / 100.0;
        format!(
            "Intervals hold the true difference in {} of 100 cases; what may be none is noise. Of {count} figures without any difference, up to {:.0} \
             would seem to have one by chance: the first of each table is its verdict, the others tell where it comes from.",
            self.confidence_percent,
            (share * count as f64).ceil()
        )
    }
}

/// The comparison in Markdown.
pub(super) fn text(comparison: &Comparison) -> String {
    let mut text = String::new();
    for (source, letter) in comparison.sources.iter().zip(["A", "B"]) {
        let _ = writeln!(text, "{letter}: {source}  ");
    }
    for remark in &comparison.remarks {
        let _ = writeln!(text, "- {remark}");
    }
    for pair in &comparison.pairs {
        let _ = writeln!(text, "\n**{}**  \n{}\n", pair.summary(), pair.name);
        for remark in &pair.remarks {
            let _ = writeln!(text, "{remark}\n");
        }
        text.push_str(&markdown_table(&pair.rows()));
    }
    let _ = writeln!(text, "\n{}", comparison.explanation());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_far_from_1_are_no_percentages() {
        let shown = [1.031, 0.9, 1.0, 2.5, 34.78, 0.25, 0.034].map(percent);
        let expected = [
            "+3.1 %", "-10.0 %", "+0.0 %", "2.50 x", "35 x", "0.25 x", "0.034 x",
        ];
        assert_eq!(shown, expected);
    }
}
