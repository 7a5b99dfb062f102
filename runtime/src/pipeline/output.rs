//! Where results go: files appear whole or not at all, everything else is written through.
//!
//! A regular file grows beside its place and is renamed when complete; links are followed first. Devices and pipes are
//! written through. A file that cannot be replaced (mounted into a container, or in a folder that is read-only) is written
//! in place. Which of these it will be is found out before the work, not after it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::PipelineError;
use crate::engine::Cancel;

/// A place for a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    path: PathBuf,
    way: Way,
}

/// How a place is written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// The file of this name, without links, is replaced.
    Replace(PathBuf),
    /// The file of this name is opened and written.
    InPlace(PathBuf),
    /// Standard output.
    Stdout,
}

impl Destination {
    /// Looks at a place without changing it; `-` is standard output.
    ///
    /// # Errors
    /// It cannot be written: no such folder, no permission, or it is a folder.
    pub fn find(path: &Path) -> Result<Self, PipelineError> {
        let way = Way::find(path).map_err(|source| PipelineError::Write {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            way,
        })
    }

    /// The name that the user gave.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is standard output.
    #[must_use]
    pub fn is_stdout(&self) -> bool {
        self.way == Way::Stdout
    }

    /// Whether it is or will be a regular file, which has a name of its own.
    #[must_use]
    pub fn is_file(&self) -> bool {
        match &self.way {
            Way::Replace(_) => true,
            Way::InPlace(target) => target.is_file(),
            Way::Stdout => false,
        }
    }

    /// Whether writing one overwrites the other.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.is_file() && other.is_file() && self.way.target() == other.way.target()
    }

    /// Whether what is written there has to be read at once by somebody.
    #[must_use]
    pub fn is_pipe(&self) -> bool {
        match &self.way {
            Way::InPlace(target) => is_pipe(target),
            Way::Stdout => true,
            Way::Replace(_) => false,
        }
    }

    /// Writes the result. A pipe waits for its reader until `cancel` ends it.
    ///
    /// # Errors
    /// The folder cannot be written, the disk is full, or nobody reads.
    pub fn write(&self, bytes: &[u8], cancel: &Cancel) -> Result<(), PipelineError> {
        let written = match &self.way {
            Way::Replace(target) => replace(target, bytes),
            Way::InPlace(target) if is_pipe(target) => write_pipe(target, bytes, cancel),
            Way::InPlace(target) => overwrite(target, bytes),
            Way::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
        };
        written.map_err(|source| PipelineError::Write {
            path: match self.is_stdout() {
                true => "standard output".into(),
                false => self.path.clone(),
            },
            source,
        })
    }
}

impl Way {
    fn find(path: &Path) -> io::Result<Self> {
        const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];
        if STDOUT.iter().any(|name| path == Path::new(name)) {
            return Ok(Self::Stdout);
        }
        if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let existing = match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            // Looking into a pipe would block.
            Ok(metadata) if !metadata.is_file() => return Ok(Self::InPlace(path.to_owned())),
            Ok(_) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        let target = without_links(path)?;
        let beside = tempfile::tempfile_in(folder(&target));
        match (beside, existing) {
            (Ok(_), true) if is_mount_point(&target) => {}
            (Ok(_), _) => return Ok(Self::Replace(target)),
            (Err(e), false) => return Err(e),
            (Err(_), true) => {}
        }
        // Opening for writing changes nothing yet.
        OpenOptions::new().write(true).open(&target)?;
        Ok(Self::InPlace(target))
    }

    fn target(&self) -> Option<&Path> {
        match self {
            Self::Replace(target) | Self::InPlace(target) => Some(target),
            Self::Stdout => None,
        }
    }
}

/// Where a path leads, even if there is nothing yet.
fn without_links(path: &Path) -> io::Result<PathBuf> {
    const LINKS: usize = 40; // as many as Linux follows
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = folder(&path).join(target),
            Err(_) => {
                let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
                return Ok(fs::canonicalize(folder(&path))?.join(name));
            }
        }
    }
    Err(io::Error::other("too many links lead to each other"))
}

