//! Whose energy it is, where several things are made at the same time: each has an equal share of what the processor uses while it
//! is worked on. What is used while nothing is made is nobody's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Energy, Sensors};

/// The processor's energy, divided. Clones are the same.
#[derive(Clone, Debug)]
pub struct Shares {
    sensors: Sensors,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Counters when what they count was divided last; none once they cannot be read any more.
    energy: Option<Energy>,
    /// Joules of those that are worked on.
    working: BTreeMap<u64, f64>,
    next: u64,
}

impl Shares {
    /// Begins to divide; none if the processor does not tell.
    #[must_use]
    pub fn new(sensors: &Sensors) -> Option<Self> {
        let inner = Inner {
            energy: Some(Energy::read(sensors)?),
            ..Inner::default()
        };
        Some(Self {
            sensors: sensors.clone(),
            inner: Arc::new(Mutex::new(inner)),
        })
    }

    /// Something is worked on from now on.
    #[must_use]
    pub fn begin(&self) -> Share {
        let mut share = Share {
            shares: self.clone(),
            number: None,
            joules: 0.0,
        };
        share.go_on();
        share
    }

    /// Divides what was used since the last time.
    fn settle(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let used = inner.energy.as_ref().and_then(Energy::joules_since);
        inner.energy = used.and_then(|_| Energy::read(&self.sensors));
        let count = inner.working.len() as f64;
        for joules in inner.working.values_mut() {
            *joules += used.unwrap_or(0.0) / count;
        }
        inner
    }
}

/// The share of one thing. Dropping it ends it.
#[derive(Debug)]
pub struct Share {
    shares: Shares,
    /// None while it waits.
    number: Option<u64>,
    /// Of the times before it waited.
    joules: f64,
}

impl Share {
    /// It is not worked on for a while.
    pub fn wait(&mut self) {
        let Some(number) = self.number.take() else {
            return;
        };
        let joules = self.shares.settle().working.remove(&number);
        self.joules += joules.unwrap_or(0.0);
    }

    /// It is worked on again.
    pub fn go_on(&mut self) {
        if self.number.is_some() {
            return;
        }
        let mut inner = self.shares.settle();
        let number = inner.next;
        inner.next += 1;
        inner.working.insert(number, 0.0);
        drop(inner);
        self.number = Some(number);
    }

    /// Its joules so far; none if the counters could not be read all the time.
    #[must_use]
    pub fn joules(&self) -> Option<f64> {
        let inner = self.shares.settle();
        inner.energy.as_ref()?;
        let now = self.number.and_then(|number| inner.working.get(&number));
        Some(self.joules + now.copied().unwrap_or(0.0))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_runs_at_once_has_equal_shares_and_who_waits_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("powercap/intel-rapl:0");
        fs::create_dir_all(&folder).unwrap();
        let count = |joules: u64| {
            let text = (joules * 1_000_000).to_string();
            fs::write(folder.join("energy_uj"), text).unwrap();
        };
        count(100);
        let shares = Shares::new(&Sensors::of(dir.path())).unwrap();
        count(150);
        let mut first = shares.begin();
        count(160);
        let second = shares.begin();
        count(180);
        first.wait();
        count(200);
        first.go_on();
        count(202);
        let told = [&first, &second].map(Share::joules);
        // 50 before the first is nobody's.
        assert_eq!(told, [Some(10.0 + 10.0 + 1.0), Some(10.0 + 20.0 + 1.0)]);
        drop(first);
        count(203);
        assert_eq!(second.joules(), Some(32.0));
        fs::remove_file(folder.join("energy_uj")).unwrap();
        assert_eq!(second.joules(), None);
        count(300);
        assert_eq!(second.joules(), None);
        assert!(Shares::new(&Sensors::of(&dir.path().join("none"))).is_none());
    }
}
