//! `sdrun doctor`: is everything there?

use sd_runtime::engine::library::{Origin, VARIABLE, data_dir};
use sd_runtime::engine::{EngineError, Ep};
use sd_ui::Ui;

use crate::hint::words;

/// Check the ONNX Runtime library and its providers
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    engine: super::EngineArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DoctorArgs, ui: &Ui) -> anyhow::Result<()> {
    // Whatever provider is asked for, the others are worth knowing first.
    let any = super::EngineArgs {
        ep: Ep::Cpu,
        ..args.engine.clone()
    };
    let engine = any.start(ui)?;
    let library = engine.library();
    let available: Vec<Ep> = Ep::ALL.into_iter().filter(|ep| ep.is_available()).collect();
    if args.json {
        ui.result(serde_json::json!({
            "library": library.path,
            "origin": found_by(library.origin),
            "build": engine.build_info(),
            "providers": available.iter().map(|ep| ep.name()).collect::<Vec<_>>(),
            "threads": engine.threads(),
            "data_dir": data_dir(),
        }))?;
    } else {
        ui.result(format!(
            "library: {} (found by: {})",
            library.path.display(),
            found_by(library.origin)
        ))?;
        ui.result(format!("build: {}", engine.build_info()))?;
        for ep in Ep::ALL {
            let state = if available.contains(&ep) {
                "yes".to_owned()
            } else {
                format!("not in this library; {}", words(&ep.remedy()))
            };
            ui.result(format!("provider {ep}: {state}"))?;
        }
        ui.result(format!("threads: {}", engine.threads()))?;
        ui.result(format!(
            "data folder: {} (SDRT_DATA_DIR); {VARIABLE} names another library",
            data_dir().display()
        ))?;
    }
    let ep = args.engine.ep;
    if !available.contains(&ep) {
        let path = library.path.clone();
        return Err(EngineError::NoProvider { path, ep }.into());
    }
    Ok(())
}

/// How a library was found, in the words of this command line.
fn found_by(origin: Origin) -> String {
    match origin {
        Origin::Named => "--lib".to_owned(),
        Origin::Setup => "sdrun setup".to_owned(),
        other => other.to_string(),
    }
}
