//! Threads, which the caller owns.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Workers that run one function at the same time.
pub trait Pool {
    /// How many.
    fn workers(&self) -> usize;

    /// Calls `work(i)` once for every worker `i`, maybe at the same time, and returns when all have returned.
    fn run(&self, work: &(dyn Fn(usize) + Sync));
}

/// Calls `work(task, worker)` for every task; workers take the next task when they are done with one.
///
/// What a task computes must not depend on its worker, which only names the scratch memory it may use.
pub(crate) fn for_each_task(pool: &dyn Pool, tasks: usize, work: &(dyn Fn(usize, usize) + Sync)) {
    if tasks == 1 {
        return work(0, 0);
    }
    let next = AtomicUsize::new(0);
    pool.run(&|worker| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(task, worker);
        }
    });
}

/// The calling thread alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Pool for Serial {
    fn workers(&self) -> usize {
        1
    }

    fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        work(0);
    }
}

/// Threads that are started for each call: for tests and benchmarks.
#[derive(Clone, Copy, Debug)]
pub struct Threads(pub usize);

impl Pool for Threads {
    fn workers(&self) -> usize {
        self.0
    }

    fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        thread::scope(|scope| {
            for worker in 1..self.0 {
                scope.spawn(move || work(worker));
            }
            work(0);
        });
    }
}
