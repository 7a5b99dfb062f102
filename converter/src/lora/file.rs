//! The file of an adapter. PEFT and diffusers save one as a folder: weights, and what they are to be multiplied by beside them.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use super::LoraError;
use super::peft;
use crate::ConvertError;
use crate::checkpoint::{self, TensorSource};

/// Names of diffusers' files without their ending.
const DIFFUSERS: &str = "pytorch_lora_weights";

/// Ends of names of files of weights, the preferred first.
const ENDINGS: [&str; 2] = ["safetensors", "bin"];

/// Most entries of a folder that a message names.
const NAMED: usize = 10;

/// The file of an adapter: the path itself, or of a folder the file that PEFT or diffusers put there.
///
/// # Errors
/// It is a folder without such a file.
pub fn file(path: &Path) -> Result<Cow<'_, Path>, ConvertError> {
    if !path.is_dir() {
        return Ok(Cow::Borrowed(path));
    }
    let stems = [peft::MODEL, DIFFUSERS].into_iter();
    let known = stems.flat_map(|stem| ENDINGS.map(|end| path.join(format!("{stem}.{end}"))));
    let found = known.into_iter().find(|file| file.is_file());
    found.map(Cow::Owned).ok_or_else(|| ConvertError::Lora {
        path: path.to_owned(),
        source: LoraError::NoFile(entries(path)),
    })
}

/// Opens an adapter, which may be a folder.
///
/// # Errors
/// It is a folder without an adapter, or cannot be read.
pub fn open(path: &Path) -> Result<Box<dyn TensorSource>, ConvertError> {
    Ok(checkpoint::open(&file(path)?)?)
}

/// What is in a folder, for a message.
fn entries(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.map(|entry| {
        let slash = if entry.path().is_dir() { "/" } else { "" };
        format!("`{}{slash}`", entry.file_name().to_string_lossy())
    });
    let mut names: Vec<String> = named.collect();
    names.sort();
    match names.len() {
        0 => "nothing".to_owned(),
        more if more > NAMED => {
            names.truncate(NAMED);
            format!("{} and {} more", names.join(", "), more - NAMED)
        }
        _ => names.join(", "),
    }
}
