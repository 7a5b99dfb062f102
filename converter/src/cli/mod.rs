//! One file per subcommand: its options, and what it does with them.

mod build;
mod extract;
mod inspect;
mod lora_merge;
mod merge;
mod synth;
mod verify;

use sd_converter::ui::Ui;

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
