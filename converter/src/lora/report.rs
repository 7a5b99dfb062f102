//! What an adapter is, and what it did to a model.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use sd_models::keys::Component;
use sd_models::manifest::{Lora, LoraModules, LoraReport};
use serde::Serialize;

use super::block_weights::Resolved;
use super::fit::{Module, groups, is_telling};
use super::group::Parts;
use super::made_for::MadeFor;
use super::{Adapter, LoraError, block_weights, bundled, dora, oft, training};
use crate::checkpoint::TensorSource;
use crate::model::Name;

/// Sums of squares of a change, and of what was changed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Energies {
    pub(super) change: f64,
    pub(super) base: f64,
}

impl Energies {
    fn add(&mut self, other: Self) {
        self.change += other.change;
        self.base += other.base;
    }

    fn relative(self) -> f64 {
        match self.base > 0.0 {
            true => (self.change / self.base).sqrt(),
            false => 0.0,
        }
    }
}

/// What became of a module.
#[derive(Clone, Debug, Serialize)]
pub struct ModuleReport {
    module: String,
    /// Layer that it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    /// With that of its block.
    strength: f64,
    /// `applied`, `off`, `silenced`, `zero`, `no target`, `other shape` or `unused layer`.
    status: &'static str,
    /// Norm of the change over the norm of the weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    relative_change: Option<f64>,
}

impl Module {
    fn status(&self) -> &'static str {
        match () {
            () if self.silenced => "silenced",
            () if self.strength == 0.0 => "off",
            () if self.zero => "zero",
            () => "applied",
        }
    }
}

impl Adapter {
    /// Its file's name.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.spec.path.file_name();
        name.map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// Notes what it did to a weight.
    pub(super) fn record(&self, name: &Name, energies: Energies) {
        let mut all = self.energies.lock().expect("no panic while it is held");
        all.insert(name.clone(), energies);
    }

    /// Checks, after every weight was computed, that it did something.
    ///
    /// # Errors
    /// Every change that it should have made is zero.
    pub fn check_effect(&self) -> Result<(), LoraError> {
        let energies = self.energies.lock().expect("no panic while it is held");
        if self.spec.is_off() || energies.values().any(|e| e.change > 0.0) {
            return Ok(());
        }
        Err(LoraError::NoEffect("the products of its factors are zero"))
    }

    /// What became of every module; changes are known of weights that were computed.
    #[must_use]
    pub fn module_reports(&self) -> Vec<ModuleReport> {
        let energies = self.energies.lock().expect("no panic while it is held");
        let used = self.modules.iter().map(|module| {
            let mut sum = Energies::default();
            for parameter in ["weight", "bias"] {
                let names = module.site.names(parameter);
                names
                    .filter_map(|(name, _)| energies.get(&name))
                    .for_each(|e| sum.add(*e));
            }
            let applied = module.is_active() && sum.base > 0.0;
            ModuleReport {
                module: module.group.module.clone(),
                target: Some(format!(
                    "{}: {}",
                    module.site.component().name(),
                    module.site.path()
                )),
                kind: Some(kind(&self.parts(module))),
                rank: module.rank,
                strength: module.strength,
                status: module.status(),
                relative_change: applied.then(|| sum.relative()),
            }
        });
        let unused = |list: &[String], status| {
            let report = move |module: &String| ModuleReport {
                module: module.clone(),
                target: None,
                kind: None,
                rank: None,
                strength: 0.0,
                status,
                relative_change: None,
            };
            list.iter().map(report).collect::<Vec<_>>()
        };
        used.chain(unused(&self.misfits.unmatched, "no target"))
            .chain(unused(&self.misfits.mismatched, "other shape"))
            .chain(unused(&self.misfits.unused, "unused layer"))
            .collect()
    }

