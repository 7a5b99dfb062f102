//! `sdbench ops`: where the time of a network's pass goes, operator by operator, and how near it is to the processor's peak.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Instant;

use sd_runtime::engine::{NodeRun, Profile};
use sd_ui::{Ui, UsageError};

use crate::classify::classify;
use crate::networks::{Networks, NetworksArgs, Said};
use crate::peak;
use crate::report::{Figures, Graph, Ops, Report, Row, Spread};

/// Show where the time of a network's pass goes, by operator and class
#[derive(Debug, clap::Args)]
pub(crate) struct OpsArgs {
    #[command(flatten)]
    networks: NetworksArgs,
    /// Network to look into, by its name in `sdbench run`'s report
    #[arg(long, default_value = "unet", value_name = "NAME")]
    component: String,
    /// Passes that are counted, after one that is not
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Tell operators apart by the shapes of their first two inputs and of their output
    #[arg(long)]
    shapes: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What a row sums up, in a class.
#[derive(Clone, Copy)]
enum By {
    Class,
    Operator,
    Shapes,
}

impl By {
    fn name(self, node: &NodeRun) -> Option<String> {
        let shape = |shape: &Vec<usize>| {
            let sizes: Vec<_> = shape.iter().map(ToString::to_string).collect();
            sizes.join("x")
        };
        match self {
            Self::Class => None,
            Self::Operator => Some(node.operator.clone()),
            Self::Shapes => {
                let inputs: Vec<_> = node.inputs.iter().take(2).map(shape).collect();
                let output = node.outputs.first().map(shape).unwrap_or_default();
                Some(format!(
                    "{} {} -> {output}",
                    node.operator,
                    inputs.join(", ")
                ))
            }
        }
    }
}

pub(crate) fn run(args: &OpsArgs, ui: &Ui) -> anyhow::Result<()> {
    let runs = args.runs as usize;
    let mut networks = Networks::open(&args.networks, ui)?;
    networks.engine.start_profiling()?;
    let places = networks.places();
    let Some(place) = places.iter().find(|place| place.name == args.component) else {
        let names: Vec<_> = places.iter().map(|place| place.name.as_str()).collect();
        let (wanted, names) = (&args.component, names.join(", "));
        let text = format!("there is no network `{wanted}`; there are {names}");
        return Err(UsageError(text).into());
    };
    let mut said = Said::default();
    for text in places.iter().filter(|text| text.is_heard_by(place)) {
        let outputs = networks.load(text, &said)?.pass(&networks.cancel)?;
        said.hear(text, outputs)?;
    }
    let peak_flops = peak::flops(networks.engine.threads());
    let mut loaded = networks.load(place, &said)?;
    let mut seconds = Vec::new();
    for _ in 0..=runs {
        let start = Instant::now();
        loaded.pass(&networks.cancel)?;
        seconds.push(start.elapsed().as_secs_f64());
        loaded.step();
    }
    let by = if args.shapes {
        By::Shapes
    } else {
        By::Operator
    };
    let graph = |profile: Profile| {
        // The first run does what others need not; but what runs only once counts.
        let counted = match &profile.runs[..] {
            [_, more @ ..] if !more.is_empty() => more,
            all => all,
        };
        Graph {
            file: profile.graph.clone(),
            runs: counted.len(),
            classes: rows(counted, peak_flops, By::Class),
            operators: rows(counted, peak_flops, by),
        }
    };
    let profiles = loaded.network.end_profiling()?;
    let ops = Ops {
        component: place.name.clone(),
        graph: loaded.graph.to_owned(),
        compute: loaded.compute.to_owned(),
        runs,
        peak_flops,
        pass_s: Spread::of(seconds.split_off(1)),
        graphs: profiles.into_iter().map(graph).collect(),
    };
    let report = networks.report(Figures::Ops(ops));
    let text = if args.json {
        serde_json::to_string(&report)?
    } else {
        table(&report)
    };
    Ok(ui.result(text)?)
}

/// Sums over nodes of a class, or of an operator in a class, per run.
fn rows(runs: &[Vec<NodeRun>], peak_flops: f64, by: By) -> Vec<Row> {
    let (nodes, runs) = (runs.iter().flatten(), runs.len());
    let mut sums: BTreeMap<_, (usize, f64, f64, u64)> = BTreeMap::new();
    for node in nodes.clone() {
        let (class, flop) = classify(node);
        let key = (class, by.name(node));
        let sum = sums.entry(key).or_default();
        sum.0 += 1;
        sum.1 += node.seconds;
        sum.2 += flop;
        sum.3 += node.bytes;
    }
    let all: f64 = nodes.map(|node| node.seconds).sum();
    let percent = |part: f64, whole: f64| {
        if whole > 0.0 {
            100.0 * part / whole
        } else {
            0.0
        }
    };
    let row =
        |((class, operator), (calls, seconds, flop, bytes)): (_, (usize, f64, f64, u64))| Row {
            class,
            operator,
            calls: calls / runs,
            seconds: seconds / runs as f64,
            time_percent: percent(seconds, all),
            flop: flop / runs as f64,
            peak_percent: percent(flop, seconds * peak_flops),
            bytes: bytes / runs as u64,
        };
    let mut rows: Vec<Row> = sums.into_iter().map(row).collect();
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    rows
}

/// The report for people.
fn table(report: &Report) -> String {
    let Figures::Ops(ops) = &report.figures else {
        return String::new();
    };
    let mut text = format!(
        "{}, {} graph, {}, {}x{} pixels\n{}, {}, {} threads\n{:.3} s a pass, peak in single precision {:.1} Gop/s\n",
        ops.component,
        ops.graph,
        ops.compute,
        report.size[0],
        report.size[1],
        report.processor,
        report.instructions,
        report.threads,
        ops.pass_s.median.unwrap_or_default(),
        ops.peak_flops / 1e9,
    );
    for graph in &ops.graphs {
        let _ = writeln!(text, "\n{}, counted runs: {}", graph.file, graph.runs);
        write_rows(&mut text, "class", &graph.classes);
        write_rows(&mut text, "operator", &graph.operators);
    }
    text
}

fn write_rows(text: &mut String, title: &str, rows: &[Row]) {
    let _ = writeln!(
        text,
        "\n{title:64} {:>6} {:>9} {:>6} {:>8} {:>7} {:>8}",
        "calls", "ms", "time", "Gop/s", "peak", "MB"
    );
    for row in rows {
        let operator = row.operator.as_deref().unwrap_or_default();
        let _ = writeln!(
            text,
            "{:64} {:6} {:9.2} {:5.1}% {:8.1} {:6.1}% {:8.1}",
            format!("{} {operator}", row.class),
            row.calls,
            row.seconds * 1e3,
            row.time_percent,
            if row.seconds > 0.0 {
                row.flop / row.seconds / 1e9
            } else {
                0.0
            },
            row.peak_percent,
            row.bytes as f64 / 1e6,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_per_run_and_the_longest_come_first() {
        let node = |operator: &str, seconds, inputs: &[&[usize]], output: &[usize]| NodeRun {
            name: String::new(),
            operator: operator.to_owned(),
            seconds,
            inputs: inputs.iter().map(|shape| shape.to_vec()).collect(),
            outputs: vec![output.to_vec()],
            bytes: 10,
        };
        let pass = [
            node("Add", 1.0, &[], &[]),
            node("MatMul", 2.0, &[&[10, 50]], &[10, 100]),
            node("Gemm", 1.0, &[&[10, 50]], &[10, 100]),
        ];
        let two = [pass.clone(), pass].map(Vec::from);
        let classes = rows(&two, 1e5, By::Class);
        let linear = &classes[0];
        assert_eq!(
            (linear.class.as_str(), linear.calls, linear.seconds),
            ("linear", 2, 3.0)
        );
        assert_eq!(
            (linear.flop, linear.bytes, linear.time_percent),
            (200_000.0, 20, 75.0)
        );
        assert!((linear.peak_percent - 100.0 * 2.0 / 3.0).abs() < 1e-9);
        let operators = rows(&two, 1e5, By::Operator);
        let names: Vec<_> = operators
            .iter()
            .map(|row| row.operator.as_deref())
            .collect();
        assert_eq!(names, [Some("MatMul"), Some("Add"), Some("Gemm")]);
        let shapes = rows(&two, 1e5, By::Shapes);
        let first = shapes[0].operator.as_deref();
        assert_eq!(first, Some("MatMul 10x50 -> 10x100"));
    }
}
