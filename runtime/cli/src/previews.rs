//! Where previews go: files beside the pictures.

use std::path::{Path, PathBuf};

use sd_runtime::engine::Cancel;
use sd_runtime::pipeline::{Destination, Format, Picture, PipelineError};
use sd_ui::UsageError;

/// The pictures that have previews.
pub(crate) struct Previews {
    pictures: Vec<PathBuf>,
}

impl Previews {
    /// Looks whether previews can be written beside these pictures, and not over a dump.
    pub(crate) fn beside(
        pictures: &[Destination],
        dump: Option<&Destination>,
    ) -> anyhow::Result<Self> {
        for picture in pictures {
            if let Some(dump) = dump.filter(|dump| is_name(picture.path(), dump.path())) {
                let text = format!(
                    "{}: a preview and the dump would overwrite each other",
                    dump.path().display()
                );
                return Err(UsageError(text).into());
            }
            if !picture.is_file() {
                let text = format!(
                    "--preview writes files beside the picture, and {} has no place for them: give a file with -o",
                    picture.path().display()
                );
                return Err(UsageError(text).into());
            }
            Destination::find(&name(picture.path(), 1))?;
        }
        let paths = pictures.iter().map(|picture| picture.path().to_owned());
        Ok(Self {
            pictures: paths.collect(),
        })
    }

    /// Writes what a picture, counted from 0, looks like after so many steps.
    pub(crate) fn write(
        &self,
        picture: usize,
        steps: usize,
        image: &Picture,
        cancel: &Cancel,
    ) -> Result<(), PipelineError> {
        let Some(path) = self.pictures.get(picture) else {
            return Ok(());
        };
        let to = Destination::find(&name(path, steps))?;
        // Settings would be those of the picture, which this is not.
        image.write(&to, Format::Png, "", cancel)
    }
}

/// `out.png` has `out.step-005.png`.
fn name(picture: &Path, steps: usize) -> PathBuf {
    let stem = picture.file_stem().unwrap_or_default().to_string_lossy();
    picture.with_file_name(format!("{stem}.step-{steps:03}.png"))
}

/// Whether a file is called as a picture's previews are.
fn is_name(picture: &Path, file: &Path) -> bool {
    let stem = picture.file_stem().unwrap_or_default().to_string_lossy();
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let steps = name.strip_prefix(&format!("{stem}.step-"));
    let steps = steps.and_then(|rest| rest.strip_suffix(".png"));
    file.parent() == picture.parent() && steps.is_some_and(|steps| steps.parse::<usize>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_pictures() {
        for (picture, preview) in [
            ("out.png", "out.step-005.png"),
            ("a/b.c-001.jpg", "a/b.c-001.step-005.png"),
            ("out", "out.step-005.png"),
        ] {
            assert_eq!(name(Path::new(picture), 5), Path::new(preview));
        }
        assert_eq!(name(Path::new("o.png"), 1000), Path::new("o.step-1000.png"));
    }

    #[test]
    fn dumps_that_are_called_like_previews_are_known() {
        let is = |file: &str| is_name(Path::new("a/b.png"), Path::new(file));
        assert!(is("a/b.step-005.png") && is(&name(Path::new("a/b.png"), 1000).to_string_lossy()));
        assert!(!is("a/b.safetensors") && !is("a/c.step-005.png") && !is("b.step-005.png"));
    }
}
