//! Which job is next, and when there is memory for it.
//!
//! *Clients share fairly.* A client pays for a job with its cost when the job begins, and the client that has paid least is
//! next (start-time fair queuing, Goyal, Vin and Cheng 1996). Who comes, or comes again after a pause, begins with what the
//! one who is served now has paid, so nobody saves up time or has to make up for it. *Priorities* order the jobs of one client, and
//! equal ones go by their age; they take nothing from other clients.
//!
//! *Memory is admitted.* The next job begins when it fits beside those that run, or when none runs. No other job overtakes it
//! meanwhile, or a large one would wait for ever. *Decoding* takes most of it, and not for long: there is room for one job that decodes
//! beside all that do not, and others wait for theirs where there is not enough for all.
//!
//! *Workers share evenly.* A worker takes no second job while another one has none.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::PoisonError;

use super::sync::{Arc, Condvar, Mutex, MutexGuard};
use crate::engine::Cancel;
use crate::engine::memory::Needs;

/// What waits for its turn.
#[derive(Debug)]
pub(super) struct Entry<T> {
    pub(super) client: String,
    pub(super) priority: i32,
    /// How much work it is, in any unit.
    pub(super) cost: u64,
    /// But for decoding.
    pub(super) needs: Needs,
    /// Bytes that decoding takes more.
    pub(super) decode: u64,
    pub(super) task: T,
}

/// An entry that cannot be taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    Closed,
}

/// What of a job counts while it runs.
#[derive(Clone, Copy)]
struct Running {
    worker: usize,
    needs: Needs,
    decode: u64,
    is_decoding: bool,
}

struct State<T> {
    capacity: usize,
    /// Bytes of memory.
    bound: u64,
    workers: usize,
    /// In the order of their numbers.
    waiting: BTreeMap<u64, Entry<T>>,
    /// What clients have paid that wait, or have paid more than the one that was served last.
    paid: BTreeMap<String, u64>,
    /// What the client that was served last had paid before.
    now: u64,
    running: BTreeMap<u64, Running>,
    next: u64,
    closed: bool,
}

