//! Jobs into the scheduler's queue, and what happens to them as messages.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::Context;
use sd_runtime::engine::Cancel;
use sd_runtime::jobs::{Follow, Job, JobError, Made, News, Scheduler};
use sd_runtime::pipeline::{Destination, Event, Format, PipelineError, Plans, Stage};
use sd_runtime::sensors::{Share, Shares};

use super::check::{Checker, Item, not_planned, said};
use super::line::next_line;
use super::results::{Image, Record, Took};
use crate::commands::left_out;

/// A picture, by the number of its job's line and its place in that job, from 0.
pub(super) type Which = (usize, usize);

/// What happens to a batch.
pub(super) enum Message {
    /// A line of a stream was read: so many pictures, each of so much work.
    Read { pictures: usize, work: u64 },
    /// An earlier run made it.
    Earlier(Box<Record>),
    /// A line is wrong.
    Broken { line: usize, problem: String },
    /// The pictures of a job will be made, but for those that it has.
    Begun(Box<Record>),
    /// So much of a picture's work is done.
    Called { picture: Which, work: u64 },
    /// Good to know.
    Note {
        job: String,
        text: String,
        is_warning: bool,
    },
    /// A picture is there, or cannot be made; with it, so much work is done.
    Ended(Box<Ended>, u64),
    /// A picture was ended before it was done.
    Cancelled,
    /// There are no more lines; so many pictures were begun.
    End(anyhow::Result<usize>),
    /// The user wants to stop.
    Interrupted,
}

/// What is said when it is dropped, so that nobody waits for ever for a thread with a mistake.
pub(super) struct LastWord {
    pub(super) tell: Sender<Message>,
    pub(super) word: Option<Message>,
}

impl LastWord {
    pub(super) fn be(&mut self, word: Message) {
        self.word = Some(word);
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if let Some(word) = self.word.take() {
            // Nobody listens when the batch has been ended.
            let _ = self.tell.send(word);
        }
    }
}

/// Puts jobs into the queue.
pub(super) struct Feeder {
    pub(super) scheduler: Arc<Scheduler>,
    pub(super) folder: PathBuf,
    pub(super) keep_going: bool,
    /// Whose energy it is, if the processor tells.
    pub(super) shares: Option<Shares>,
    pub(super) tell: Sender<Message>,
}

impl Feeder {
    /// The lines of a stream, as they come: how many pictures were begun.
    pub(super) fn stream(
        &self,
        mut from: impl BufRead,
        checker: &mut Checker,
    ) -> anyhow::Result<usize> {
        let mut submitted = 0;
        for number in 1.. {
            let item = match next_line(&mut from).context("cannot read standard input")? {
                Some(Ok(text)) if text.is_empty() => continue,
                Some(text) => checker.read(number, text),
                None => break,
            };
            let item = checker.compare(item);
            if let Some((pictures, work)) = item.open() {
                self.say(Message::Read { pictures, work });
            }
            match self.put(item, checker) {
                Some(pictures) => submitted += pictures,
                None => break,
            }
        }
        Ok(submitted)
    }

    /// The lines of a file, which were looked at already: how many pictures were begun.
    pub(super) fn feed(&self, items: Vec<Item>, checker: &Checker) -> usize {
        let items = items.into_iter();
        items.map_while(|item| self.put(item, checker)).sum()
    }

    fn say(&self, message: Message) {
        // Nobody listens when the batch has been ended.
        let _ = self.tell.send(message);
    }

    /// Does what a line asks for: how many pictures that is, or none if no more are wanted.
    fn put(&self, item: Item, checker: &Checker) -> Option<usize> {
        let (line, work, there) = match item {
            Item::Done(record) => {
                self.say(Message::Earlier(record));
                return Some(0);
            }
            Item::Broken { line, problem } => {
                self.say(Message::Broken { line, problem });
                return self.keep_going.then_some(0);
            }
            Item::Open {
                line, work, there, ..
            } => (line, work, there),
        };
        let mut record = Record::open(&line, checker.hashes.clone());
        if let Some(there) = there {
            record.images = there.images;
            record.cut_off = there.cut_off;
            record.took = there.took;
        }
        let files = line.files().into_iter().enumerate();
        let left: Vec<(usize, String)> = files.filter(|(_, file)| !record.has(file)).collect();
        let count = left.len();
        self.say(Message::Begun(Box::new(record)));
        let mut rest = match checker.plans(&line.request) {
            Ok(plans) => plans,
            Err(e) => {
                let ended = Ended::failed((line.number, 0), not_planned(&e));
                self.say(Message::Ended(Box::new(ended), work * count as u64));
                return self.keep_going.then_some(1);
            }
        };
        rest.notes
            .extend(line.comments.iter().map(|comment| left_out(comment)));
        let pictures = std::mem::take(&mut rest.plans);
        // A job of the scheduler for each picture, so that each is written when it is finished.
        for (place, file) in left {
            let plans = Plans {
                plans: vec![pictures[place].clone()],
                ..rest.clone()
            };
            // They are said once.
            rest.notes.clear();
            rest.warnings.clear();
            let job = Job {
                plans,
                client: line.client.clone(),
                priority: line.priority,
            };
            let follow = self.follow(line.name.clone(), (line.number, place), file, work);
            self.scheduler.submit_wait(job, follow).ok()?;
        }
        Some(count)
    }

