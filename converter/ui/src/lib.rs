//! How the programs talk to people: results on stdout, everything else on stderr, exit codes.

pub mod child;
mod times;
mod waiting;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use times::PhaseTimes;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Options that every subcommand has.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct UiArgs {
    /// Only errors and results
    #[arg(short, long, global = true)]
    quiet: bool,
    /// More about what happens, and how long it takes; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// A user's terminal.
#[derive(Clone)]
pub struct Ui {
    quiet: bool,
    interrupted: Arc<AtomicBool>,
    on_interrupt: Arc<Mutex<Vec<Callback>>>,
}

/// What can be done about an error, in the words of a program's command line; none of errors that it does not know.
pub type Hint = fn(&(dyn Error + 'static)) -> Option<String>;

/// What happens when the user wants to stop.
type Callback = Box<dyn Fn() + Send>;

impl fmt::Debug for Ui {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ui {{ quiet: {} }}", self.quiet)
    }
}

/// The user pressed Ctrl-C, or the system asked the program to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// The user asked for something that cannot be, known before anything is opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// A failure that the result on stdout tells; there is nothing to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("see the result")]
pub struct Told;

impl Ui {
    /// Sets up logging, and catches Ctrl-C so that operations can end cleanly; a second Ctrl-C ends the program at once.
    #[must_use]
    pub fn start(args: UiArgs) -> Self {
        let level = match (args.quiet, args.verbose) {
            (true, _) => "error",
            (false, 0) => "warn",
            (false, 1) => "info",
            (false, _) => "debug",
        };
        let filter = tracing_subscriber::EnvFilter::try_from_env("SDRT_LOG");
        let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
        let plain = std::env::var_os("NO_COLOR").is_some() || !io::stderr().is_terminal();
        let log = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(!plain)
            .without_time();
        let log = tracing_subscriber::registry()
            .with(filter)
            .with(log)
            .with(PhaseTimes);
        // A second start in one process (tests) keeps the first one's log and handler.
        let _ = log.try_init();
        let interrupted = Arc::new(AtomicBool::new(false));
        let on_interrupt = Arc::new(Mutex::new(Vec::<Callback>::new()));
        let (flag, callbacks) = (Arc::clone(&interrupted), Arc::clone(&on_interrupt));
        let _ = ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            if let Ok(callbacks) = callbacks.lock() {
                callbacks.iter().for_each(|callback| callback());
            }
        });
        Self {
            quiet: args.quiet,
            interrupted,
            on_interrupt,
        }
    }

    /// Something good to know, on stderr.
    pub fn note(&self, text: impl fmt::Display) {
        if !self.quiet {
            say(&text.to_string());
        }
    }

    /// Something that may be wrong, on stderr.
    pub fn warn(&self, text: impl fmt::Display) {
        if !self.quiet {
            say(&format!("warning: {text}"));
        }
    }

