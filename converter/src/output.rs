//! Outputs appear complete or not at all: they grow in a hidden sibling that is renamed at the end.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::ConvertError;

/// A lock in every unfinished directory, held while its process lives, so that the leftovers of a killed one are known.
const LOCK: &str = ".lock";

/// A model directory in the making. Dropping it removes what was written.
#[derive(Debug)]
pub struct StagedDir {
    staging: TempDir,
    target: PathBuf,
    replace: bool,
    _lock: File,
}

impl StagedDir {
    /// Starts the directory `target`; with `replace`, an existing model directory will be replaced.
    ///
    /// # Errors
    /// The target exists and may not be replaced, or its parent folder cannot be written.
    pub fn create(target: &Path, replace: bool) -> Result<Self, ConvertError> {
        let existing = target.symlink_metadata().is_ok();
        if existing && !replace {
            return Err(ConvertError::OutputExists {
                path: target.to_owned(),
            });
        }
        if existing && !is_replaceable(target) {
            return Err(ConvertError::OutputForeign {
                path: target.to_owned(),
            });
        }
        let name = target
            .file_name()
            .ok_or_else(|| ConvertError::OutputForeign {
                path: target.to_owned(),
            })?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(ConvertError::write(parent))?;
        let prefix = format!(".{}.partial-", name.to_string_lossy());
        remove_leftovers(parent, &prefix);
        let staging = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(parent)
            .map_err(ConvertError::write(parent))?;
        let lock =
            File::create(staging.path().join(LOCK)).map_err(ConvertError::write(staging.path()))?;
        lock.lock().map_err(ConvertError::write(staging.path()))?;
        Ok(Self {
            staging,
            target: target.to_owned(),
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
        let target = self.target;
        let lock = self.staging.path().join(LOCK);
        fs::remove_file(&lock).map_err(ConvertError::write(&lock))?;
        open_permissions(self.staging.path()).map_err(ConvertError::write(self.staging.path()))?;
        if self.replace && target.symlink_metadata().is_ok() {
            let retired = retire(&target).map_err(ConvertError::write(&target))?;
            if let Err(error) = fs::rename(self.staging.path(), &target) {
                // Put the old one back: a failed conversion costs nobody a model.
                let _ = fs::rename(&retired, &target);
                return Err(ConvertError::Write {
                    path: target,
                    source: error,
                });
            }
            let _ = fs::remove_dir_all(&retired);
        } else {
            fs::rename(self.staging.path(), &target).map_err(|source| match source.kind() {
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
        }
        let _ = self.staging.keep();
        Ok(())
    }
}

/// Writes the file `target` whole or not at all.
///
/// # Errors
/// It exists and `replace` is off, its folder cannot be written, or `fill` fails.
pub fn write_file(
    target: &Path,
    replace: bool,
    fill: impl FnOnce(&Path) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    if !replace && target.symlink_metadata().is_ok() {
        return Err(ConvertError::OutputExists {
            path: target.to_owned(),
        });
    }
    let parent = target
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(parent).map_err(ConvertError::write(parent))?;
    fill(file.path())?;
    file.flush()
        .and_then(|()| file.as_file().sync_all())
        .map_err(ConvertError::write(target))?;
    open_permissions(file.path()).map_err(ConvertError::write(target))?;
    let persisted = if replace {
        file.persist(target)
    } else {
        file.persist_noclobber(target)
    };
    persisted.map(drop).map_err(|e| ConvertError::Write {
        path: target.to_owned(),
        source: e.error,
    })
}

/// Writes the text file `target`, replacing an old one, whole or not at all.
///
/// # Errors
/// Its folder cannot be written.
pub fn write_text(target: &Path, text: &str) -> Result<(), ConvertError> {
    write_file(target, true, |path| {
        fs::write(path, text).map_err(ConvertError::write(target))
    })
}

/// Only what this program writes, or nothing at all, may be replaced.
fn is_replaceable(path: &Path) -> bool {
    let empty = || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    path.join(sd_models::manifest::FILE_NAME).is_file() || empty()
}

fn remove_leftovers(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let path = entry.path();
        let abandoned = match File::open(path.join(LOCK)) {
            Ok(lock) => !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)),
            Err(_) => false,
        };
        if abandoned {
            tracing::info!(path = %path.display(), "removing what a killed conversion left");
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Moves the old directory aside, next to itself.
fn retire(target: &Path) -> io::Result<PathBuf> {
    let name = target
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let retired = target.with_file_name(format!(".{name}.old-{}", std::process::id()));
    fs::rename(target, &retired)?;
    Ok(retired)
}

/// Temporary files are private; finished ones follow the user's umask, like any other file.
#[cfg(unix)]
fn open_permissions(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let probe = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o777))
        .tempdir()?;
    let mut mode = fs::metadata(probe.path())?.permissions().mode() & 0o777;
    if path.is_file() {
        mode &= 0o666;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn open_permissions(_path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let staged = StagedDir::create(&target, true).unwrap();
        staged.write("new", "").unwrap();
        staged.commit().unwrap();
        assert!(target.join("new").exists() && !target.join("thesis.txt").exists());
        assert_eq!(entries(parent.path()), 1);
    }
}
