//! What the processor counts of its energy: RAPL, as Linux shows it in `/sys/class/powercap`.
//!
//! Each package is a folder `intel-rapl:N` (AMD's, too) with a counter of microjoules, `energy_uj`, that begins anew behind
//! `max_energy_range_uj`. Virtual machines have none, and often only the administrator may read it.

use std::fs;
use std::path::PathBuf;

use super::{Sensors, number};

/// Counters at one time.
#[derive(Debug)]
pub struct Energy(Vec<Counter>);

#[derive(Debug)]
struct Counter {
    folder: PathBuf,
    microjoules: u64,
}

impl Energy {
    /// Reads the packages' counters; none if there are none, or one cannot be read.
    #[must_use]
    pub fn read(sensors: &Sensors) -> Option<Self> {
        let entries = fs::read_dir(sensors.class("powercap")).ok()?.flatten();
        let is_package = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            let number = name.and_then(|name| name.strip_prefix("intel-rapl:"));
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        };
        let packages = entries.map(|entry| entry.path()).filter(is_package);
        let counters: Option<Vec<_>> = packages
            .map(|folder| {
                let microjoules = number(&folder, "energy_uj")?;
                Some(Counter {
                    folder,
                    microjoules,
                })
            })
            .collect();
        counters.filter(|all| !all.is_empty()).map(Self)
    }

    /// Joules since then. A counter may have begun anew once.
    #[must_use]
    pub fn joules_since(&self) -> Option<f64> {
        let used = self.0.iter().map(|counter| {
            let now = number(&counter.folder, "energy_uj")?;
            match now.checked_sub(counter.microjoules) {
                Some(used) => Some(used),
                None => {
                    let range = number(&counter.folder, "max_energy_range_uj")?;
                    (range + now).checked_sub(counter.microjoules)
                }
            }
        });
        let sum: Option<u64> = used.sum();
        Some(sum? as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_summed_and_counters_may_begin_anew() {
        let dir = tempfile::tempdir().unwrap();
        let set = |domain: &str, file: &str, value: u64| {
            let folder = dir.path().join("powercap").join(domain);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(file), format!("{value}\n")).unwrap();
        };
        let sensors = Sensors::of(dir.path());
        assert!(Energy::read(&sensors).is_none());
        set("intel-rapl:0", "energy_uj", 1_000_000);
        set("intel-rapl:1", "energy_uj", 9_000_000);
        set("intel-rapl:1", "max_energy_range_uj", 10_000_000);
        // A part of a package, which its counter holds already, and the control type.
        set("intel-rapl:0:0", "energy_uj", 1);
        set("intel-rapl", "enabled", 1);
        let energy = Energy::read(&sensors).unwrap();
        set("intel-rapl:0", "energy_uj", 1_500_000);
        set("intel-rapl:1", "energy_uj", 2_000_000);
        set("intel-rapl:0:0", "energy_uj", 300_000_000);
        assert_eq!(energy.joules_since(), Some(0.5 + 3.0));
        fs::remove_file(dir.path().join("powercap/intel-rapl:0/energy_uj")).unwrap();
        assert_eq!(energy.joules_since(), None);
        assert!(Energy::read(&sensors).is_none());
        assert!(Energy::read(&Sensors::of(&dir.path().join("none"))).is_none());
    }
}
