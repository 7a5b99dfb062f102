//! What became of the jobs: a file in the output folder, by which a batch that was ended goes on.
//!
//! A job's line is written when its pictures are complete and have their names. Of a job with several pictures, each one has a line
//! before, so that none is made twice. A line that a killed process left unfinished is taken away. One process at a time writes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use sd_runtime::pipeline::image_io::is_cut_off_png;
use sd_runtime::pipeline::{Outcome, Request};
use serde::{Deserialize, Serialize};

use super::line::Line;

/// What a line begins with.
const BEGINNING: &[u8] = b"{\"job\":";

/// Name of the file.
const NAME: &str = "results.jsonl";

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// Its pictures are there.
    Done,
    /// One of its pictures is there.
    Picture,
    /// They cannot be made.
    Failed,
}

/// A picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Image {
    /// Its name in the output folder.
    pub(crate) file: String,
    pub(crate) seed: u64,
    /// Length of the file when it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<u64>,
    /// How it was decoded once more, where values of the decoder overflowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vae_retry: Option<String>,
}

impl Image {
    /// The only picture of a run, which was written to a file of a folder.
    pub(super) fn written(folder: &Path, file: &str, seed: u64, outcome: &Outcome) -> Self {
        let found = folder.join(file).metadata();
        Self {
            file: file.to_owned(),
            seed,
            bytes: found.ok().map(|found| found.len()),
            vae_retry: outcome.retry(0),
        }
    }

    /// What became of its file.
    fn found(&self, folder: &Path) -> Found {
        let path = folder.join(&self.file);
        match path.metadata() {
            Ok(found) if !found.is_file() || found.len() == 0 => Found::Gone,
            // Other programs may have made a whole file shorter, or another one of it.
            Ok(found) if self.bytes.is_some_and(|bytes| found.len() < bytes) => {
                match fs::read(&path) {
                    Ok(bytes) if is_cut_off_png(&bytes) => Found::CutOff,
                    _ => Found::There,
                }
            }
            Ok(_) => Found::There,
            Err(_) => Found::Gone,
        }
    }
}

/// What became of a picture that was made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    There,
    /// It is removed, or empty, as files may be after the power was lost.
    Gone,
    CutOff,
}

/// What a picture took, or all of a job's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Took {
    /// Which worker made it; none where several did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) worker: Option<usize>,
    /// From the moment when the worker began until the file was written, without `waited`. Two jobs of a worker compute at the same
    /// time, so all together may be more than has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seconds: Option<f64>,
    /// How many seconds it waited for the worker's other job, which computed with the network that was next, or for the processor, which
    /// was over its ceiling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) waited: Option<f64>,
    /// What the processor used meanwhile, divided by those that were worked on at the same time; where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) joules: Option<f64>,
}

impl Took {
    /// What this and more took together.
    fn and(self, more: Self) -> Self {
        if self == Self::default() {
            return more;
        }
        let sum = |a: Option<f64>, b: Option<f64>| Some(a? + b?);
        Self {
            worker: self.worker.filter(|_| self.worker == more.worker),
            seconds: sum(self.seconds, more.seconds),
            waited: sum(self.waited, more.waited),
            joules: sum(self.joules, more.joules),
        }
    }
}

/// What became of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) job: String,
    /// Number of its line.
    pub(crate) line: usize,
    pub(crate) status: Status,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) images: Vec<Image>,
    /// Pictures that it had, of which an end was missing when the file of results was read.
    #[serde(skip)]
    pub(crate) cut_off: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    #[serde(flatten)]
    pub(crate) took: Took,
    /// Whether it was made in an earlier run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) earlier: bool,
    /// Who computed: provider, graph, instructions and numbers, as settings in pictures name them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) computed: Option<BTreeMap<String, String>>,
    /// Hashes of the models.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) models: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request: Option<Request>,
}

impl Record {
    /// That of a job that is not done.
    pub(crate) fn open(line: &Line, models: Vec<String>) -> Self {
        Self {
            job: line.name.clone(),
            line: line.number,
            status: Status::Failed,
            images: Vec::new(),
            cut_off: Vec::new(),
            error: None,
            took: Took::default(),
            earlier: false,
            computed: None,
            models,
            request: Some(line.request.clone()),
        }
    }

