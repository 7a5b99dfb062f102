//! Files that were compared with their manifest before, so that gigabytes are not hashed at every start.
//!
//! A file is known by its path, inode, length and the time of its last change of any kind, which nobody can set back. The
//! record lies in the data folder; losing it costs the time to hash.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::library::data_dir;

/// What was found when a file was hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    size: u64,
    inode: u64,
    changed: i128,
    sha256: String,
}

/// The record of one data folder.
#[derive(Clone, Debug)]
pub(super) struct Verified {
    file: PathBuf,
}

impl Verified {
    pub(super) fn new() -> Self {
        Self {
            file: data_dir().join("verified.json"),
        }
    }

    #[cfg(test)]
    pub(super) fn at(file: PathBuf) -> Self {
        Self { file }
    }

    /// Whether the file had this hash when it was last hashed, and has not changed since.
    pub(super) fn knows(&self, path: &Path, sha256: &str) -> bool {
        let Some((name, now)) = identity(path, sha256) else {
            return false;
        };
        self.read().get(&name) == Some(&now)
    }

    /// Remembers a file's hash. `before` is what the file was when hashing began.
    pub(super) fn remember(&self, path: &Path, before: &Metadata, sha256: &str) {
        let Some((name, now)) = identity(path, sha256) else {
            return;
        };
        if seen(before, sha256) != now {
            return;
        }
        let mut record = self.read();
        record.retain(|name, _| Path::new(name).exists());
        record.insert(name, now);
        // A record that cannot be written is no reason to fail.
        if let Err(error) = self.write(&record) {
            tracing::debug!(file = %self.file.display(), %error, "no record of verified files");
        }
    }

    fn read(&self) -> BTreeMap<String, Seen> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn write(&self, record: &BTreeMap<String, Seen>) -> std::io::Result<()> {
        let folder = self.file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.persist(&self.file).map(drop).map_err(|e| e.error)
    }
}

fn identity(path: &Path, sha256: &str) -> Option<(String, Seen)> {
    let path = path.canonicalize().ok()?;
    let now = seen(&path.metadata().ok()?, sha256);
    Some((path.to_str()?.to_owned(), now))
}

#[cfg(unix)]
fn seen(metadata: &Metadata, sha256: &str) -> Seen {
    use std::os::unix::fs::MetadataExt;
    Seen {
        size: metadata.len(),
        inode: metadata.ino(),
        changed: i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()),
        sha256: sha256.to_owned(),
    }
}

#[cfg(not(unix))]
fn seen(metadata: &Metadata, sha256: &str) -> Seen {
    let modified = metadata.modified().ok();
    let modified = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    Seen {
        size: metadata.len(),
        inode: 0,
        changed: modified.map_or(-1, |time| time.as_nanos() as i128),
        sha256: sha256.to_owned(),
    }
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
        fs::write(&verified.file, "{").unwrap();
        assert!(!verified.knows(&file, "hash"));
    }
}
