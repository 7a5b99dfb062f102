//! The settings in a picture's file.

use std::path::Path;

use anyhow::Context;
use sd_runtime::pipeline::PictureFile;
use sd_runtime::pipeline::infotext::Settings;
use sd_ui::Ui;

/// The setting of a JPEG whose quality is not the usual one.
pub(crate) const QUALITY: &str = "JPEG quality";

/// Reads a picture's file, and what its settings mean. A size that is not the picture's is told.
pub(crate) fn of(path: &Path, ui: &Ui) -> anyhow::Result<(PictureFile, Settings)> {
    let file = PictureFile::open(path)?;
    let settings = Settings::read(&file.parameters);
    let settings = settings.with_context(|| path.display().to_string())?;
    let request = &settings.request;
    if let (Some(width), Some(height)) = (request.width, request.height)
        && [width, height] != file.size
    {
        let [w, h] = file.size;
        ui.note(format!(
            "{}: the picture has {w}x{h} pixels, its settings are for {width}x{height}",
            path.display()
        ));
    }
    Ok((file, settings))
}