    /// Whether all of its pictures are there.
    pub(crate) fn is_done(&self) -> bool {
        let wanted = self.request.as_ref().map(|request| request.batch);
        wanted == Some(self.images.len())
    }

    /// Whether a picture is there.
    pub(crate) fn has(&self, file: &str) -> bool {
        self.images.iter().any(|image| image.file == file)
    }

    /// Adds a picture, in the order of their names.
    pub(crate) fn add(&mut self, image: Image, took: Took) {
        let place = self.images.partition_point(|it| it.file < image.file);
        self.images.insert(place, image);
        self.took = self.took.and(took);
        if self.is_done() {
            self.status = Status::Done;
        }
    }

    /// What is known of a job after one more line about it: the line of all its pictures has nothing to add to, others of the same
    /// request add theirs.
    fn then(self, mut next: Self) -> Self {
        let is_same = self.request == next.request && self.models == next.models;
        if next.status == Status::Picture && is_same {
            next.took = self.took.and(next.took);
            let others = self.images.into_iter();
            let others: Vec<Image> = others.filter(|image| !next.has(&image.file)).collect();
            next.images.extend(others);
            next.images.sort_by(|a, b| a.file.cmp(&b.file));
        }
        next
    }
}

/// The file of an output folder.
#[derive(Debug)]
pub(crate) struct Results {
    path: PathBuf,
    /// Keeps others away.
    _lock: File,
    made: BTreeMap<String, Record>,
}

/// That results are no pipe or device, which need not end.
fn check_kind(path: &Path) -> anyhow::Result<()> {
    let is_other = path.metadata().is_ok_and(|found| !found.is_file());
    ensure!(
        !is_other,
        "{}: it is no file; give another folder",
        path.display()
    );
    Ok(())
}

impl Results {
    /// What a folder has of jobs whose pictures are there, all or some; the folder need not be.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<BTreeMap<String, Record>> {
        let path = folder.join(NAME);
        check_kind(&path)?;
        match fs::read(&path) {
            Ok(bytes) => Ok(parse(&path, &bytes, folder)?.0),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Makes the folder if it is not there, and takes what it has.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(NAME);
        let failed = || format!("cannot write {}", path.display());
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        check_kind(&path)?;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).with_context(failed)?;
        // Some file systems have no locks.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            bail!("{}: another `sdrun batch` writes there", folder.display());
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(failed)?;
        let (made, whole) = parse(&path, &bytes, folder)?;
        if whole < bytes.len() {
            tracing::warn!(
                "{}: the last line is cut off; its job is made again",
                path.display()
            );
            file.set_len(whole as u64).with_context(failed)?;
            file.seek(SeekFrom::End(0)).with_context(failed)?;
        }
        Ok(Self {
            path,
            _lock: file,
            made,
        })
    }

    /// What jobs made before, by their names.
    pub(crate) fn made(&self) -> &BTreeMap<String, Record> {
        &self.made
    }

    /// Adds a line, whole or not at all.
    pub(crate) fn add(&self, record: &Record) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        // By its name, so that a folder that is gone is noticed.
        let opened = OpenOptions::new().append(true).open(&self.path);
        let written = opened.and_then(|mut file| {
            let before = file.metadata()?.len();
            let written = file.write_all(&line).and_then(|()| file.sync_data());
            if written.is_err() {
                // What follows half a line could not be read.
                file.set_len(before)?;
            }
            written
        });
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Jobs whose pictures are in a folder, and how many bytes are whole lines.
fn parse(
    path: &Path,
    bytes: &[u8],
    folder: &Path,
) -> anyhow::Result<(BTreeMap<String, Record>, usize)> {
    let whole = bytes
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |end| end + 1);
    let rest = &bytes[whole..];
    let foreign = |number: usize, problem: &dyn std::fmt::Display| {
        anyhow!(
            "{}: line {number} is no result of `sdrun batch` ({problem}); give another folder, or move the file away",
            path.display()
        )
    };
    // A file's end may be zeros after the power was lost.
    let is_lost = rest.iter().all(|&byte| byte == 0);
    if !is_lost && !rest.starts_with(BEGINNING) && !BEGINNING.starts_with(rest) {
        let number = bytes.split(|&byte| byte == b'\n').count();
        return Err(foreign(number, &"expected a field `job`"));
    }
    let mut made: BTreeMap<String, Record> = BTreeMap::new();
    for (i, line) in bytes[..whole].split(|&byte| byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let record: Record = serde_json::from_slice(line).map_err(|e| foreign(i + 1, &e))?;
        if record.status == Status::Failed {
            continue;
        }
        let known = match made.remove(&record.job) {
            Some(known) => known.then(record),
            None => record,
        };
        made.insert(known.job.clone(), known);
    }
    for record in made.values_mut() {
        let Record {
            images, cut_off, ..
        } = record;
        images.retain(|image| {
            let found = image.found(folder);
            if found == Found::CutOff {
                cut_off.push(image.file.clone());
            }
            found == Found::There
        });
        record.status = match record.is_done() {
            true => Status::Done,
            false => Status::Picture,
        };
    }
    made.retain(|_, record| !record.images.is_empty() || !record.cut_off.is_empty());
    Ok((made, whole))
}