impl<T> State<T> {
    fn push(&mut self, entry: Entry<T>) -> u64 {
        let paid = self.paid.entry(entry.client.clone()).or_default();
        if self.waiting.values().all(|w| w.client != entry.client) {
            *paid = self.now.max(*paid);
        }
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, entry);
        number
    }

    /// Number of the job whose turn it is: the most urgent one of the client that has paid least.
    fn first(&self) -> Option<u64> {
        let paid = |entry: &Entry<T>| self.paid.get(&entry.client).copied();
        let all = self.waiting.iter();
        let (_, least) = all.min_by_key(|(number, entry)| (paid(entry), **number))?;
        let own = self.waiting.iter();
        let own = own.filter(|(_, entry)| entry.client == least.client);
        let first = own.min_by_key(|(number, entry)| (Reverse(entry.priority), **number));
        first.map(|(number, _)| *number)
    }

    /// Memory that jobs need with room for those that decode, and for one in any case.
    fn used<'a>(&self, jobs: impl Iterator<Item = &'a Running> + Clone) -> Used {
        let decoding = jobs.clone().filter(|job| job.is_decoding);
        let most = jobs.clone().map(|job| job.decode).max().unwrap_or(0);
        let decode = most.max(decoding.map(|job| job.decode).sum());
        Used {
            own: jobs.clone().map(|job| job.needs.own).sum::<u64>() + decode,
            mapped: jobs.map(|job| job.needs.mapped).max().unwrap_or(0),
            bound: self.bound,
        }
    }

    fn fits(&self, job: Running) -> bool {
        let all = self.running.values().chain([&job]);
        self.running.is_empty() || self.used(all).fits()
    }

    /// Whether a job may decode beside those that do.
    fn may_decode(&self, number: u64) -> bool {
        let mut jobs = self.running.clone();
        if let Some(job) = jobs.get_mut(&number) {
            job.is_decoding = true;
        }
        let is_alone = jobs.values().filter(|job| job.is_decoding).count() <= 1;
        is_alone || self.used(jobs.values()).fits()
    }

    /// Whether no other worker has fewer jobs.
    fn has_fewest(&self, worker: usize) -> bool {
        let jobs = |worker| {
            self.running
                .values()
                .filter(|job| job.worker == worker)
                .count()
        };
        (0..self.workers).all(|other| jobs(worker) <= jobs(other))
    }

    /// Takes the job whose turn it is out of the queue, if there is room for it and it is this worker's turn.
    fn take(&mut self, worker: usize) -> Option<(u64, Entry<T>)> {
        let number = self.first()?;
        let entry = self.waiting.get(&number)?;
        let job = Running {
            worker,
            needs: entry.needs,
            decode: entry.decode,
            is_decoding: false,
        };
        if !self.has_fewest(worker) || !self.fits(job) {
            return None;
        }
        let entry = self.waiting.remove(&number)?;
        let paid = self.paid.entry(entry.client.clone()).or_default();
        self.now = *paid;
        *paid = paid.saturating_add(entry.cost);
        self.running.insert(number, job);
        self.forget();
        Some((number, entry))
    }

    /// Drops what no turn depends on, so that clients that came once leave nothing.
    fn forget(&mut self) {
        let (waiting, now) = (&self.waiting, self.now);
        self.paid.retain(|client, paid| {
            *paid > now || waiting.values().any(|entry| entry.client == *client)
        });
    }
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        let woken = self.changed.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bounded queue, for all threads that put jobs in and take them out.
pub(super) struct Queue<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> Queue<T> {
    /// An empty queue for `capacity` waiting jobs, of which those that `workers` run at the same time need `bound` bytes at most.
    pub(super) fn new(capacity: usize, bound: u64, workers: usize) -> Self {
        let state = State {
            capacity,
            bound,
            workers,
            waiting: BTreeMap::new(),
            paid: BTreeMap::new(),
            now: 0,
            running: BTreeMap::new(),
            next: 0,
            closed: false,
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
        }
    }

    /// Puts a job in and returns its number. With `wait`, waits for room.
    pub(super) fn push(&self, entry: Entry<T>, wait: bool) -> Result<u64, Refused> {
        let mut state = self.shared.state();
        loop {
            if state.closed {
                return Err(Refused::Closed);
            }
            if state.waiting.len() < state.capacity {
                let number = state.push(entry);
                self.shared.changed.notify_all();
                return Ok(number);
            }
            if !wait {
                return Err(Refused::Full);
            }
            state = self.shared.wait(state);
        }
    }

    /// The next job for a worker, counted from 0, once there is memory for it and no other worker has fewer jobs; none when the
    /// queue is closed and empty.
    pub(super) fn take(&self, worker: usize) -> Option<Taken<T>> {
        let mut state = self.shared.state();
        loop {
            if let Some((number, entry)) = state.take(worker) {
                // There may be room for one more, or for who waits to put one in.
                self.shared.changed.notify_all();
                let place = Place {
                    shared: Arc::clone(&self.shared),
                    number,
                };
                return Some(Taken {
                    task: entry.task,
                    place,
                });
            }
            if state.closed && state.waiting.is_empty() {
                return None;
            }
            state = self.shared.wait(state);
        }
    }

    /// Takes a job out that has not begun.
    pub(super) fn remove(&self, number: u64) -> Option<T> {
        let mut state = self.shared.state();
        let entry = state.waiting.remove(&number)?;
        state.forget();
        self.shared.changed.notify_all();
        Some(entry.task)
    }

    /// Lets nothing in any more.
    pub(super) fn close(&self) {
        self.shared.state().closed = true;
        self.shared.changed.notify_all();
    }

