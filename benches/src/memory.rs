//! Memory of this process, as Linux counts it.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often memory is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// What a process has in memory, in bytes; or the most of each kind that was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "names in JSON have units")]
pub(crate) struct Memory {
    /// All of it.
    pub(crate) resident_bytes: u64,
    /// What it has for itself: it goes to the swap area or stays.
    pub(crate) anonymous_bytes: u64,
    /// Mapped files, which processes share and the system may drop and read again.
    pub(crate) file_bytes: u64,
}

/// A line of `/proc/self/status` in bytes; absent on other systems.
pub(crate) fn status_bytes(name: &str) -> Option<u64> {
    bytes_of(&fs::read_to_string("/proc/self/status").ok()?, name)
}

fn bytes_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

impl Memory {
    fn now() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        Some(Self {
            resident_bytes: bytes_of(&status, "VmRSS")?,
            anonymous_bytes: bytes_of(&status, "RssAnon")?,
            file_bytes: bytes_of(&status, "RssFile")? + bytes_of(&status, "RssShmem")?,
        })
    }

    fn max(self, other: Self) -> Self {
        Self {
            resident_bytes: self.resident_bytes.max(other.resident_bytes),
            anonymous_bytes: self.anonymous_bytes.max(other.anonymous_bytes),
            file_bytes: self.file_bytes.max(other.file_bytes),
        }
    }

    /// The most of each kind, if any is known.
    pub(crate) fn most(all: impl IntoIterator<Item = Option<Self>>) -> Option<Self> {
        all.into_iter().flatten().reduce(Self::max)
    }

    /// Runs `work` and returns with its result the most that was seen meanwhile, if the system tells.
    pub(crate) fn during<T>(work: impl FnOnce() -> T) -> (T, Option<Self>) {
        let (done, peak) = (AtomicBool::new(false), Mutex::new(None));
        let look = || {
            if let Ok(mut peak) = peak.lock() {
                *peak = Self::most([*peak, Self::now()]);
            }
        };
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    look();
                    std::thread::sleep(INTERVAL);
                }
            });
            let end = End(&done);
            let result = work();
            look();
            drop(end);
            result
        });
        (result, peak.into_inner().ok().flatten())
    }
}

/// Says that work is done when it goes, also if the work panics: its thread is waited for.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_panics_is_not_watched_for_ever() {
        let caught = std::panic::catch_unwind(|| Memory::during(|| panic!("it breaks")));
        assert!(caught.is_err());
    }

    /// A block of memory that is written counts as anonymous, and the kinds make up the whole.
    #[test]
    #[cfg(target_os = "linux")]
    fn kinds_of_memory_are_told_apart() {
        const BYTES: usize = 64 << 20;
        let before = Memory::now().unwrap();
        let (block, during) = Memory::during(|| vec![1u8; BYTES]);
        let during = during.unwrap();
        assert!(
            during.anonymous_bytes >= before.anonymous_bytes + BYTES as u64 / 2,
            "{before:?} {during:?}"
        );
        assert!(before.file_bytes > 0);
        let sum = before.anonymous_bytes + before.file_bytes;
        assert!(before.resident_bytes.abs_diff(sum) < 1 << 20, "{before:?}");
        drop(block);
    }

    #[test]
    fn the_most_of_each_kind_counts() {
        let memory = |resident_bytes, anonymous_bytes, file_bytes| {
            Some(Memory {
                resident_bytes,
                anonymous_bytes,
                file_bytes,
            })
        };
        let most = Memory::most([memory(5, 4, 1), None, memory(6, 2, 4)]);
        assert_eq!(most, memory(6, 4, 4));
        assert_eq!(Memory::most([None]), None);
    }
}
