//! Workers, and the jobs that they take from the queue.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::pins::{Pins, pin};
use super::queue::{Entry, Place, Queue, Refused, Taken, Used};
use super::turn::Turns;
use crate::engine::memory::Needs;
use crate::engine::{Cancel, Engine, Ep};
use crate::pipeline::{Event, Models, Outcome, PipelineError, Plans, Stage, run};
use crate::sensors::Ceiling;

/// Jobs that a worker has at the same time: one computes with the UNet, the other one does what is before or behind that.
const AT_ONCE: usize = 2;

/// How a scheduler works.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many engines share the processors.
    pub workers: NonZero<usize>,
    /// Bytes of memory that jobs and kept networks may take together.
    pub memory: u64,
    /// How many jobs wait at most.
    pub capacity: usize,
    /// Power and temperature that are not to be exceeded.
    pub ceiling: Option<Arc<Ceiling>>,
    /// Processors that are divided among workers, if each shall have its own.
    pub pins: Option<Pins>,
}

/// A wish for pictures, resolved.
#[derive(Debug)]
pub struct Job {
    /// What is made, within the scheduler's memory.
    pub plans: Plans,
    /// On whose behalf. Clients get equal shares.
    pub client: String,
    /// Which of a client's jobs are first: those with the greatest number.
    pub priority: i32,
}

/// What happens to a job. The last one is always [`News::Ended`], which comes once.
#[derive(Debug)]
pub enum News<'a> {
    /// A worker, counted from 0, begins.
    Began {
        /// Its number.
        worker: usize,
    },
    /// It waits for its turn, since another job of the worker computes with the network that comes next, for memory to decode in, or for
    /// the processor, which is over its ceiling.
    Waits,
    /// It waits no more.
    GoesOn,
    /// What happens in the run.
    Run(Event<'a>),
    /// It is over.
    Ended(Result<Box<Made>, JobError>),
}

/// What a job made.
#[derive(Debug)]
pub struct Made {
    /// What was asked for.
    pub plans: Plans,
    /// Pictures and figures.
    pub outcome: Outcome,
}

/// Who follows a job. The threads that work call it: a picture that is written there is written while the next one is denoised.
pub type Follow = Box<dyn FnMut(News<'_>) + Send>;

/// Why a job made nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The run failed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// Somebody wanted it to stop.
    #[error("cancelled")]
    Cancelled,
    /// There is a mistake in this program. Other jobs go on.
    #[error("a mistake in this program ended the job: {0}")]
    Panicked(String),
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// Too many jobs wait.
    #[error("{capacity} jobs wait already, as many as may")]
    Full {
        /// How many may wait.
        capacity: usize,
    },
    /// No more jobs are taken.
    #[error("no more jobs are taken")]
    Closed,
}

struct Task {
    plans: Plans,
    cancel: Cancel,
    follow: Follow,
}

impl Task {
    fn cancelled(mut self) {
        (self.follow)(News::Ended(Err(JobError::Cancelled)));
    }
}

/// What threads of a scheduler have in common.
struct Shared {
    queue: Queue<Task>,
    models: Arc<Models>,
    ep: Ep,
    /// One for each worker.
    engines: Vec<Engine>,
    /// Whose turn it is to use a worker's networks.
    turns: Vec<Turns>,
    ceiling: Option<Arc<Ceiling>>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    cancels: BTreeMap<u64, Cancel>,
    stopped: bool,
}

