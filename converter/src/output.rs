//! Outputs appear complete or not at all: they grow in a hidden place on the same disk, and are renamed at the end.
//!
//! A directory that exists is filled and never renamed, since it may be a mount point, or lie where nothing may be created:
//! its hidden place is inside. Of single files, only regular ones are replaced, through symbolic links; devices, FIFOs and
//! descriptors (`/dev/stdout`) are written to when the file is complete; since that may wait for a reader, a thread does it.

use sd_ui::{STDOUT, is_stdout};
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use sd_models::diffusers::COMPONENTS;
use sd_models::manifest;
use tempfile::{NamedTempFile, TempDir};

use crate::ConvertError;
use crate::progress::Progress;

/// A lock in every unfinished directory, held while its process lives, so that the leftovers of a killed one are known.
const LOCK: &str = ".lock";

/// How unfinished directories inside of existing ones are called.
const INSIDE: &str = ".partial-";

/// Where an unfinished directory keeps what it is about to replace.
const RETIRED: &str = ".old";

/// What a disk's topmost folder may hold on its own.
const OF_THE_DISK: &str = "lost+found";

/// How often a writer that waits for its reader looks whether the user wants to stop.
const POLL: Duration = Duration::from_millis(50);

/// Most symbolic links that lead to a file.
const MAX_LINKS: usize = 40;

/// A model directory in the making. Dropping it removes what was written.
#[derive(Debug)]
pub struct StagedDir {
    staging: TempDir,
    target: PathBuf,
    /// Whether it grows inside of its target, which exists.
    inside: bool,
    replace: bool,
    _lock: File,
}

impl StagedDir {
    /// Starts the directory `target`; with `replace`, an existing model directory will be replaced. An empty one is filled.
    ///
    /// # Errors
    /// The target exists and may not be replaced, or its place cannot be written.
    pub fn create(target: &Path, replace: bool) -> Result<Self, ConvertError> {
        let end = followed(target);
        let inside = end.symlink_metadata().is_ok();
        if inside {
            remove_leftovers(&end, INSIDE);
            check_replaceable(target, &end, replace)?;
        }
        let (folder, prefix) = match (inside, end.file_name()) {
            (true, _) => (&*end, INSIDE.to_owned()),
            (false, Some(name)) => {
                let prefix = format!(".{}{INSIDE}", name.to_string_lossy());
                (folder_of(&end), prefix)
            }
            (false, None) => {
                return Err(ConvertError::OutputForeign {
                    path: target.to_owned(),
                });
            }
        };
        fs::create_dir_all(folder).map_err(ConvertError::write(folder))?;
        remove_leftovers(folder, &prefix);
        let staging = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(folder)
            .map_err(ConvertError::write(folder))?;
        let lock =
            File::create(staging.path().join(LOCK)).map_err(ConvertError::write(staging.path()))?;
        if let Err(error) = lock.lock() {
            tracing::info!(%error, "no locks here: what a killed conversion leaves will stay");
        }
        Ok(Self {
            staging,
            inside,
            target: end,
            replace,
            _lock: lock,
        })
    }

    /// Where to write meanwhile.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// Writes a small file of the directory, creating its folder.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, content: &str) -> Result<(), ConvertError> {
        let path = self.path().join(name);
        let folder = path
            .parent()
            .expect("the path has the staging folder above it");
        fs::create_dir_all(folder).map_err(ConvertError::write(folder))?;
        fs::write(&path, content).map_err(ConvertError::write(&path))
    }

    /// Gives the directory its name.
    ///
    /// # Errors
    /// Another process made the target meanwhile, or it cannot be renamed.
    pub fn commit(self) -> Result<(), ConvertError> {
        let target = self.target.clone();
        if self.inside {
            check_replaceable(&target, &target, self.replace)?;
            return self.fill().map_err(ConvertError::write(target));
        }
        let lock = self.path().join(LOCK);
        fs::remove_file(&lock).map_err(ConvertError::write(&lock))?;
        fs::rename(self.path(), &target).map_err(|source| match source.kind() {
            io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory => ConvertError::OutputExists {
                path: target.clone(),
            },
            _ => ConvertError::Write {
                path: target.clone(),
                source,
            },
        })?;
        let _ = self.staging.keep();
        Ok(())
    }

    /// Moves a model that the target holds out of it, and what was made in; what else lies there stays. The manifest is the last to
    /// come, and takes the old one's place: whatever happens before, there is one, and its hashes are not those of parts that are missing or new.
    fn fill(&self) -> io::Result<()> {
        let (staging, retired) = (self.path(), self.path().join(RETIRED));
        let (new, mut old) = (contents(staging)?, contents(&self.target)?);
        old.retain(|name| is_of_models(name));
        fs::create_dir(&retired)?;
        move_all(&old, &self.target, &retired)?;
        move_all(&new, staging, &self.target).inspect_err(|_| {
            // A failed conversion costs nobody a model.
            let _ = move_all(&old, &retired, &self.target);
        })
    }
}

