//! A process of its own for each measurement.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;
use sd_ui::Ui;
use serde::de::DeserializeOwned;

use crate::child::{Failed, finish};

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
    let mut command = Command::new(&program);
    command
        .args(["measure", "--quiet"])
        .args(words.iter().flat_map(|words| &words.0))
        .stdin(Stdio::null())
        .stdout(File::create(&stdout)?)
        .stderr(File::create(&stderr)?);
    let status = finish(&mut command, || ui.interrupted())?;
    let text = |path: &Path| {
        let bytes = fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    if !status.success() {
        return Ok(Err(Failed::read(&text(&stderr), status)));
    }
    let result = serde_json::from_str(&text(&stdout));
    Ok(Ok(result.with_context(|| {
        format!("what {} wrote", program.display())
    })?))
}
