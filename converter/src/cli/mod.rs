//! One file per subcommand: its options, and what it does with them.

mod build;
mod extract;
mod hint;
mod inspect;
mod lora_merge;
mod merge;
mod synth;
mod verify;

use std::path::PathBuf;

use clap::builder::{PathBufValueParser, TypedValueParser};
pub(crate) use hint::hint;
use sd_ui::Ui;

/// Ends of names by which programs take a file for one of another format than safetensors.
const OTHER_FORMATS: [&str; 8] = ["ckpt", "pt", "pth", "bin", "pkl", "onnx", "gguf", "zip"];

/// Reads the name of a safetensors file to be written.
pub(crate) fn safetensors_file() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| {
        let end = path.extension().unwrap_or_default().to_ascii_lowercase();
        if OTHER_FORMATS.iter().any(|other| end == *other) {
            let better = path.with_extension("safetensors");
            let better = better.display();
            return Err(format!(
                "the file will be a safetensors file, and other programs would not open it under this name\nhint: -o {better}"
            ));
        }
        Ok(path)
    })
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Build(build::BuildArgs),
    Merge(merge::MergeArgs),
    Extract(extract::ExtractArgs),
    LoraMerge(lora_merge::LoraMergeArgs),
    Inspect(inspect::InspectArgs),
    Verify(verify::VerifyArgs),
    Synth(synth::SynthArgs),
}

impl Command {
    pub(crate) fn run(&self, ui: &Ui) -> anyhow::Result<()> {
        match self {
            Self::Build(args) => build::run(args, ui),
            Self::Extract(args) => extract::run(args, ui),
            Self::Merge(args) => merge::run(args, ui),
            Self::LoraMerge(args) => lora_merge::run(args, ui),
            Self::Inspect(args) => inspect::run(args, ui),
            Self::Verify(args) => verify::run(args, ui),
            Self::Synth(args) => synth::run(args, ui),
        }
    }
}
