//! Files that are read whole. Who opens a pipe in their place waits for its writer, and no signal ends that; a device need not end at
//! all.

use std::fs::File;
use std::io;
use std::path::Path;

/// Opens a file to read it.
///
/// # Errors
/// It cannot be opened, or is a pipe, a socket or a device.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let found = path.metadata()?;
    if found.is_file() || found.is_dir() {
        return File::open(path);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "it is a pipe or a device; expected a file",
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    #[cfg(unix)]
    fn pipes_and_devices_are_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (file, pipe) = (dir.path().join("file"), dir.path().join("pipe"));
        fs::write(&file, "abc").unwrap();
        assert!(open(&file).is_ok());
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for path in [&pipe, Path::new("/dev/zero")] {
            let error = open(path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