    /// Takes all jobs out that have not begun.
    pub(super) fn drain(&self) -> Vec<T> {
        let mut state = self.shared.state();
        let waiting = std::mem::take(&mut state.waiting);
        state.forget();
        self.shared.changed.notify_all();
        waiting.into_values().map(|entry| entry.task).collect()
    }

    /// Memory that the jobs need that run now.
    pub(super) fn used(&self) -> Used {
        let state = self.shared.state();
        state.used(state.running.values())
    }
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Used {
    /// What every job has for itself.
    pub(super) own: u64,
    /// Weights that are there once for all.
    pub(super) mapped: u64,
    /// What there is.
    pub(super) bound: u64,
}

impl Used {
    fn fits(self) -> bool {
        self.own + self.mapped <= self.bound
    }
}

/// A job that runs.
pub(super) struct Taken<T> {
    pub(super) task: T,
    pub(super) place: Place<T>,
}

/// A running job's place. Dropping it frees its memory.
pub(super) struct Place<T> {
    shared: Arc<Shared<T>>,
    pub(super) number: u64,
}

impl<T: Send + 'static> Place<T> {
    /// Waits for memory to decode in, which is taken until what is returned is dropped. None for a job that wants to stop.
    pub(super) fn decode(&self, cancel: &Cancel) -> Option<Decoding<T>> {
        let shared = Arc::clone(&self.shared);
        let wake = move || {
            // With the lock in hand, nobody is between a look at the wish and waiting.
            let state = shared.state();
            shared.changed.notify_all();
            drop(state);
        };
        let decoding = cancel.during(wake, || {
            let mut state = self.shared.state();
            while !state.may_decode(self.number) && !cancel.is_cancelled() {
                state = self.shared.wait(state);
            }
            if let Some(job) = state.running.get_mut(&self.number) {
                job.is_decoding = true;
            }
            Decoding {
                shared: Arc::clone(&self.shared),
                number: self.number,
            }
        });
        decoding.ok()
    }
}

/// A job that decodes. Dropping it frees the memory for that.
pub(super) struct Decoding<T> {
    shared: Arc<Shared<T>>,
    number: u64,
}

impl<T> Drop for Decoding<T> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Some(job) = state.running.get_mut(&self.number) {
            job.is_decoding = false;
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        self.shared.state().running.remove(&self.number);
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use shuttle::sync::Barrier;
    use shuttle::thread;

    use super::*;

    const ROOM: u64 = 100;

    fn entry<T>(client: &str, priority: i32, own: u64, task: T) -> Entry<T> {
        Entry {
            client: client.to_owned(),
            priority,
            cost: 10,
            needs: Needs {
                total: own,
                own,
                mapped: 0,
            },
            decode: 0,
            task,
        }
    }

    /// What would run one after the other.
    fn order<T>(queue: &Queue<T>) -> Vec<T> {
        queue.close();
        std::iter::from_fn(|| Some(queue.take(0)?.task)).collect()
    }

    /// Runs what uses the queue by itself.
    fn alone(test: impl Fn() + Send + Sync + 'static) {
        shuttle::check_random(test, 1);
    }

    #[test]
    fn five_jobs_do_not_wait_for_a_hundred_of_another_client() {
        alone(|| {
            let queue = Queue::new(200, ROOM, 1);
            for i in 0..100 {
                queue.push(entry("many", 0, 1, ("many", i)), false).unwrap();
            }
            for i in 0..5 {
                queue.push(entry("few", 0, 1, ("few", i)), false).unwrap();
            }
            let order = order(&queue);
            let places = order.iter().enumerate();
            let few: Vec<usize> = places
                .filter(|(_, (client, _))| *client == "few")
                .map(|(place, _)| place)
                .collect();
            assert_eq!(few, [1, 3, 5, 7, 9]);
            assert_eq!(order.len(), 105);
            // Every client's own go by age.
            assert!(order.iter().filter(|job| job.0 == "many").is_sorted());
        });
    }

