//! What lines ask for, before anything is computed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use sd_runtime::engine::memory;
use sd_runtime::pipeline::infotext::Settings;
use sd_runtime::pipeline::{Models, PictureFile, PipelineError, Plans, Request};
use sd_ui::{Ui, UsageError};

use super::line::{Line, next_line};
use super::results::Record;
use crate::commands::EngineArgs;
use crate::hint;

/// Broken lines that are named.
const NAMED: usize = 10;

/// Lines of a file that are not empty, with their numbers. A file may be a pipe, whose writer is waited for until the user wants to
/// stop.
pub(super) fn read_all(path: &Path, ui: &Ui) -> anyhow::Result<Vec<NumberedLine>> {
    let path = path.to_owned();
    ui.unless_interrupted(move || lines_of(&path))
}

/// A line with its number, from 1.
pub(super) type NumberedLine = (usize, Result<String, String>);

fn lines_of(path: &Path) -> anyhow::Result<Vec<NumberedLine>> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = BufReader::new(File::open(path).with_context(failed)?);
    let mut lines = Vec::new();
    for number in 1.. {
        match next_line(&mut file).with_context(failed)? {
            Some(Ok(text)) if text.is_empty() => {}
            Some(line) => lines.push((number, line)),
            None => break,
        }
    }
    Ok(lines)
}

/// Wrong lines are wrong usage, as long as nothing was made.
pub(super) fn refuse_broken(items: &[Item], jobs: &Path) -> Result<(), UsageError> {
    let broken = items.iter().filter_map(|item| match item {
        Item::Broken { line, problem } => Some(format!("line {line}: {problem}")),
        _ => None,
    });
    let mut broken: Vec<String> = broken.collect();
    if broken.is_empty() {
        return Ok(());
    }
    if broken.len() > NAMED {
        let more = format!("and {} lines more", broken.len() - NAMED);
        broken.splice(NAMED.., [more]);
    }
    Err(UsageError(format!(
        "{}: {}\nhint: `--keep-going` leaves such lines out",
        jobs.display(),
        broken.join("\n  ")
    )))
}

/// What a line asks for.
pub(super) enum Item {
    /// Pictures that have to be made, each of so much work; `there` is what an earlier run made of them. A file that is `missing` is one
    /// only where something has to be made.
    Open {
        line: Box<Line>,
        work: u64,
        there: Option<Box<Record>>,
        missing: Option<String>,
    },
    /// Those that an earlier run made.
    Done(Box<Record>),
    /// Nothing that can be done.
    Broken { line: usize, problem: String },
}

impl Item {
    pub(super) fn request(&self) -> Option<&Request> {
        match self {
            Self::Open { line, .. } => Some(&line.request),
            _ => None,
        }
    }

    /// How many pictures have to be made, and how much work each of them is.
    pub(super) fn open(&self) -> Option<(usize, u64)> {
        match self {
            Self::Open {
                line, work, there, ..
            } => {
                let there = there.as_ref().map_or(0, |there| there.images.len());
                Some((line.request.batch - there, *work))
            }
            _ => None,
        }
    }
}

/// What earlier runs made.
pub(super) struct Earlier {
    /// By the names of the jobs.
    made: BTreeMap<String, Record>,
    /// Names of jobs by those of their pictures.
    pictures: BTreeMap<String, String>,
}

impl Earlier {
    pub(super) fn of(made: BTreeMap<String, Record>) -> Self {
        let images = made
            .values()
            .flat_map(|record| record.images.iter().map(|image| (image, &record.job)));
        let pictures = images.map(|(image, job)| (image.file.clone(), job.clone()));
        Self {
            pictures: pictures.collect(),
            made,
        }
    }
}

/// Looks at lines before anything is computed.
pub(super) struct Checker {
    pub(super) models: Arc<Models>,
    pub(super) hashes: Vec<String>,
    /// Bytes of memory.
    pub(super) limit: u64,
    pub(super) engine: EngineArgs,
    /// Where pictures go.
    pub(super) folder: PathBuf,
    pub(super) earlier: Earlier,
    /// Pictures of all lines so far.
    pub(super) files: BTreeSet<String>,
}

impl Checker {
    /// A line: what it asks for, whatever earlier runs made.
    pub(super) fn read(&mut self, number: usize, text: Result<String, String>) -> Item {
        self.try_read(number, text)
            .unwrap_or_else(|problem| Item::Broken {
                line: number,
                problem,
            })
    }

