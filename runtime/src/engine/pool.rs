//! Loaded networks, leased to whoever runs them and kept for the next one who wants them.
//!
//! There is one copy of a network. A lease is exclusive, since a network runs for one at a time; whoever else wants the same
//! network waits until it is given back. A second copy would cost its weights once more and win nothing: networks share the
//! threads, and one run keeps them all busy. Whoever holds several networks at once must lease them in the same order as the
//! others who want them, or two could wait for each other; and nobody may lease what he already has.
//!
//! What is given back stays idle in memory as long as all networks together fit into the budget; the one that was idle for
//! longest goes first. Leased networks count, but never wait for others to go: a pool whose budget is 0 holds what is in
//! use and nothing else. A kept network is handed out again only while the files of its folder are what they were.

use std::collections::BTreeMap;
use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use sd_kernels::Compute;

use super::verified::Identity;
use super::{Cancel, EngineError, Network};

/// What a network is loaded from, and for which sizes. Keys that are equal mean the same network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The model directory. Other spellings of its path are other keys.
    pub dir: PathBuf,
    /// The network's folder in there.
    pub component: String,
    /// File name of the graph in that folder.
    pub variant: String,
    /// Sizes that loading fixes, by the name of the graph's symbol.
    pub dims: Vec<(String, usize)>,
    /// What its products are computed in.
    pub compute: Compute,
    /// Whether it takes vectors in place of some that it looks up: [`super::VECTORS`].
    pub takes_vectors: bool,
    /// Whether the processor computes it, whatever the engine's provider is.
    pub on_processor: bool,
    /// Whether a native graph's convolutions are computed in bands of rows, which takes less memory.
    pub in_bands: bool,
}

impl Key {
    /// File name of the graph that every component has.
    pub const PLAIN: &str = "model.onnx";

    /// A component's plain graph.
    #[must_use]
    pub fn new(dir: &Path, component: &str, dims: &[(&str, usize)]) -> Self {
        let dims = dims.iter().map(|(name, size)| ((*name).to_owned(), *size));
        Self {
            dir: dir.to_owned(),
            component: component.to_owned(),
            variant: Self::PLAIN.to_owned(),
            dims: dims.collect(),
            compute: Compute::F32,
            takes_vectors: false,
            on_processor: false,
            in_bands: false,
        }
    }

    /// Another graph over the same weights.
    #[must_use]
    pub fn variant(self, file: &str) -> Self {
        Self {
            variant: file.to_owned(),
            ..self
        }
    }

    /// The same with products computed in other numbers.
    #[must_use]
    pub fn compute(self, compute: Compute) -> Self {
        Self { compute, ..self }
    }

    /// The same with inputs for vectors, if there is need of them.
    #[must_use]
    pub fn takes_vectors(self, takes_vectors: bool) -> Self {
        Self {
            takes_vectors,
            ..self
        }
    }

    /// The same by the processor.
    #[must_use]
    pub fn on_processor(self) -> Self {
        Self {
            on_processor: true,
            ..self
        }
    }

    /// The same in bands of rows, if that is wanted.
    #[must_use]
    pub fn in_bands(self, in_bands: bool) -> Self {
        Self { in_bands, ..self }
    }

    /// The component's folder.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.dir.join(&self.component)
    }
}

/// The files of a folder, so that changes are noticed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Files(BTreeMap<PathBuf, Identity>);

impl Files {
    fn of(folder: &Path) -> Self {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let identity = |path: PathBuf| {
            let identity = Identity::of(&path.metadata().ok()?);
            Some((path, identity))
        };
        Self(entries.filter_map(|entry| identity(entry.path())).collect())
    }
}

/// What a pool holds and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of networks that are leased.
    pub leased: u64,
    /// Bytes of networks that are idle.
    pub idle: u64,
    /// Networks that were loaded so far.
    pub loaded: u64,
    /// Leases so far for which nothing had to be loaded.
    pub reused: u64,
    /// Networks so far that had to go for others, or for the budget.
    pub evicted: u64,
}

/// A network that waits for its next lease.
struct Idle<N> {
    key: Key,
    files: Files,
    bytes: u64,
    network: N,
}

struct State<N> {
    budget: u64,
    /// Bytes of what is leased or being loaded.
    leased: BTreeMap<Key, u64>,
    /// How many wait for what is leased. It is handed to them, whatever the budget.
    waiting: BTreeMap<Key, usize>,
    /// The one that was idle for longest is the first.
    idle: Vec<Idle<N>>,
    loaded: u64,
    reused: u64,
    evicted: u64,
}

