//! Files appear whole or not at all: they grow beside their place and are renamed when complete.

use std::io;
use std::path::Path;

use tempfile::NamedTempFile;

use super::PipelineError;

/// Writes the file `path`, replacing an old one.
///
/// # Errors
/// Its folder cannot be written, or `fill` fails.
pub(super) fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut NamedTempFile) -> io::Result<()>,
) -> Result<(), PipelineError> {
    let write = || {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        let mut builder = tempfile::Builder::new();
        readable_by_others(&mut builder);
        let mut file = builder
            .prefix(".sdrt-")
            .tempfile_in(parent.unwrap_or(Path::new(".")))?;
        fill(&mut file)?;
        file.as_file().sync_all()?;
        file.persist(path).map(drop).map_err(|e| e.error)
    };
    write().map_err(|source| PipelineError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Temporary files are private by default; results follow the user's umask.
fn readable_by_others(builder: &mut tempfile::Builder<'_, '_>) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    #[cfg(not(unix))]
    let _ = builder;
}
