//! `sdrun setup`: fetch ONNX Runtime.

use std::path::PathBuf;

use sd_runtime::engine::library::setup_dir;
use sd_runtime::engine::{Ep, setup};
use sd_ui::{Ui, UsageError};

use super::EngineArgs;
use crate::hint::words;

/// Fetch the ONNX Runtime library; the only command that uses the network
#[derive(Debug, clap::Args)]
pub(crate) struct SetupArgs {
    /// Provider that the library should have: cpu's and openvino's are fetched, for others give --lib
    #[arg(long, value_name = "NAME")]
    ep: Option<Ep>,
    /// Install this library or Python wheel instead of fetching one
    #[arg(long, value_name = "FILE|WHEEL")]
    lib: Option<PathBuf>,
}

pub(crate) fn run(args: &SetupArgs, ui: &Ui) -> anyhow::Result<()> {
    let wanted = args.ep.unwrap_or_default();
    let library = match &args.lib {
        Some(file) => setup::install(file, args.ep)?,
        None if setup::fetches(wanted) || matches!(wanted, Ep::Cpu | Ep::OpenVino) => {
            ui.note(format!(
                "fetching {} {} with pip ..",
                setup::package(wanted),
                setup::version(wanted)
            ));
            setup::fetch(wanted)?
        }
        None => {
            let text = format!(
                "a library with the {wanted} provider is not fetched\nhint: {}",
                words(&wanted.remedy())
            );
            return Err(UsageError(text).into());
        }
    };
    // What came along goes where its provider is looked for.
    let came = [Ep::OpenVino, Ep::Cpu].into_iter();
    let mut came = came.filter(|ep| library.starts_with(setup_dir(*ep)));
    let ep = args.ep.or_else(|| came.next()).unwrap_or_default();
    let engine = EngineArgs::of(ep, library.clone()).start(ui)?;
    tracing::info!(build = engine.build_info(), "library");
    let text = match ep {
        Ep::Cpu => format!("{}: ready", library.display()),
        ep => format!("{}: ready for --ep {ep}", library.display()),
    };
    Ok(ui.result(text)?)
}
