//! Processes that a command has work for it: a process has one ONNX Runtime and one pool of threads, and its memory is its own.

use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::Context;
use sd_ui::Interrupted;

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
    pub(crate) fn read(stderr: &str, status: ExitStatus) -> Self {
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

/// Waits for a process, or ends it when the user wants to stop.
///
/// # Errors
/// It cannot be started, or the user stops.
pub(crate) fn finish(
    command: &mut Command,
    stopped: impl Fn() -> bool,
) -> anyhow::Result<ExitStatus> {
    let child = command.spawn();
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
    match stopped() {
        true => Err(Interrupted.into()),
        false => Ok(status),
    }
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
}
