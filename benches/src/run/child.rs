//! A process of its own for each measurement.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use sd_ui::Ui;
use sd_ui::child::{Failed, output};
use serde::de::DeserializeOwned;

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
    let mut command = Command::new(&program);
    command
        .args(["measure", "--quiet"])
        .args(words.iter().flat_map(|words| &words.0));
    let written = match output(&mut command, || ui.interrupted())? {
        Ok(written) => written,
        Err(failed) => return Ok(Err(failed)),
    };
    let result = serde_json::from_str(&written);
    Ok(Ok(result.with_context(|| {
        format!("what {} wrote", program.display())
    })?))
}
