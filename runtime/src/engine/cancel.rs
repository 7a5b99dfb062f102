//! The wish to stop, which belongs to a job and ends what runs for it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::EngineError;

/// A job's wish to stop. Clones are the same wish.
#[derive(Clone, Default)]
pub struct Cancel {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    wanted: AtomicBool,
    running: Mutex<Running>,
}

/// How to end what runs now.
#[derive(Default)]
struct Running {
    next: u64,
    stops: BTreeMap<u64, Box<dyn Fn() + Send>>,
}

impl Cancel {
    /// Nobody wants to stop yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends what runs, and everything that begins later.
    pub fn cancel(&self) {
        self.inner.wanted.store(true, Ordering::SeqCst);
        self.running().stops.values().for_each(|stop| stop());
    }

    /// Whether somebody wants to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.inner.wanted.load(Ordering::SeqCst)
    }

    /// Does `work`, which `stop` ends early from another thread.
    ///
    /// # Errors
    /// Somebody wants to stop; the work's result is lost then.
    pub(crate) fn during<T>(
        &self,
        stop: impl Fn() + Send + 'static,
        work: impl FnOnce() -> T,
    ) -> Result<T, EngineError> {
        let registered = self.register(Box::new(stop));
        // A wish from before the registration did not see it.
        if self.is_cancelled() {
            return Err(EngineError::Interrupted);
        }
        let result = work();
        drop(registered);
        if self.is_cancelled() {
            Err(EngineError::Interrupted)
        } else {
            Ok(result)
        }
    }

    /// Waits so long, or until somebody wants to stop.
    pub fn sleep(&self, time: Duration) {
        let (wake, woken) = channel();
        let stop = move || {
            // Nobody listens any more who has slept enough.
            let _ = wake.send(());
        };
        let _ = self.during(stop, || woken.recv_timeout(time));
    }

    fn register(&self, stop: Box<dyn Fn() + Send>) -> Registered<'_> {
        let mut running = self.running();
        let key = running.next;
        running.next += 1;
        running.stops.insert(key, stop);
        Registered { cancel: self, key }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        let running = self.inner.running.lock();
        running.unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cancel({})", self.is_cancelled())
    }
}

/// Something that runs and can be ended.
struct Registered<'a> {
    cancel: &'a Cancel,
    key: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.cancel.running().stops.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_ends_what_runs_and_what_begins_later() {
        let (cancel, other) = (Cancel::new(), Cancel::new());
        let (tell, told) = std::sync::mpsc::channel();
        let clone = cancel.clone();
        let stop = move || tell.send(()).unwrap();
        let result = cancel.during(stop, || {
            clone.cancel();
            told.recv().unwrap();
        });
        assert!(matches!(result, Err(EngineError::Interrupted)));
        let later = cancel.during(|| (), || unreachable!("it does not begin"));
        assert!(matches!(later, Err(EngineError::Interrupted)));
        assert!(cancel.running().stops.is_empty());
        assert_eq!(other.during(|| (), || 5).unwrap(), 5);
    }
}
