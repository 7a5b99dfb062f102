//! `sdrun` as tests call it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use sd_runtime::engine::{EngineError, Ep, library, setup};
use tempfile::TempDir;

/// The library of this machine; fetched as `sdrun setup` does it if there is none.
pub(crate) fn runtime_library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| match library::find(None, Ep::Cpu) {
        Ok(found) => found.path,
        Err(EngineError::NoLibrary { .. }) => setup::fetch(Ep::Cpu, |_| {}).unwrap().library,
        Err(e) => panic!("{e}"),
    })
}

/// `sdrun` in a data folder of its own, with the machine's library.
pub(crate) fn sdrun(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sdrun"));
    command
        .env("NO_COLOR", "1")
        .env("SDRT_DATA_DIR", data)
        .env("ORT_DYLIB_PATH", runtime_library());
    command.current_dir(data).stdin(Stdio::null());
    command
}

pub(crate) fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code(), text(stdout), text(stderr))
}

pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}
