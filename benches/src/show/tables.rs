//! A report's figures in rows and words, for Markdown and for pages.

use super::time;
use crate::memory::Memory;
use crate::report::Spread;
use crate::run::{Measured, RunReport, Settings, Unit};

pub(super) fn title(report: &RunReport) -> String {
    let label = report.label.as_deref().unwrap_or("sdbench run");
    format!("{label}, {}", time(report.unix_time))
}

/// Median, and half of the range that the middle half of the measurements has.
pub(super) fn spread(spread: &Spread) -> String {
    let Some(median) = spread.median else {
        return String::new();
    };
    let text = Unit::Seconds.show(median);
    match spread.half_range_of_middle() {
        Some(half) if spread.runs > 1 => format!("{text} ± {:.1} %", 100.0 * half / median),
        _ => text,
    }
}

pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

/// Both kinds of memory.
fn kinds(memory: Option<Memory>) -> [String; 2] {
    memory.map_or_else(Default::default, |memory| {
        [memory.anonymous_bytes, memory.file_bytes].map(megabytes)
    })
}

fn measured(report: &RunReport) -> impl Iterator<Item = (String, &Measured)> {
    let named = report.names().into_iter().zip(&report.configurations);
    named.filter_map(|(name, c)| Some((name, c.measured.as_ref()?)))
}

pub(super) fn pictures(report: &RunReport) -> Vec<Vec<String>> {
    let head = [
        "whole pictures",
        "per hour",
        "time",
        "encode",
        "load",
        "step",
        "decode",
        "write",
        "joules each",
        "own memory",
        "mapped files",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, m) in measured(report) {
        let Some(picture) = &m.picture else {
            continue;
        };
        let [own, mapped] = kinds(picture.memory);
        let joules = picture.joules.as_ref().and_then(|joules| joules.median);
        rows.push(vec![
            name,
            format!("{:.1}", picture.pictures_per_hour),
            spread(&picture.total_s),
            spread(&picture.encode_s),
            spread(&picture.load_s),
            spread(&picture.step_s),
            spread(&picture.decode_s),
            spread(&picture.write_s),
            joules.map_or("not counted".to_owned(), |joules| format!("{joules:.0}")),
            own,
            mapped,
        ]);
    }
    rows
}

pub(super) fn networks(report: &RunReport) -> Vec<Vec<String>> {
    let head = [
        "networks",
        "",
        "pass",
        "load",
        "computed in",
        "graph",
        "Gop",
        "of peak",
        "own memory",
        "mapped files",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, m) in measured(report) {
        for (network, figures) in &m.networks {
            let [own, mapped] = kinds(figures.pass_memory);
            let flop = figures.flop;
            let peak = figures.peak_percent;
            rows.push(vec![
                network.clone(),
                name.clone(),
                spread(&figures.pass_s),
                spread(&figures.load_s),
                figures.compute.clone(),
                figures.graph.clone(),
                flop.map_or(String::new(), |flop| format!("{:.1}", flop / 1e9)),
                peak.map_or(String::new(), |peak| format!("{peak:.0} %")),
                own,
                mapped,
            ]);
        }
    }
    // One network after the other.
    rows[1..].sort_by(|a, b| a[0].cmp(&b[0]));
    rows
}

/// What failed, and why.
pub(super) fn failures(report: &RunReport) -> Vec<(String, String)> {
    let named = report.names().into_iter().zip(&report.configurations);
    named
        .filter_map(|(name, c)| Some((name, c.failed.clone()?)))
        .collect()
}

pub(super) fn machine_in_short(report: &RunReport) -> String {
    let machine = &report.machine;
    let kind = match machine.is_virtual {
        true => "virtual machine, ",
        false => "",
    };
    format!(
        "{}, {kind}{} processors, {}, {}, sdbench {}",
        machine.processor,
        machine.processors,
        machine.instructions,
        machine.os.as_deref().unwrap_or("unknown system"),
        report.version
    )
}

/// What is known of the machine, the models and the libraries.
pub(super) fn machine(report: &RunReport) -> Vec<(String, String)> {
    let machine = &report.machine;
    let unknown = || "unknown".to_owned();
    let text = |value: &Option<String>| value.clone().unwrap_or_else(unknown);
    let percent = |value: f64| format!("{value:.1} %");
    let mut rows = vec![
        ("processor", machine.processor.clone()),
        ("instructions", machine.instructions.clone()),
        (
            "cores",
            machine.cores.map_or_else(unknown, |n| n.to_string()),
        ),
        ("processors of this process", machine.processors.to_string()),
        (
            "virtual",
            match machine.is_virtual {
                true => "yes".to_owned(),
                false => "no".to_owned(),
            },
        ),
        ("governor", text(&machine.governor)),
        (
            "highest frequency",
            machine
                .max_mhz
                .map_or_else(unknown, |mhz| format!("{mhz:.0} MHz")),
        ),
        (
            "memory",
            machine.memory_bytes.map_or_else(unknown, megabytes),
        ),
        (
            "memory of this process",
            megabytes(machine.memory_limit_bytes),
        ),
        ("system", text(&machine.os)),
        ("kernel", text(&machine.kernel)),
        (
            "energy",
            match machine.counts_energy {
                true => "counted".to_owned(),
                false => "not readable".to_owned(),
            },
        ),
        (
            "load before",
            machine
                .load_before
                .map_or_else(unknown, |load| format!("{load:.2}")),
        ),
        (
            "time stolen by the host",
            machine.stolen_percent.map_or_else(unknown, percent),
        ),
    ];
    let peaks: Vec<_> = machine
        .peak_flops
        .iter()
        .map(|(threads, flops)| format!("{:.1} Gop/s with {threads} threads", flops / 1e9))
        .collect();
    rows.push(("peak in single precision", peaks.join(", ")));
    let named = rows
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    let mut rows: Vec<_> = named.collect();
    let mut add = |name: String, value: String| {
        let row = (name, value);
        if !rows.contains(&row) {
            rows.push(row);
        }
    };
    for configuration in &report.configurations {
        let case = &configuration.case;
        add(
            format!("model {}", case.model),
            format!("SHA-256 {}", case.hash),
        );
        if let Some(m) = &configuration.measured {
            let libraries = m.libraries.join(", ");
            let name = format!("libraries for {}", case.ep);
            add(name, format!("{libraries}; {}", m.onnxruntime));
        }
    }
    rows.push(("vector instructions".to_owned(), machine.flags.join(" ")));
    rows
}

/// What the figures are.
pub(super) fn explanation(report: &RunReport) -> String {
    let Settings {
        warm_up,
        rounds,
        runs,
    } = report.settings;
    format!(
        "Medians of {rounds} rounds, in each of which all configurations took turns, each in a process of its own, after {warm_up} that did not count; \
         ± is half the range of their middle half. A round's pass is the median of {runs}. A picture begins with nothing loaded and ends with its file; a step is a call of the denoiser, \
         two passes with guidance. The peak is what the threads reach with multiply-adds in single precision; other numbers and algorithms that need fewer may exceed it."
    )
}
