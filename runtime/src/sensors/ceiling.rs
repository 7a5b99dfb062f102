//! Power and temperature that are not to be exceeded: who computes pauses between the calls of a network.
//!
//! *Power.* What was used beyond the limit is a debt, which is paid by using less. Whoever has a debt pauses until it is paid, so
//! the mean from one pause to the next is the limit, whatever a call takes. Who uses less saves nothing up. *Temperature.* Who finds the
//! processor too hot pauses until it is a little cooler. Calls are not cut: a limit may be exceeded for as long as one takes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Energy, Sensors, Thermometer};
use crate::Remedy;
use crate::engine::Cancel;

/// How much cooler it has to be, in degrees.
const COOLER: f64 = 2.0;

/// How often a pause looks whether it may end.
const POLL: Duration = Duration::from_millis(100);

/// A pause that changed nothing for so long ends: the limit cannot be held. It is longer than other threads' calls.
const LONGEST: Duration = Duration::from_mins(5);

/// What is not to be exceeded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Mean power of the processor's packages, in watts.
    pub watts: Option<f64>,
    /// Temperature of the processor, in degrees Celsius.
    pub celsius: Option<f64>,
}

/// A limit that cannot be held, since nothing measures it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSensor {
    /// Of power.
    #[error(
        "the processor's power cannot be read: there is no counter of energy in /sys/class/powercap, or only the administrator may read it"
    )]
    Power,
    /// Of temperature.
    #[error(
        "the processor's temperature cannot be read: there is no sensor of it in /sys/class/hwmon or /sys/class/thermal"
    )]
    Temperature,
}

impl NoSensor {
    /// What can be done about it.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        let words = match self {
            Self::Power => {
                "the administrator may let others read /sys/class/powercap/*/energy_uj; virtual machines mostly have none"
            }
            Self::Temperature => "virtual machines mostly have none",
        };
        Some(Remedy::words(words))
    }
}

/// Holds limits, for all threads that compute.
#[derive(Debug)]
pub struct Ceiling {
    sensors: Sensors,
    power: Option<Mutex<Power>>,
    heat: Option<Mutex<Heat>>,
}

#[derive(Debug)]
struct Power {
    watts: f64,
    /// Counters at a time; none while they cannot be read.
    before: Option<(Energy, Instant)>,
    debt: Debt,
    told: Told,
}

#[derive(Debug)]
struct Heat {
    celsius: f64,
    thermometer: Thermometer,
    told: Told,
}

/// What was said already.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    lost: bool,
    in_vain: bool,
}

/// Joules that were used beyond a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Debt(f64);

impl Debt {
    /// Adds what was used in so many seconds, of which `watts` were free.
    fn add(&mut self, joules: f64, seconds: f64, watts: f64) {
        self.0 = (self.0 + joules - watts * seconds).max(0.0);
    }
}

/// What a sensor says.
enum Look {
    /// It may go on.
    Fine,
    /// `found` watts or degrees, and so much too much of energy or degrees.
    Over { found: f64, excess: f64 },
    /// It cannot be read any more.
    Lost,
}

impl Ceiling {
    /// Holds these limits, if there are any.
    ///
    /// # Errors
    /// Nothing measures what shall be limited.
    pub fn new(sensors: &Sensors, limits: Limits) -> Result<Option<Self>, NoSensor> {
        let power = limits.watts.map(|watts| {
            let now = (Energy::read(sensors)?, Instant::now());
            Some(Mutex::new(Power {
                watts,
                before: Some(now),
                debt: Debt::default(),
                told: Told::default(),
            }))
        });
        let heat = limits.celsius.map(|celsius| {
            Some(Mutex::new(Heat {
                celsius,
                thermometer: Thermometer::find(sensors)?,
                told: Told::default(),
            }))
        });
        let ceiling = Self {
            sensors: sensors.clone(),
            power: power.map(|it| it.ok_or(NoSensor::Power)).transpose()?,
            heat: heat.map(|it| it.ok_or(NoSensor::Temperature)).transpose()?,
        };
        let holds_any = ceiling.power.is_some() || ceiling.heat.is_some();
        Ok(holds_any.then_some(ceiling))
    }