impl<N> State<N> {
    fn leased_bytes(&self) -> u64 {
        self.leased.values().sum()
    }

    fn idle_bytes(&self) -> u64 {
        self.idle.iter().map(|idle| idle.bytes).sum()
    }

    fn stop_waiting(&mut self, key: &Key) {
        if let Some(count) = self.waiting.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(key);
            }
        }
    }

    /// Drops what has to go. The state stays locked meanwhile, so that nobody loads into memory that is not free yet.
    fn evict(&mut self) {
        let mut held = self.leased_bytes() + self.idle_bytes();
        self.idle.retain(|Idle { key, bytes, .. }| {
            let goes = held > self.budget && !self.waiting.contains_key(key);
            if goes {
                held -= bytes;
                self.evicted += 1;
                tracing::info!(dir = %key.dir.display(), component = key.component, variant = key.variant, bytes, held, "network evicted");
            }
            !goes
        });
    }
}

struct Shared<N> {
    state: Mutex<State<N>>,
    /// A lease ended, or somebody who waits for one wants to stop.
    changed: Condvar,
}

impl<N> Shared<N> {
    fn state(&self) -> MutexGuard<'_, State<N>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Networks in memory, for all threads of a process.
pub struct Pool<N = Network> {
    shared: Arc<Shared<N>>,
}

impl<N: Send + 'static> Pool<N> {
    /// An empty pool. `budget` is how many bytes all its networks may have before idle ones go.
    pub(super) fn new(budget: u64) -> Self {
        let state = State {
            budget,
            leased: BTreeMap::new(),
            waiting: BTreeMap::new(),
            idle: Vec::new(),
            loaded: 0,
            reused: 0,
            evicted: 0,
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
        }
    }

    /// Changes the budget in bytes. Idle networks that do not fit into it any more go at once.
    pub fn set_budget(&self, budget: u64) {
        let mut state = self.shared.state();
        state.budget = budget;
        state.evict();
    }

    /// Whether networks may stay when nobody uses them. Such a network should hold nothing but its weights meanwhile: what
    /// it computed with is 400 MB for Stable Diffusion 1.5's UNet at 512x512. Giving that back costs 1 % of a run's time.
    pub(super) fn keeps(&self) -> bool {
        self.shared.state().budget > 0
    }

    /// What it holds now, and what it did so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let state = self.shared.state();
        Usage {
            leased: state.leased_bytes(),
            idle: state.idle_bytes(),
            loaded: state.loaded,
            reused: state.reused,
            evicted: state.evicted,
        }
    }

    /// The network of a key, for the caller alone: a kept one, or what `load` makes. Waits while somebody else has it.
    /// `bytes` is what it will hold; other networks that are idle make room before it is loaded.
    ///
    /// # Errors
    /// `load`'s, after which the next one to ask loads again; or the caller's wish to stop.
    pub(super) fn lease(
        &self,
        key: &Key,
        bytes: u64,
        cancel: &Cancel,
        load: impl FnOnce() -> Result<N, EngineError>,
    ) -> Result<Lease<N>, EngineError> {
        let mut lease = self.turn(key, cancel)?;
        lease.files = Files::of(&key.folder());
        let mut state = self.shared.state();
        state.leased.insert(key.clone(), bytes);
        let place = state.idle.iter().position(|idle| idle.key == *key);
        if let Some(kept) = place.map(|place| state.idle.remove(place)) {
            if kept.files == lease.files {
                state.reused += 1;
                tracing::info!(dir = %key.dir.display(), component = key.component, variant = key.variant, bytes, "network reused");
                lease.network = Some(kept.network);
                return Ok(lease);
            }
            tracing::info!(dir = %key.dir.display(), component = key.component, variant = key.variant, "a network's files changed");
        }
        state.evict();
        drop(state);
        lease.network = Some(load()?);
        let mut state = self.shared.state();
        state.loaded += 1;
        let held = state.leased_bytes() + state.idle_bytes();
        drop(state);
        tracing::info!(dir = %key.dir.display(), component = key.component, variant = key.variant, bytes, held, "network loaded");
        Ok(lease)
    }

    /// Waits until nobody has the network of a key; then the caller has it, though it may have to be loaded yet.
    fn turn(&self, key: &Key, cancel: &Cancel) -> Result<Lease<N>, EngineError> {
        let shared = Arc::clone(&self.shared);
        let wake = move || {
            // With the state in hand, nobody is between a look at the wish and waiting.
            let state = shared.state();
            shared.changed.notify_all();
            drop(state);
        };
        let lease = cancel.during(wake, || {
            let mut state = self.shared.state();
            *state.waiting.entry(key.clone()).or_default() += 1;
            while state.leased.contains_key(key) && !cancel.is_cancelled() {
                let woken = self.shared.changed.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
            }
            state.stop_waiting(key);
            if state.leased.contains_key(key) {
                return None;
            }
            state.leased.insert(key.clone(), 0);
            Some(Lease {
                shared: Arc::clone(&self.shared),
                key: key.clone(),
                files: Files::default(),
                network: None,
            })
        });
        lease?.ok_or(EngineError::Interrupted)
    }
}

