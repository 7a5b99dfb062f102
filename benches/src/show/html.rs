//! Pages of reports and comparisons.

use html_escape::encode_text;

use super::plot::{self, Bar, Dots, Whisker, bars, dots, whiskers};
use super::tables;
use crate::compare::{Comparison, Pair, interval, percent};
use crate::memory::Memory;
use crate::page;
use crate::run::{Measured, RunReport, Unit, common};

fn section(page: &mut String, title: &str) {
    page.push_str("<section>\n<h2>");
    page.push_str(&encode_text(title));
    page.push_str("</h2>\n");
}

fn end_section(page: &mut String) {
    page.push_str("</section>\n");
}

fn faint(page: &mut String, text: &str) {
    page.push_str("<p class=\"faint\">");
    page.push_str(&encode_text(text));
    page.push_str("</p>\n");
}

/// The page of a report.
pub(super) fn of_report(report: &RunReport) -> String {
    let mut page = page::begin(&tables::title(report), plot::STYLE);
    page::paragraph(&mut page, &common(&report.cases()));
    page::paragraph(&mut page, &tables::machine_in_short(report));
    let names = report.names();
    let measured: Vec<(&String, &Measured)> = names
        .iter()
        .zip(&report.configurations)
        .filter_map(|(name, c)| Some((name, c.measured.as_ref()?)))
        .collect();
    pictures(&mut page, &measured);
    against_first(&mut page, report);
    networks(&mut page, &measured);
    memory(&mut page, &measured);
    let failures = tables::failures(report);
    if !failures.is_empty() {
        section(&mut page, "What failed");
        page::facts(&mut page, &failures);
        end_section(&mut page);
    }
    section(&mut page, "All figures");
    for rows in [tables::pictures(report), tables::networks(report)] {
        if rows.len() > 1 {
            page::table(&mut page, &rows);
        }
    }
    faint(&mut page, &tables::explanation(report));
    end_section(&mut page);
    section(&mut page, "Machine");
    page::facts(&mut page, &tables::machine(report));
    end_section(&mut page);
    page::end(&mut page);
    page
}

fn pictures(page: &mut String, measured: &[(&String, &Measured)]) {
    let pictures = || {
        let all = measured.iter();
        all.filter_map(|(name, m)| Some((*name, m.picture.as_ref()?)))
    };
    if pictures().next().is_none() {
        return;
    }
    section(page, "Whole pictures: where their time goes");
    let stages = ["encode", "load", "denoise", "decode", "write"];
    let rows = pictures().map(|(name, picture)| {
        let median = |spread: &crate::report::Spread| spread.median.unwrap_or_default();
        let total = median(&picture.total_s);
        let known = [
            median(&picture.encode_s),
            median(&picture.load_s),
            median(&picture.decode_s),
            median(&picture.write_s),
        ];
        let [encode, load, decode, write] = known;
        let denoise = (total - known.iter().sum::<f64>()).max(0.0);
        Bar {
            name: name.clone(),
            value: format!(
                "{}, {:.1} pictures/h",
                Unit::Seconds.show(total),
                picture.pictures_per_hour
            ),
            parts: vec![encode, load, denoise, decode, write],
        }
    });
    bars(page, &stages, &rows.collect::<Vec<_>>());
    end_section(page);
    section(page, "Whole pictures: every round");
    let rows: Vec<_> = pictures()
        .map(|(name, picture)| strip(name, &picture.total_s, ""))
        .collect();
    dots(page, &rows, |value| Unit::Seconds.show(value));
    end_section(page);
}

fn strip<'a>(name: &str, spread: &'a crate::report::Spread, more: &str) -> Dots<'a> {
    Dots {
        name: name.to_owned(),
        value: format!("{}{more}", tables::spread(spread)),
        all: &spread.all,
        median: spread.median,
    }
}

/// All configurations against the first one, by what matters most.
fn against_first(page: &mut String, report: &RunReport) {
    let pairs = crate::compare::with_first(report);
    let Some(first) = pairs.first() else {
        return;
    };
    section(page, &format!("Against {}", first.a));
    let rows: Vec<_> = pairs
        .iter()
        .filter_map(|pair| {
            let figure = pair.figures.first()?;
            Some(whisker(format!("{}: {}", pair.b, figure.name), figure))
        })
        .collect();
    whiskers(page, &rows, "faster", "slower");
    faint(
        page,
        "Lines are the intervals that hold the true difference in 95 of 100 cases; the grey ones hold no difference, too: noise.",
    );
    end_section(page);
}

fn whisker(name: String, figure: &crate::compare::Compared) -> Whisker {
    let verdict = figure.verdict.words(figure.unit);
    Whisker {
        name,
        value: match &figure.ratio {
            None => verdict.to_owned(),
            Some(ratio) => {
                format!(
                    "{} ({}): {verdict}",
                    percent(ratio.estimate),
                    interval(ratio)
                )
            }
        },
        ratio: figure.ratio,
    }
}

fn networks(page: &mut String, measured: &[(&String, &Measured)]) {
    let mut names: Vec<&String> = measured
        .iter()
        .flat_map(|(_, m)| m.networks.keys())
        .collect();
    names.sort();
    names.dedup();
    for network in names {
        section(page, &format!("{network}: passes"));
        let rows: Vec<_> = measured
            .iter()
            .filter_map(|(name, m)| {
                let figures = m.networks.get(network)?;
                let peak = figures.peak_percent;
                let peak = peak.map_or(String::new(), |peak| format!(", {peak:.0} % of peak"));
                Some(strip(name, &figures.pass_s, &peak))
            })
            .collect();
        dots(page, &rows, |value| Unit::Seconds.show(value));
        end_section(page);
    }
}

fn memory(page: &mut String, measured: &[(&String, &Measured)]) {
    let rows: Vec<_> = measured
        .iter()
        .filter_map(|(name, m)| {
            let Memory {
                anonymous_bytes,
                file_bytes,
                ..
            } = m.peak?;
            Some(Bar {
                name: (*name).clone(),
                value: format!(
                    "{} + {}",
                    tables::megabytes(anonymous_bytes),
                    tables::megabytes(file_bytes)
                ),
                parts: vec![anonymous_bytes as f64, file_bytes as f64],
            })
        })
        .collect();
    if rows.is_empty() {
        return;
    }
    section(page, "Most memory");
    bars(
        page,
        &["its own", "mapped files, which processes share"],
        &rows,
    );
    end_section(page);
}

/// The page of a comparison.
pub(crate) fn of_comparison(comparison: &Comparison) -> String {
    let mut page = page::begin("sdbench compare", plot::STYLE);
    for (source, letter) in comparison.sources.iter().zip(["A", "B"]) {
        page::paragraph(&mut page, &format!("{letter}: {source}"));
    }
    for remark in &comparison.remarks {
        faint(&mut page, remark);
    }
    for pair in &comparison.pairs {
        of_pair(&mut page, pair);
    }
    faint(&mut page, &comparison.explanation());
    page::end(&mut page);
    page
}

fn of_pair(page: &mut String, pair: &Pair) {
    section(page, &pair.summary());
    page::paragraph(page, &pair.name);
    for remark in &pair.remarks {
        faint(page, remark);
    }
    let rows: Vec<_> = pair
        .figures
        .iter()
        .map(|figure| whisker(figure.name.clone(), figure))
        .collect();
    whiskers(page, &rows, "less", "more");
    page::table(page, &pair.rows());
    end_section(page);
}
