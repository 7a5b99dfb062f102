//! External data: tensors one after the other on page boundaries, so that runtimes can map them.
//!
//! A thread of its own hashes and writes while the caller computes the next tensors.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};

use sd_models::manifest::hex;
use sha2::{Digest, Sha256};

/// Boundaries on which tensors begin, in bytes.
pub(super) const PAGE: usize = 4096;

/// Groups of tensors that wait to be written.
const QUEUE: usize = 4;

static ZEROS: [u8; PAGE] = [0; PAGE];

/// Bytes that are hashed and then written while they are still in the processor's cache.
const PIECE: usize = 1 << 18;

/// Bytes after which the disk is told to begin, so that little is left to wait for at the end.
const SYNC: usize = 1 << 28;

/// A file in the making.
pub(super) struct ExternalData<'a> {
    writer: SyncSender<Vec<Cow<'a, [u8]>>>,
    /// What was not handed over yet.
    group: Vec<Cow<'a, [u8]>>,
    length: usize,
}

/// Writes the file `path` with whatever `fill` appends; returns `fill`'s result, and the file's SHA-256 and length.
///
/// # Errors
/// The file cannot be written, or `fill` fails.
pub(super) fn write_external_data<'a, T, E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&mut ExternalData<'a>) -> Result<T, E>,
) -> Result<(T, (String, u64)), E> {
    let mut file = File::create(path)?;
    std::thread::scope(|scope| {
        let (writer, queue) = sync_channel::<Vec<Cow<'a, [u8]>>>(QUEUE);
        let (sync, requests) = sync_channel::<()>(1);
        let synced = file.try_clone()?;
        let syncing =
            scope.spawn(move || requests.into_iter().try_for_each(|()| synced.sync_data()));
        let writing = scope.spawn(move || {
            let (mut hash, mut unsynced) = (Sha256::new(), 0);
            for bytes in queue.into_iter().flatten() {
                for piece in bytes.chunks(PIECE) {
                    hash.update(piece);
                    file.write_all(piece)?;
                    unsynced += piece.len();
                    if unsynced >= SYNC && sync.try_send(()).is_ok() {
                        unsynced = 0;
                    }
                }
            }
            drop(sync);
            file.sync_all()?;
            Ok::<_, io::Error>(hex(&hash.finalize()))
        });
        let mut data = ExternalData {
            writer,
            group: Vec::new(),
            length: 0,
        };
        let filled = fill(&mut data);
        let flushed = data.flush();
        let ExternalData { writer, length, .. } = data;
        drop(writer);
        // Where both failed, filling failed because writing had.
        let hash = writing.join().expect("writing does not panic")?;
        // The system tells of a failure once, to whoever asks first.
        syncing.join().expect("syncing does not panic")?;
        flushed?;
        Ok((filled?, (hash, length as u64)))
    })
}

impl<'a> ExternalData<'a> {
    /// Appends a tensor's bytes and returns the offset they will have.
    pub(super) fn append(&mut self, bytes: Cow<'a, [u8]>) -> usize {
        let offset = self.length.next_multiple_of(PAGE);
        self.group
            .push(Cow::Borrowed(&ZEROS[..offset - self.length]));
        self.length = offset + bytes.len();
        self.group.push(bytes);
        offset
    }

    /// Hands over what was appended, to be written while the caller goes on; waits while a group before it waits.
    ///
    /// # Errors
    /// Writing has failed; [`write_external_data`] returns why.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.writer
            .send(std::mem::take(&mut self.group))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_begin_on_pages_and_the_hash_is_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let written = write_external_data(&path, |data| {
            let offsets = [vec![1u8; 5000], vec![2; 3]].map(|bytes| data.append(bytes.into()));
            Ok::<_, io::Error>(offsets)
        });
        let (offsets, (sha256, length)) = written.unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((offsets, length), ([0, 8192], 8195));
        assert_eq!(
            (bytes[4999], bytes[5000], bytes[8191], bytes[8192]),
            (1, 0, 0, 2)
        );
        assert_eq!(sha256, hex(&Sha256::digest(&bytes)));
    }

    #[test]
    fn the_cause_of_a_failure_is_returned() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no/data");
        let error = write_external_data(&missing, |_| Ok::<_, io::Error>(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let stop = |_: &mut ExternalData<'_>| Err::<(), _>(io::Error::other("stop"));
        let error = write_external_data(&dir.path().join("data"), stop).unwrap_err();
        assert_eq!(error.to_string(), "stop");
    }
}
