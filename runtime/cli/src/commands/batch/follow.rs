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
#[derive(Clone, Debug)]
pub(super) struct Computing {
    pub(super) ep: &'static str,
    /// Which plugin it is, if it is one.
    pub(super) plugin: Option<String>,
    pub(super) instructions: &'static str,
}

impl Computing {
    /// Who computes now and who computed then, by its record, if they round otherwise.
    fn differs(&self, then: &BTreeMap<String, String>) -> Option<[String; 2]> {
        let ep = then.get("EP").map_or(Ep::Cpu.name(), String::as_str);
        let plugin = then.get("Plugin");
        let instructions = then.get("Instructions").map(String::as_str);
        let is_same_plugin = plugin.is_none() || plugin == self.plugin.as_ref();
        let is_same = instructions.is_none_or(|then| then == self.instructions);
        if ep == self.ep && is_same_plugin && is_same {
            return None;
        }
        let of = |ep: &str, plugin: Option<&String>, instructions: Option<&str>| {
            let name = plugin.map_or(ep.to_owned(), |plugin| format!("{ep} {plugin}"));
            match instructions {
                Some(instructions) => format!("{name} with {instructions}"),
                None => name,
            }
        };
        let now = instructions.map(|_| self.instructions);
        Some([
            of(self.ep, self.plugin.as_ref(), now),
            of(ep, plugin, instructions),
        ])
    }
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
                for file in &record.cut_off {
                    self.ui.warn(format!(
                        "job {}: the end of {file} is missing; it is made again",
                        record.job
                    ));
                }
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
        let Some([now, then]) = self.computing.differs(then) else {
            return;
        };
        let text = format!(
            "pictures of an earlier run stay as they are; {then} computed them, now it is {now}, which rounds otherwise (another folder gets all of them from one)",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_told_apart() {
        let now = Computing {
            ep: "plugin",
            plugin: Some("a.so [0123456789]".to_owned()),
            instructions: "avx2",
        };
        let by = |plugin: &str| {
            let pairs = [("EP", "plugin"), ("Plugin", plugin)];
            pairs.map(|(key, value)| (key.to_owned(), value.to_owned()))
        };
        assert_eq!(now.differs(&by("a.so [0123456789]").into()), None);
        let said = now.differs(&by("b.so [9876543210]").into());
        let expected = ["plugin a.so [0123456789]", "plugin b.so [9876543210]"];
        assert_eq!(said, Some(expected.map(str::to_owned)));
        assert!(now.differs(&BTreeMap::new()).is_some());
    }
}