    /// What the manifest says of it; `sha256` is that of its file.
    #[must_use]
    pub fn manifest(&self, sha256: &str) -> Lora {
        let metadata = self.source().metadata();
        let count = |status| self.modules.iter().filter(|m| m.status() == status).count();
        let block_weights = self.block_weights.as_ref();
        Lora {
            name: self.name(),
            sha256: sha256.to_owned(),
            unet: self.spec.unet,
            text_encoder: self.spec.text_encoders,
            block_weights: block_weights.map(Resolved::named).unwrap_or_default(),
            title: metadata.get("ss_output_name").cloned(),
            trigger_words: training::trigger_words(metadata),
            training: training::settings(metadata),
            embeddings: self.embeddings.iter().map(|e| e.name.clone()).collect(),
            report: Some(LoraReport {
                made_for: self.made_for.clone(),
                kinds: kinds(self.modules.iter().map(|module| self.parts(module))),
                ranks: ranks(self.modules.iter().filter_map(|module| module.rank)),
                modules: LoraModules {
                    applied: count("applied"),
                    off: count("off"),
                    silenced: count("silenced"),
                    zero: count("zero"),
                    no_target: self.misfits.unmatched.clone(),
                    other_shape: self.misfits.mismatched.clone(),
                    unused_layer: self.misfits.unused.clone(),
                },
                change: self.change_by_block(),
            }),
        }
    }

    /// Norm of the change over the norm of what was changed, by block of the UNet and by text encoder.
    fn change_by_block(&self) -> Vec<(String, f64)> {
        let energies = self.energies.lock().expect("no panic while it is held");
        let mut sums: BTreeMap<(usize, Option<_>, String), Energies> = BTreeMap::new();
        for ((component, name), energy) in energies.iter() {
            let (order, label) = match component {
                Component::TextEncoder => (0, "TE1"),
                Component::TextEncoder2 => (1, "TE2"),
                _ => (2, ""),
            };
            let path = name
                .rsplit_once('.')
                .map_or(name.as_str(), |(path, _)| path);
            let block = self.blocks.filter(|_| *component == Component::UNet);
            let block = block.and_then(|blocks| block_weights::block(blocks, *component, path));
            let (order, label) = match (block, label) {
                (Some(block), _) => (order, block.to_string()),
                (None, "") => (order + 1, "other".to_owned()),
                (None, label) => (order, label.to_owned()),
            };
            sums.entry((order, block, label)).or_default().add(*energy);
        }
        let sums = sums.into_iter();
        sums.map(|((.., label), sum)| (label, sum.relative()))
            .collect()
    }

    fn parts<'a>(&'a self, module: &'a Module) -> Parts<'a> {
        Parts {
            group: &module.group,
            source: self.source(),
        }
    }
}

/// What people call a module.
fn kind(parts: &Parts<'_>) -> String {
    let name = parts.group.format.name;
    match () {
        () if dora::has_magnitude(parts) => format!("DoRA on {name}"),
        () if name == oft::FORMAT.name
            && parts.shape("oft_blocks").is_some_and(|s| s.len() == 4) =>
        {
            "BOFT".to_owned()
        }
        () => name.to_owned(),
    }
}

fn kinds<'a>(parts: impl Iterator<Item = Parts<'a>>) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for parts in parts {
        *kinds.entry(kind(&parts)).or_default() += 1;
    }
    kinds
}

fn ranks(ranks: impl Iterator<Item = usize>) -> Option<[usize; 2]> {
    ranks.fold(None, |range: Option<[usize; 2]>, rank| match range {
        None => Some([rank, rank]),
        Some([least, most]) => Some([least.min(rank), most.max(rank)]),
    })
}

/// Lines for people on a LoRA in a model.
#[must_use]
pub fn summary(lora: &Lora) -> String {
    let mut text = lora.name.clone();
    let Some(report) = &lora.report else {
        return text;
    };
    let _ = write!(text, ": {}", kinds_and_ranks(&report.kinds, report.ranks));
    if let Some(family) = &report.made_for {
        let _ = write!(text, ", made for {family}");
    }
    let off = lora.unet == 0.0 && lora.text_encoder == 0.0;
    match off {
        true => text += "; off (strength 0)",
        false => {
            let _ = write!(
                text,
                "; strength {} (text encoder {})",
                lora.unet, lora.text_encoder
            );
        }
    }
    let modules = &report.modules;
    let counts = [
        (modules.applied, "applied"),
        (modules.off, "off"),
        (modules.silenced, "silenced by block weights"),
        (modules.zero, "zero"),
        (modules.no_target.len(), "without target"),
        (modules.other_shape.len(), "of another shape"),
        (modules.unused_layer.len(), "of a layer that does not run"),
    ];
    let told = counts.iter().filter(|(count, _)| *count > 0);
    let told: Vec<String> = told
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let _ = write!(text, "\n  modules: {}", told.join(", "));
    if !report.change.is_empty() {
        let blocks = report.change.iter();
        let blocks = blocks.map(|(name, x)| format!("{name} {:.2} %", 100.0 * x));
        let _ = write!(
            text,
            "\n  change: {}",
            blocks.collect::<Vec<_>>().join(", ")
        );
    }
    if !lora.trigger_words.is_empty() {
        let _ = write!(text, "\n  trigger words: {}", lora.trigger_words.join(", "));
    }
    if !lora.embeddings.is_empty() {
        let _ = write!(text, "\n  embeddings: {}", lora.embeddings.join(", "));
    }
    text
}