    /// Pauses while the processor is over a limit and nobody wants to stop. Where a sensor is lost or a limit cannot be held, work goes
    /// on, since processors protect themselves; `tell` hears of either once.
    pub fn keep(&self, cancel: &Cancel, tell: &mut dyn FnMut(&str)) {
        if let Some(power) = &self.power {
            let look = || self.look_at_power(&mut locked(power));
            match pause(cancel, LONGEST, look) {
                Some(End::Lost) if once(&mut locked(power).told.lost) => {
                    tell(
                        "the processor's energy cannot be read any more: its power has no limit now",
                    );
                }
                Some(End::InVain(watts)) => {
                    let mut power = locked(power);
                    // What nobody can pay is no debt.
                    power.debt = Debt::default();
                    if once(&mut power.told.in_vain) {
                        tell(&in_vain(watts, "W", power.watts));
                    }
                }
                _ => {}
            }
        }
        if let Some(heat) = &self.heat {
            let mut is_cooling = false;
            let look = || {
                let heat = locked(heat);
                let look = look_at_heat(heat.thermometer.celsius(), heat.celsius, is_cooling);
                is_cooling = true;
                look
            };
            match pause(cancel, LONGEST, look) {
                Some(End::Lost) if once(&mut locked(heat).told.lost) => {
                    tell(
                        "the processor's temperature cannot be read any more: it has no limit now",
                    );
                }
                Some(End::InVain(now)) => {
                    let mut heat = locked(heat);
                    if once(&mut heat.told.in_vain) {
                        tell(&in_vain(now, "°C", heat.celsius));
                    }
                }
                _ => {}
            }
        }
    }

    fn look_at_power(&self, power: &mut Power) -> Look {
        let now = Energy::read(&self.sensors).map(|energy| (energy, Instant::now()));
        let (before, is_lost) = (
            std::mem::replace(&mut power.before, now),
            power.before.is_none(),
        );
        let Some((before, at)) = before else {
            // It comes back with this look, or not.
            return if is_lost { Look::Lost } else { Look::Fine };
        };
        let Some(joules) = before.joules_since() else {
            return Look::Lost;
        };
        let seconds = at.elapsed().as_secs_f64();
        power.debt.add(joules, seconds, power.watts);
        match power.debt.0 > 0.0 {
            true => Look::Over {
                found: joules / seconds.max(1e-6),
                excess: power.debt.0,
            },
            false => Look::Fine,
        }
    }
}

