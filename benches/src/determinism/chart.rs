//! Distances over steps as a picture in SVG, on a logarithmic axis.

use std::fmt::Write;

use html_escape::encode_text;

/// Colours that there are; more lines begin anew, dashed.
pub(super) const COLOURS: usize = 8;

/// What lines look like: colours that people who see few colours tell apart (Okabe and Ito 2008), darker by light where they
/// have to be.
pub(super) const STYLE: &str = "\
:root { --c0: #0072b2; --c1: #d55e00; --c2: #007a5a; --c3: #b0508a; --c4: #a87000; --c5: #2f86b5; --c6: #6b4fbb; --c7: #555 }
@media (prefers-color-scheme: dark) { :root { --c0: #4ea3e0; --c1: #f07d3a; --c2: #2fc298; --c3: #e08fc0; --c4: #e6a93a; \
--c5: #7cc7ee; --c6: #a993f0; --c7: #bbb } }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem }
.charts figure { max-width: 34rem } svg { width: 100%; height: auto; display: block } svg text { font-size: 12px; fill: var(--faint) }
.grid { stroke: var(--line); stroke-width: 1 } .past { stroke: var(--faint); stroke-dasharray: 2 3 }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem } .legend svg { width: 2rem; display: inline-block; vertical-align: middle }
";

/// Width and height, and where the plot is in there.
const SIZE: [f64; 2] = [400.0, 260.0];
const LEFT: f64 = 48.0;
const RIGHT: f64 = 392.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 226.0;

/// A line: one number for each step; what is 0 has no place on the axis.
pub(super) type Line = Vec<Option<f64>>;

/// How line `i` is drawn.
pub(super) fn stroke(i: usize) -> String {
    let dashes = match i / COLOURS % 3 {
        0 => "",
        1 => " stroke-dasharray=\"6 3\"",
        _ => " stroke-dasharray=\"1 3\"",
    };
    format!(
        "fill=\"none\" stroke=\"var(--c{})\" stroke-width=\"2\"{dashes}",
        i % COLOURS
    )
}

/// Lines over steps that count from 1, a rule at `threshold`, and what it all is.
pub(super) fn chart(page: &mut String, title: &str, across: &str, lines: &[Line], threshold: f64) {
    let numbers = lines.iter().flatten().flatten().copied();
    let numbers = numbers.filter(|&x| x > 0.0).chain([threshold]);
    let logs = numbers.map(f64::log10);
    let (low, high) = logs.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
        (low.min(x), high.max(x))
    });
    let (low, mut high) = (low.floor(), high.ceil());
    if high <= low {
        high = low + 1.0;
    }
    let steps = lines.iter().map(Vec::len).max().unwrap_or(0).max(2);
    let x = |step: usize| LEFT + (RIGHT - LEFT) * step as f64 / (steps - 1) as f64;
    let y = |value: f64| BOTTOM - (BOTTOM - TOP) * (value.log10() - low) / (high - low);
    let [width, height] = SIZE;
    let _ = writeln!(
        page,
        "<figure><svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>",
        encode_text(title)
    );
    let (decades, every) = ((high - low) as i32, ((high - low) / 7.0).ceil() as usize);
    for decade in (0..=decades).step_by(every.max(1)) {
        let power = low as i32 + decade;
        let y = y(10f64.powi(power));
        let _ = writeln!(
            page,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">1e{power}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    for (step, anchor) in [(0, "start"), (steps - 1, "end")] {
        let (x, y) = (x(step), BOTTOM + 16.0);
        let _ = writeln!(
            page,
            "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>",
            step + 1
        );
    }
    let (middle, bottom) = (f64::midpoint(LEFT, RIGHT), BOTTOM + 30.0);
    let _ = writeln!(
        page,
        "<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">{}</text>",
        encode_text(across)
    );
    let _ = writeln!(
        page,
        "<path class=\"past\" d=\"M{LEFT} {:.1}H{RIGHT}\"/>",
        y(threshold)
    );
    for (i, line) in lines.iter().enumerate() {
        let (mut path, mut pen) = (String::new(), 'M');
        for (step, value) in line.iter().enumerate() {
            match value.filter(|&value| value > 0.0) {
                Some(value) => {
                    let _ = write!(path, "{pen}{:.1} {:.1}", x(step), y(value));
                    pen = 'L';
                }
                None => pen = 'M',
            }
        }
        if !path.is_empty() {
            let _ = writeln!(page, "<path {} d=\"{path}\"/>", stroke(i));
        }
    }
    let _ = writeln!(
        page,
        "</svg><figcaption>{}</figcaption></figure>",
        encode_text(title)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_equal_leaves_a_gap_and_a_decade_is_as_high_as_any() {
        let mut page = String::new();
        let line = vec![
            Some(1e-4),
            Some(1e-3),
            None,
            Some(0.0),
            Some(1e-2),
            Some(1e-1),
        ];
        chart(&mut page, "a < b", "steps", &[line], 0.01);
        assert!(page.contains("a &lt; b") && !page.contains("a < b"));
        // From 1e-4 at the bottom to 1e-1 at the top.
        let path = "d=\"M48.0 226.0L116.8 154.0M323.2 82.0L392.0 10.0\"";
        assert!(page.contains(path), "{page}");
        assert!(page.contains("class=\"past\" d=\"M48 82.0H392\""), "{page}");
    }
}
