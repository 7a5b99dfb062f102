//! A run on the terminal: what is done, how fast, how long still.

use sd_converter::ui::{Bar, Ui};
use sd_runtime::pipeline::{Phase, Watch};

/// Less memory than this every machine has.
const WORTH_TELLING: u64 = 1_000_000_000;

/// Follows a run.
#[derive(Debug)]
pub(crate) struct Terminal<'a> {
    ui: &'a Ui,
    pictures: usize,
    bar: Option<Bar>,
}

impl<'a> Terminal<'a> {
    pub(crate) fn new(ui: &'a Ui, pictures: usize) -> Self {
        Self {
            ui,
            pictures,
            bar: None,
        }
    }
}

impl Watch for Terminal<'_> {
    fn phase(&mut self, phase: Phase) {
        self.bar = match phase {
            Phase::Encode => Some(self.ui.spinner("reading the prompt")),
            Phase::Load { memory } => {
                if memory > WORTH_TELLING {
                    self.ui.note(format!(
                        "this takes about {:.1} GB of memory",
                        memory as f64 / 1e9
                    ));
                }
                Some(self.ui.spinner("loading the UNet"))
            }
            Phase::Denoise { calls } => Some(self.ui.steps(
                if self.pictures > 1 {
                    "denoising all"
                } else {
                    "denoising"
                },
                calls as u64,
            )),
            Phase::Decode => Some(self.ui.spinner("decoding")),
        };
    }

    fn called(&mut self, calls: usize) {
        if let Some(bar) = &self.bar {
            bar.set(calls as u64);
        }
    }

    fn note(&mut self, text: &str) {
        self.ui.note(text);
    }

    fn warn(&mut self, text: &str) {
        self.ui.warn(text);
    }
}
