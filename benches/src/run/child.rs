//! A process of its own for each measurement: a process has one ONNX Runtime and one pool of threads, and its memory is its own.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use sd_ui::{Interrupted, Ui};
use serde::de::DeserializeOwned;

/// What another process said of its failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub(crate) struct Failed {
    /// The error.
    pub(crate) problem: String,
    /// What can be done about it.
    pub(crate) hint: Option<String>,
}

impl Failed {
    /// Reads what a program wrote to stderr before it ended.
    fn read(stderr: &str, status: &str) -> Self {
        let said = |word: &str| {
            let lines = stderr.lines().filter_map(|line| line.strip_prefix(word));
            lines.map(str::trim).collect::<Vec<_>>().join("; ")
        };
        let (problem, hint) = (said("error:"), said("hint:"));
        Self {
            problem: match problem.is_empty() {
                true => format!("the measuring process ended with {status}"),
                false => problem,
            },
            hint: (!hint.is_empty()).then_some(hint),
        }
    }
}

/// Options of a command line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Words(Vec<OsString>);

impl Words {
    pub(crate) fn add(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.extend([name.into(), value.as_ref().to_owned()]);
    }

    pub(crate) fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }
}

/// Runs `sdbench measure`, of another build if one is given, and reads its result. The process ends if the user wants to stop.
///
/// # Errors
/// It cannot be started, or the user stops. That the measurement fails is an answer.
pub(crate) fn measure<T: DeserializeOwned>(
    program: Option<&Path>,
    words: &[&Words],
    ui: &Ui,
) -> anyhow::Result<Result<T, Failed>> {
    let program = match program {
        Some(other) => other.to_owned(),
        None => std::env::current_exe().context("where is this program?")?,
    };
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let [stdout, stderr] = ["stdout", "stderr"].map(|name| scratch.path().join(name));
    let mut child = Command::new(&program)
        .args(["measure", "--quiet"])
        .args(words.iter().flat_map(|words| &words.0))
        .stdin(Stdio::null())
        .stdout(File::create(&stdout)?)
        .stderr(File::create(&stderr)?)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if ui.interrupted() {
            child.kill().and_then(|()| child.wait()).ok();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if ui.interrupted() {
        return Err(Interrupted.into());
    }
    let text = |path: &Path| {
        let bytes = fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let failed = || Failed::read(&text(&stderr), &status.to_string());
    if !status.success() {
        return Ok(Err(failed()));
    }
    let result = serde_json::from_str(&text(&stdout));
    Ok(Ok(result.with_context(|| {
        format!("what {} wrote", program.display())
    })?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_says_is_kept() {
        let stderr = "warning: x\nerror: no library\nhint: fetch it\n";
        let failed = Failed::read(stderr, "exit status: 1");
        assert_eq!(failed.problem, "no library");
        assert_eq!(failed.hint.as_deref(), Some("fetch it"));
        let failed = Failed::read("", "signal: 9 (SIGKILL)");
        assert!(failed.problem.contains("SIGKILL"), "{failed}");
        assert_eq!(failed.hint, None);
    }
}
