//! `sdrun doctor`: is everything there?

use std::path::PathBuf;

use sd_runtime::engine::library::{self, DATA_VARIABLE, Origin, VARIABLE, data_dir};
use sd_runtime::engine::{Compute, Dialect, Engine, Ep};
use sd_runtime::pipeline::ModelDir;
use sd_ui::Ui;
use serde_json::Value;

use super::{EngineArgs, EpGiven, cancel_with};
use crate::hint::words;

/// Check the ONNX Runtime library and its providers
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// Model directory whose graphs are loaded, to see what the provider leaves to ONNX Runtime's own kernels
    #[arg(short, long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DoctorArgs, ui: &Ui) -> anyhow::Result<()> {
    let ep = args.engine.named()?;
    // Whatever provider is asked for, the others are worth knowing first. Its own library is looked at, if there is one.
    let found = library::find(args.engine.lib.as_deref(), ep)?;
    let any = EngineArgs {
        lib: Some(found.path.clone()),
        ep_given: EpGiven::default(),
        ..args.engine.with(Ep::Cpu)
    };
    let mut engine = any.start(ui)?;
    let origin = found_by(found.origin);
    let library = engine.library();
    let available: Vec<Ep> = Ep::ALL.into_iter().filter(|ep| ep.is_available()).collect();
    let mut report = serde_json::json!({
        "library": library.path,
        "origin": origin,
        "build": engine.build_info(),
        "providers": available.iter().map(|ep| ep.name()).collect::<Vec<_>>(),
        "threads": engine.threads(),
        "data_dir": data_dir(),
    });
    if !args.json {
        ui.result(format!(
            "library: {} (found by: {})",
            library.path.display(),
            origin
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
        let named = match std::env::var_os(DATA_VARIABLE).is_some_and(|dir| !dir.is_empty()) {
            true => format!("named by {DATA_VARIABLE}"),
            false => format!("{DATA_VARIABLE} names another"),
        };
        ui.result(format!(
            "data folder: {} ({named}); {VARIABLE} names another library",
            data_dir().display()
        ))?;
    }
    let rest = loads(args, &mut engine, ui);
    if args.json {
        if let Ok(Some(left)) = &rest {
            report["left_to_cpu"] = left.clone();
        }
        ui.result(report)?;
    }
    rest.map(drop)
}

/// Loads the provider, whose own libraries may be missing, and the networks of a model: the nodes that the provider leaves to ONNX
/// Runtime's own kernels, by network.
fn loads(args: &DoctorArgs, engine: &mut Engine, ui: &Ui) -> anyhow::Result<Option<Value>> {
    args.engine.provide(engine)?;
    let Some(path) = &args.model else {
        return Ok(None);
    };
    let model = ModelDir::open(path)?;
    let (ep, cancel) = (engine.ep(), cancel_with(ui));
    let [width, height] = model.default_size.map(|side| side / model.latent.downscale);
    let dims = [
        ("batch", 1),
        ("height", height),
        ("width", width),
        ("sequence", CHUNK),
    ];
    let texts = model.texts.iter().map(|text| text.component);
    let mut left = serde_json::Map::new();
    for component in texts.chain(["unet", "vae_decoder"]) {
        if model.manifest.is_some() && model.recorded(component).is_none() {
            if !args.json {
                ui.result(format!("{component}: not in the directory"))?;
            }
            continue;
        }
        let wish = (Dialect::Auto, Compute::F32);
        let (key, _) = model.key(component, &dims, ep, wish)?;
        let network = engine.lease(&key, model.manifest.as_ref(), &cancel)?;
        let nodes = network.left_to_cpu();
        if !args.json {
            let told = match (ep, nodes) {
                (Ep::Cpu, _) => "loads".to_owned(),
                (ep, []) => format!("{ep} takes all of it"),
                (ep, nodes) => {
                    let (count, nodes) = (nodes.len(), nodes.join(", "));
                    format!("{count} nodes are not taken by {ep}: {nodes}")
                }
            };
            ui.result(format!("{component}: {told}"))?;
        }
        left.insert(component.to_owned(), nodes.into());
    }
    Ok(Some(left.into()))
}

/// Tokens of a chunk of a prompt.
const CHUNK: usize = 77;

/// How a library was found, in the words of this command line.
fn found_by(origin: Origin) -> String {
    match origin {
        Origin::Named => "--lib".to_owned(),
        Origin::Setup => "sdrun setup".to_owned(),
        other => other.to_string(),
    }
}
