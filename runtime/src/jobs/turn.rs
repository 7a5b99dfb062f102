//! Whose turn it is to compute with a worker's networks.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::engine::Cancel;
use crate::pipeline::Stage;

/// The turns of a worker's jobs: one reads its prompts, one denoises, one is decoded. There is one copy of each network, so they would
/// wait for it in any case; here it is known who waits.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    encode: Turn,
    denoise: Turn,
    decode: Turn,
}

impl Turns {
    /// The turn that a stage begins with, if it does not go on with that of the stage before.
    pub(super) fn of(&self, stage: Stage) -> Option<&Turn> {
        match stage {
            Stage::Encode => Some(&self.encode),
            Stage::Load => Some(&self.denoise),
            Stage::Denoise { .. } => None,
            Stage::Decode => Some(&self.decode),
        }
    }
}

/// One at a time has the turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    taken: Mutex<bool>,
    changed: Condvar,
}

impl Shared {
    fn taken(&self) -> MutexGuard<'_, bool> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Waits for the turn, which ends when what is returned is dropped. None for a job that wants to stop.
    pub(super) fn take(&self, cancel: &Cancel) -> Option<Held> {
        let shared = Arc::clone(&self.shared);
        let wake = move || {
            // With the lock in hand, nobody is between a look at the wish and waiting.
            let taken = shared.taken();
            shared.changed.notify_all();
            drop(taken);
        };
        let held = cancel.during(wake, || {
            let mut taken = self.shared.taken();
            while *taken && !cancel.is_cancelled() {
                let woken = self.shared.changed.wait(taken);
                taken = woken.unwrap_or_else(PoisonError::into_inner);
            }
            let free = !*taken;
            *taken = true;
            free.then(|| Held(Arc::clone(&self.shared)))
        });
        held.ok().flatten()
    }
}

/// The turn. Dropping it gives it to the next one.
#[derive(Debug)]
pub(super) struct Held(Arc<Shared>);

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.taken() = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn one_has_the_turn_and_who_stops_does_not_wait_for_it() {
        let (turn, cancel) = (Turn::default(), Cancel::new());
        let held = turn.take(&cancel).unwrap();
        let stops = Cancel::new();
        let waits = {
            let (turn, stops) = (turn.clone(), stops.clone());
            thread::spawn(move || turn.take(&stops).is_some())
        };
        let next = {
            let turn = turn.clone();
            thread::spawn(move || turn.take(&Cancel::new()).is_some())
        };
        stops.cancel();
        assert!(!waits.join().unwrap());
        assert!(!next.is_finished());
        drop(held);
        assert!(next.join().unwrap());
        assert!(turn.take(&cancel).is_some());
    }
}