    fn try_read(&mut self, number: usize, text: Result<String, String>) -> Result<Item, String> {
        let mut line = Line::read(&text?, number)?;
        self.engine.apply(&mut line.request).map_err(|e| said(&e))?;
        let (work, missing) = match self.plans(&line.request) {
            Ok(plans) => (plans.work() / plans.plans.len().max(1) as u64, None),
            // Pictures that were made with it may be there.
            Err(e) if is_of_file(&e) => (0, Some(said(&e))),
            Err(e) => return Err(not_planned(&e)),
        };
        for file in line.files() {
            if !self.files.insert(file.clone()) {
                return Err(format!("another line has pictures called {file}, too"));
            }
        }
        Ok(Item::Open {
            line: Box::new(line),
            work,
            there: None,
            missing,
        })
    }

    /// What is left of it. The provider is known now, and with it the numbers that are computed with.
    pub(super) fn compare(&self, item: Item) -> Item {
        let Item::Open {
            mut line,
            work,
            missing,
            ..
        } = item
        else {
            return item;
        };
        let there = match self.made(&mut line) {
            Ok(Some(record)) if record.is_done() => return Item::Done(Box::new(record)),
            Ok(there) => there.map(Box::new),
            Err(problem) => {
                return Item::Broken {
                    line: line.number,
                    problem,
                };
            }
        };
        match missing.or_else(|| self.cannot_run(&line.request)) {
            Some(problem) => Item::Broken {
                line: line.number,
                problem,
            },
            None => Item::Open {
                line,
                work,
                there,
                missing: None,
            },
        }
    }

    /// Why a request cannot be computed by the provider, or with the files that it names.
    fn cannot_run(&self, request: &Request) -> Option<String> {
        let plans = match self.plans(request) {
            Ok(plans) => plans,
            Err(e) => return Some(not_planned(&e)),
        };
        let checked = plans.check(&self.models, self.engine.least());
        checked.err().map(|e| said(&e))
    }

    /// What an earlier run made of a line.
    fn made(&self, line: &mut Line) -> Result<Option<Record>, String> {
        self.engine.apply(&mut line.request).map_err(|e| said(&e))?;
        for file in line.files() {
            let owner = self.earlier.pictures.get(&file);
            if let Some(owner) = owner.filter(|owner| **owner != line.name) {
                return Err(format!(
                    "job {owner} of an earlier run has a picture called {file}; give another folder or `id`"
                ));
            }
        }
        let known = self.earlier.made.get(&line.name);
        for file in line.files() {
            let path = self.folder.join(&file);
            let is_known =
                known.is_some_and(|known| known.has(&file) || known.cut_off.contains(&file));
            if !is_known && !may_replace(&path, &line.request) {
                return Err(format!(
                    "{} is there, and is not this job's; move it away, or give another folder or `id`",
                    path.display()
                ));
            }
        }
        let Some(known) = known else {
            return Ok(None);
        };
        if known.images.is_empty() {
            return Ok(Some(Record {
                cut_off: known.cut_off.clone(),
                ..Record::open(line, self.hashes.clone())
            }));
        }
        if known.request.as_ref() != Some(&line.request) || known.models != self.hashes {
            return Err(format!(
                "job {} was made from another request or model in an earlier run; give another folder or an `id`",
                line.name
            ));
        }
        Ok(Some(Record {
            line: line.number,
            earlier: true,
            ..known.clone()
        }))
    }

    pub(super) fn plans(&self, request: &Request) -> Result<Plans, PipelineError> {
        Plans::resolve(request, &self.models, self.limit)
    }
}

/// Whether nothing is lost if a picture is written there: nothing is there, an empty file, or a picture of the same prompt, which a run
/// made that was killed before it recorded it.
fn may_replace(path: &Path, request: &Request) -> bool {
    let Ok(found) = path.symlink_metadata() else {
        return true;
    };
    let is_of_request = || {
        let picture = PictureFile::open(path).ok()?;
        let settings = Settings::read(&picture.parameters).ok()?;
        Some(settings.request.prompt == request.prompt)
    };
    found.is_file() && (found.len() == 0 || is_of_request() == Some(true))
}

/// Whether a request cannot be planned because of a file that it names.
fn is_of_file(error: &PipelineError) -> bool {
    matches!(
        error,
        PipelineError::Read { .. } | PipelineError::Texture(_) | PipelineError::InitNoise { .. }
    )
}

/// An error and what can be done about it, in one line.
pub(super) fn said(error: &(dyn std::error::Error + 'static)) -> String {
    match hint::hint_in_json(error) {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// [`said`] of a request that has no plans: what it needs may be less than there is, but more than the user lets jobs have.
pub(super) fn not_planned(error: &PipelineError) -> String {
    match error {
        PipelineError::Memory { needed, .. } if *needed <= memory::limit() => {
            let enough = needed.div_ceil(1_000_000);
            format!("{error}; `--max-ram {enough}MB` is enough")
        }
        error => said(error),
    }
}
