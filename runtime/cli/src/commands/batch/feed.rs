//! Jobs into the scheduler's queue, and what happens to them as messages.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use anyhow::Context;
use sd_runtime::engine::Cancel;
use sd_runtime::jobs::{Follow, Job, JobError, Made, News, Scheduler};
use sd_runtime::pipeline::{Destination, Event, Format, PipelineError, Stage};

use super::check::{Checker, Item, said};
use super::line::{Line, next_line};
use super::results::{Image, Record, Status};

/// What happens to a batch.
pub(super) enum Message {
    /// A line of a stream was read.
    Read { pictures: usize, work: u64 },
    /// An earlier run made it.
    Earlier(Box<Record>),
    /// A line is wrong.
    Broken { line: usize, problem: String },
    /// So much of a job's work is done.
    Called { job: usize, work: u64 },
    /// Good to know.
    Note {
        job: String,
        text: String,
        is_warning: bool,
    },
    /// A job's pictures are there, or it failed.
    Ended { record: Box<Record>, work: u64 },
    /// Nothing can be written any more.
    Unwritable(PipelineError),
    /// A job was ended before it was done.
    Cancelled,
    /// There are no more lines; so many jobs were begun.
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
    pub(super) tell: Sender<Message>,
}

impl Feeder {
    /// The lines of a stream, as they come: how many jobs were begun.
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
            if let Item::Open { line, work } = &item {
                let pictures = line.request.batch;
                self.say(Message::Read {
                    pictures,
                    work: *work,
                });
            }
            match self.put(item, checker) {
                Some(jobs) => submitted += jobs,
                None => break,
            }
        }
        Ok(submitted)
    }

    /// The lines of a file, which were looked at already: how many jobs were begun.
    pub(super) fn feed(&self, items: Vec<Item>, checker: &Checker) -> usize {
        let items = items.into_iter();
        items.map_while(|item| self.put(item, checker)).sum()
    }

    fn say(&self, message: Message) {
        // Nobody listens when the batch has been ended.
        let _ = self.tell.send(message);
    }

    /// Does what a line asks for: how many jobs that is, or none if no more are wanted.
    fn put(&self, item: Item, checker: &Checker) -> Option<usize> {
        let (line, work) = match item {
            Item::Done(record) => {
                self.say(Message::Earlier(record));
                return Some(0);
            }
            Item::Broken { line, problem } => {
                self.say(Message::Broken { line, problem });
                return self.keep_going.then_some(0);
            }
            Item::Open { line, work } => (line, work),
        };
        let plans = match checker.plans(&line.request) {
            Ok(plans) => plans,
            Err(e) => {
                let record = Box::new(Record {
                    error: Some(said(&e)),
                    ..Record::open(&line, checker.hashes.clone())
                });
                self.say(Message::Ended { record, work });
                return self.keep_going.then_some(1);
            }
        };
        let job = Job {
            plans,
            client: line.client.clone(),
            priority: line.priority,
        };
        let follow = self.follow(*line, work, checker.hashes.clone());
        self.scheduler.submit_wait(job, follow).ok().map(|_| 1)
    }

    /// Writes a job's pictures, and tells what happens to it.
    fn follow(&self, line: Line, work: u64, hashes: Vec<String>) -> Follow {
        let (tell, folder) = (self.tell.clone(), self.folder.clone());
        let mut began = Instant::now();
        let mut record = Record::open(&line, hashes);
        let mut total_calls = None;
        let mut last = LastWord {
            tell: tell.clone(),
            word: None,
        };
        Box::new(move |news| {
            let message = match news {
                News::Began { worker } => {
                    began = Instant::now();
                    record.worker = Some(worker);
                    let error = "a mistake in this program ended the job".to_owned();
                    let record = Box::new(Record {
                        error: Some(error),
                        ..record.clone()
                    });
                    last.be(Message::Ended { record, work });
                    return;
                }
                News::Run(Event::Stage(stage)) => {
                    if let Stage::Denoise { calls, pictures } = stage {
                        total_calls = calls.map(|calls| calls * pictures);
                    }
                    return;
                }
                News::Run(Event::Called { picture, calls }) => {
                    let pictures = line.request.batch;
                    let Some(total) = total_calls.filter(|&total| total > 0) else {
                        return;
                    };
                    let done = picture * (total / pictures) + calls;
                    Message::Called {
                        job: line.number,
                        work: work * done as u64 / total as u64,
                    }
                }
                // Lines do not ask for them.
                News::Run(Event::Preview { .. }) => return,
                News::Run(Event::Note(text)) => Message::Note {
                    job: line.name.clone(),
                    text: text.to_owned(),
                    is_warning: false,
                },
                News::Run(Event::Warning(text)) => Message::Note {
                    job: line.name.clone(),
                    text: text.to_owned(),
                    is_warning: true,
                },
                News::Ended(Err(JobError::Cancelled)) => {
                    last.be(Message::Cancelled);
                    return;
                }
                News::Ended(result) => {
                    let written = result.map(|made| write(&made, &folder, &line.files()));
                    record.seconds = Some(began.elapsed().as_secs_f64());
                    match written {
                        Ok(Err(e)) => {
                            last.be(Message::Unwritable(e));
                            return;
                        }
                        Ok(Ok(images)) => {
                            record.status = Status::Done;
                            record.images = images;
                        }
                        Err(e) => record.error = Some(said(&e)),
                    }
                    let record = Box::new(record.clone());
                    last.be(Message::Ended { record, work });
                    return;
                }
            };
            let _ = tell.send(message);
        })
    }
}

/// Writes a job's pictures.
fn write(made: &Made, folder: &Path, files: &[String]) -> Result<Vec<Image>, PipelineError> {
    let plans = &made.plans.plans;
    let mut images = Vec::new();
    let pictures = made.outcome.pictures.iter().enumerate();
    for (((i, picture), plan), file) in pictures.zip(plans).zip(files) {
        let to = Destination::find(&folder.join(file))?;
        let infotext = plan.infotext.with(&made.outcome.settings(i)).to_string();
        picture.write(&to, Format::Png, &infotext, &Cancel::new())?;
        images.push(Image {
            file: file.clone(),
            seed: plan.seed,
        });
    }
    Ok(images)
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
