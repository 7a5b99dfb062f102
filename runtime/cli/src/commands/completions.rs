//! `sdrun completions`: what a shell can complete.

use clap::CommandFactory;
use clap_complete::Shell;
use sd_ui::Ui;

use crate::Cli;

/// Print what completes this program's options in a shell
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sdrun completions bash > ~/.local/share/bash-completion/completions/sdrun"
)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs, ui: &Ui) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sdrun", &mut script);
    Ok(ui.result(String::from_utf8_lossy(&script))?)
}