impl<N> std::fmt::Debug for Pool<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.state();
        let idle: Vec<_> = state.idle.iter().map(|idle| &idle.key).collect();
        f.debug_struct("Pool")
            .field("budget", &state.budget)
            .field("leased", &state.leased)
            .field("idle", &idle)
            .finish()
    }
}

/// A network that the holder has alone. Dropping it gives the network back.
pub struct Lease<N = Network> {
    shared: Arc<Shared<N>>,
    key: Key,
    /// What the folder had when it was leased.
    files: Files,
    /// Missing until it is loaded.
    network: Option<N>,
}

impl<N> Deref for Lease<N> {
    type Target = N;

    fn deref(&self) -> &N {
        self.network
            .as_ref()
            .expect("it is loaded before it is handed out")
    }
}

impl<N> DerefMut for Lease<N> {
    fn deref_mut(&mut self) -> &mut N {
        self.network
            .as_mut()
            .expect("it is loaded before it is handed out")
    }
}

impl<N> Drop for Lease<N> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        let bytes = state.leased.remove(&self.key).unwrap_or(0);
        if let Some(network) = self.network.take() {
            state.idle.push(Idle {
                key: self.key.clone(),
                files: std::mem::take(&mut self.files),
                bytes,
                network,
            });
        }
        state.evict();
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl<N: std::fmt::Debug> std::fmt::Debug for Lease<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("key", &self.key)
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// A network that is nothing but its number.
    type Numbered = Pool<usize>;

    fn key(component: &str) -> Key {
        Key::new(Path::new("model"), component, &[("batch", 1)])
    }

    /// Leases what gets `number` if it is loaded, and has 10 bytes.
    fn lease(pool: &Numbered, key: &Key, number: usize) -> Lease<usize> {
        pool.lease(key, 10, &Cancel::new(), || Ok(number)).unwrap()
    }

    #[test]
    fn what_fits_into_the_budget_is_loaded_once() {
        let pool = Numbered::new(10);
        assert_eq!(*lease(&pool, &key("unet"), 1), 1);
        assert_eq!(*lease(&pool, &key("unet"), 2), 1);
        let usage = Usage {
            leased: 0,
            idle: 10,
            loaded: 1,
            reused: 1,
            evicted: 0,
        };
        assert_eq!(pool.usage(), usage);
        // Another graph and another size are other networks.
        assert_eq!(*lease(&pool, &key("unet").variant("native.onnx"), 3), 3);
        let larger = Key::new(Path::new("model"), "unet", &[("batch", 2)]);
        assert_eq!(*lease(&pool, &larger, 4), 4);
    }

    #[test]
    fn without_a_budget_nothing_idle_is_kept() {
        let pool = Numbered::new(0);
        assert_eq!(*lease(&pool, &key("unet"), 1), 1);
        assert_eq!(pool.usage().idle, 0);
        assert_eq!(*lease(&pool, &key("unet"), 2), 2);
        assert_eq!((pool.usage().loaded, pool.usage().evicted), (2, 2));
    }

    #[test]
    fn the_one_that_was_idle_for_longest_goes_first() {
        let pool = Numbered::new(20);
        drop(lease(&pool, &key("a"), 1));
        drop(lease(&pool, &key("b"), 2));
        // Used again, `a` is no longer the first to go.
        drop(lease(&pool, &key("a"), 0));
        let c = lease(&pool, &key("c"), 3);
        assert_eq!((pool.usage().leased, pool.usage().idle), (10, 10));
        // What is leased counts, but does not go, and nobody waits for room.
        let (a, d) = (lease(&pool, &key("a"), 0), lease(&pool, &key("d"), 4));
        assert_eq!((*a, *c, *d), (1, 3, 4));
        assert_eq!((pool.usage().leased, pool.usage().idle), (30, 0));
        drop((a, c, d));
        assert_eq!((pool.usage().idle, pool.usage().evicted), (20, 2));
        assert_eq!(*lease(&pool, &key("d"), 0), 4);
        pool.set_budget(10);
        assert_eq!(*lease(&pool, &key("d"), 0), 4);
        assert_eq!(*lease(&pool, &key("c"), 5), 5);
        assert_eq!(pool.usage().idle, 10);
    }

    #[test]
    fn idle_networks_make_room_before_another_is_loaded() {
        let pool = Numbered::new(10);
        drop(lease(&pool, &key("a"), 1));
        let idle = || Ok(pool.usage().idle as usize);
        let found = pool.lease(&key("b"), 10, &Cancel::new(), idle).unwrap();
        assert_eq!(*found, 0);
    }

    #[test]
    fn one_thread_at_a_time_has_a_network() {
        // Nothing idle is kept, but what somebody waits for is not idle.
        let pool = Numbered::new(0);
        let (having, loads) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let first = lease(&pool, &key("unet"), 7);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let load = || Ok(loads.fetch_add(1, Ordering::SeqCst));
                    let found = pool.lease(&key("unet"), 10, &Cancel::new(), load).unwrap();
                    assert_eq!(having.fetch_add(1, Ordering::SeqCst), 0);
                    std::thread::yield_now();
                    having.fetch_sub(1, Ordering::SeqCst);
                    assert_eq!(*found, 7);
                });
            }
            while pool.shared.state().waiting.get(&key("unet")) != Some(&4) {
                std::thread::yield_now();
            }
            // Others are not held up.
            assert_eq!(*lease(&pool, &key("vae_decoder"), 8), 8);
            drop(first);
        });
        assert_eq!(loads.into_inner(), 0);
        assert_eq!(pool.usage().idle, 0);
    }

    #[test]
    fn who_waits_can_stop() {
        let pool = Numbered::new(0);
        let held = lease(&pool, &key("unet"), 1);
        let cancel = Cancel::new();
        std::thread::scope(|scope| {
            let wait = || pool.lease(&key("unet"), 10, &cancel, || unreachable!("it waits"));
            let waiting = scope.spawn(wait);
            while pool.shared.state().waiting.is_empty() {
                std::thread::yield_now();
            }
            cancel.cancel();
            let result = waiting.join().unwrap();
            assert!(matches!(result, Err(EngineError::Interrupted)));
        });
        assert!(pool.shared.state().waiting.is_empty());
        drop(held);
        assert_eq!(*lease(&pool, &key("unet"), 2), 2);
    }

    #[test]
    fn a_load_that_failed_or_was_stopped_leaves_the_pool_usable() {
        let pool = Numbered::new(100);
        let failed = || Err(EngineError::Start("no".to_owned()));
        let result = pool.lease(&key("unet"), 10, &Cancel::new(), failed);
        assert!(matches!(result, Err(EngineError::Start(_))));
        let cancel = Cancel::new();
        let (tell, told) = mpsc::channel();
        let stop = move || tell.send(()).unwrap();
        let load = || {
            cancel.during(stop, || {
                cancel.cancel();
                told.recv().unwrap();
                1
            })
        };
        let result = pool.lease(&key("unet"), 10, &cancel, load);
        assert!(matches!(result, Err(EngineError::Interrupted)));
        assert_eq!(pool.usage(), Usage::default());
        assert_eq!(*lease(&pool, &key("unet"), 2), 2);
        assert_eq!(pool.usage().loaded, 1);
    }

    #[test]
    fn changed_files_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("unet")).unwrap();
        let data = dir.path().join("unet/model.onnx_data");
        fs::write(&data, "abc").unwrap();
        let pool = Numbered::new(100);
        let key = Key::new(dir.path(), "unet", &[]);
        assert_eq!(*lease(&pool, &key, 1), 1);
        assert_eq!(*lease(&pool, &key, 2), 1);
        fs::write(&data, "abcd").unwrap();
        assert_eq!(*lease(&pool, &key, 3), 3);
        assert_eq!(*lease(&pool, &key, 4), 3);
        fs::remove_file(&data).unwrap();
        assert_eq!(*lease(&pool, &key, 5), 5);
        assert_eq!(pool.usage().idle, 10);
    }
}
