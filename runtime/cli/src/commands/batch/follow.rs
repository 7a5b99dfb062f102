//! The loop in which results are recorded and printed, and progress is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::mpsc::Receiver;

use anyhow::Context;
use sd_runtime::engine::Ep;
use sd_runtime::jobs::Stop;
use sd_ui::Ui;

use super::feed::{Ended, Message};
use super::progress::Progress;
use super::results::{Record, Results, Status};

/// Who computes: provider and instructions, of which the latter count where our own kernels compute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Computing {
    pub(super) ep: &'static str,
    pub(super) instructions: &'static str,
}

/// What there is to know of a batch while it is made.
pub(super) struct Batch<'a> {
    pub(super) ui: &'a Ui,
    pub(super) results: Results,
    /// Jobs whose pictures are made, by the numbers of their lines.
    pub(super) jobs: BTreeMap<usize, Record>,
    /// Who computes now, as records of pictures name it.
    pub(super) computing: Computing,
    pub(super) progress: Progress<'a>,
    pub(super) keep_going: bool,
    pub(super) failed: usize,
    /// Whether earlier runs made a job.
    pub(super) has_earlier: bool,
    /// Whether somebody reads results as they come.
    pub(super) is_read: bool,
    /// Notes that were told already.
    pub(super) noted: BTreeSet<String>,
}

impl Batch<'_> {
    /// Hears messages until all jobs have ended, or no more are wanted. Then those that wait are ended.
    pub(super) fn follow(&mut self, told: &Receiver<Message>, stop: &Stop) -> anyhow::Result<()> {
        let (mut submitted, mut ended) = (None, 0);
        while submitted != Some(ended) {
            let message = told.recv()?;
            match &message {
                Message::Interrupted => return Ok(()),
                Message::Ended(..) | Message::Cancelled => ended += 1,
                _ => {}
            }
            if let Message::End(Ok(count)) = message {
                submitted = Some(count);
                continue;
            }
            if let Err(error) = self.hear(message) {
                // What runs would be lost, too.
                stop.all();
                return Err(error);
            }
            if self.failed > 0 && !self.keep_going {
                stop.waiting();
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether no line asked for anything.
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty() && !self.has_earlier
    }

    pub(super) fn hear(&mut self, message: Message) -> anyhow::Result<()> {
        match message {
            Message::Read { pictures, work } => self.progress.more(pictures, work),
            Message::Earlier(record) => {
                self.has_earlier = true;
                self.compare(&record);
                self.print(&record)?;
            }
            Message::Begun(record) => {
                self.compare(&record);
                self.jobs.insert(record.line, *record);
            }
            Message::Broken { line, problem } => {
                self.failed += 1;
                self.ui.warn(format!("line {line}: {problem}"));
                self.say(
                    serde_json::json!({"line": line, "status": Status::Failed, "error": problem}),
                )?;
            }
            Message::Called { picture, work } => self.progress.called(picture, work),
            Message::Note {
                job,
                text,
                is_warning,
            } => {
                if is_warning {
                    self.ui.warn(format!("job {job}: {text}"));
                } else if self.noted.insert(text.clone()) {
                    self.ui.note(text);
                }
            }
            Message::Ended(ended, work) => {
                let which = ended.which;
                self.ended(*ended)?;
                self.progress.ended(which, work);
            }
            Message::End(Err(error)) => return Err(error),
            Message::Cancelled | Message::End(Ok(_)) | Message::Interrupted => {}
        }
        Ok(())
    }

    /// Records a picture that is there, and its job with the last one or with the first that failed.
    fn ended(&mut self, ended: Ended) -> anyhow::Result<()> {
        let Ended {
            which: (line, _),
            result,
            took,
        } = ended;
        let job = self.jobs.get_mut(&line);
        let job = job.context("a picture of a job that did not begin")?;
        let record = match result {
            Ok((image, computed)) => {
                self.progress.made(took);
                job.computed = Some(computed);
                job.add(image.clone(), took);
                match job.is_done() {
                    true => job.clone(),
                    false => Record {
                        status: Status::Picture,
                        images: vec![image],
                        took,
                        error: None,
                        ..job.clone()
                    },
                }
            }
            Err(error) if job.error.is_some() => {
                // The job is known to have failed; its other pictures may fail for other reasons.
                let warning = format!("job {}: {error}", job.job);
                if job.error.as_ref() != Some(&error) && self.noted.insert(warning.clone()) {
                    self.ui.warn(warning);
                }
                return Ok(());
            }
            Err(error) => {
                self.failed += 1;
                self.ui.warn(format!("job {} failed: {error}", job.job));
                job.error = Some(error);
                Record {
                    images: Vec::new(),
                    took,
                    ..job.clone()
                }
            }
        };
        self.results.add(&record)?;
        match record.status {
            Status::Picture => Ok(()),
            Status::Done | Status::Failed => self.print(&record),
        }
    }

    /// Tells if pictures of an earlier run were computed by others than now.
    fn compare(&mut self, record: &Record) {
        let Some(then) = record.computed.as_ref() else {
            return;
        };
        let now = &self.computing;
        let ep = then.get("EP").map_or(Ep::Cpu.name(), String::as_str);
        let instructions = then.get("Instructions").map(String::as_str);
        if ep == now.ep && instructions.is_none_or(|then| then == now.instructions) {
            return;
        }
        let of = |ep: &str, instructions: Option<&str>| match instructions {
            Some(instructions) => format!("{ep} with {instructions}"),
            None => ep.to_owned(),
        };
        let text = format!(
            "pictures of an earlier run stay as they are; {} computed them, now it is {}, which rounds otherwise (another folder gets all of them from one)",
            of(ep, instructions),
            of(now.ep, instructions.map(|_| now.instructions)),
        );
        if self.noted.insert(text.clone()) {
            self.ui.note(text);
        }
    }

    /// A result without what the user knows already.
    fn print(&mut self, record: &Record) -> anyhow::Result<()> {
        let line = Record {
            request: None,
            models: Vec::new(),
            ..record.clone()
        };
        self.say(serde_json::to_string(&line)?)
    }

    /// A line of standard output. Whoever stops reading there has the file of results.
    fn say(&mut self, line: impl fmt::Display) -> anyhow::Result<()> {
        if !self.is_read {
            return Ok(());
        }
        match self.ui.result(line) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.is_read = false,
            written => written?,
        }
        Ok(())
    }
}