    #[test]
    fn shares_go_by_cost() {
        alone(|| {
            let queue = Queue::new(200, ROOM, 1);
            for _ in 0..20 {
                let mut large = entry("large", 0, 1, "large");
                large.cost = 40;
                queue.push(large, false).unwrap();
                queue.push(entry("small", 0, 1, "small"), false).unwrap();
            }
            let order = order(&queue);
            let of_large = order[..15].iter().filter(|&&client| client == "large");
            assert_eq!(of_large.count(), 3, "{order:?}");
        });
    }

    #[test]
    fn who_pauses_saves_nothing_up() {
        alone(|| {
            let queue = Queue::new(200, ROOM, 1);
            queue.push(entry("a", 0, 1, "a"), false).unwrap();
            drop(queue.take(0));
            for _ in 0..10 {
                queue.push(entry("b", 0, 1, "b"), false).unwrap();
                drop(queue.take(0));
            }
            for client in ["b", "a", "a", "a", "b"] {
                queue.push(entry(client, 0, 1, client), false).unwrap();
            }
            // What `a` has not had in the pause it does not get now.
            assert_eq!(order(&queue), ["a", "b", "a", "a", "b"]);
            assert!(queue.shared.state().paid.len() <= 2);
        });
    }

    #[test]
    fn priorities_order_the_jobs_of_one_client_only() {
        alone(|| {
            let queue = Queue::new(200, ROOM, 1);
            for (client, priority) in [("a", 0), ("a", 5), ("b", -1), ("a", 5), ("b", 0)] {
                let task = (client, priority);
                queue.push(entry(client, priority, 1, task), false).unwrap();
            }
            let expected = [("a", 5), ("b", 0), ("a", 5), ("b", -1), ("a", 0)];
            assert_eq!(order(&queue), expected);
        });
    }

    #[test]
    fn a_large_job_waits_for_memory_and_nobody_overtakes_it() {
        alone(|| {
            let queue = Queue::new(10, ROOM, 1);
            for (own, name) in [(60, "first"), (60, "large"), (1, "small")] {
                queue.push(entry("a", 0, own, name), false).unwrap();
            }
            let first = queue.take(0).unwrap();
            assert!(queue.shared.state().take(0).is_none());
            drop(first);
            let large = queue.take(0).unwrap();
            let small = queue.take(0).unwrap();
            assert_eq!((large.task, small.task), ("large", "small"));
            assert_eq!(queue.used().own, 61);
            drop((large, small));
            // Alone, even what takes more than there is begins: whoever puts it in has looked.
            queue.push(entry("a", 0, 1000, "huge"), false).unwrap();
            assert_eq!(queue.take(0).unwrap().task, "huge");
        });
    }

    #[test]
    fn mapped_weights_count_once() {
        alone(|| {
            let queue = Queue::new(10, ROOM, 1);
            for _ in 0..4 {
                let mut job = entry("a", 0, 10, ());
                job.needs.mapped = 70;
                queue.push(job, false).unwrap();
            }
            let running: Vec<_> = (0..3).map(|_| queue.take(0).unwrap()).collect();
            let used = queue.used();
            assert_eq!((used.own, used.mapped, used.bound), (30, 70, ROOM));
            assert!(queue.shared.state().take(0).is_none());
            drop(running);
        });
    }

    #[test]
    fn there_is_room_for_one_that_decodes() {
        alone(|| {
            let queue = Queue::new(10, ROOM, 1);
            for _ in 0..4 {
                let mut job = entry("a", 0, 20, ());
                job.decode = 30;
                queue.push(job, false).unwrap();
            }
            let mut running: Vec<_> = (0..3).map(|_| queue.take(0).unwrap()).collect();
            assert!(queue.shared.state().take(0).is_none());
            assert_eq!(queue.used().own, 3 * 20 + 30);
            let may = |job: &Taken<()>| queue.shared.state().may_decode(job.place.number);
            let decoding = running[0].place.decode(&Cancel::new());
            assert!(!may(&running[1]) && !may(&running[2]));
            let stopped = Cancel::new();
            stopped.cancel();
            assert!(running[1].place.decode(&stopped).is_none());
            drop(decoding);
            assert!(may(&running[1]));
            // Beside one job less there is room for two.
            drop(running.pop());
            let decoding = running[0].place.decode(&Cancel::new());
            assert!(may(&running[1]));
            drop((decoding, running));
        });
    }

