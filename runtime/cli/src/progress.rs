//! A run on the terminal: what is done, how fast, how long still.

use sd_runtime::pipeline::{Event, Stage};
use sd_ui::{Bar, Ui};

/// Follows a run.
#[derive(Debug)]
pub(crate) struct Terminal<'a> {
    ui: &'a Ui,
    calls: Option<usize>,
    bar: Option<Bar>,
}

impl<'a> Terminal<'a> {
    pub(crate) fn new(ui: &'a Ui) -> Self {
        Self {
            ui,
            calls: None,
            bar: None,
        }
    }

    /// Shows what happens.
    pub(crate) fn follow(&mut self, event: Event<'_>) {
        match event {
            Event::Stage(stage) => self.bar = Some(self.bar_for(stage)),
            Event::Called { picture, calls } => {
                if let Some(bar) = &self.bar {
                    // What takes an unknown number of calls counts those of one picture.
                    bar.set((picture * self.calls.unwrap_or(0) + calls) as u64);
                }
            }
            // Those who want them write them.
            Event::Preview { .. } => {}
            Event::Note(text) => self.ui.note(text),
            Event::Warning(text) => self.ui.warn(text),
        }
    }

    fn bar_for(&mut self, stage: Stage) -> Bar {
        match stage {
            Stage::Encode => self.ui.spinner("reading the prompt"),
            Stage::Load => self.ui.spinner("loading the UNet"),
            Stage::Denoise { calls, pictures } => {
                self.calls = calls;
                match calls {
                    Some(calls) => self.ui.steps("denoising", (calls * pictures) as u64),
                    None => self.ui.counter("denoising"),
                }
            }
            Stage::Decode => self.ui.spinner("decoding"),
        }
    }
}
