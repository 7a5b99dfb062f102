//! `sdbench compare`: what is slower or faster in one report than in another, and what is noise.

mod rank;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{anyhow, bail};
use sd_runtime::engine::Cancel;
use sd_runtime::pipeline::Destination;
use sd_ui::{Ui, UsageError};
use serde::{Deserialize, Serialize};

pub(crate) use rank::Ratio;
pub(crate) use table::{interval, percent};

use crate::report::SCHEMA;
use crate::run::{AXES, Case, Configuration, Figure, Measured, RunReport, Unit, names};
use crate::show::{apart, html_of_comparison, read, time};

/// Compare two reports of `sdbench run`: ratios, with intervals, and which of them are noise
///
/// Configurations that are in both are compared, or those of one report with each other. What is compared are the medians of rounds:
/// their order, whatever their distribution is, so a few rounds that were disturbed do little harm. Measurements that took turns in one report
/// differ less than those of two, between which a machine may change.
#[derive(Debug, clap::Args)]
pub(crate) struct CompareArgs {
    /// Report with which another is compared
    a: PathBuf,
    /// The other one; `--across` says what to compare in one report
    b: Option<PathBuf>,
    /// What the configurations that are compared may differ in, one or several of model, refiner, program, ep, graph, compute, instructions, size, threads, sampler,
    /// steps, batch and guidance. In one report, all others are compared with the first one
    #[arg(long, value_name = "WHAT,..", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(AXES))]
    across: Vec<String>,
    /// How often an interval holds the true ratio, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 95.0, value_parser = parse_confidence)]
    confidence: f64,
    /// Write the comparison as JSON to this file; - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

fn parse_confidence(text: &str) -> Result<f64, String> {
    let percent: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    match (50.0..=99.9).contains(&percent) {
        true => Ok(percent),
        false => Err("it is 50 to 99.9".to_owned()),
    }
}

/// Two reports, or the configurations of one, against each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Comparison {
    /// [`SCHEMA`]
    pub(crate) schema: u32,
    /// `compare`
    pub(crate) command: String,
    /// How often an interval holds the true ratio.
    pub(crate) confidence_percent: f64,
    /// The reports, in words.
    pub(crate) sources: Vec<String>,
    /// What may be the cause of differences, beside what was compared.
    pub(crate) remarks: Vec<String>,
    pub(crate) pairs: Vec<Pair>,
}

/// Two configurations.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pair {
    /// What both are called.
    pub(crate) name: String,
    /// The one with which the other is compared.
    pub(crate) a: String,
    pub(crate) b: String,
    /// What else may be the cause of differences.
    #[serde(default)]
    pub(crate) remarks: Vec<String>,
    /// The first one is that of the whole. By chance, about one in 20 of figures without a difference seems to have one.
    pub(crate) figures: Vec<Compared>,
}

/// A figure of both.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Compared {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) a_median: Option<f64>,
    pub(crate) b_median: Option<f64>,
    /// Of `b` to `a`; none if there are too few rounds for an interval.
    pub(crate) ratio: Option<Ratio>,
    pub(crate) verdict: Verdict,
}

/// What a ratio says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// `b` takes more.
    More,
    /// `b` takes less.
    Less,
    /// Both may be alike.
    Noise,
    /// There are too few rounds to say.
    TooFew,
}

pub(crate) fn run(args: &CompareArgs, ui: &Ui) -> anyhow::Result<()> {
    let find = |path: &Option<PathBuf>| path.as_deref().map(Destination::find).transpose();
    let (json, html) = (find(&args.json)?, find(&args.html)?);
    let reports = [Some(&args.a), args.b.as_ref()].into_iter().flatten();
    let reports = reports.map(|path| Destination::find(path));
    let reports = reports.collect::<Result<Vec<_>, _>>()?;
    for report in &reports {
        apart(&[
            ("the report", Some(report)),
            ("--json", json.as_ref()),
            ("--html", html.as_ref()),
        ])?;
    }
    let a = read(&args.a)?;
    let confidence = args.confidence / 100.0;
    let across: Vec<&str> = args.across.iter().map(String::as_str).collect();
    let named = |path: &PathBuf, report: &RunReport| {
        let label = report.label.as_deref().map(|label| format!("{label}, "));
        format!(
            "{}: {}{}, {}, sdbench {}",
            path.display(),
            label.unwrap_or_default(),
            time(report.unix_time),
            report.machine.processor,
            report.version
        )
    };
    let mut sources = vec![named(&args.a, &a)];
    let (pairs, remarks) = match &args.b {
        None => {
            if across.is_empty() {
                let text =
                    "one report: `--across` says what to compare in it, `--across ep` for example";
                return Err(UsageError(text.to_owned()).into());
            }
            (within(&a, &across, confidence)?, Vec::new())
        }
        Some(path) => {
            let b = read(path)?;
            sources.push(named(path, &b));
            let files = [&args.a, path].map(|path| path.display().to_string());
            (
                between(&a, &b, &across, confidence, &files)?,
                remarks(&a, &b),
            )
        }
    };
    let comparison = Comparison {
        schema: SCHEMA,
        command: "compare".to_owned(),
        confidence_percent: args.confidence,
        sources,
        remarks,
        pairs,
    };
    let cancel = Cancel::new();
    if let Some(to) = &html {
        to.write(html_of_comparison(&comparison).as_bytes(), &cancel)?;
    }
    let text = table::text(&comparison);
    match &json {
        None => ui.result(text)?,
        Some(to) => {
            let json = format!("{}\n", serde_json::to_string(&comparison)?);
            to.write(json.as_bytes(), &cancel)?;
            ui.written(to.path(), text)?;
        }
    }
    Ok(())
}