    /// Writes a picture, and tells what happens to it.
    fn follow(&self, job: String, which: Which, file: String, work: u64) -> Follow {
        let (tell, folder) = (self.tell.clone(), self.folder.clone());
        let (mut times, mut total_calls) = (Times::of(self.shares.clone()), None);
        let mut last = LastWord {
            tell: tell.clone(),
            word: None,
        };
        Box::new(move |news| {
            let message = match news {
                News::Began { worker } => {
                    times.begin(worker);
                    let error = "a mistake in this program ended the job".to_owned();
                    last.be(Message::Ended(Box::new(Ended::failed(which, error)), work));
                    return;
                }
                News::Waits => return times.wait(),
                News::GoesOn => return times.go_on(),
                News::Run(Event::Stage(stage)) => {
                    if let Stage::Denoise { calls, .. } = stage {
                        total_calls = calls;
                    }
                    return;
                }
                News::Run(Event::Called { calls, .. }) => {
                    let Some(total) = total_calls.filter(|&total| total > 0) else {
                        return;
                    };
                    Message::Called {
                        picture: which,
                        work: work * calls as u64 / total as u64,
                    }
                }
                // Lines do not ask for them.
                News::Run(Event::Preview { .. }) => return,
                News::Run(Event::Note(text)) => Message::Note {
                    job: job.clone(),
                    text: text.to_owned(),
                    is_warning: false,
                },
                News::Run(Event::Warning(text)) => Message::Note {
                    job: job.clone(),
                    text: text.to_owned(),
                    is_warning: true,
                },
                News::Ended(Err(JobError::Cancelled)) => {
                    last.be(Message::Cancelled);
                    return;
                }
                News::Ended(result) => {
                    let mut ended = match result {
                        Ok(made) => Ended::written(which, &made, &folder, &file),
                        Err(e) => Ended::failed(which, said(&e)),
                    };
                    ended.took = times.end();
                    last.be(Message::Ended(Box::new(ended), work));
                    return;
                }
            };
            let _ = tell.send(message);
        })
    }
}

/// What became of a picture.
pub(super) struct Ended {
    pub(super) which: Which,
    /// The picture, and who computed it.
    pub(super) result: Result<(Image, BTreeMap<String, String>), String>,
    pub(super) took: Took,
}

impl Ended {
    fn failed(which: Which, error: String) -> Self {
        Self {
            which,
            result: Err(error),
            took: Took::default(),
        }
    }

    /// Writes what was made.
    fn written(which: Which, made: &Made, folder: &Path, file: &str) -> Self {
        let result = write(made, &folder.join(file)).map(|seed| {
            let outcome = &made.outcome;
            let computed = outcome.computed.iter();
            let computed = computed.map(|(key, value)| ((*key).to_owned(), value.clone()));
            let image = Image::written(folder, file, seed, outcome);
            (image, computed.collect())
        });
        Self {
            which,
            result: result.map_err(|e| said(&e)),
            took: Took::default(),
        }
    }
}

/// Writes a job's picture: its seed.
fn write(made: &Made, path: &Path) -> Result<u64, PipelineError> {
    let (plan, picture) = (&made.plans.plans[0], &made.outcome.pictures[0]);
    let to = Destination::find(path)?;
    let infotext = plan.infotext.with(&made.outcome.settings(0)).to_string();
    picture.write(&to, Format::Png, &infotext, &Cancel::new())?;
    Ok(plan.seed)
}

/// When a picture was worked on, and when it waited.
#[derive(Default)]
struct Times {
    shares: Option<Shares>,
    share: Option<Share>,
    worker: Option<usize>,
    began: Option<Instant>,
    waits: Option<Instant>,
    waited: Duration,
}

impl Times {
    fn of(shares: Option<Shares>) -> Self {
        Self {
            shares,
            ..Self::default()
        }
    }

    fn begin(&mut self, worker: usize) {
        self.share = self.shares.as_ref().map(Shares::begin);
        self.worker = Some(worker);
        self.began = Some(Instant::now());
    }

    fn wait(&mut self) {
        self.waits = Some(Instant::now());
        if let Some(share) = &mut self.share {
            share.wait();
        }
    }

    fn go_on(&mut self) {
        self.waited += self.waits.take().map_or(Duration::ZERO, |at| at.elapsed());
        if let Some(share) = &mut self.share {
            share.go_on();
        }
    }

    fn end(&self) -> Took {
        let passed = self.began.map(|began| began.elapsed());
        let worked = passed.map(|passed| passed.saturating_sub(self.waited));
        Took {
            worker: self.worker,
            seconds: worked.map(|worked| worked.as_secs_f64()),
            waited: Some(self.waited.as_secs_f64()),
            joules: self.share.as_ref().and_then(Share::joules),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_that_panics_has_a_last_word() {
        let (tell, told) = channel();
        let mut last = LastWord {
            tell: tell.clone(),
            word: None,
        };
        let panics = thread::spawn(move || {
            last.be(Message::Cancelled);
            panic!("a mistake");
        });
        assert!(panics.join().is_err());
        assert!(matches!(told.try_recv(), Ok(Message::Cancelled)));
    }
}
