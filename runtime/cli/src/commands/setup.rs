//! `sdrun setup`: fetch ONNX Runtime.

use std::path::PathBuf;

use sd_runtime::engine::library::setup_dir;
use sd_runtime::engine::setup::{self, Installed};
use sd_runtime::engine::wheels::Wheel;
use sd_runtime::engine::{EngineError, Ep};
use sd_ui::{Ui, UsageError};

use super::EngineArgs;
use crate::hint::words;

/// Fetch the ONNX Runtime library; the only command that uses the network
#[derive(Debug, clap::Args)]
pub(crate) struct SetupArgs {
    /// Provider that the library should have: those of cpu, openvino, cuda, migraphx and rocm are fetched, for others give --lib
    #[arg(long, value_name = "NAME")]
    ep: Option<Ep>,
    /// Install this library or Python wheel instead of fetching one; again for more wheels that belong to it
    #[arg(long, value_name = "FILE|WHEEL")]
    lib: Vec<PathBuf>,
}

pub(crate) fn run(args: &SetupArgs, ui: &Ui) -> anyhow::Result<()> {
    let wanted = args.ep.unwrap_or_default();
    let installed = match &args.lib[..] {
        [] if setup::is_packaged(wanted) => fetch(wanted, ui)?,
        [] => {
            let text = format!(
                "a library with the {wanted} provider is not fetched\nhint: {}",
                words(&wanted.remedy())
            );
            return Err(UsageError(text).into());
        }
        files => setup::install(files, args.ep)?,
    };
    let library = installed.library.clone();
    // What came along goes where its provider is looked for.
    let folder = library.parent();
    let mut came = Ep::ALL
        .into_iter()
        .filter(|ep| folder == Some(&setup_dir(*ep)));
    let ep = args.ep.or_else(|| came.next()).unwrap_or_default();
    let engine = match EngineArgs::of(ep, library.clone()).start(ui) {
        Ok(engine) => engine,
        Err(error) => {
            // A provider may lack what the system has later; a library that does not load is of no use.
            if let Some(EngineError::LibraryBroken { .. } | EngineError::LibraryOld { .. }) =
                error.downcast_ref()
            {
                installed.undo()?;
            }
            return Err(error);
        }
    };
    tracing::info!(build = engine.build_info(), "library");
    let text = match ep {
        Ep::Cpu => format!("{}: ready", library.display()),
        ep => format!("{}: ready for --ep {ep}", library.display()),
    };
    Ok(ui.result(text)?)
}

/// Fetches what a provider needs, and says what that is.
pub(crate) fn fetch(ep: Ep, ui: &Ui) -> anyhow::Result<Installed> {
    Ok(setup::fetch(ep, |wheel| {
        let Wheel {
            package,
            version,
            megabytes,
            ..
        } = wheel;
        ui.note(format!(
            "fetching {package} {version} ({megabytes} MB) with pip .."
        ));
    })?)
}
