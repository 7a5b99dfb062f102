//! Makes pictures with Stable Diffusion model directories.

mod auto;
mod carried;
mod commands;
mod demo_model;
mod embeddings;
mod estimate;
mod hint;
mod output;
mod presets;
mod previews;
mod progress;
mod usage;

use std::process::ExitCode;

use clap::Parser;
use sd_ui::{Ui, UiArgs};

/// Pictures from text with Stable Diffusion, offline, on the CPU
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: commands::Command,
    #[command(flatten)]
    ui: UiArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ui = Ui::start(cli.ui);
    let outcome = presets::applied(cli, &ui).and_then(|cli| cli.command.run(&ui));
    let outcome = outcome.map_err(usage::marked);
    ui.finish(outcome, hint::hint)
}
