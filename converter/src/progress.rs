//! How long operations report and are stopped.

/// Watches an operation; every implementation may be called from several threads.
pub trait Progress: Sync {
    /// `bytes` more are done.
    fn advance(&self, bytes: u64);
    /// Whether the user wants to stop.
    fn cancelled(&self) -> bool;
}

/// Watches nothing and never stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn advance(&self, _bytes: u64) {}

    fn cancelled(&self) -> bool {
        false
    }
}

impl Progress for sd_ui::Bar {
    fn advance(&self, bytes: u64) {
        sd_ui::Bar::advance(self, bytes);
    }

    fn cancelled(&self) -> bool {
        self.interrupted()
    }
}
