//! Processors of their own for workers, so that the system moves none to where another one computes.
//!
//! Threads inherit where they may run from those that make them (`sched_setaffinity(2)`). So it is enough to pin a worker's own
//! threads, which load its networks: ONNX Runtime's threads for those are made there.

use std::io;

/// A system that cannot pin threads, or does not tell which processors there are.
#[derive(Debug, thiserror::Error)]
#[error("workers cannot have processors of their own here: {0}")]
pub struct PinError(io::Error);

/// The processors that this process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins(Vec<Processor>);

/// What runs one thread at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Processor {
    /// Its number.
    id: usize,
    /// The least number of those that share its core, as hyperthreads do.
    core: usize,
}

impl Pins {
    /// Finds the processors.
    ///
    /// # Errors
    /// Another system than Linux.
    pub fn find() -> Result<Self, PinError> {
        system::processors().map(Self).map_err(PinError)
    }

    /// Processors for workers with so many threads each. All cores get a thread before one gets a second, and a worker's
    /// cores lie side by side. Workers share processors only where there are fewer than threads.
    pub(super) fn divide(&self, threads: &[usize]) -> Vec<Vec<usize>> {
        let mut places: Vec<(usize, Processor)> = Vec::new();
        for &processor in &self.0 {
            let before = places
                .iter()
                .filter(|(_, other)| other.core == processor.core);
            places.push((before.count(), processor));
        }
        places.sort_by_key(|(place, processor)| (*place, processor.core));
        places.truncate(threads.iter().sum());
        places.sort_by_key(|(place, processor)| (processor.core, *place));
        let mut next = places.iter().cycle().map(|(_, processor)| processor.id);
        let of_worker = threads
            .iter()
            .map(|&count| next.by_ref().take(count).collect());
        of_worker.collect()
    }
}

/// Lets this thread, and those that it makes, run on these processors only.
pub(super) fn pin(processors: &[usize]) -> Result<(), PinError> {
    system::pin(processors).map_err(PinError)
}

#[cfg(target_os = "linux")]
mod system {
    use std::fs;
    use std::io;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    use super::Processor;

    pub(super) fn processors() -> io::Result<Vec<Processor>> {
        let allowed = sched_getaffinity(None)?;
        let all = (0..CpuSet::MAX_CPU).filter(|&id| allowed.is_set(id));
        let core = |id: usize| {
            let file = format!("/sys/devices/system/cpu/cpu{id}/topology/thread_siblings_list");
            // "0,8" or "0-1".
            let list = fs::read_to_string(file).ok()?;
            list.split([',', '-']).next()?.trim().parse().ok()
        };
        let processor = |id| Processor {
            id,
            core: core(id).unwrap_or(id),
        };
        Ok(all.map(processor).collect())
    }

    pub(super) fn pin(processors: &[usize]) -> io::Result<()> {
        let mut set = CpuSet::new();
        processors.iter().for_each(|&id| set.set(id));
        Ok(sched_setaffinity(None, &set)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;

    use super::Processor;

    pub(super) fn processors() -> io::Result<Vec<Processor>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn pin(_: &[usize]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processors by number and core.
    fn pins(all: &[(usize, usize)]) -> Pins {
        Pins(
            all.iter()
                .map(|&(id, core)| Processor { id, core })
                .collect(),
        )
    }

    #[test]
    fn cores_come_before_hyperthreads() {
        // Four cores, whose second threads are 4 to 7.
        let all: Vec<(usize, usize)> = (0..8).map(|id| (id, id % 4)).collect();
        let all = pins(&all);
        assert_eq!(all.divide(&[2, 2]), [[0, 1], [2, 3]]);
        assert_eq!(all.divide(&[1, 1]), [[0], [1]]);
        // Whole cores, where there are threads for all.
        assert_eq!(all.divide(&[4, 4]), [[0, 4, 1, 5], [2, 6, 3, 7]]);
        assert_eq!(all.divide(&[3, 2]), [vec![0, 4, 1], vec![2, 3]]);
        // Neighbours share a core, and the process may not use all.
        let some = pins(&[(2, 2), (3, 2), (5, 4), (6, 6), (7, 6)]);
        assert_eq!(some.divide(&[1, 1, 1]), [[2], [5], [6]]);
        assert_eq!(some.divide(&[2, 2, 2]), [[2, 3], [5, 6], [7, 2]]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_may_use_some() {
        let found = Pins::find().unwrap();
        let count = std::thread::available_parallelism().unwrap().get();
        assert!(found.0.len() >= count, "{found:?}");
        assert!(
            found
                .0
                .iter()
                .all(|processor| processor.core <= processor.id)
        );
    }
}
