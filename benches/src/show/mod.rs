//! `sdbench report`: a report of `sdbench run` for people, as Markdown or as a page with plots.

mod html;
mod plot;
mod read;
mod tables;

use std::fmt::Write;
use std::path::PathBuf;

use sd_runtime::engine::Cancel;
use sd_runtime::pipeline::{Destination, PipelineError};
use sd_ui::{Ui, UsageError};

pub(crate) use html::of_comparison as html_of_comparison;
pub(crate) use read::read;

use crate::compare::{interval, percent, with_first};
use crate::page::markdown_table;
use crate::run::{RunReport, common};

/// Show a report of `sdbench run`: as Markdown on standard output, or in files
#[derive(Debug, clap::Args)]
pub(crate) struct ReportArgs {
    /// The report
    file: PathBuf,
    /// Write Markdown to this file
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write a page with plots to this file, which needs no other
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(crate) fn run(args: &ReportArgs, ui: &Ui) -> anyhow::Result<()> {
    let find = |path: &Option<PathBuf>| path.as_deref().map(Destination::find).transpose();
    let (to_markdown, to_html) = (find(&args.markdown)?, find(&args.html)?);
    apart(&[
        ("the report", Some(&Destination::find(&args.file)?)),
        ("--markdown", to_markdown.as_ref()),
        ("--html", to_html.as_ref()),
    ])?;
    let report = read(&args.file)?;
    write(&report, to_markdown.as_ref(), to_html.as_ref())?;
    if to_markdown.is_none() && to_html.is_none() {
        ui.result(markdown(&report))?;
    }
    Ok(())
}

/// Checks that no two of several files are the same.
///
/// # Errors
/// One would overwrite another.
pub(crate) fn apart(files: &[(&str, Option<&Destination>)]) -> Result<(), UsageError> {
    let places = files.iter().filter_map(|(name, to)| Some((name, (*to)?)));
    let places: Vec<_> = places.collect();
    for (i, (name, to)) in places.iter().enumerate() {
        if let Some((other, _)) = places[..i].iter().find(|(_, other)| other.is_same(to)) {
            let text = format!("{other} and {name} would overwrite each other");
            return Err(UsageError(text));
        }
    }
    Ok(())
}

/// Writes a report to the places that are there.
pub(crate) fn write(
    report: &RunReport,
    to_markdown: Option<&Destination>,
    to_html: Option<&Destination>,
) -> Result<(), PipelineError> {
    let cancel = Cancel::new();
    if let Some(to) = to_markdown {
        to.write(markdown(report).as_bytes(), &cancel)?;
    }
    if let Some(to) = to_html {
        to.write(html::of_report(report).as_bytes(), &cancel)?;
    }
    Ok(())
}

/// A report in Markdown.
pub(crate) fn markdown(report: &RunReport) -> String {
    let mut text = format!(
        "# {}\n\n{}\n\n{}\n",
        tables::title(report),
        common(&report.cases()),
        tables::machine_in_short(report)
    );
    for rows in [tables::pictures(report), tables::networks(report)] {
        if rows.len() > 1 {
            let _ = write!(text, "\n{}", markdown_table(&rows));
        }
    }
    for (name, problem) in tables::failures(report) {
        let _ = write!(text, "\n**{name} failed**: {problem}\n");
    }
    let pairs = with_first(report);
    if let Some(first) = pairs.first() {
        let head = ["", "difference", "interval", "verdict"].map(str::to_owned);
        let mut rows = vec![head.to_vec()];
        rows[0][0] = format!("against {}", first.a);
        for pair in &pairs {
            let Some(figure) = pair.figures.first() else {
                continue;
            };
            let ratio = figure.ratio.as_ref();
            rows.push(vec![
                format!("{}: {}", pair.b, figure.name),
                ratio.map_or(String::new(), |ratio| percent(ratio.estimate)),
                ratio.map_or(String::new(), interval),
                figure.verdict.words(figure.unit).to_owned(),
            ]);
        }
        let _ = write!(text, "\n{}", markdown_table(&rows));
    }
    let _ = write!(text, "\n{}\n", tables::explanation(report));
    text.push('\n');
    for (name, value) in tables::machine(report) {
        let _ = writeln!(text, "- {name}: {value}");
    }
    text
}

/// Seconds since 1970 as a date and time, of Greenwich. Days become a date as in Howard Hinnant's "chrono-compatible low-level date
/// algorithms", `civil_from_days`: years begin in March, so that the day that some have more is their last.
pub(crate) fn time(unix: u64) -> String {
    let (days, seconds) = (unix / 86_400, unix % 86_400);
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = match month {
        0..10 => (month + 3, 0),
        _ => (month - 9, 1),
    };
    format!(
        "{}-{month:02}-{day:02} {:02}:{:02} UTC",
        era * 400 + year + next,
        seconds / 3600,
        seconds / 60 % 60
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::report::SCHEMA;
    use crate::run::{COMMAND, Configuration, Settings, tests::case, tests::measured};

    /// A report with a configuration for each provider.
    pub(crate) fn report(eps: &[&str]) -> RunReport {
        let mut machine = Machine::look(false);
        machine.processor = "A <processor>".to_owned();
        machine.peak_flops.insert(2, 1e11);
        let configuration = |(i, ep): (usize, &&str)| Configuration {
            case: case(ep, 20),
            measured: Some(measured(1.0 + i as f64)),
            failed: None,
        };
        RunReport {
            schema: SCHEMA,
            command: COMMAND.to_owned(),
            version: "0.1.0".to_owned(),
            label: None,
            unix_time: 951_827_696,
            settings: Settings {
                warm_up: 1,
                rounds: 5,
                runs: 2,
            },
            configurations: eps.iter().enumerate().map(configuration).collect(),
            machine,
        }
    }

    #[test]
    fn days_have_dates() {
        assert_eq!(time(0), "1970-01-01 00:00 UTC");
        assert_eq!(time(951_827_696), "2000-02-29 12:34 UTC");
        assert_eq!(time(951_868_800), "2000-03-01 00:00 UTC");
        assert_eq!(time(4_102_444_799), "2099-12-31 23:59 UTC");
    }

    #[test]
    fn markdown_and_page_show_every_configuration() {
        let mut report = report(&["cpu", "openvino", "cuda"]);
        report.configurations[2].measured = None;
        report.configurations[2].failed = Some("no <driver>".to_owned());
        let text = markdown(&report);
        let page = html::of_report(&report);
        for ep in ["cpu", "openvino"] {
            assert!(text.contains(&format!("| {ep} |")), "{text}");
            assert!(page.contains(&format!("<span>{ep}</span>")), "{page}");
        }
        assert!(text.contains("| against cpu |") && text.contains("slower"));
        assert!(text.contains("**cuda failed**: no <driver>"), "{text}");
        assert!(page.contains("no &lt;driver&gt;") && page.contains("A &lt;processor&gt;"));
        // It needs nothing else, and closes what it opens.
        assert!(!page.contains("http") && !page.contains("<script"));
        for element in ["section", "table", "div", "svg", "p", "span", "tr"] {
            let count = |tag: String| page.matches(&tag).count();
            let open = count(format!("<{element}>")) + count(format!("<{element} "));
            assert_eq!(open, count(format!("</{element}>")), "{element}");
        }
    }

    /// Too few rounds to compare, and no pictures: less is shown, and nothing breaks.
    #[test]
    fn a_report_of_little_is_shown() {
        let mut report = report(&["cpu", "openvino"]);
        for configuration in &mut report.configurations {
            let measured = configuration.measured.as_mut().unwrap();
            measured.picture = None;
            measured.peak = None;
            for network in measured.networks.values_mut() {
                network.pass_s = crate::report::Spread::of(vec![0.5]);
            }
        }
        let text = markdown(&report);
        assert!(
            text.contains("too few rounds") && !text.contains("per hour"),
            "{text}"
        );
        let page = html::of_report(&report);
        assert!(!page.contains("Whole pictures") && !page.contains("NaN"));
        report.configurations.clear();
        assert!(html::of_report(&report).contains("Machine"));
    }
}
