//! How hot the processor is: drivers of processors in `/sys/class/hwmon`, and where there are none the thermal zones of processors
//! in `/sys/class/thermal`. Both count in thousandths of a degree.

use std::fs;
use std::path::{Path, PathBuf};

use super::Sensors;

/// Drivers that measure processors.
const DRIVERS: [&str; 5] = [
    "coretemp",
    "k10temp",
    "zenpower",
    "cpu_thermal",
    "scpi_sensors",
];

/// What kinds of thermal zones of processors have in their names: `x86_pkg_temp`, `cpu-thermal`, `cpu0_thermal`, `soc_thermal`.
const ZONES: [&str; 3] = ["pkg_temp", "cpu", "soc"];

/// Sensors of the processor.
#[derive(Clone, Debug)]
pub struct Thermometer(Vec<PathBuf>);

impl Thermometer {
    /// Finds the processor's sensors; none if there are none, or none can be read.
    #[must_use]
    pub fn find(sensors: &Sensors) -> Option<Self> {
        let drivers = inputs(&sensors.class("hwmon"), "name", "temp", "_input", |name| {
            DRIVERS.contains(&name)
        });
        let files = match drivers.is_empty() {
            false => drivers,
            true => inputs(&sensors.class("thermal"), "type", "temp", "", |name| {
                ZONES.iter().any(|zone| name.contains(zone))
            }),
        };
        let found = Self(files);
        found.celsius().map(|_| found)
    }

    /// The hottest sensor in degrees Celsius; none if none can be read.
    #[must_use]
    pub fn celsius(&self) -> Option<f64> {
        let read = |file: &PathBuf| {
            let text = fs::read_to_string(file).ok()?;
            text.trim().parse().ok()
        };
        let hottest: i64 = self.0.iter().filter_map(read).max()?;
        Some(hottest as f64 / 1e3)
    }
}

/// Files `{beginning}..{end}` in the folders of a class whose file `kind` says what is wanted. AMD's `Tctl` is for fans, and higher
/// than what is measured on some processors: it is left out where there is more.
fn inputs(
    class: &Path,
    kind: &str,
    beginning: &str,
    end: &str,
    wanted: impl Fn(&str) -> bool,
) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for device in fs::read_dir(class).into_iter().flatten().flatten() {
        let folder = device.path();
        let name = fs::read_to_string(folder.join(kind)).unwrap_or_default();
        if !wanted(name.trim()) {
            continue;
        }
        let files = fs::read_dir(&folder).into_iter().flatten().flatten();
        for file in files.map(|file| file.path()) {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let middle = name
                .strip_prefix(beginning)
                .and_then(|n| n.strip_suffix(end));
            let Some(middle) = middle else { continue };
            if middle.bytes().all(|byte| byte.is_ascii_digit()) {
                let label = fs::read_to_string(folder.join(format!("{beginning}{middle}_label")));
                found.push((label.unwrap_or_default().trim() == "Tctl", file));
            }
        }
    }
    let measured = found.iter().any(|(is_for_fans, _)| !is_for_fans);
    found.retain(|(is_for_fans, _)| !(measured && *is_for_fans));
    found.into_iter().map(|(_, file)| file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hottest_sensor_of_the_processor_counts() {
        let dir = tempfile::tempdir().unwrap();
        let set = |folder: &str, file: &str, value: &str| {
            let folder = dir.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(file), format!("{value}\n")).unwrap();
        };
        let celsius = || Thermometer::find(&Sensors::of(dir.path()))?.celsius();
        assert_eq!(celsius(), None);
        set("thermal/thermal_zone0", "type", "acpitz");
        set("thermal/thermal_zone0", "temp", "99000");
        assert_eq!(celsius(), None);
        set("thermal/thermal_zone1", "type", "x86_pkg_temp");
        set("thermal/thermal_zone1", "temp", "51500");
        assert_eq!(celsius(), Some(51.5));
        // A disk and the processor's own driver, which tells more than a zone.
        set("hwmon/hwmon0", "name", "nvme");
        set("hwmon/hwmon0", "temp1_input", "80000");
        set("hwmon/hwmon1", "name", "k10temp");
        set("hwmon/hwmon1", "temp1_input", "87000");
        set("hwmon/hwmon1", "temp1_label", "Tctl");
        assert_eq!(celsius(), Some(87.0));
        set("hwmon/hwmon1", "temp3_input", "60000");
        set("hwmon/hwmon1", "temp3_label", "Tccd1");
        set("hwmon/hwmon1", "temp4_input", "-1000");
        set("hwmon/hwmon1", "temp3_max", "95000");
        assert_eq!(celsius(), Some(60.0));
    }
}