fn kinds_and_ranks(kinds: &BTreeMap<String, usize>, ranks: Option<[usize; 2]>) -> String {
    let mut text = match kinds.len() {
        1 => kinds.keys().next().cloned().unwrap_or_default(),
        _ => {
            let kinds: Vec<String> = kinds
                .iter()
                .map(|(kind, n)| format!("{n} {kind}"))
                .collect();
            kinds.join(", ")
        }
    };
    match ranks {
        Some([least, most]) if least == most => {
            let _ = write!(text, " of rank {least}");
        }
        Some([least, most]) => {
            let _ = write!(text, " of rank {least} to {most}");
        }
        None => {}
    }
    text
}

/// What a file of adapters holds, without a model.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// Modules by kind.
    pub kinds: BTreeMap<String, usize>,
    /// Smallest and largest rank.
    pub ranks: Option<[usize; 2]>,
    /// Families whose layers its modules fit.
    pub made_for: Option<String>,
    /// Modules by the first words of their names.
    pub modules: BTreeMap<String, usize>,
    /// Words that trigger it.
    pub trigger_words: Vec<String>,
    /// How it was trained.
    pub training: BTreeMap<String, String>,
    /// Textual inversions in it.
    pub embeddings: Vec<String>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// The key that shows that a file is an adapter, damaged or not; none in other files.
#[must_use]
pub fn adapter_key(source: &dyn TensorSource) -> Option<&String> {
    source.tensors().keys().find(|key| is_telling(key))
}

/// Describes a file of adapters.
///
/// # Errors
/// It is damaged, or of a kind that cannot be added to weights.
pub fn describe(source: &dyn TensorSource) -> Result<Description, LoraError> {
    let (groups, mut notes) = groups(source, None)?;
    notes.extend(bundled::without_output(source));
    let rank = |group| {
        let parts = Parts { group, source };
        let of_first = |role| {
            parts
                .shape(role)
                .and_then(|shape: &[usize]| shape.first().copied())
        };
        ["down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"]
            .into_iter()
            .find_map(of_first)
    };
    let mut modules: BTreeMap<String, usize> = BTreeMap::new();
    for group in &groups {
        *modules
            .entry(part_of(&group.module).to_owned())
            .or_default() += 1;
    }
    let embeddings: BTreeSet<String> = bundled::read(source)?.into_iter().map(|b| b.name).collect();
    Ok(Description {
        kinds: kinds(groups.iter().map(|group| Parts { group, source })),
        ranks: ranks(groups.iter().filter_map(rank)),
        made_for: MadeFor::of(&groups, source).told(),
        modules,
        trigger_words: training::trigger_words(source.metadata()),
        training: training::settings(source.metadata()),
        embeddings: embeddings.into_iter().collect(),
        notes,
    })
}

/// The part of a pipeline that a module's name speaks of.
fn part_of(module: &str) -> &'static str {
    match () {
        () if module.contains("te2_")
            || module.contains("encoder_2.")
            || module.contains("clip_g") =>
        {
            "second text encoder"
        }
        () if module.contains("text_model") || module.contains("resblocks") => "text encoder",
        () => "UNet",
    }
}

impl Description {
    /// One line: kinds, ranks, and what it is made for.
    #[must_use]
    pub fn title(&self) -> String {
        let family = self.made_for.as_ref();
        let family = family
            .map(|family| format!(", made for {family}"))
            .unwrap_or_default();
        format!("{}{family}", kinds_and_ranks(&self.kinds, self.ranks))
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let modules = self
            .modules
            .iter()
            .map(|(part, n)| format!("{n} in the {part}"));
        writeln!(f, "  modules: {}", modules.collect::<Vec<_>>().join(", "))?;
        let lists = [
            ("trigger words", &self.trigger_words),
            ("embeddings", &self.embeddings),
        ];
        for (what, list) in lists.iter().filter(|(_, list)| !list.is_empty()) {
            writeln!(f, "  {what}: {}", list.join(", "))?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}