/// A file in the making, whose place was found fit before there is anything to write. Dropping it removes what was written.
#[derive(Debug)]
pub struct StagedFile {
    staging: NamedTempFile,
    /// Temporary files are private; finished ones follow the user's umask, like any other file.
    permissions: Permissions,
    /// What the user calls it.
    target: PathBuf,
    place: Place,
}

/// Where a file goes.
#[derive(Debug)]
enum Place {
    /// A name that is free.
    New(PathBuf),
    /// A regular file, whose content is replaced.
    Existing(PathBuf),
    /// A device, FIFO or descriptor, which stays what it is.
    Stream(PathBuf),
}

impl Place {
    /// What a user's name stands for.
    fn of(target: &Path, replace: bool) -> Result<Self, ConvertError> {
        let stdout = target.as_os_str() == STDOUT[0];
        let end = followed(if stdout { Path::new(STDOUT[1]) } else { target });
        let metadata = match fs::metadata(&end) {
            _ if is_descriptor(&end) => return Ok(Self::Stream(end)),
            Err(_) => return Ok(Self::New(end)),
            Ok(metadata) => metadata,
        };
        match () {
            () if metadata.is_dir() => Err(ConvertError::Write {
                path: target.to_owned(),
                source: io::ErrorKind::IsADirectory.into(),
            }),
            () if !metadata.is_file() => Ok(Self::Stream(end)),
            () if !replace => Err(ConvertError::OutputExists {
                path: target.to_owned(),
            }),
            // Nothing can be renamed to the name of a file that is mounted: its content will change, if it may.
            () if is_mounted(&end, &metadata) => writable(&end)
                .map(|_| Self::Existing(end))
                .map_err(ConvertError::write(target)),
            () => Ok(Self::Existing(end)),
        }
    }
}

impl StagedFile {
    /// Starts the file `target`, which is `-` for standard output; with `replace`, an existing file will be replaced.
    ///
    /// # Errors
    /// It exists and `replace` is off, or it cannot be written.
    pub fn create(target: &Path, replace: bool) -> Result<Self, ConvertError> {
        let place = Place::of(target, replace)?;
        let beside = match &place {
            Place::New(end) | Place::Existing(end) => temporary(folder_of(end)),
            Place::Stream(_) => temporary(&env::temp_dir()),
        };
        let staging = match (beside, &place) {
            (Ok(staging), _) => Ok(staging),
            // Its folder takes no new files, but it can be written itself.
            (Err(_), Place::Existing(end)) if writable(end).is_ok() => temporary(&env::temp_dir()),
            (Err(error), _) => Err(error),
        };
        let staging = staging.map_err(ConvertError::write(target))?;
        let metadata = staging.as_file().metadata();
        Ok(Self {
            permissions: metadata.map_err(ConvertError::write(target))?.permissions(),
            staging,
            target: target.to_owned(),
            place,
        })
    }

    /// What the user calls it.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes its content, and gives it its name. `fill` may replace the file that it is given the path of.
    ///
    /// # Errors
    /// `fill` fails, the file cannot be put into its place, or the user interrupts.
    pub fn write(
        self,
        progress: &dyn Progress,
        fill: impl FnOnce(&Path) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        fill(self.staging.path())?;
        let target = match is_stdout(&self.target) {
            true => "standard output".into(),
            false => self.target.clone(),
        };
        self.put(progress).map_err(|source| match source.kind() {
            io::ErrorKind::Interrupted => ConvertError::Interrupted,
            io::ErrorKind::AlreadyExists => ConvertError::OutputExists { path: target },
            _ => ConvertError::Write {
                path: target,
                source,
            },
        })
    }

