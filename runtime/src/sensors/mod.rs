//! What a machine tells of its processor: energy that it used, how hot it is. And [`Ceiling`], which holds either.
//!
//! Linux shows sensors as files below `/sys/class`. Many machines have none that can be read: virtual ones, and energy often is for
//! the administrator only.

mod ceiling;
mod energy;
mod shares;
mod thermometer;

use std::fs;
use std::path::{Path, PathBuf};

pub use self::ceiling::{Ceiling, Limits, NoSensor};
pub use self::energy::Energy;
pub use self::shares::{Share, Shares};
pub use self::thermometer::Thermometer;

/// Where sensors are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sensors(PathBuf);

impl Default for Sensors {
    /// This machine's.
    fn default() -> Self {
        Self::of(Path::new("/sys/class"))
    }
}

impl Sensors {
    /// Those of a folder with the structure of `/sys/class`.
    #[must_use]
    pub fn of(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// The folder of a kind of devices.
    fn class(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// A file that holds a number.
fn number(folder: &Path, file: &str) -> Option<u64> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    text.trim().parse().ok()
}
