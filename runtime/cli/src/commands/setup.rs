//! `sdrun setup`: fetch ONNX Runtime.

use std::path::PathBuf;

use sd_runtime::engine::{Ep, setup};
use sd_ui::{Ui, UsageError};

use super::EngineArgs;
use crate::hint::words;

/// Fetch the ONNX Runtime library; the only command that uses the network
#[derive(Debug, clap::Args)]
pub(crate) struct SetupArgs {
    /// Provider that the library should have; only the cpu's is fetched, for others give --lib
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    ep: Ep,
    /// Install this library or Python wheel instead of fetching one
    #[arg(long, value_name = "FILE|WHEEL")]
    lib: Option<PathBuf>,
}

pub(crate) fn run(args: &SetupArgs, ui: &Ui) -> anyhow::Result<()> {
    let library = match &args.lib {
        Some(file) => setup::install(file)?,
        None if args.ep == Ep::Cpu => {
            ui.note(format!(
                "fetching ONNX Runtime {} with pip ..",
                setup::VERSION
            ));
            setup::fetch()?
        }
        None => {
            let text = format!(
                "a library with the {} provider is not fetched\nhint: {}",
                args.ep,
                words(&args.ep.remedy())
            );
            return Err(UsageError(text).into());
        }
    };
    let engine = EngineArgs {
        ep: args.ep,
        lib: Some(library.clone()),
        threads: None,
        instructions: None,
    }
    .start(ui)?;
    tracing::info!(build = engine.build_info(), "library");
    Ok(ui.result(format!("{}: ready", library.display()))?)
}