    /// [`Self::write`] of a text.
    ///
    /// # Errors
    /// As for [`Self::write`].
    pub fn write_text(self, text: &str, progress: &dyn Progress) -> Result<(), ConvertError> {
        let target = self.target.clone();
        self.write(progress, |path| {
            fs::write(path, text).map_err(ConvertError::write(target))
        })
    }

    fn put(self, progress: &dyn Progress) -> io::Result<()> {
        let complete = self.staging.path().to_owned();
        // Not every file system has permissions.
        let _ = fs::set_permissions(&complete, self.permissions);
        writable(&complete)?.sync_all()?;
        match self.place {
            Place::New(end) => match self.staging.persist_noclobber(&end) {
                // Not every file system can look and rename at once.
                Err(failed) if failed.error.kind() != io::ErrorKind::AlreadyExists => {
                    failed.file.persist(end).map(drop)?;
                }
                persisted => persisted.map(drop)?,
            },
            Place::Existing(end) => {
                if let Err(failed) = self.staging.persist(&end) {
                    let mut file = writable(&end).map_err(|_| failed.error)?;
                    file.set_len(0)?;
                    copy(&complete, &mut file)?;
                }
            }
            Place::Stream(end) => send(File::open(&complete)?, end, progress)?,
        }
        Ok(())
    }
}

/// Writes the file `target` whole or not at all.
///
/// # Errors
/// It exists and `replace` is off, it cannot be written, `fill` fails, or the user interrupts.
pub fn write_file(
    target: &Path,
    replace: bool,
    progress: &dyn Progress,
    fill: impl FnOnce(&Path) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    StagedFile::create(target, replace)?.write(progress, fill)
}

/// Only what this program writes, or nothing at all, may be replaced.
fn check_replaceable(target: &Path, end: &Path, replace: bool) -> Result<(), ConvertError> {
    let path = target.to_owned();
    let contents = match contents(end) {
        Ok(contents) => contents,
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => vec![OsString::new()],
        Err(source) => return Err(ConvertError::Write { path, source }),
    };
    match () {
        () if contents.is_empty() => Ok(()),
        () if !replace => Err(ConvertError::OutputExists { path }),
        () if !end.join(manifest::FILE_NAME).is_file() => Err(ConvertError::OutputForeign { path }),
        () => Ok(()),
    }
}

/// Whether model directories have an entry of this name, beside the manifest.
fn is_of_models(name: &OsStr) -> bool {
    const BESIDE_NETWORKS: [&str; 5] = [
        "embeddings",
        "model_index.json",
        "scheduler",
        "tokenizer",
        "tokenizer_2",
    ];
    let mut own = COMPONENTS.iter().chain(&BESIDE_NETWORKS);
    own.any(|own| name == *own)
}

/// What a directory holds but for what is unfinished in it, the manifest last.
fn contents(folder: &Path) -> io::Result<Vec<OsString>> {
    let names = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name()));
    let mut names: Vec<OsString> = names.collect::<Result<_, _>>()?;
    names.retain(|name| {
        let hidden = [LOCK, RETIRED, OF_THE_DISK].iter().any(|own| name == own);
        !hidden && !name.to_string_lossy().starts_with(INSIDE)
    });
    names.sort_by_key(|name| name == manifest::FILE_NAME);
    Ok(names)
}

/// Moves entries from one directory to another, or, if one cannot be moved, none.
fn move_all(names: &[OsString], from: &Path, to: &Path) -> io::Result<()> {
    for (i, name) in names.iter().enumerate() {
        fs::rename(from.join(name), to.join(name)).inspect_err(|_| {
            for name in names[..i].iter().rev() {
                let _ = fs::rename(to.join(name), from.join(name));
            }
        })?;
    }
    Ok(())
}

