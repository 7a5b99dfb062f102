//! The loop in which results are recorded and printed, and progress is shown.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::mpsc::Receiver;

use sd_runtime::jobs::Stop;
use sd_ui::Ui;

use super::feed::Message;
use super::progress::Progress;
use super::results::{Record, Results, Status};

/// What there is to know of a batch while it is made.
pub(super) struct Batch<'a> {
    pub(super) ui: &'a Ui,
    pub(super) results: Results,
    pub(super) progress: Progress<'a>,
    pub(super) keep_going: bool,
    pub(super) failed: usize,
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
                Message::Ended { .. } | Message::Cancelled => ended += 1,
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

    pub(super) fn hear(&mut self, message: Message) -> anyhow::Result<()> {
        match message {
            Message::Read { pictures, work } => self.progress.more(pictures, work),
            Message::Earlier(record) => self.print(&record)?,
            Message::Broken { line, problem } => {
                self.failed += 1;
                self.ui.warn(format!("line {line}: {problem}"));
                self.say(
                    serde_json::json!({"line": line, "status": Status::Failed, "error": problem}),
                )?;
            }
            Message::Called { job, work } => self.progress.called(job, work),
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
            Message::Ended { record, work } => {
                self.results.add(&record)?;
                if let Some(error) = &record.error {
                    self.failed += 1;
                    self.ui.warn(format!("job {} failed: {error}", record.job));
                }
                self.progress.ended(record.line, record.images.len(), work);
                self.print(&record)?;
            }
            Message::Unwritable(error) => return Err(error.into()),
            Message::End(Err(error)) => return Err(error),
            Message::Cancelled | Message::End(Ok(_)) | Message::Interrupted => {}
        }
        Ok(())
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
