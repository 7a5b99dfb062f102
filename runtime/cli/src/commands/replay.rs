//! `sdrun replay`: a picture once more, from its own settings.

use std::path::{Path, PathBuf};

use sd_models::manifest;
use sd_runtime::engine::memory;
use sd_runtime::pipeline::infotext::{Infotext, Missing, NotCarried, Wanted, within_reach};
use sd_runtime::pipeline::{Format, ModelDir, Models, PictureFile, Plans, VaeApprox, run as make};
use sd_ui::{Told, Ui};

use super::{EngineArgs, cancel_with};
use crate::carried::{self, QUALITY};
use crate::progress::Terminal;
use crate::{auto, demo_model, embeddings};

/// Make a picture again from its own settings, and say whether it is the same
///
/// Prints `equal`, `differs: PSNR .. dB, max level N`, or `missing: KIND HASH` for a file that it was made with. What is compared are
/// pixels; a JPEG's with those of the new picture as a JPEG of the same quality.
#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArgs {
    /// PNG, JPEG or WebP picture with its settings
    image: PathBuf,
    /// Model directory; the demo model, if it is that one, if left out
    #[arg(short, long, value_name = "DIR", conflicts_with = "models")]
    model: Option<PathBuf>,
    /// Folder with model directories, also in folders in it, of which the one with the hashes in the settings is taken
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Model directory of the refiner, if the picture was made with one
    #[arg(long, value_name = "DIR", conflicts_with = "models")]
    refiner: Option<PathBuf>,
    /// Directory of the TAESD that decoded the picture, if one did
    #[arg(long, value_name = "DIR", conflicts_with = "models")]
    vae_approx: Option<PathBuf>,
    /// Folder with textual inversions; repeat for several
    #[arg(long, value_name = "DIR")]
    embeddings: Vec<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(crate) fn run(args: &ReplayArgs, ui: &Ui) -> anyhow::Result<()> {
    let (file, settings) = carried::of(&args.image, ui)?;
    let engine = args.engine.like(&settings);
    engine.limit_instructions();
    let models = match models(args, &settings.wanted, ui)? {
        Ok(models) => models,
        Err(missing) => return told(&missing, ui),
    };
    if let Some(missing) = settings.wanted.lacks_beside(&models) {
        return told(&missing, ui);
    }
    let mut left_out = settings.not_carried.clone();
    let mut request = settings.request.clone();
    left_out.extend(within_reach(
        &mut request,
        &models,
        engine.least(),
        [false; 3],
    ));
    let (engine, _) = auto::resolve(&engine, &request, &models, ui)?;
    left_out.extend(settings.wanted.not_carried(&models));
    left_out.extend(engine.not_carried(&settings));
    for NotCarried { field, value } in &left_out {
        ui.note(format!("not carried over: {field}: {value}"));
    }
    engine.apply(&mut request)?;
    let mut plans = Plans::resolve(&request, &models, memory::limit())?;
    plans.plans = plans
        .plans
        .into_iter()
        .skip(settings.place)
        .take(1)
        .collect();
    let old = file.decode()?;
    let engine = engine.start(ui)?;
    let mut terminal = Terminal::new(ui);
    let cancel = cancel_with(ui);
    let mut follow = |event: sd_runtime::pipeline::Event<'_>| terminal.follow(event);
    let mut outcome = make(&plans, &models, &engine, &cancel, &mut follow, None)?;
    drop(terminal);
    let new = outcome.pictures.remove(0).stored_as(format(&file))?;
    match new.difference(&old) {
        Some((0, _)) => return Ok(ui.result("equal")?),
        Some((most, psnr)) => ui.result(format!("differs: PSNR {psnr:.1} dB, max level {most}"))?,
        None => ui.result(format!(
            "differs: {}x{}, not {}x{}",
            new.width, new.height, old.width, old.height
        ))?,
    }
    Err(Told.into())
}

fn told(missing: &Missing, ui: &Ui) -> anyhow::Result<()> {
    ui.result(missing)?;
    Err(Told.into())
}