/// A configuration's places on the axes that are not compared across.
type Key = BTreeMap<&'static str, String>;

fn key(case: &Case, across: &[&str]) -> Key {
    let mut places = case.places();
    places.retain(|axis, _| !across.contains(axis));
    places
}

/// Configurations that were measured, by their keys.
fn by_key<'a>(
    report: &'a RunReport,
    across: &[&str],
) -> BTreeMap<Key, Vec<(&'a Configuration, &'a Measured)>> {
    let mut found: BTreeMap<Key, Vec<_>> = BTreeMap::new();
    for configuration in &report.configurations {
        if let Some(measured) = &configuration.measured {
            let key = key(&configuration.case, across);
            found
                .entry(key)
                .or_default()
                .push((configuration, measured));
        }
    }
    found
}

/// Configurations of one report that differ in nothing but `across`, each with the first of them.
///
/// # Errors
/// There are none.
pub(crate) fn within(
    report: &RunReport,
    across: &[&str],
    confidence: f64,
) -> anyhow::Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    let groups = by_key(report, across);
    // In the order of the report.
    for configuration in &report.configurations {
        let group = groups.get(&key(&configuration.case, across));
        let Some([first, others @ ..]) = group.map(Vec::as_slice) else {
            continue;
        };
        if first.0.case != configuration.case {
            continue;
        }
        for other in others {
            pairs.push(pair([*first, *other], confidence));
        }
    }
    if pairs.is_empty() {
        bail!(
            "there are no two configurations that differ in {} and in nothing else",
            across.join(" and ")
        );
    }
    Ok(pairs)
}

/// All configurations of a report with the first one, as far as they were measured, with intervals of 95 %.
pub(crate) fn with_first(report: &RunReport) -> Vec<Pair> {
    let all = report.configurations.iter().zip(report.names());
    let mut measured = all.filter_map(|(c, name)| Some(((c, c.measured.as_ref()?), name)));
    let Some((first, first_name)) = measured.next() else {
        return Vec::new();
    };
    let pair = |(other, name)| Pair {
        a: first_name.clone(),
        b: name,
        ..pair([first, other], 0.95)
    };
    measured.map(pair).collect()
}

/// Configurations that both reports have.
fn between(
    a: &RunReport,
    b: &RunReport,
    across: &[&str],
    confidence: f64,
    files: &[String; 2],
) -> anyhow::Result<Vec<Pair>> {
    let [of_a, of_b] = [a, b].map(|report| by_key(report, across));
    for (groups, file) in [&of_a, &of_b].into_iter().zip(files) {
        if let Some([first, second, ..]) = groups
            .values()
            .find(|group| group.len() > 1)
            .map(Vec::as_slice)
        {
            let names = names(&[&first.0.case, &second.0.case]);
            bail!(
                "{file}: it has `{}` and `{}`, which differ in {} only: compare reports with one of each",
                names[0],
                names[1],
                across.join(" and ")
            );
        }
    }
    let mut pairs = Vec::new();
    for configuration in &a.configurations {
        let key = key(&configuration.case, across);
        if let Some(([first], [second])) = of_a
            .get(&key)
            .zip(of_b.get(&key))
            .map(|(a, b)| (&a[..], &b[..]))
        {
            pairs.push(pair([*first, *second], confidence));
        }
    }
    match pairs.is_empty() {
        true => Err(nothing_in_common(&of_a, &of_b, files)),
        false => Ok(pairs),
    }
}

/// Why two reports have no configuration in common.
fn nothing_in_common<T>(
    a: &BTreeMap<Key, T>,
    b: &BTreeMap<Key, T>,
    files: &[String; 2],
) -> anyhow::Error {
    let [one, other] = files;
    let places = |all: &BTreeMap<Key, T>, axis: &str| -> BTreeSet<String> {
        all.keys()
            .filter_map(|key| key.get(axis).cloned())
            .collect()
    };
    let mut causes = Vec::new();
    let mut axes = Vec::new();
    for axis in AXES {
        let (in_a, in_b) = (places(a, axis), places(b, axis));
        if in_a.is_disjoint(&in_b) && !(in_a.is_empty() && in_b.is_empty()) {
            let words = |all: BTreeSet<String>| all.into_iter().collect::<Vec<_>>().join(", ");
            let [in_a, in_b] = [in_a, in_b].map(words);
            causes.push(format!(
                "`{axis}` is {in_a} in the one and {in_b} in the other"
            ));
            axes.push(axis);
        }
    }
    if axes.is_empty() {
        return anyhow!("{one} and {other} have no configuration in common that was measured");
    }
    anyhow!(
        "{one} and {other} have no configuration in common: {}; `--across {}` compares them all the same",
        causes.join(", "),
        axes.join(",")
    )
}

