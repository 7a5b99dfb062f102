//! Waiting for others, which Ctrl-C ends. Who opens a pipe waits for its writer, and no signal ends that: another thread does it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::{Interrupted, Ui};

/// Most bytes of a text file.
const LONGEST: u64 = 1 << 24;

impl Ui {
    /// Does work that may wait for others, until the user wants to stop.
    ///
    /// # Errors
    /// Those of the work; or [`Interrupted`], after which the work goes on and nobody hears of it.
    pub fn unless_interrupted<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        const POLL: Duration = Duration::from_millis(50);
        let (tell, told) = mpsc::channel();
        // Nobody listens any more once the user wants to stop.
        thread::spawn(move || drop(tell.send(work())));
        loop {
            match told.recv_timeout(POLL) {
                Ok(done) => return done,
                Err(_) if self.interrupted() => return Err(Interrupted.into()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("a mistake in this program ended a thread")
                }
            }
        }
    }

    /// The text of a small file, or what is written to a pipe of this name.
    ///
    /// # Errors
    /// It cannot be read, is too long or no text in UTF-8, or the user wants to stop.
    pub fn read_text(&self, path: &Path) -> anyhow::Result<String> {
        let path = path.to_owned();
        self.unless_interrupted(move || {
            text_of(&path).with_context(|| format!("cannot read {}", path.display()))
        })
    }
}

fn text_of(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?
        .take(LONGEST + 1)
        .read_to_string(&mut text)?;
    if read as u64 > LONGEST {
        let problem = format!("it is longer than {LONGEST} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    Ok(text)
}
