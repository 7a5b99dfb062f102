//! Turns Stable Diffusion checkpoints into ONNX model directories.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use sd_ui::{Ui, UiArgs};

/// Stable Diffusion checkpoints to ONNX model directories, without Python
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: cli::Command,
    #[command(flatten)]
    ui: UiArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ui = Ui::start(cli.ui);
    ui.finish(cli.command.run(&ui), cli::hint)
}