fn remove_leftovers(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let path = entry.path();
        let abandoned = match File::open(path.join(LOCK)) {
            Ok(lock) => lock.try_lock().is_ok(),
            Err(_) => false,
        };
        if abandoned {
            tracing::info!(path = %path.display(), "removing what a killed conversion left");
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Where symbolic links lead, whether there is something or not.
fn followed(path: &Path) -> PathBuf {
    let mut end = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&end) {
            Ok(link) if !is_descriptor(&end) => end = folder_of(&end).join(link),
            _ => break,
        }
    }
    end
}

/// Whether a path is a process's open file, which looks like a link to it.
fn is_descriptor(path: &Path) -> bool {
    path.starts_with("/proc") || path.starts_with("/dev/fd")
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(unix)]
fn is_mounted(path: &Path, metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(folder_of(path)).is_ok_and(|folder| folder.dev() != metadata.dev())
}

#[cfg(not(unix))]
fn is_mounted(_path: &Path, _metadata: &fs::Metadata) -> bool {
    false
}

/// Opens an existing file to write to it.
fn writable(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

fn copy(complete: &Path, to: &mut File) -> io::Result<()> {
    io::copy(&mut File::open(complete)?, to).map(drop)
}

/// Copies to a device or pipe. Its reader may never come, so a thread waits for it, which is left behind if the user wants to
/// stop.
fn send(mut complete: File, end: PathBuf, progress: &dyn Progress) -> io::Result<()> {
    let (done, outcome) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        let opened = OpenOptions::new().append(true).open(end);
        let sent = opened.and_then(|mut to| io::copy(&mut complete, &mut to).map(drop));
        let _ = done.send(sent);
    })?;
    loop {
        match outcome.recv_timeout(POLL) {
            Ok(sent) => return sent,
            Err(RecvTimeoutError::Timeout) if !progress.cancelled() => {}
            Err(_) => return Err(io::ErrorKind::Interrupted.into()),
        }
    }
}

