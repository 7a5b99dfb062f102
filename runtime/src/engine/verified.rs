//! Files that were compared with their manifest before, so that gigabytes are not hashed at every start.
//!
//! A file is known by its path, inode, length and the time of its last change of any kind, which nobody can set back. The
//! record lies in the data folder; losing it costs the time to hash.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::library::data_dir;

/// What a file is, short of reading it: any change of its content gives it another identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    size: u64,
    inode: u64,
    changed: i128,
}

impl Identity {
    #[cfg(unix)]
    pub(super) fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let seconds = i128::from(metadata.ctime());
        Self {
            size: metadata.len(),
            inode: metadata.ino(),
            changed: seconds * 1_000_000_000 + i128::from(metadata.ctime_nsec()),
        }
    }

    #[cfg(not(unix))]
    pub(super) fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok();
        let modified = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        Self {
            size: metadata.len(),
            inode: 0,
            changed: modified.map_or(-1, |time| time.as_nanos() as i128),
        }
    }
}

/// What was found when a file was hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    identity: Identity,
    sha256: String,
}

/// The record of one data folder, read once.
#[derive(Debug)]
pub(super) struct Verified {
    file: PathBuf,
    record: Mutex<BTreeMap<String, Seen>>,
}

impl Verified {
    pub(super) fn new() -> Self {
        Self::at(data_dir().join("verified.json"))
    }

    pub(super) fn at(file: PathBuf) -> Self {
        let record = Mutex::new(read(&file));
        Self { file, record }
    }

    /// Whether the file had this hash when it was last hashed, and has not changed since.
    pub(super) fn knows(&self, path: &Path, sha256: &str) -> bool {
        let Some((name, now)) = seen(path, sha256) else {
            return false;
        };
        self.record().get(&name) == Some(&now)
    }

    /// Remembers a file's hash. `before` is what the file was when hashing began.
    pub(super) fn remember(&self, path: &Path, before: &Metadata, sha256: &str) {
        let Some((name, now)) = seen(path, sha256) else {
            return;
        };
        if Identity::of(before) != now.identity {
            return;
        }
        let mut record = self.record();
        // Other processes may have added theirs meanwhile.
        record.extend(read(&self.file));
        record.retain(|name, _| Path::new(name).exists());
        record.insert(name, now);
        // A record that cannot be written is no reason to fail.
        if let Err(error) = self.write(&record) {
            tracing::debug!(file = %self.file.display(), %error, "no record of verified files");
        }
    }

    fn record(&self) -> MutexGuard<'_, BTreeMap<String, Seen>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, record: &BTreeMap<String, Seen>) -> std::io::Result<()> {
        let folder = self.file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.persist(&self.file).map(drop).map_err(|e| e.error)
    }
}

fn read(file: &Path) -> BTreeMap<String, Seen> {
    let text = fs::read_to_string(file).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// A file's full name, and what it is now if it has this hash.
fn seen(path: &Path, sha256: &str) -> Option<(String, Seen)> {
    let path = path.canonicalize().ok()?;
    let seen = Seen {
        identity: Identity::of(&path.metadata().ok()?),
        sha256: sha256.to_owned(),
    };
    Some((path.to_str()?.to_owned(), seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_until_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let verified = Verified::at(dir.path().join("data/verified.json"));
        let file = dir.path().join("model.onnx_data");
        fs::write(&file, "abc").unwrap();
        assert!(!verified.knows(&file, "hash"));
        let before = file.metadata().unwrap();
        verified.remember(&file, &before, "hash");
        assert!(verified.knows(&file, "hash") && !verified.knows(&file, "another"));
        // Even a change that sets the time of modification back is seen.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let modified = before.modified().unwrap();
        fs::write(&file, "abd").unwrap();
        let opened = fs::File::options().write(true).open(&file).unwrap();
        opened.set_modified(modified).unwrap();
        #[cfg(unix)]
        assert!(!verified.knows(&file, "hash"));
        // What changed while it was hashed is not remembered.
        verified.remember(&file, &before, "hash");
        #[cfg(unix)]
        assert!(!verified.knows(&file, "hash"));
        // Another process finds what was written, and goes without what is broken.
        verified.remember(&file, &file.metadata().unwrap(), "hash");
        let another = || Verified::at(verified.file.clone());
        assert!(another().knows(&file, "hash"));
        fs::write(&verified.file, "{").unwrap();
        assert!(!another().knows(&file, "hash"));
    }
}