    /// Bytes of Stable Diffusion 1.5 at 512x512 in native graphs, as `ModelDir::memory` counts them: four workers compute within 1.4
    /// times what one needs, since weights are there once and one picture is decoded at a time.
    #[test]
    fn four_workers_need_little_more_than_one() {
        const WEIGHTS: u64 = 1_720_000_000;
        const UNET: u64 = 110_000 * 64 * 64;
        const DECODER: u64 = 340_000 * 64 * 64;
        let queue = |bound, workers| {
            let queue = Queue::new(10, bound, workers);
            for _ in 0..8 {
                let mut job = entry("a", 0, UNET, ());
                job.needs.mapped = WEIGHTS;
                job.decode = DECODER - UNET;
                queue.push(job, false).unwrap();
            }
            queue
        };
        alone(move || {
            let one = queue(u64::MAX, 1);
            let running = [one.take(0), one.take(0)];
            let used = one.used();
            let bound = (used.own + used.mapped) * 14 / 10;
            drop(running);
            let four = queue(bound, 4);
            let running: Vec<_> = (0..4).map(|worker| four.take(worker)).collect();
            let used = four.used();
            assert!(used.own + used.mapped <= bound);
            // One of them has a second job, for the time when it decodes.
            assert!((0..4).any(|worker| four.shared.state().take(worker).is_some()));
            drop(running);
        });
    }

    /// Threads that decode as soon as they may: no more at once than there is room for, and none waits for ever.
    fn decoders() {
        let queue = Queue::new(4, ROOM, 2);
        let now = Arc::new(Mutex::new(0));
        for _ in 0..4 {
            let mut job = entry("a", 0, 10, ());
            job.decode = 40;
            queue.push(job, false).unwrap();
        }
        queue.close();
        let threads = [0, 0, 1, 1].map(|worker| {
            let (queue, now) = (queue.clone(), Arc::clone(&now));
            thread::spawn(move || {
                while let Some(taken) = queue.take(worker) {
                    let decoding = taken.place.decode(&Cancel::new());
                    *now.lock().unwrap() += 1;
                    assert!(*now.lock().unwrap() <= 2);
                    *now.lock().unwrap() -= 1;
                    drop(decoding);
                }
            })
        });
        threads.into_iter().for_each(|it| it.join().unwrap());
        assert_eq!(queue.used().own, 0);
    }

    #[test]
    fn who_waits_to_decode_does_at_last() {
        shuttle::check_random(decoders, 200);
    }

    #[test]
    fn a_worker_waits_while_another_one_has_no_job() {
        alone(|| {
            let queue = Queue::new(10, ROOM, 2);
            for _ in 0..4 {
                queue.push(entry("a", 0, 1, ()), false).unwrap();
            }
            let of_first = queue.take(0).unwrap();
            assert!(queue.shared.state().take(0).is_none());
            let of_second = queue.take(1).unwrap();
            let more = queue.take(0).unwrap();
            assert!(queue.shared.state().take(0).is_none());
            drop((of_first, more));
            assert!(queue.shared.state().take(1).is_none());
            drop(of_second);
            assert!(queue.take(1).is_some());
        });
    }

