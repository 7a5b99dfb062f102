//! The machine on which figures were taken, as Linux describes it, and what disturbed them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::NonZero;

use sd_kernels::Isa;
use sd_runtime::engine::measured::processor;
use sd_runtime::engine::memory;
use serde::{Deserialize, Serialize};

/// What a machine is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Name of the processor.
    pub(crate) processor: String,
    /// Its vector instructions, by Linux's names.
    pub(crate) flags: Vec<String>,
    /// The instruction level of which native graphs make use.
    pub(crate) instructions: String,
    /// Cores of the machine, as far as it tells.
    pub(crate) cores: Option<usize>,
    /// Processors that this process may use.
    pub(crate) processors: usize,
    /// Whether the machine is a virtual one, where others may take time.
    pub(crate) is_virtual: bool,
    /// What sets the frequency: `performance`, `schedutil`, ..; virtual machines do not know.
    pub(crate) governor: Option<String>,
    /// Highest frequency that it may have.
    pub(crate) max_mhz: Option<f64>,
    pub(crate) memory_bytes: Option<u64>,
    /// What this process may use of it.
    pub(crate) memory_limit_bytes: u64,
    pub(crate) os: Option<String>,
    pub(crate) kernel: Option<String>,
    /// Whether the processor counts its energy and this process may read it.
    pub(crate) counts_energy: bool,
    /// Mean number of threads that ran or wanted to in the minute before.
    pub(crate) load_before: Option<f64>,
    /// Share of the processors' time that the host gave to others meanwhile.
    pub(crate) stolen_percent: Option<f64>,
    /// Most operations per second in single precision, with fused multiply-adds, by threads.
    pub(crate) peak_flops: BTreeMap<usize, f64>,
}

/// A file's text without its end, if there is one.
fn text(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Flags of vector instructions: those of x86-64 and Arm.
fn is_of_vectors(flag: &&str) -> bool {
    const BEGINNINGS: [&str; 9] = [
        "sse4_", "avx", "fma", "f16c", "amx", "asimd", "sve", "bf16", "i8mm",
    ];
    BEGINNINGS.iter().any(|start| flag.starts_with(start))
}

/// Values of a field in `/proc/cpuinfo`, one for each processor.
fn field<'a>(cpuinfo: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    cpuinfo.lines().filter_map(move |line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

/// Pairs of package and core.
fn cores(cpuinfo: &str) -> Option<usize> {
    let pairs = field(cpuinfo, "physical id").zip(field(cpuinfo, "core id"));
    let count = pairs.collect::<BTreeSet<_>>().len();
    (count > 0).then_some(count)
}

/// A line's value of `/etc/os-release`.
fn os(release: &str) -> Option<String> {
    let mut lines = release.lines();
    let value = lines.find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

impl Machine {
    /// Looks at the machine; what is measured later is empty.
    pub(crate) fn look(counts_energy: bool) -> Self {
        let cpuinfo = text("/proc/cpuinfo").unwrap_or_default();
        let names = ["flags", "Features"];
        let flags = names.iter().find_map(|name| field(&cpuinfo, name).next());
        let flags = flags.unwrap_or_default();
        let frequency = |file: &str| text(&format!("/sys/devices/system/cpu/cpu0/cpufreq/{file}"));
        let kilohertz = frequency("cpuinfo_max_freq").and_then(|text| text.parse::<f64>().ok());
        let total = text("/proc/meminfo").and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        let load = text("/proc/loadavg");
        Self {
            processor: processor(),
            flags: flags
                .split_whitespace()
                .filter(is_of_vectors)
                .map(str::to_owned)
                .collect(),
            instructions: Isa::detect().name().to_owned(),
            cores: cores(&cpuinfo),
            processors: std::thread::available_parallelism().map_or(1, NonZero::get),
            is_virtual: flags.split_whitespace().any(|flag| flag == "hypervisor"),
            governor: frequency("scaling_governor"),
            max_mhz: kilohertz.map(|kilohertz| kilohertz / 1e3),
            memory_bytes: total.map(|kilobytes| kilobytes * 1024),
            memory_limit_bytes: memory::limit(),
            os: text("/etc/os-release").and_then(|text| os(&text)),
            kernel: text("/proc/sys/kernel/osrelease"),
            counts_energy,
            load_before: load.and_then(|text| text.split_whitespace().next()?.parse().ok()),
            stolen_percent: None,
            peak_flops: BTreeMap::new(),
        }
    }
}

/// Time of all processors since the machine was started, in the kernel's ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    pub(crate) fn now() -> Option<Self> {
        Self::of(&text("/proc/stat")?)
    }

    /// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal, and guests' that the first two hold.
    fn of(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let numbers: Result<Vec<u64>, _> = line.split_whitespace().map(str::parse).collect();
        let numbers = numbers.ok()?;
        let first = numbers.get(..8)?;
        Some(Self {
            all: first.iter().sum(),
            stolen: first[7],
        })
    }

    /// Share of the time since then that the host gave to others, in percent.
    pub(crate) fn stolen_percent(self, now: Self) -> Option<f64> {
        let all = now.all.checked_sub(self.all).filter(|&all| all > 0)?;
        let stolen = now.stolen.checked_sub(self.stolen)?;
        Some(100.0 * stolen as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_counted_once() {
        let processor = |package, core| {
            format!(
                "processor\t: 0\nmodel name\t: X\nphysical id\t: {package}\ncore id\t\t: {core}\n\n"
            )
        };
        let two = [(0, 0), (0, 1), (0, 0), (0, 1)].map(|(p, c)| processor(p, c));
        assert_eq!(cores(&two.concat()), Some(2));
        assert_eq!(cores("model name : X"), None);
    }

    #[test]
    fn flags_of_vectors_are_kept() {
        let found: Vec<_> = "fpu sse4_1 avx512_bf16 fma hypervisor sse f16c"
            .split(' ')
            .filter(is_of_vectors)
            .collect();
        assert_eq!(found, ["sse4_1", "avx512_bf16", "fma", "f16c"]);
    }

    #[test]
    fn stolen_time_is_a_share_of_all() {
        let before = Ticks::of("cpu  10 0 10 80 0 0 0 5 3 0\ncpu0 1").unwrap();
        let after = Ticks::of("cpu  60 0 20 110 0 0 0 15 9 0\n").unwrap();
        assert_eq!(before.stolen_percent(after), Some(10.0));
        assert_eq!(before.stolen_percent(before), None);
        assert_eq!(after.stolen_percent(before), None);
        assert_eq!(Ticks::of("cpu  1 2 3"), None);
    }

    #[test]
    fn the_system_has_a_name() {
        let release = "ID=x\nPRETTY_NAME=\"A System 1 (one)\"\n";
        assert_eq!(os(release), Some("A System 1 (one)".to_owned()));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_is_described() {
        let machine = Machine::look(false);
        assert!(machine.processors > 0 && machine.memory_limit_bytes > 0);
        assert!(machine.memory_bytes.unwrap() > 1 << 26, "{machine:?}");
        assert!(machine.kernel.is_some() && machine.load_before.is_some());
    }
}