/// What else differs between two reports.
fn remarks(a: &RunReport, b: &RunReport) -> Vec<String> {
    let mut remarks = Vec::new();
    let mut differs = |what: &str, a: String, b: String| {
        if a != b {
            remarks.push(format!("{what} differs: {a}, and {b}"));
        }
    };
    let machine = |report: &RunReport| {
        let machine = &report.machine;
        let governor = machine.governor.clone().unwrap_or_default();
        format!("{} {governor}", machine.processor)
    };
    differs("the processor", machine(a), machine(b));
    let kernel = |report: &RunReport| report.machine.kernel.clone().unwrap_or_default();
    differs("the kernel", kernel(a), kernel(b));
    let [hashes_a, hashes_b] = [a, b].map(|report| {
        let all = report.configurations.iter().map(|c| &c.case);
        all.map(|case| (case.model.clone(), case.hash.clone()))
            .collect::<BTreeMap<_, _>>()
    });
    for (model, hash) in &hashes_a {
        if hashes_b.get(model).is_some_and(|other| other != hash) {
            remarks.push(format!("the files of {model} are not the same"));
        }
    }
    for (report, which) in [(a, "the first"), (b, "the second")] {
        let stolen = report.machine.stolen_percent.filter(|&stolen| stolen > 1.0);
        if let Some(stolen) = stolen {
            remarks.push(format!(
                "{which} machine's host took {stolen:.1} % of its time for others"
            ));
        }
    }
    remarks.push(
        "the reports were not measured in turns: what changed on the machine between them counts as a difference, too"
            .to_owned(),
    );
    remarks
}

fn pair(both: [(&Configuration, &Measured); 2], confidence: f64) -> Pair {
    let [(a, of_a), (b, of_b)] = both;
    let cases = [&a.case, &b.case];
    let [figures_a, figures_b] = [of_a, of_b].map(Measured::figures);
    let figures = figures_a.iter().filter_map(|figure| {
        let other = figures_b.iter().find(|other| other.name == figure.name)?;
        Some(compared(figure, other, confidence))
    });
    let names = names(&cases);
    let both = [of_a, of_b];
    let builds = both.map(|measured| measured.onnxruntime.clone());
    let libraries = both.map(|measured| measured.libraries.join(" "));
    let remarks = [
        ("ONNX Runtime", builds),
        ("the provider's libraries", libraries),
    ];
    let remarks = remarks.into_iter().filter(|(_, [a, b])| a != b);
    let remarks = remarks.map(|(what, [a, b])| format!("not the same: {what}: {a}, and {b}"));
    Pair {
        name: crate::run::common(&cases),
        a: names[0].clone(),
        b: names[1].clone(),
        remarks: remarks.collect(),
        figures: figures.collect(),
    }
}

fn compared(a: &Figure<'_>, b: &Figure<'_>, confidence: f64) -> Compared {
    let ratio = Ratio::of(&a.spread.all, &b.spread.all, confidence);
    Compared {
        name: a.name.clone(),
        unit: a.unit,
        a_median: a.spread.median,
        b_median: b.spread.median,
        ratio,
        verdict: match ratio {
            None => Verdict::TooFew,
            Some(ratio) if ratio.is_noise() => Verdict::Noise,
            Some(ratio) if ratio.estimate > 1.0 => Verdict::More,
            Some(_) => Verdict::Less,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_else_differs_is_told_or_keeps_configurations_apart() {
        let a = crate::show::tests::report(&["cpu"]);
        let files = ["a", "b"].map(str::to_owned);
        let with = |change: &dyn Fn(&mut Configuration)| {
            let mut b = a.clone();
            change(&mut b.configurations[0]);
            between(&a, &b, &[], 0.95, &files)
        };
        let remarks = |pairs: anyhow::Result<Vec<Pair>>| pairs.unwrap()[0].remarks.clone();
        assert!(remarks(with(&|_| {})).is_empty());
        let other = with(&|b| {
            let measured = b.measured.as_mut().unwrap();
            measured.libraries = vec!["libonnxruntime.so.2".to_owned()];
        });
        assert!(remarks(other)[0].contains("libonnxruntime.so.2"));
        let refined = with(&|b| b.case.refiner = Some("models/refiner".into()));
        let said = refined.unwrap_err().to_string();
        assert!(said.contains("`--across refiner`"), "{said}");
        let guided = with(&|b| b.case.picture.as_mut().unwrap().guidance_scale = 1.0);
        let said = guided.unwrap_err().to_string();
        assert!(said.contains("`--across guidance`"), "{said}");
    }
}