/// Who is cooling already goes on with that a little longer.
fn look_at_heat(now: Option<f64>, limit: f64, is_cooling: bool) -> Look {
    let limit = if is_cooling { limit - COOLER } else { limit };
    match now {
        None => Look::Lost,
        Some(found) if found > limit => Look::Over {
            found,
            excess: found - limit,
        },
        Some(_) => Look::Fine,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether something is so for the first time.
fn once(told: &mut bool) -> bool {
    !std::mem::replace(told, true)
}

fn in_vain(found: f64, unit: &str, limit: f64) -> String {
    let minutes = LONGEST.as_secs() / 60;
    format!(
        "the processor has {found:.0} {unit} after a pause of {minutes} minutes: its limit of {limit} {unit} cannot be held; work goes on between such pauses"
    )
}

/// Why a pause ended before all was fine.
enum End {
    Lost,
    InVain(f64),
}

/// Pauses while a look finds too much, and less of it every `longest`.
fn pause(cancel: &Cancel, longest: Duration, mut look: impl FnMut() -> Look) -> Option<End> {
    let mut since: Option<(Instant, f64)> = None;
    while !cancel.is_cancelled() {
        match look() {
            Look::Fine => return None,
            Look::Lost => return Some(End::Lost),
            Look::Over { found, excess } => {
                match since {
                    Some((at, _)) if at.elapsed() <= longest => {}
                    Some((_, before)) if excess >= before => return Some(End::InVain(found)),
                    _ => since = Some((Instant::now(), excess)),
                }
                cancel.sleep(POLL);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;

    fn of(watts: Option<f64>, celsius: Option<f64>) -> Limits {
        Limits { watts, celsius }
    }

    /// A folder with a counter of joules and a sensor of degrees, and functions that set them.
    fn fake() -> (tempfile::TempDir, impl Fn(u64), impl Fn(u64)) {
        let dir = tempfile::tempdir().unwrap();
        let set = |dir: &std::path::Path, folder: &str, file: &str, text: &str| {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(file), text).unwrap();
        };
        let root = dir.path().to_owned();
        let joules = move |joules: u64| {
            let count = (joules * 1_000_000).to_string();
            set(&root, "powercap/intel-rapl:0", "energy_uj", &count);
        };
        let root = dir.path().to_owned();
        let degrees = move |degrees: u64| {
            set(&root, "hwmon/hwmon0", "name", "coretemp");
            let count = (degrees * 1000).to_string();
            set(&root, "hwmon/hwmon0", "temp1_input", &count);
        };
        (dir, joules, degrees)
    }

    #[test]
    fn debts_are_paid_and_nothing_is_saved_up() {
        let mut debt = Debt::default();
        debt.add(10.0, 2.0, 20.0);
        assert_eq!(debt, Debt(0.0));
        debt.add(100.0, 2.0, 20.0);
        assert_eq!(debt, Debt(60.0));
        // A processor that rests pays with what it does not use.
        debt.add(10.0, 2.0, 20.0);
        assert_eq!(debt, Debt(30.0));
        debt.add(5.0, 2.0, 20.0);
        assert_eq!(debt, Debt(0.0));
    }

    #[test]
    fn a_limit_that_nothing_measures_is_refused() {
        let (dir, joules, degrees) = fake();
        let sensors = Sensors::of(dir.path());
        let new = |limits| Ceiling::new(&sensors, limits).map(|ceiling| ceiling.is_some());
        assert_eq!(new(of(Some(10.0), None)), Err(NoSensor::Power));
        assert_eq!(new(of(None, Some(70.0))), Err(NoSensor::Temperature));
        assert_eq!(new(Limits::default()), Ok(false));
        joules(1);
        degrees(50);
        assert_eq!(new(of(Some(10.0), Some(70.0))), Ok(true));
    }

    #[test]
    fn who_is_too_hot_pauses_until_it_is_cooler_or_the_job_is_ended() {
        let (dir, _, degrees) = fake();
        degrees(80);
        let limits = of(None, Some(70.0));
        let ceiling = Ceiling::new(&Sensors::of(dir.path()), limits)
            .unwrap()
            .unwrap();
        let silent = &mut |text: &str| panic!("{text}");
        let cancelled = Cancel::new();
        cancelled.cancel();
        ceiling.keep(&cancelled, silent);
        thread::scope(|scope| {
            let pausing =
                scope.spawn(|| ceiling.keep(&Cancel::new(), &mut |text| panic!("{text}")));
            degrees(67);
            pausing.join().unwrap();
        });
        let is_over = |now, is_cooling| {
            matches!(look_at_heat(Some(now), 70.0, is_cooling), Look::Over { .. })
        };
        assert_eq!((is_over(70.5, false), is_over(69.0, false)), (true, false));
        assert_eq!((is_over(69.0, true), is_over(68.0, true)), (true, false));
    }

    #[test]
    fn energy_beyond_the_limit_is_paid_with_time() {
        let (dir, joules, _) = fake();
        joules(0);
        let limits = of(Some(1000.0), None);
        let ceiling = Ceiling::new(&Sensors::of(dir.path()), limits)
            .unwrap()
            .unwrap();
        let began = Instant::now();
        joules(300);
        ceiling.keep(&Cancel::new(), &mut |text| panic!("{text}"));
        // 300 joules at 1000 watts.
        assert!(began.elapsed() >= Duration::from_millis(290));
    }

    #[test]
    fn sensors_that_are_lost_are_told_once_and_may_come_back() {
        let (dir, joules, degrees) = fake();
        joules(5);
        degrees(50);
        let limits = of(Some(10.0), Some(70.0));
        let ceiling = Ceiling::new(&Sensors::of(dir.path()), limits)
            .unwrap()
            .unwrap();
        let keep = || {
            let mut said = Vec::new();
            ceiling.keep(&Cancel::new(), &mut |text| said.push(text.to_owned()));
            said
        };
        assert!(keep().is_empty());
        fs::remove_dir_all(dir.path().join("powercap")).unwrap();
        fs::remove_dir_all(dir.path().join("hwmon")).unwrap();
        let said = keep();
        assert!(
            said.len() == 2 && said[0].contains("power has no limit") && said[1].contains("temp"),
            "{said:?}"
        );
        assert!(keep().is_empty());
        joules(5);
        degrees(60);
        assert!(keep().is_empty() && keep().is_empty());
    }

    #[test]
    fn a_pause_in_vain_ends() {
        let over = |excess| Look::Over {
            found: 12.0,
            excess,
        };
        let cancel = Cancel::new();
        let end = pause(&cancel, Duration::ZERO, || over(1.0));
        assert!(matches!(end, Some(End::InVain(12.0))));
        let mut excesses = [3.0, 2.0, 1.0].into_iter();
        let falls = || excesses.next().map_or(Look::Fine, over);
        assert!(pause(&cancel, Duration::ZERO, falls).is_none());
        assert!(in_vain(12.0, "W", 10.0).contains("12 W"));
    }
}
