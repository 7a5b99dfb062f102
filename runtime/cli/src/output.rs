//! Files that a run writes: found before the work, so that a wrong name costs nothing.

use std::path::{Path, PathBuf};

use sd_runtime::pipeline::{Destination, Dump, Format, Plans};
use sd_ui::UsageError;

use crate::carried::QUALITY;

/// Where a run's results go.
pub(crate) struct Output {
    pub(crate) pictures: Vec<Destination>,
    pub(crate) format: Format,
    pub(crate) dump: Option<Destination>,
    pub(crate) json: bool,
}

impl Output {
    /// Places for `count` pictures, found before the work. Without a name, pictures get free ones in the working folder once
    /// they are there.
    pub(crate) fn find(
        picture: Option<&Path>,
        count: usize,
        dump: Option<&Path>,
        json: bool,
    ) -> anyhow::Result<Self> {
        let dump = dump.map(Dump::place).transpose()?;
        let mut pictures = Vec::new();
        let format = picture.and_then(Format::of).unwrap_or(Format::Png);
        if let Some(path) = picture {
            refuse_other_formats(path)?;
            let one = Destination::find(path)?;
            for i in 0..count {
                pictures.push(match count > 1 && one.is_file() {
                    true => Destination::find(&numbered(path, i))?,
                    false => one.clone(),
                });
            }
        } else {
            Destination::find(&free_name(0, &[]))?;
        }
        if let Some(dump) = &dump
            && let Some(same) = pictures.iter().find(|picture| picture.is_same(dump))
        {
            let text = format!(
                "{}: picture and dump would overwrite each other",
                same.path().display()
            );
            return Err(UsageError(text).into());
        }
        let output = Self {
            pictures,
            format,
            dump,
            json,
        };
        if output.pictures.len() > 1 && output.pictures.iter().all(Destination::is_pipe) {
            let text = "several pictures cannot go through one pipe";
            return Err(UsageError(text.to_owned()).into());
        }
        if output.to_stdout() + usize::from(json) > 1 {
            let text = "only one thing can go to standard output: a picture, a dump or the result of --json";
            return Err(UsageError(text.to_owned()).into());
        }
        Ok(output)
    }

    /// With JPEGs of another quality.
    pub(crate) fn with_quality(mut self, quality: Option<u8>) -> Result<Self, UsageError> {
        match (quality, &mut self.format) {
            (None, _) => {}
            (Some(asked), Format::Jpeg { quality }) => *quality = asked,
            (Some(_), _) => {
                let text = "--quality is for pictures that are written as JPEG";
                return Err(UsageError(text.to_owned()));
            }
        }
        Ok(self)
    }

    /// Settings of the file beside those of the picture.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        match self.format {
            Format::Jpeg { quality } if self.format != Format::JPEG => {
                vec![(QUALITY, quality.to_string())]
            }
            _ => Vec::new(),
        }
    }

    /// Refuses settings that the format does not hold.
    pub(crate) fn check(&self, plans: &Plans) -> Result<(), UsageError> {
        for plan in &plans.plans {
            // What is known after the run is short.
            let text = format!("{}{:200}", plan.infotext, "");
            if let Some(most) = self.format.exceeded(&text) {
                let text = format!(
                    "the settings take more than the {most} bytes that a JPEG holds; a PNG or WebP holds them"
                );
                return Err(UsageError(text));
            }
        }
        Ok(())
    }

    /// Finds free names for pictures that have none yet, so that other files can be called after them.
    pub(crate) fn name_pictures(&mut self, plans: &Plans) -> anyhow::Result<()> {
        if self.pictures.is_empty() {
            for plan in &plans.plans {
                let name = free_name(plan.seed, &self.pictures);
                self.pictures.push(Destination::find(&name)?);
            }
        }
        Ok(())
    }

    /// How many of the files are standard output.
    pub(crate) fn to_stdout(&self) -> usize {
        let places = self.pictures.iter().chain(&self.dump);
        places.filter(|place| place.is_stdout()).count()
    }
}

/// A picture under another format's name would be taken for that.
fn refuse_other_formats(path: &Path) -> Result<(), UsageError> {
    const OTHERS: [&str; 10] = [
        "onnx",
        "safetensors",
        "ckpt",
        "json",
        "avif",
        "gif",
        "bmp",
        "tif",
        "tiff",
        "jxl",
    ];
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    if OTHERS.contains(&extension.to_lowercase().as_str()) {
        let png = path.with_extension("png");
        let text = format!(
            "{}: pictures are written as PNG, JPEG or WebP\nhint: -o {}",
            path.display(),
            png.display()
        );
        return Err(UsageError(text));
    }
    Ok(())
}

/// `out.png` becomes `out-000.png`, `out-001.png`, ..
fn numbered(path: &Path, i: usize) -> PathBuf {
    let stem = path
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let extension = path
        .extension()
        .map_or("png".into(), |e| e.to_string_lossy().into_owned());
    path.with_file_name(format!("{stem}-{i:03}.{extension}"))
}

/// A name in the working folder that nobody has yet, nor will have.
pub(crate) fn free_name(seed: u64, taken: &[Destination]) -> PathBuf {
    let names = std::iter::once(format!("sdrun-{seed}.png"))
        .chain((1..).map(|i| format!("sdrun-{seed}-{i}.png")));
    names
        .map(PathBuf::from)
        .find(|path| !path.exists() && taken.iter().all(|other| other.path() != path))
        .expect("the names never end")
}