fn folder(path: &Path) -> &Path {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Whether something is mounted at this very path, so that no other file can take its name.
fn is_mount_point(path: &Path) -> bool {
    // "36 35 98:0 /root /mount/point .."; spaces and the like are octal.
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else {
        return false;
    };
    let Some(path) = path.to_str() else {
        return false;
    };
    let escaped = path.replace('\\', "\\134").replace(' ', "\\040");
    let escaped = escaped.replace('\t', "\\011").replace('\n', "\\012");
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(&escaped))
}

fn replace(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut builder = tempfile::Builder::new();
    readable_by_others(&mut builder);
    let mut file = builder.prefix(".sdrt-").tempfile_in(folder(target))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    match file.persist(target) {
        Ok(_) => Ok(()),
        // The work is not lost because a folder's rules forbid renaming (a sticky folder with another user's file).
        Err(e) if target.is_file() => overwrite(target, bytes).map_err(|_| e.error),
        Err(e) => Err(e.error),
    }
}

fn overwrite(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(target)?;
    file.write_all(bytes)?;
    file.flush()
}

/// Opening a pipe waits for a reader, which no signal ends: another thread does that.
fn write_pipe(target: &Path, bytes: &[u8], cancel: &Cancel) -> io::Result<()> {
    const POLL: Duration = Duration::from_millis(50);
    let (target, bytes) = (target.to_owned(), bytes.to_owned());
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(overwrite(&target, &bytes)));
    loop {
        match told.recv_timeout(POLL) {
            Ok(written) => return written,
            Err(_) if cancel.is_cancelled() => return Err(io::ErrorKind::Interrupted.into()),
            Err(_) => {}
        }
    }
}

fn is_pipe(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// Temporary files are private by default; results follow the user's umask.
fn readable_by_others(builder: &mut tempfile::Builder<'_, '_>) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    #[cfg(not(unix))]
    let _ = builder;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) -> Result<(), PipelineError> {
        Destination::find(path)?.write(text.as_bytes(), &Cancel::new())
    }

    #[test]
    fn regular_files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        write(&path, "first").unwrap();
        let old = File::open(&path).unwrap();
        write(&path, "2").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "2");
        // Who reads the old file still has it whole.
        assert_eq!(io::read_to_string(old).unwrap(), "first");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let folders = ["no/a.png", "new/", ".."].map(|name| dir.path().join(name));
        for wrong in folders.into_iter().chain([dir.path().to_owned()]) {
            assert!(Destination::find(&wrong).is_err(), "{}", wrong.display());
        }
    }

    #[test]
    #[cfg(unix)]
    fn links_are_followed_and_stay_links() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("there.png"), dir.path().join("here.png"));
        symlink("there.png", &link).unwrap();
        for text in ["into nothing", "into a file"] {
            write(&link, text).unwrap();
            assert!(link.is_symlink());
            assert_eq!(fs::read_to_string(&target).unwrap(), text);
        }
        let [through, direct] = [&link, &target].map(|path| Destination::find(path).unwrap());
        assert!(through.is_same(&direct));
        symlink("loop", dir.path().join("loop")).unwrap();
        assert!(Destination::find(&dir.path().join("loop")).is_err());
    }

    #[test]
    #[cfg(unix)]
    fn devices_and_pipes_are_written_through() {
        use std::os::unix::fs::FileTypeExt;
        let null = Path::new("/dev/null");
        let destination = Destination::find(null).unwrap();
        destination.write(b"gone", &Cancel::new()).unwrap();
        assert!(!destination.is_file() && !destination.is_same(&destination));
        assert!(fs::metadata(null).unwrap().file_type().is_char_device());

        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let reader = {
            let pipe = pipe.clone();
            std::thread::spawn(move || fs::read_to_string(pipe).unwrap())
        };
        write(&pipe, "through").unwrap();
        assert_eq!(reader.join().unwrap(), "through");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());

        // Without a reader, the wish to stop ends the wait.
        let cancel = Cancel::new();
        cancel.cancel();
        let error = Destination::find(&pipe).unwrap().write(b"nobody", &cancel);
        assert!(error.is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_mounted_is_written_in_place() {
        // Every Linux mounts something there; it is a folder, which is as good for this question.
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/proc/self")));
    }
}
