//! Makes pictures with Stable Diffusion model directories.

mod auto;
mod commands;
mod demo_model;
mod embeddings;
mod hint;
mod progress;
mod usage;

use std::process::ExitCode;

use clap::Parser;
use sd_ui::{Ui, UiArgs};

/// Pictures from text with Stable Diffusion, offline, on the CPU
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
    #[command(flatten)]
    ui: UiArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ui = Ui::start(cli.ui);
    let outcome = cli.command.run(&ui).map_err(usage::marked);
    ui.finish(outcome, hint::hint)
}