/// How a picture was stored.
fn format(file: &PictureFile) -> Format {
    let quality = || {
        Infotext::read(&file.parameters)
            .ok()?
            .get(QUALITY)?
            .parse()
            .ok()
    };
    match file.format {
        Format::Jpeg { .. } => quality().map_or(Format::JPEG, |quality| Format::Jpeg { quality }),
        format => format,
    }
}

/// The models that settings name.
fn models(args: &ReplayArgs, wanted: &Wanted, ui: &Ui) -> anyhow::Result<Result<Models, Missing>> {
    let (mut there, mut tiny) = (Vec::new(), Vec::new());
    match (&args.model, &args.models) {
        (Some(path), _) => there.push(ModelDir::open(path)?),
        (None, Some(folder)) => directories(folder, DEEPEST, &mut there, &mut tiny)?,
        (None, None) => there.push(demo_model::directory(ui)?),
    }
    if let Some(path) = &args.vae_approx {
        tiny.push(VaeApprox::open(path)?);
    } else {
        tiny.retain(|approx| wanted.is_vae_approx(approx));
    }
    // Directories with the same weights may lack networks, and differ in their portable graphs.
    let decodes = |model: &ModelDir| {
        let manifest = model.manifest.as_ref();
        manifest.is_none_or(|manifest| manifest.components.contains_key("vae_decoder"))
    };
    there.sort_by_key(|model| (!decodes(model), !wanted.has_form(model)));
    // A model may be its own refiner.
    let found = there.iter().find(|model| wanted.is_refiner(model));
    let refiner = args
        .refiner
        .clone()
        .or(found.map(|refiner| refiner.path.clone()));
    let base = match chosen(&mut there, wanted) {
        Ok(base) => base,
        Err(missing) => return Ok(Err(missing)),
    };
    // Pictures of other programs do not say which one it was.
    let own = tiny.iter().position(|approx| approx.is_for(&base));
    Ok(Ok(Models {
        refiner: refiner.as_deref().map(ModelDir::open).transpose()?,
        vae_approx: tiny.into_iter().nth(own.unwrap_or(0)),
        embeddings: embeddings::of(&args.embeddings, &base)?,
        base,
    }))
}

/// The directory that settings name, or what the nearest one lacks.
fn chosen(there: &mut Vec<ModelDir>, wanted: &Wanted) -> Result<ModelDir, Missing> {
    const NEARER: [&str; 4] = ["model", "vae", "lora", "weights"];
    let mut nearest = None;
    for i in 0..there.len() {
        match wanted.lacks(&there[i]) {
            None => return Ok(there.remove(i)),
            Some(missing) => {
                let rank = |missing: &Missing| NEARER.iter().position(|kind| *kind == missing.kind);
                if nearest
                    .as_ref()
                    .is_none_or(|nearest| rank(nearest) < rank(&missing))
                {
                    nearest = Some(missing);
                }
            }
        }
    }
    Err(nearest.unwrap_or_else(|| wanted.nothing()))
}

/// How deep model directories lie in the folder that is given.
const DEEPEST: usize = 3;

/// The model directories of a folder, and those of TAESDs.
fn directories(
    folder: &Path,
    depth: usize,
    found: &mut Vec<ModelDir>,
    tiny: &mut Vec<VaeApprox>,
) -> anyhow::Result<()> {
    if folder.join(manifest::FILE_NAME).is_file() || folder.join("unet/model.onnx").is_file() {
        match (ModelDir::open(folder), VaeApprox::open(folder)) {
            (Ok(model), _) => found.push(model),
            (_, Ok(approx)) => tiny.push(approx),
            (Err(error), _) => tracing::info!("{error}"),
        }
        return Ok(());
    }
    let entries = std::fs::read_dir(folder);
    let entries = anyhow::Context::with_context(entries, || folder.display().to_string())?;
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    for path in folders.iter().filter(|_| depth > 0) {
        directories(path, depth - 1, found, tiny)?;
    }
    Ok(())
}
