//! The locks of the queue: shuttle's in unit tests, which tries out in which order threads may take them.

#[cfg(test)]
pub(super) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};
#[cfg(not(test))]
pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