    /// What was asked for, on stdout.
    ///
    /// # Errors
    /// Nobody reads it.
    pub fn result(&self, text: impl fmt::Display) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let line = printable(text.to_string().trim_end()).into_owned();
        let written = writeln!(out, "{line}").and_then(|()| out.flush());
        written.map_err(|e| match e.kind() {
            // `sdconvert .. | head` is no failure.
            io::ErrorKind::BrokenPipe => e,
            kind => io::Error::new(kind, format!("cannot write standard output: {e}")),
        })
    }

    /// [`Self::result`] of writing a file, on stderr if that file is stdout.
    ///
    /// # Errors
    /// Nobody reads it.
    pub fn written(&self, file: &Path, text: impl fmt::Display) -> io::Result<()> {
        if is_stdout(file) {
            self.note(text);
            return Ok(());
        }
        self.result(text)
    }

    /// Whether the user wants to stop; true from the first Ctrl-C on.
    #[must_use]
    pub fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    /// Calls `callback` once the user wants to stop, which may be at once.
    pub fn on_interrupt(&self, callback: impl Fn() + Send + 'static) {
        if let Ok(mut callbacks) = self.on_interrupt.lock() {
            callbacks.push(Box::new(callback));
            // A wish from before did not see it.
            if self.interrupted()
                && let Some(callback) = callbacks.last()
            {
                callback();
            }
        }
    }

    /// A bar that counts bytes, with rate and remaining time; invisible if stderr is no terminal.
    #[must_use]
    pub fn bytes(&self, message: &'static str, total: u64) -> Bar {
        self.bar(
            message,
            total,
            "{msg} {wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
        )
    }

    /// A bar that counts steps.
    #[must_use]
    pub fn steps(&self, message: &'static str, total: u64) -> Bar {
        self.bar(
            message,
            total,
            "{msg} {wide_bar} {pos}/{len}, {seconds_per_step}, {eta} left",
        )
    }

    /// Steps whose number is not known before.
    #[must_use]
    pub fn counter(&self, message: &'static str) -> Bar {
        self.bar(message, 0, "{spinner} {msg} {pos}, {seconds_per_step}")
    }

    /// A bar over work of any unit; [`Bar::say`] puts words behind it.
    #[must_use]
    pub fn work(&self) -> Bar {
        self.bar("", 0, "{wide_bar} {msg}")
    }

    /// A sign of life for something without measure.
    #[must_use]
    pub fn spinner(&self, message: &'static str) -> Bar {
        self.bar(message, 0, "{spinner} {msg} ({elapsed})")
    }

    fn bar(&self, message: &'static str, total: u64, template: &str) -> Bar {
        // indicatif draws on terminals only.
        let target = if self.quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_message(message);
        let style = ProgressStyle::with_template(template).expect("the templates above are valid");
        let seconds_per_step = |state: &indicatif::ProgressState, out: &mut dyn fmt::Write| {
            let rate = state.per_sec();
            let _ = if rate > 0.0 {
                write!(out, "{:.2} s/step", 1.0 / rate)
            } else {
                write!(out, "- s/step")
            };
        };
        bar.set_style(style.with_key("seconds_per_step", seconds_per_step));
        bar.enable_steady_tick(Duration::from_millis(500));
        Bar {
            bar,
            interrupted: Arc::clone(&self.interrupted),
        }
    }

    /// Reports how a command ended: 0 done, 1 failed, 2 wrong usage, 130 interrupted. `hint` knows what can be done about errors.
    #[must_use]
    pub fn finish(&self, outcome: anyhow::Result<()>, hint: Hint) -> ExitCode {
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) if self.interrupted() => {
                say("interrupted");
                ExitCode::from(130)
            }
            Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
            Err(e) if e.is::<Told>() => ExitCode::FAILURE,
            Err(e) => {
                say(&format!("error: {}", with_causes(&e)));
                if let Some(hint) = e.chain().find_map(hint) {
                    say(&format!("hint: {hint}"));
                }
                if e.is::<UsageError>() {
                    ExitCode::from(2)
                } else {
                    ExitCode::FAILURE
                }
            }
        }
    }
}

/// An error and its causes, but for those that its text names already.
fn with_causes(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |text, cause| match text.as_str() {
            "" => cause,
            known if known.contains(&cause) => text,
            _ => format!("{text}: {cause}"),
        })
}

/// `sdconvert .. | head` is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Names of a process's standard output.
pub const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// Whether a file's name stands for standard output, which then is no place for anything else.
#[must_use]
pub fn is_stdout(target: &Path) -> bool {
    STDOUT.iter().any(|name| target == Path::new(name))
}

/// Writes a line to stderr; if nobody reads it, that is fine.
fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", printable(line));
}

/// A text whose control characters, which names in files may hold, do nothing to a terminal.
fn printable(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::new();
    for c in text.chars() {
        match acts(c) {
            true => escaped.extend(c.escape_debug()),
            false => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// A progress bar that also says when to stop.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    interrupted: Arc<AtomicBool>,
}

impl Bar {
    /// `n` steps or bytes are done.
    pub fn set(&self, n: u64) {
        self.bar.set_position(n);
    }

    /// There are `n` in all.
    pub fn set_total(&self, n: u64) {
        self.bar.set_length(n);
    }

    /// Puts words beside the bar.
    pub fn say(&self, words: String) {
        self.bar.set_message(words);
    }

    /// Whether it is drawn: stderr is a terminal.
    #[must_use]
    pub fn is_visible(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// `n` more steps or bytes are done.
    pub fn advance(&self, n: u64) {
        self.bar.inc(n);
    }

    /// Whether the user wants to stop.
    #[must_use]
    pub fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_output_has_several_names() {
        assert!(is_stdout(Path::new("-")) && is_stdout(Path::new("/dev/stdout")));
        assert!(!is_stdout(Path::new("./-")));
    }

    #[test]
    fn control_characters_in_names_do_not_reach_the_terminal() {
        assert_eq!(
            printable("a\u{1b}[31m\r\nb\t\u{9b}"),
            "a\\u{1b}[31m\\r\nb\t\\u{9b}"
        );
        assert!(matches!(printable("größe\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot write x: {0}")]
        struct Full(#[source] io::Error);
        let full = Full(io::Error::other("no space"));
        let error = anyhow::Error::from(full).context("cannot convert");
        assert_eq!(
            with_causes(&error),
            "cannot convert: cannot write x: no space"
        );
    }
}