/// Takes jobs and does them.
///
/// ```no_run
/// use std::path::Path;
/// use std::sync::Arc;
///
/// use sd_runtime::engine::{Engine, EngineOptions, memory};
/// use sd_runtime::jobs::{Job, News, Options, Scheduler};
/// use sd_runtime::pipeline::{ModelDir, Models, Plans, Request};
///
/// let models = Arc::new(Models::one(ModelDir::open(Path::new("model"))?));
/// let engine = Engine::start(&EngineOptions::default())?;
/// let options = Options {
///     workers: std::num::NonZero::<usize>::MIN,
///     memory: memory::limit(),
///     capacity: 100,
///     ceiling: None,
///     pins: None,
/// };
/// let scheduler = Scheduler::start(&engine, &models, options);
/// for prompt in ["a lighthouse", "a ship"] {
///     let request = Request { prompt: prompt.to_owned(), ..Request::default() };
///     let job = Job {
///         plans: Plans::resolve(&request, &models, memory::limit())?,
///         client: "me".to_owned(),
///         priority: 0,
///     };
///     let follow = Box::new(move |news: News<'_>| {
///         if let News::Ended(result) = news {
///             println!("{prompt}: {}", if result.is_ok() { "done" } else { "failed" });
///         }
///     });
///     scheduler.submit(job, follow).expect("there is room for two");
/// }
/// scheduler.finish();
/// # Ok::<_, sd_runtime::pipeline::PipelineError>(())
/// ```
pub struct Scheduler {
    shared: Arc<Shared>,
    capacity: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Scheduler {
    /// Starts workers, which sleep until there are jobs.
    #[must_use]
    pub fn start(engine: &Engine, models: &Arc<Models>, options: Options) -> Self {
        let mut engines = engine.split(options.workers);
        let places = options.pins.map(|pins| {
            // Threads that all networks share were made elsewhere.
            engines.iter_mut().for_each(Engine::set_apart);
            let threads: Vec<usize> = engines.iter().map(Engine::threads).collect();
            pins.divide(&threads)
        });
        let shared = Arc::new(Shared {
            queue: Queue::new(options.capacity, options.memory, engines.len()),
            models: Arc::clone(models),
            ep: engine.ep(),
            turns: engines.iter().map(|_| Turns::default()).collect(),
            engines,
            ceiling: options.ceiling,
            running: Mutex::default(),
        });
        shared.share_memory();
        let workers = 0..shared.engines.len();
        let threads = workers.flat_map(|worker| [worker; AT_ONCE]).map(|worker| {
            let shared = Arc::clone(&shared);
            let place = places.as_ref().map(|places| places[worker].clone());
            thread::spawn(move || {
                if let Some(Err(error)) = place.map(|place| pin(&place)) {
                    tracing::warn!("worker {worker}: {error}");
                }
                shared.work(worker);
            })
        });
        Self {
            capacity: options.capacity,
            threads: Mutex::new(threads.collect()),
            shared,
        }
    }

    /// Puts a job into the queue.
    ///
    /// # Errors
    /// The queue is full or closed; `follow` hears nothing then.
    pub fn submit(&self, job: Job, follow: Follow) -> Result<Handle, SubmitError> {
        self.push(job, follow, false)
    }

    /// [`Self::submit`] that waits while the queue is full.
    ///
    /// # Errors
    /// The queue is closed, maybe meanwhile.
    pub fn submit_wait(&self, job: Job, follow: Follow) -> Result<Handle, SubmitError> {
        self.push(job, follow, true)
    }

    fn push(&self, job: Job, follow: Follow, wait: bool) -> Result<Handle, SubmitError> {
        let Job {
            plans,
            client,
            priority,
        } = job;
        let cancel = Cancel::new();
        let (ep, models) = (self.shared.ep, &self.shared.models);
        let all = plans.memory_with(ep, models);
        let denoising = plans.memory_of_denoising(ep, models);
        let entry = Entry {
            client,
            priority,
            cost: plans.work(),
            needs: Needs {
                own: denoising.own,
                ..all
            },
            decode: all.own.saturating_sub(denoising.own),
            task: Task {
                plans,
                cancel: cancel.clone(),
                follow,
            },
        };
        let pushed = self.shared.queue.push(entry, wait);
        let number = pushed.map_err(|refused| match refused {
            Refused::Full => SubmitError::Full {
                capacity: self.capacity,
            },
            Refused::Closed => SubmitError::Closed,
        })?;
        Ok(Handle {
            number,
            cancel,
            shared: Arc::clone(&self.shared),
        })
    }

    /// What ends all jobs, from any thread.
    #[must_use]
    pub fn stop(&self) -> Stop {
        Stop(Arc::clone(&self.shared))
    }

    /// Takes no more jobs and returns when all have ended.
    pub fn finish(&self) {
        self.shared.queue.close();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // Its jobs' mistakes do not end a worker.
            let _ = thread.join();
        }
    }
}

