//! Processes that a program has work for it: a process has one ONNX Runtime and one pool of threads, and its memory is its own.

use std::io::{self, Read, Seek};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::Interrupted;

/// What another process said of its failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Failed {
    /// The error.
    pub problem: String,
    /// What can be done about it.
    pub hint: Option<String>,
}

impl Failed {
    /// Reads what a program wrote to stderr before it ended.
    fn read(stderr: &str, status: ExitStatus) -> Self {
        let said = |word: &str| {
            let lines = stderr.lines().filter_map(|line| line.strip_prefix(word));
            lines.map(str::trim).collect::<Vec<_>>().join("; ")
        };
        let (problem, hint) = (said("error:"), said("hint:"));
        Self {
            problem: match problem.is_empty() {
                true => format!("the process that does it ended with {status}"),
                false => problem,
            },
            hint: (!hint.is_empty()).then_some(hint),
        }
    }
}

/// What a process writes to stdout, or how it fails. It is ended when the user wants to stop.
///
/// # Errors
/// It cannot be started, or the user stops.
pub fn output(
    command: &mut Command,
    stopped: impl Fn() -> bool,
) -> anyhow::Result<Result<String, Failed>> {
    // Files take what nobody reads meanwhile.
    let file = || tempfile::tempfile().context("cannot make a temporary file");
    let (mut stdout, mut stderr) = (file()?, file()?);
    let child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn();
    let mut child = child.with_context(|| {
        let program = command.get_program().display();
        format!("cannot start {program}")
    })?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if stopped() {
            child.kill().and_then(|()| child.wait()).ok();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if stopped() {
        return Err(Interrupted.into());
    }
    let text = |file: &mut std::fs::File| -> io::Result<String> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(match status.success() {
        true => Ok(text(&mut stdout)?),
        false => Err(Failed::read(&text(&mut stderr)?, status)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_says_is_kept() {
        let status = ExitStatus::default();
        let stderr = "warning: x\nerror: no library\nhint: fetch it\n";
        let failed = Failed::read(stderr, status);
        assert_eq!(failed.problem, "no library");
        assert_eq!(failed.hint.as_deref(), Some("fetch it"));
        let failed = Failed::read("", status);
        assert!(failed.problem.contains(&status.to_string()), "{failed}");
        assert_eq!(failed.hint, None);
    }

    #[test]
    #[cfg(unix)]
    fn a_process_is_heard_and_ended() {
        let shell =
            |script: &str, stop: bool| output(Command::new("sh").args(["-c", script]), || stop);
        let heard = shell("echo made; echo told >&2", false).unwrap();
        assert_eq!(heard.as_deref(), Ok("made\n"));
        let failed = shell("echo error: full >&2; exit 3", false).unwrap();
        assert_eq!(failed.unwrap_err().problem, "full");
        let stopped = shell("sleep 1000", true).unwrap_err();
        assert!(stopped.is::<Interrupted>(), "{stopped}");
        assert!(output(&mut Command::new("/nowhere/x"), || false).is_err());
    }
}
