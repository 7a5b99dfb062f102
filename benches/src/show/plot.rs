//! Plots for pages. Places within a plot are percentages of its width, so plots fit every window while text and points keep their
//! size; what a row is stands above its plot, where a long name breaks into lines.

use std::fmt::Write;

use html_escape::{encode_double_quoted_attribute, encode_text};

use crate::compare::Ratio;

/// Rules for the plots.
pub(super) const STYLE: &str = "\
.plot { margin: .5rem 0 } .plot > p { display: flex; gap: 1rem; justify-content: space-between; margin: 0; font-size: .9rem }
.plot > p > span:first-child { overflow-wrap: anywhere } .plot > p > span:last-child { text-align: right; font-variant-numeric: tabular-nums }
.plot svg { display: block; width: 100%; height: 22px; background: var(--area); overflow: visible }
.ends { display: flex; justify-content: space-between; margin: 0; font-size: .8rem; color: var(--faint) }
.legend { font-size: .85rem } .legend span { white-space: nowrap; margin-right: 1rem } .legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem }
.a { fill: var(--a); background: var(--a) } .b { fill: var(--b); background: var(--b) } .c { fill: var(--c); background: var(--c) }
.d { fill: var(--d); background: var(--d) } .e { fill: var(--e); background: var(--e) } .mid { fill: var(--front) } .none { fill: var(--faint) }
circle { fill-opacity: .55 }
";

/// Colours of the parts of a bar.
const COLOURS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A bar of parts that lie side by side.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) parts: Vec<f64>,
}

/// Several measurements of the same.
pub(super) struct Dots<'a> {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) all: &'a [f64],
    pub(super) median: Option<f64>,
}

/// A ratio and its interval.
pub(super) struct Whisker {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) ratio: Option<Ratio>,
}

fn row(page: &mut String, name: &str, value: &str, marks: &str) {
    let _ = writeln!(
        page,
        "<div class=\"plot\"><p><span>{}</span><span>{}</span></p><svg role=\"img\" aria-label=\"{}\">{marks}</svg></div>",
        encode_text(name),
        encode_text(value),
        encode_double_quoted_attribute(&format!("{name}: {value}")),
    );
}

fn ends(page: &mut String, texts: &[String]) {
    page.push_str("<p class=\"ends\">");
    for text in texts {
        let _ = write!(page, "<span>{}</span>", encode_text(text));
    }
    page.push_str("</p>\n");
}

/// Bars on one scale, which begins at 0.
pub(super) fn bars(page: &mut String, legend: &[&str], bars: &[Bar]) {
    page.push_str("<p class=\"legend\">");
    for (name, colour) in legend.iter().zip(COLOURS) {
        let _ = write!(
            page,
            "<span><i class=\"{colour}\"></i>{}</span> ",
            encode_text(name)
        );
    }
    page.push_str("</p>\n");
    let longest = bars.iter().map(|bar| bar.parts.iter().sum());
    let longest = longest.fold(f64::MIN_POSITIVE, f64::max);
    for bar in bars {
        let (mut marks, mut x) = (String::new(), 0.0);
        for ((part, colour), name) in bar.parts.iter().zip(COLOURS).zip(legend) {
            let width = 100.0 * part / longest;
            let _ = write!(
                marks,
                "<rect class=\"{colour}\" x=\"{x:.2}%\" y=\"3\" width=\"{width:.2}%\" height=\"16\"><title>{}</title></rect>",
                encode_text(name)
            );
            x += width;
        }
        row(page, &bar.name, &bar.value, &marks);
    }
}

/// Measurements on one scale from the least to the most of all, whose names `show` tells; a line is the median.
pub(super) fn dots(page: &mut String, rows: &[Dots<'_>], show: impl Fn(f64) -> String) {
    let all = || rows.iter().flat_map(|row| row.all.iter().copied());
    let (least, most) = (
        all().fold(f64::INFINITY, f64::min),
        all().fold(f64::NEG_INFINITY, f64::max),
    );
    if !(least.is_finite() && most.is_finite()) {
        return;
    }
    let range = (most - least).max(1e-9 * most.abs()).max(f64::MIN_POSITIVE);
    // Points at the ends are whole.
    let place = |value: f64| 1.5 + 97.0 * (value - least) / range;
    for one in rows {
        let mut marks = String::new();
        for &value in one.all {
            let _ = write!(
                marks,
                "<circle class=\"a\" cx=\"{:.2}%\" cy=\"11\" r=\"5\"><title>{}</title></circle>",
                place(value),
                encode_text(&show(value))
            );
        }
        if let Some(median) = one.median {
            let _ = write!(
                marks,
                "<rect class=\"mid\" x=\"{:.2}%\" y=\"1\" width=\"2\" height=\"20\"/>",
                place(median)
            );
        }
        row(page, &one.name, &one.value, &marks);
    }
    ends(page, &[show(least), show(most)]);
}

/// Ratios on one scale, with as much room for less as for more; `low` and `high` say what lies on the sides.
pub(super) fn whiskers(page: &mut String, rows: &[Whisker], low: &str, high: &str) {
    let far = |ratio: &Ratio| ratio.low.ln().abs().max(ratio.high.ln().abs());
    let most = rows.iter().filter_map(|row| row.ratio.as_ref()).map(far);
    let most = most.fold(0.02, f64::max);
    let place = |factor: f64| 50.0 + 48.0 * factor.ln() / most;
    for one in rows {
        let mut marks =
            String::from("<rect class=\"none\" x=\"50%\" y=\"0\" width=\"1\" height=\"22\"/>");
        if let Some(ratio) = &one.ratio {
            let colour = match (ratio.is_noise(), ratio.estimate > 1.0) {
                (true, _) => "none",
                (false, true) => "b",
                (false, false) => "c",
            };
            let (start, end) = (place(ratio.low), place(ratio.high));
            let _ = write!(
                marks,
                "<rect class=\"{colour}\" x=\"{start:.2}%\" y=\"9\" width=\"{:.2}%\" height=\"4\"/>\
                 <circle class=\"{colour}\" style=\"fill-opacity:1\" cx=\"{:.2}%\" cy=\"11\" r=\"5\"/>",
                end - start,
                place(ratio.estimate)
            );
        }
        row(page, &one.name, &one.value, &marks);
    }
    let end = |sign: f64| crate::compare::percent((sign * most / 48.0 * 50.0).exp());
    ends(
        page,
        &[
            format!("{low} ({})", end(-1.0)),
            "alike".to_owned(),
            format!("{high} ({})", end(1.0)),
        ],
    );
}