impl Drop for Scheduler {
    /// Ends all jobs.
    fn drop(&mut self) {
        self.stop().all();
        self.finish();
    }
}

/// Ends all jobs of a scheduler.
#[derive(Clone)]
pub struct Stop(Arc<Shared>);

impl Stop {
    /// Lets no more jobs in, and ends those that run and those that wait.
    pub fn all(&self) {
        self.waiting();
        let mut running = self.0.running();
        running.stopped = true;
        running.cancels.values().for_each(Cancel::cancel);
    }

    /// Lets no more jobs in, and ends those that wait. Those that run go on.
    pub fn waiting(&self) {
        self.0.queue.close();
        self.0.queue.drain().into_iter().for_each(Task::cancelled);
    }
}

/// A job that was put into the queue. Dropping it lets the job go on.
pub struct Handle {
    number: u64,
    cancel: Cancel,
    shared: Arc<Shared>,
}

impl Handle {
    /// Ends the job, even in the middle of a network.
    pub fn cancel(&self) {
        self.cancel.cancel();
        if let Some(task) = self.shared.queue.remove(self.number) {
            task.cancelled();
        }
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does jobs until there will be no more.
    fn work(&self, worker: usize) {
        while let Some(Taken { task, place }) = self.queue.take(worker) {
            self.share_memory();
            let mut running = self.running();
            running.cancels.insert(place.number, task.cancel.clone());
            if running.stopped {
                task.cancel.cancel();
            }
            drop(running);
            if let Err(panic) = caught(|| self.make(task, worker, &place)) {
                tracing::error!("who follows a job panicked: {panic}");
            }
            self.running().cancels.remove(&place.number);
            drop(place);
            self.share_memory();
        }
    }

    fn make(&self, task: Task, worker: usize, place: &Place<Task>) {
        let Task {
            plans,
            cancel,
            mut follow,
        } = task;
        follow(News::Began { worker });
        let (mut held, mut decoding) = (None, None);
        let mut listener = |event: Event<'_>| {
            if let Event::Stage(stage) = event
                && let Some(turn) = self.turns[worker].of(stage)
            {
                // Who waits for a turn has none.
                drop(held.take());
                follow(News::Waits);
                held = turn.take(&cancel);
                if stage == Stage::Decode {
                    decoding = place.decode(&cancel);
                }
                follow(News::GoesOn);
            }
            follow(News::Run(event));
            if let (Event::Called { .. }, Some(ceiling)) = (event, &self.ceiling) {
                follow(News::Waits);
                ceiling.keep(&cancel, &mut |text| follow(News::Run(Event::Warning(text))));
                follow(News::GoesOn);
            }
        };
        let (models, engine) = (&self.models, &self.engines[worker]);
        let outcome = caught(|| run(&plans, models, engine, &cancel, &mut listener, None));
        drop((held, decoding));
        let result = match outcome {
            Ok(Ok(outcome)) => Ok(Box::new(Made { plans, outcome })),
            Ok(Err(_)) if cancel.is_cancelled() => Err(JobError::Cancelled),
            Ok(Err(error)) => Err(error.into()),
            Err(panic) => Err(JobError::Panicked(panic)),
        };
        follow(News::Ended(result));
    }

    /// Lets workers keep networks in what the jobs that run leave of the memory. Mapped weights are there once, whoever keeps
    /// them.
    fn share_memory(&self) {
        let Used { own, mapped, bound } = self.queue.used();
        let rest = bound.saturating_sub(own + mapped);
        let budget = rest / self.engines.len() as u64 + mapped;
        self.engines
            .iter()
            .for_each(|engine| engine.pool().set_budget(budget));
    }
}

/// What `work` returns, or what it panicked with.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        text.unwrap_or_default()
    })
}
