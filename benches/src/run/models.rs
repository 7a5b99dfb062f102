//! The models that are measured: users' own, synthetic ones of any family, and the one that ships with the programs.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sd_converter::build::{BuildOptions, BuildPlan};
use sd_converter::synth::{Kind, Synth};
use sd_converter::weights::Weights;
use sd_runtime::engine::library::data_dir;
use sd_runtime::pipeline::ModelDir;
use sd_ui::Ui;

/// Which models.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelsArgs {
    /// Model directory; repeat for several
    #[arg(short, long, value_name = "DIR")]
    model: Vec<PathBuf>,
    /// Family to make a model of random weights for, `sd15` or `sd15:tiny`, which is as fast as one of the family; repeat for several
    #[arg(long, value_name = "FAMILY[:tiny]", value_parser = Synthetic::parse)]
    synth: Vec<Synthetic>,
    /// The model that ships with the programs
    #[arg(long)]
    demo: bool,
    /// Folder in which synthetic models and the demo model are kept for later; the user's data folder if left out
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
}

/// A model of random weights.
#[derive(Clone, Debug)]
struct Synthetic {
    family: String,
    kind: Kind,
    tiny: bool,
}

impl Synthetic {
    fn parse(text: &str) -> Result<Self, String> {
        let (family, tiny) = match text.split_once(':') {
            None => (text, false),
            Some((family, "tiny")) => (family, true),
            Some((_, other)) => return Err(format!("`{other}` is no width; there is `tiny`")),
        };
        match Kind::named(family) {
            Some(kind @ Kind::Checkpoint(_)) => Ok(Self {
                family: family.to_owned(),
                kind,
                tiny,
            }),
            _ => {
                let is_model =
                    |name: &String| matches!(Kind::named(name), Some(Kind::Checkpoint(_)));
                let names: Vec<_> = Kind::names().into_iter().filter(is_model).collect();
                Err(format!("known families: {}", names.join(", ")))
            }
        }
    }

    fn name(&self) -> String {
        let width = if self.tiny { "-tiny" } else { "" };
        format!("synth-{}{width}", self.family)
    }
}

impl ModelsArgs {
    /// All model directories with their names. Those that are not there yet are made.
    pub(crate) fn open(&self, ui: &Ui) -> anyhow::Result<Vec<(String, ModelDir)>> {
        let own = self.model.iter().map(|path| ModelDir::open(path));
        let own = own.collect::<Result<Vec<_>, _>>()?;
        let mut models: Vec<_> = names(&own).into_iter().zip(own).collect();
        let folder = self.models_dir.clone();
        let folder = folder.unwrap_or_else(|| data_dir().join("models"));
        // A new version of the program may write directories differently.
        let place = |name: &str| folder.join(format!("{name}-{}", env!("CARGO_PKG_VERSION")));
        if self.demo {
            let model = kept(&place("tiny-shapes"), ui, |path| {
                convert(Weights::demo()?, path, ui)
            })?;
            models.push(("demo".to_owned(), model));
        }
        for synthetic in &self.synth {
            let name = synthetic.name();
            let model = kept(&place(&name), ui, |path| {
                let scratch = tempfile::tempdir_in(&folder)?;
                let file = scratch.path().join("checkpoint.safetensors");
                let synth = Synth {
                    kind: synthetic.kind,
                    tiny: synthetic.tiny,
                    seed: 0,
                };
                let bar = ui.bytes("writing random weights", synth.size_bytes()?);
                synth.write(&file, false, &bar)?;
                drop(bar);
                convert(Weights::open(&file, None)?, path, ui)
            })?;
            models.push((name, model));
        }
        Ok(models)
    }
}

/// The ends of the models' paths, or the paths where several end alike.
fn names(models: &[ModelDir]) -> Vec<String> {
    let end = |model: &ModelDir| {
        let path = model.path.canonicalize().unwrap_or(model.path.clone());
        let name = path.file_name();
        let name = name.map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or_else(|| model.path.display().to_string())
    };
    let ends: Vec<_> = models.iter().map(end).collect();
    let name = |(model, name): (&ModelDir, &String)| match ends
        .iter()
        .filter(|other| *other == name)
        .count()
    {
        1 => name.clone(),
        _ => model.path.display().to_string(),
    };
    models.iter().zip(&ends).map(name).collect()
}

/// The directory, made if it is not there with all the graphs that this program writes.
fn kept(
    path: &Path,
    ui: &Ui,
    make: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<ModelDir> {
    if let Some(model) = ModelDir::kept(path) {
        return Ok(model);
    }
    ui.note(format!("making {} ..", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    make(path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(ModelDir::open(path)?)
}

fn convert(weights: Weights, to: &Path, ui: &Ui) -> anyhow::Result<()> {
    let options = BuildOptions {
        force: true,
        ..BuildOptions::default()
    };
    let plan = BuildPlan::new(Box::new(weights), options)?;
    let bar = ui.bytes("converting", plan.work_bytes());
    plan.write(to, &bar)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_named_with_their_width() {
        let name = |text| Synthetic::parse(text).map(|synthetic| synthetic.name());
        assert_eq!(name("sd15"), Ok("synth-sd15".to_owned()));
        assert_eq!(name("sdxl:tiny"), Ok("synth-sdxl-tiny".to_owned()));
        assert!(name("sd15:wide").unwrap_err().contains("tiny"));
        let unknown = name("controlnet-sd15").unwrap_err();
        assert!(unknown.contains("sd21") && !unknown.contains("controlnet"));
    }
}