/// A temporary file with the permissions of any other new one.
fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Unwatched;

    fn entries(path: &Path) -> usize {
        fs::read_dir(path).unwrap().count()
    }

    #[test]
    fn nothing_remains_of_a_directory_that_is_not_committed() {
        let parent = tempfile::tempdir().unwrap();
        let staged = StagedDir::create(&parent.path().join("model"), false).unwrap();
        staged.write("unet/config.json", "{}").unwrap();
        drop(staged);
        assert_eq!(entries(parent.path()), 0);
    }

    #[test]
    fn leftovers_of_a_killed_process_are_removed_and_those_of_a_living_one_kept() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("model");
        let dead = parent.path().join(".model.partial-dead");
        fs::create_dir(&dead).unwrap();
        File::create(dead.join(LOCK)).unwrap();
        let living = StagedDir::create(&target, false).unwrap();
        let other = StagedDir::create(&target, false).unwrap();
        assert!(!dead.exists() && living.path().exists());
        other.write(sd_models::manifest::FILE_NAME, "{}").unwrap();
        other.commit().unwrap();
        living.write("a", "b").unwrap();
        assert!(matches!(
            living.commit(),
            Err(ConvertError::OutputExists { .. })
        ));
        assert_eq!(entries(parent.path()), 1);
    }

    #[test]
    fn only_model_directories_are_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("model");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("thesis.txt"), "years of work").unwrap();
        assert!(matches!(
            StagedDir::create(&target, false),
            Err(ConvertError::OutputExists { .. })
        ));
        assert!(matches!(
            StagedDir::create(&target, true),
            Err(ConvertError::OutputForeign { .. })
        ));
        fs::write(target.join(sd_models::manifest::FILE_NAME), "{}").unwrap();
        fs::write(target.join("model_index.json"), "").unwrap();
        let staged = StagedDir::create(&target, true).unwrap();
        staged.write("new", "").unwrap();
        staged.commit().unwrap();
        assert!(target.join("new").exists() && !target.join("model_index.json").exists());
        assert!(target.join("thesis.txt").exists());
        assert_eq!(entries(parent.path()), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_that_exists_is_filled_and_never_renamed() {
        use std::os::unix::fs::MetadataExt;
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("out");
        // As a disk that was just made and mounted.
        fs::create_dir_all(target.join(OF_THE_DISK)).unwrap();
        let inode = fs::metadata(&target).unwrap().ino();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink("out", &link).unwrap();
        for (name, replace) in [("scheduler", false), ("tokenizer", true)] {
            let staged = StagedDir::create(&link, replace).unwrap();
            staged.write(name, "").unwrap();
            staged.write("unet/config.json", name).unwrap();
            staged.write(manifest::FILE_NAME, "{}").unwrap();
            staged.commit().unwrap();
            assert_eq!(fs::metadata(&target).unwrap().ino(), inode);
            let config = fs::read_to_string(target.join("unet/config.json")).unwrap();
            assert_eq!((config.as_str(), entries(&target)), (name, 4));
            assert!(target.join(name).exists() && link.is_symlink());
        }
        let again = StagedDir::create(&target, false);
        assert!(matches!(again, Err(ConvertError::OutputExists { .. })));
        drop(StagedDir::create(&target, true).unwrap());
        assert!(target.join("tokenizer").exists());
    }

    #[test]
    fn a_rebuild_that_ends_between_two_renames_leaves_a_manifest_and_can_be_repeated() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("model");
        let manifest = target.join(manifest::FILE_NAME);
        fs::create_dir_all(target.join("unet")).unwrap();
        fs::write(&manifest, "old").unwrap();
        let staged = |content: &str| {
            let staged = StagedDir::create(&target, true).unwrap();
            staged.write("unet/config.json", content).unwrap();
            staged.write(manifest::FILE_NAME, content).unwrap();
            staged
        };
        // The name that the last rename wants is taken by something that no file replaces.
        let failed = staged("new");
        fs::remove_file(&manifest).unwrap();
        fs::create_dir(&manifest).unwrap();
        assert!(failed.fill().is_err());
        assert!(manifest.is_dir() && entries(&target.join("unet")) == 0);
        drop(failed);
        fs::remove_dir(&manifest).unwrap();
        fs::write(&manifest, "old").unwrap();
        // What a kill leaves: parts are away, and the manifest is still there.
        fs::remove_dir_all(target.join("unet")).unwrap();
        staged("new").commit().unwrap();
        assert_eq!(fs::read_to_string(&manifest).unwrap(), "new");
        assert_eq!(entries(&target), 2);
    }

    #[test]
    fn what_cannot_be_moved_leaves_both_directories_as_they_were() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("a"), "").unwrap();
        let names = ["a", "b"].map(OsString::from);
        assert!(move_all(&names, from.path(), to.path()).is_err());
        assert_eq!((entries(from.path()), entries(to.path())), (1, 0));
    }

    #[test]
    fn a_file_that_may_not_be_replaced_is_found_before_there_is_anything_to_write() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "old").unwrap();
        let created = |path: &Path, replace| StagedFile::create(path, replace).map(drop);
        assert!(matches!(
            created(&file, false),
            Err(ConvertError::OutputExists { .. })
        ));
        assert!(matches!(
            created(folder.path(), true),
            Err(ConvertError::Write { .. })
        ));
        assert!(created(&folder.path().join("absent/b"), false).is_err());
        created(&file, true).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "old");
        StagedFile::create(&file, true)
            .unwrap()
            .write_text("new", &Unwatched)
            .unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(entries(folder.path()), 1);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_stay_what_they_are() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        symlink("file", path("link")).unwrap();
        for text in ["new", "newer"] {
            let file = StagedFile::create(&path("link"), true).unwrap();
            file.write_text(text, &Unwatched).unwrap();
            assert!(path("link").is_symlink());
            assert_eq!(fs::read_to_string(path("file")).unwrap(), text);
        }
        symlink("/dev/null", path("null")).unwrap();
        let file = StagedFile::create(&path("null"), false).unwrap();
        file.write_text("x", &Unwatched).unwrap();
        let null = fs::metadata("/dev/null").unwrap();
        assert!(null.file_type().is_char_device());
        let made = std::process::Command::new("mkfifo")
            .arg(path("fifo"))
            .status();
        assert!(made.unwrap().success());
        let reader = std::thread::spawn({
            let fifo = path("fifo");
            move || fs::read_to_string(fifo).unwrap()
        });
        let file = StagedFile::create(&path("fifo"), false).unwrap();
        file.write_text("through", &Unwatched).unwrap();
        assert_eq!(reader.join().unwrap(), "through");
    }

    #[test]
    fn standard_output_has_several_names() {}
}