#[cfg(test)]
mod tests {
    use sd_kernels::Compute;
    use sd_runtime::pipeline::Timing;

    use super::*;

    fn record(job: &str, status: Status) -> Record {
        Record {
            job: job.to_owned(),
            line: 1,
            status,
            images: vec![Image {
                file: format!("{job}.png"),
                seed: u64::MAX,
                bytes: None,
                vae_retry: None,
            }],
            cut_off: Vec::new(),
            error: None,
            took: Took {
                worker: Some(0),
                seconds: Some(0.5),
                waited: Some(0.25),
                joules: None,
            },
            earlier: false,
            computed: None,
            models: vec!["abc".to_owned()],
            request: Some(Request::default()),
        }
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        for text in [
            "my own notes",
            "{\"id\":\"a\"}",
            "notes\n",
            "{\"id\":\"a\"}\n",
        ] {
            fs::write(&path, text).unwrap();
            let error = Results::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains("no result of `sdrun batch`"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn what_is_done_is_known_later_and_unfinished_lines_are_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new");
        assert!(Results::read(&folder).unwrap().is_empty() && !folder.exists());
        let results = Results::open(&folder).unwrap();
        let error = Results::open(&folder).unwrap_err().to_string();
        assert!(error.contains("another"), "{error}");
        for picture in ["a.png", "b.png"] {
            fs::write(folder.join(picture), "a picture").unwrap();
        }
        results.add(&record("a", Status::Done)).unwrap();
        results.add(&record("b", Status::Failed)).unwrap();
        drop(results);
        let file = folder.join(NAME);
        let whole = fs::read(&file).unwrap();
        for end in [&[0; 4096][..], b"{\"job\":\"c"] {
            fs::write(&file, [&whole[..], end].concat()).unwrap();
            drop(Results::open(&folder).unwrap());
            assert_eq!(fs::read(&file).unwrap(), whole);
        }
        let results = Results::open(&folder).unwrap();
        assert!(
            results
                .made()
                .get("a")
                .is_some_and(|a| a.request == Some(Request::default()))
        );
        assert!(results.made().len() == 1);
        results.add(&record("b", Status::Done)).unwrap();
        assert_eq!(Results::read(&folder).unwrap().len(), 2);
        // What somebody removed is not done, and what was lost with the power is not.
        fs::remove_file(folder.join("a.png")).unwrap();
        assert!(Results::read(&folder).unwrap().keys().eq(["b"]));
        fs::write(folder.join("a.png"), "").unwrap();
        assert!(Results::read(&folder).unwrap().keys().eq(["b"]));
        // A broken line elsewhere is no accident of ours.
        fs::write(&file, "{}\n").unwrap();
        let error = Results::read(&folder).unwrap_err().to_string();
        assert!(error.contains("results.jsonl: line 1"), "{error}");
    }

    /// A picture that was decoded again differs from those that were not.
    #[test]
    fn a_second_decoding_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.png"), "a picture").unwrap();
        let outcome = |again| Outcome {
            pictures: Vec::new(),
            calls: Vec::new(),
            timing: Timing::default(),
            graph: "native",
            compute: Compute::Int16,
            decoded_again: vec![again],
            computed: Vec::new(),
        };
        let json = |again| {
            let image = Image::written(dir.path(), "a.png", 1, &outcome(again));
            serde_json::to_value(image).unwrap()
        };
        let plain = serde_json::json!({"file": "a.png", "seed": 1, "bytes": 9});
        assert_eq!(json(false), plain);
        assert_eq!(json(true)["vae_retry"], "f32 on the processor");
    }

    /// A file that is shorter than it was is there if another program made it so, and not if its end is missing.
    #[test]
    fn pictures_that_were_cut_off_are_told_from_smaller_ones() {
        let dir = tempfile::tempdir().unwrap();
        let results = Results::open(dir.path()).unwrap();
        let picture = dir.path().join("a.png");
        let (begin, end): (&[u8], &[u8]) = (b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xae\x42\x60\x82");
        let mut made = record("a", Status::Done);
        made.images[0].bytes = Some(100);
        results.add(&made).unwrap();
        for (bytes, is_there) in [
            (vec![0; 100], true),
            (vec![0; 101], true),
            (b"a pointer to it".to_vec(), true),
            (begin[..5].to_vec(), false),
            ([begin, &[0; 91]].concat(), false),
            ([begin, &[0; 20], end].concat(), true),
            ([begin, &[0; 20], end, b"more"].concat(), true),
            ([begin, &[0; 20], &end[..11]].concat(), false),
        ] {
            fs::write(&picture, &bytes).unwrap();
            let known = Results::read(dir.path()).unwrap().remove("a").unwrap();
            assert_eq!(known.is_done(), is_there, "{} bytes", bytes.len());
            assert_eq!(known.cut_off.is_empty(), is_there);
        }
    }

    /// Pictures of one request come together, whatever order they are recorded in, and go one by one.
    #[test]
    fn pictures_of_a_job_are_known_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let results = Results::open(dir.path()).unwrap();
        let of = |file: &str, prompt: &str| {
            fs::write(dir.path().join(file), "a picture").unwrap();
            Record {
                images: vec![Image {
                    file: file.to_owned(),
                    seed: 1,
                    bytes: None,
                    vae_retry: None,
                }],
                request: Some(Request {
                    prompt: prompt.to_owned(),
                    batch: 3,
                    ..Request::default()
                }),
                ..record("a", Status::Picture)
            }
        };
        let known = || Results::read(dir.path()).unwrap().remove("a").unwrap();
        let files = || -> Vec<String> {
            let images = known().images.into_iter();
            images.map(|image| image.file).collect()
        };
        results.add(&of("a-000.png", "another")).unwrap();
        results.add(&of("a-002.png", "cat")).unwrap();
        results.add(&record("a", Status::Failed)).unwrap();
        results.add(&of("a-000.png", "cat")).unwrap();
        assert_eq!(files(), ["a-000.png", "a-002.png"]);
        assert!(!known().is_done() && known().status == Status::Picture);
        results.add(&of("a-001.png", "cat")).unwrap();
        assert!(known().is_done() && known().status == Status::Done);
        let took = known().took;
        assert_eq!((took.seconds, took.waited), (Some(1.5), Some(0.75)));
        // The whole job's line holds all of it already.
        let done = Record {
            status: Status::Done,
            ..known()
        };
        results.add(&done).unwrap();
        assert_eq!(known().took, took);
        fs::remove_file(dir.path().join("a-001.png")).unwrap();
        assert_eq!(files(), ["a-000.png", "a-002.png"]);
    }

    #[test]
    fn a_folder_that_is_gone_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new");
        let results = Results::open(&folder).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let error = results.add(&record("a", Status::Done)).unwrap_err();
        assert!(error.to_string().contains("new"), "{error}");
    }
}