    /// Two threads of each of two workers, and two jobs of which each lasts until the other one has begun.
    fn two_jobs_at_once() {
        let queue = Queue::new(2, ROOM, 2);
        let began = Arc::new(Barrier::new(2));
        let of = Arc::new(Mutex::new(Vec::new()));
        let threads = [0, 0, 1, 1].map(|worker| {
            let (queue, began, of) = (queue.clone(), Arc::clone(&began), Arc::clone(&of));
            thread::spawn(move || {
                while let Some(taken) = queue.take(worker) {
                    of.lock().unwrap().push(worker);
                    began.wait();
                    drop(taken);
                }
            })
        });
        for _ in 0..2 {
            queue.push(entry("a", 0, 1, ()), true).unwrap();
        }
        queue.close();
        threads.into_iter().for_each(|it| it.join().unwrap());
        let mut of = of.lock().unwrap();
        of.sort_unstable();
        assert_eq!(*of, [0, 1]);
    }

    #[test]
    fn two_jobs_go_to_two_workers() {
        shuttle::check_random(two_jobs_at_once, 2_000);
    }

    #[test]
    fn a_full_or_closed_queue_refuses() {
        alone(|| {
            let queue = Queue::new(1, ROOM, 1);
            let number = queue.push(entry("a", 0, 1, 1), false).unwrap();
            assert_eq!(queue.push(entry("a", 0, 1, 2), false), Err(Refused::Full));
            assert_eq!(queue.remove(number), Some(1));
            assert_eq!(queue.remove(number), None);
            queue.push(entry("a", 0, 1, 3), false).unwrap();
            queue.close();
            assert_eq!(queue.push(entry("a", 0, 1, 4), true), Err(Refused::Closed));
            assert_eq!(queue.take(0).unwrap().task, 3);
            assert!(queue.take(0).is_none());
        });
    }

    /// Clients that put jobs in and take some back, workers that do them, some of which fail: every job ends once, and the
    /// bound holds at every moment. Shuttle ends with an error if all threads wait.
    fn everything_at_once() {
        const JOBS: usize = 6;
        let queue = Queue::<usize>::new(2, ROOM, 2);
        let ended = Arc::new(Mutex::new(vec![0; 2 * JOBS]));
        let used = Arc::new(Mutex::new((0, 0)));
        let end = |ended: &Mutex<Vec<i32>>, job: usize| ended.lock().unwrap()[job] += 1;
        let clients = [0, JOBS].map(|first| {
            let (queue, ended) = (queue.clone(), Arc::clone(&ended));
            thread::spawn(move || {
                for job in first..first + JOBS {
                    let own = [30, 70, 100][job % 3];
                    let client = ["a", "b"][usize::from(first > 0)];
                    let number = queue
                        .push(entry(client, job as i32 % 2, own, job), true)
                        .unwrap();
                    if job % 4 == 3
                        && let Some(job) = queue.remove(number)
                    {
                        end(&ended, job);
                    }
                }
            })
        });
        let workers = [0, 1, 1].map(|worker| {
            let (queue, ended, used) = (queue.clone(), Arc::clone(&ended), Arc::clone(&used));
            thread::spawn(move || {
                while let Some(taken) = queue.take(worker) {
                    let own = [30, 70, 100][taken.task % 3];
                    {
                        let mut used = used.lock().unwrap();
                        used.0 += own;
                        used.1 = used.0.max(used.1);
                    }
                    thread::yield_now();
                    used.lock().unwrap().0 -= own;
                    end(&ended, taken.task);
                }
            })
        });
        clients
            .into_iter()
            .for_each(|client| client.join().unwrap());
        queue.close();
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
        assert_eq!(*ended.lock().unwrap(), [1; 2 * JOBS]);
        assert!(used.lock().unwrap().1 <= ROOM);
        assert_eq!(queue.used().own, 0);
    }

    #[test]
    fn no_job_is_lost_or_doubled_and_nobody_waits_for_ever() {
        shuttle::check_random(everything_at_once, 2_000);
        shuttle::check_pct(everything_at_once, 1_000, 3);
    }
}
