//! Measures conversion and inference, end to end; results go to stdout.

mod classify;
mod compare;
mod convert;
mod determinism;
mod machine;
mod memory;
mod networks;
mod ops;
mod page;
mod peak;
mod providers;
mod quality;
mod report;
mod run;
mod show;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use sd_runtime::engine::{Ep, EpOptionError};
use sd_runtime::pipeline::RequestError;
use sd_ui::child::Failed;
use sd_ui::{Ui, UiArgs, UsageError};

/// How fast, and with how much memory?
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    ui: UiArgs,
}

/// What to measure.
#[derive(Debug, clap::Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    #[command(hide = true)]
    Measure(run::MeasureArgs),
    Compare(compare::CompareArgs),
    Report(show::ReportArgs),
    Ops(ops::OpsArgs),
    Convert(convert::ConvertArgs),
    Quality(quality::QualityArgs),
    Determinism(Box<determinism::DeterminismArgs>),
    #[command(name = determinism::COMMAND, hide = true)]
    DeterminismRecord(determinism::RecordArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ui = Ui::start(cli.ui);
    let outcome = match &cli.command {
        Command::Run(args) => run::run(args, &ui),
        Command::Measure(args) => run::measure(args, &ui),
        Command::Compare(args) => compare::run(args, &ui),
        Command::Report(args) => show::run(args, &ui),
        Command::Ops(args) => ops::run(args, &ui),
        Command::Convert(args) => convert::run(args, &ui),
        Command::Quality(args) => quality::run(args, &ui),
        Command::Determinism(args) => determinism::run(args, &ui),
        Command::DeterminismRecord(args) => determinism::record(args, &ui),
    };
    ui.finish(outcome.map_err(marked), hint)
}

/// An error of the command line is one of usage, wherever it was found.
fn marked(error: anyhow::Error) -> anyhow::Error {
    let wrong = error.chain().find_map(|cause| {
        let of_request = RequestError::of(cause).map(ToString::to_string);
        let of_option = || Some(cause.downcast_ref::<EpOptionError>()?.to_string());
        of_request.or_else(of_option)
    });
    match wrong.map(UsageError) {
        Some(usage) => error.context(usage),
        None => error,
    }
}

/// What can be done about an error, in the words of this command line.
fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    use sd_runtime::Remedy;
    if let Some(failed) = error.downcast_ref::<Failed>() {
        return failed.hint.clone();
    }
    let Some(remedy) = Remedy::of(error) else {
        return Some(sd_converter::Remedy::of(error)?.to_string());
    };
    Some(match &remedy {
        Remedy::Setup { ep: Ep::Cpu } => {
            "`sdrun setup` fetches ONNX Runtime; `--lib` names a library".to_owned()
        }
        Remedy::Setup { ep } => {
            format!("`sdrun setup --ep {ep}` fetches it; `--lib` names a library")
        }
        Remedy::AllowFallback => format!("{remedy} (`--strict-ep`)"),
        Remedy::LibraryOf { .. } => format!("{remedy} with `--lib`"),
        Remedy::Convert { .. } => {
            "`sdconvert build CHECKPOINT -o DIR` makes model directories".to_owned()
        }
        other => other.to_string(),
    })
}
