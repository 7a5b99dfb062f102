//! Fits an adapter file to a model: every module finds its layer and has its shape, or the file is refused.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::sync::Mutex;

use rayon::prelude::*;
use sd_models::keys::Component;
use sd_models::keys::blocks::Blocks;

use super::block_weights::Resolved;
use super::bundled::{Bundled, bundled, output_vectors, without_output};
use super::error::Misfit;
use super::group::{Group, Parts, group};
use super::made_for::guess;
use super::names::{Names, Place, unsupported};
use super::peft::Config;
use super::report::Energies;
use super::{
    Change, Delta, FORMATS, Loaded, LoraError, LoraSpec, Target, dora, load, product, vector,
};
use crate::ConvertError;
use crate::checkpoint::TensorSource;
use crate::error::some_of;
use crate::model::{Model, Name};

/// How many misfits a message names.
const NAMED: usize = 5;

/// Channels of latents: what an adapter of a model without further input channels has.
const LATENT_CHANNELS: usize = 4;

/// An adapter file that fits a model.
pub struct Adapter {
    pub(super) source: Box<dyn TensorSource>,
    pub(super) spec: LoraSpec,
    pub(super) modules: Vec<Module>,
    pub(super) misfits: Misfits,
    pub(super) block_weights: Option<Resolved>,
    pub(super) blocks: Option<Blocks>,
    pub(super) made_for: Option<String>,
    /// What the user should know.
    pub(super) notes: Vec<String>,
    /// What it did to each weight that was computed so far.
    pub(super) energies: Mutex<BTreeMap<Name, Energies>>,
    pub(super) embeddings: Vec<Bundled>,
}

/// A module on its layer.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) group: Group,
    pub(super) site: Site,
    /// Strength of its component, times that of its block.
    pub(super) strength: f64,
    /// Whether its block's weight is what turns it off.
    pub(super) silenced: bool,
    /// Whether its numbers are such that it changes nothing.
    pub(super) zero: bool,
    /// Whether its change does not depend on the weight.
    pub(super) additive: bool,
    pub(super) changes_weight: bool,
    pub(super) changes_bias: bool,
    pub(super) rank: Option<usize>,
}

/// Modules of the file that are not used.
#[derive(Clone, Debug, Default)]
pub(super) struct Misfits {
    /// That have no target.
    pub(super) unmatched: Vec<String>,
    /// That have another shape than their target.
    pub(super) mismatched: Vec<String>,
    /// Of layers that the network does not run.
    pub(super) unused: Vec<String>,
}

/// A layer, or layers that the file has as one.
#[derive(Clone, Debug)]
pub(super) struct Site {
    component: Component,
    /// Paths of the layers, whose weights lie one below the other.
    paths: Vec<String>,
    /// Shape of their weights together.
    shape: Vec<usize>,
    has_bias: bool,
}

impl Site {
    fn of(place: &Place, base: &dyn Model) -> Option<Self> {
        let (component, paths) = match place {
            Place::Layer(component, path) => (*component, vec![path.clone()]),
            Place::Fused(component, paths) => (*component, paths.to_vec()),
            Place::Unused => return None,
        };
        let entry = |path: &String, parameter: &str| {
            base.entries()
                .get(&(component, format!("{path}.{parameter}")))
        };
        let mut shape = entry(&paths[0], "weight")?.shape.clone();
        if product(&shape) == 0 || shape.is_empty() {
            return None;
        }
        shape[0] *= paths.len();
        Some(Self {
            component,
            has_bias: entry(&paths[0], "bias").is_some(),
            shape,
            paths,
        })
    }

    fn target(&self) -> Target<'_> {
        Target {
            shape: &self.shape,
            has_bias: self.has_bias,
        }
    }

    pub(super) fn component(&self) -> Component {
        self.component
    }

    pub(super) fn path(&self) -> &str {
        &self.paths[0]
    }

    /// Names of the weights or biases, and how many rows of the module lie before each.
    pub(super) fn names(&self, parameter: &str) -> impl Iterator<Item = (Name, usize)> {
        let rows = self.shape[0] / self.paths.len();
        let paths = self.paths.iter().enumerate();
        paths.map(move |(i, path)| ((self.component, format!("{path}.{parameter}")), i * rows))
    }

    /// Reads a module on this layer.
    pub(super) fn load<'a>(&self, parts: &Parts<'a>) -> Result<Loaded<'a>, LoraError> {
        let target = self.target();
        let error = match load(parts, &target) {
            Err(error @ LoraError::Shape { .. }) => error,
            loaded => return loaded,
        };
        // Inpainting and editing models have further input channels, which adapters of other models leave alone.
        let is_input = self.component == Component::UNet && self.path() == "conv_in";
        if !is_input || target.inputs() <= LATENT_CHANNELS {
            return Err(error);
        }
        let mut shape = self.shape.clone();
        shape[1] = LATENT_CHANNELS;
        let narrow = Target {
            shape: &shape,
            ..target
        };
        match load(parts, &narrow) {
            Ok(Loaded {
                weight: Some(Change::Added(delta)),
                bias,
                rank,
            }) => Ok(Loaded {
                weight: Some(Change::Added(Box::new(Padded {
                    delta,
                    narrow: narrow.columns(),
                    wide: target.columns(),
                }))),
                bias,
                rank,
            }),
            _ => Err(error),
        }
    }
}

/// A change of the first input channels.
struct Padded<'a> {
    delta: Box<dyn Delta + 'a>,
    narrow: usize,
    wide: usize,
}

impl Delta for Padded<'_> {
    fn add(&self, start: usize, scale: f64, tile: &mut [f32]) -> f64 {
        let first = start / self.wide * self.narrow;
        let mut narrow = vec![0.0; tile.len() / self.wide * self.narrow];
        self.delta.add(first, scale, &mut narrow);
        let rows = tile.chunks_mut(self.wide).zip(narrow.chunks(self.narrow));
        rows.map(|(row, change)| vector::add(&mut row[..self.narrow], change))
            .sum()
    }

    fn is_zero(&self) -> bool {
        self.delta.is_zero()
    }
}

impl Module {
    /// Whether it does anything.
    pub(super) fn is_active(&self) -> bool {
        self.strength != 0.0 && !self.zero
    }
}

impl Adapter {
    /// Opens a file and fits it to a model; with `allow_partial`, modules that do not fit are left out.
    ///
    /// # Errors
    /// It cannot be read, is damaged or of another kind, does not fit, or would do nothing.
    pub fn open(
        spec: &LoraSpec,
        base: &dyn Model,
        allow_partial: bool,
    ) -> Result<Self, ConvertError> {
        let source = super::open(&spec.path)?;
        Self::fit(source, spec, base, allow_partial).map_err(|source| ConvertError::Lora {
            path: spec.path.clone(),
            source,
        })
    }

    /// [`Self::open`] of a file that is open already.
    ///
    /// # Errors
    /// As [`Self::open`].
    #[expect(clippy::too_many_lines, reason = "one check after the other")]
    pub fn fit(
        source: Box<dyn TensorSource>,
        spec: &LoraSpec,
        base: &dyn Model,
        allow_partial: bool,
    ) -> Result<Self, LoraError> {
        let embeddings = bundled(&*source, base)?;
        let (groups, mut notes) = groups(&*source, spec.rank)?;
        if let Some(key) = output_vectors(&*source).first().filter(|_| !allow_partial) {
            return Err(LoraError::OutputVectors((*key).clone()));
        }
        notes.extend(without_output(&*source));
        let unet = base.unet_config().ok();
        let names = Names::of(base.entries().keys(), unet.as_ref());
        let blocks = unet.as_ref().map(Blocks::of);
        let block_weights = match (&spec.block_weights, blocks) {
            (None, _) => None,
            (Some(weights), Some(blocks)) => {
                Some(weights.resolve(blocks).map_err(LoraError::BlockWeights)?)
            }
            (Some(_), None) => {
                let problem = "block weights are for models with a UNet".to_owned();
                return Err(LoraError::BlockWeights(problem));
            }
        };
        let (made_for, guess) = guess(&groups, &*source, base);

        let mut misfits = Misfits::default();
        let mut sites: BTreeMap<Place, Group> = BTreeMap::new();
        let (count, mut twice) = (groups.len(), 0);
        for group in groups {
            let place = match names.place(&group.module) {
                None => {
                    misfits.unmatched.push(group.module);
                    continue;
                }
                Some(Place::Unused) => {
                    misfits.unused.push(group.module);
                    continue;
                }
                Some(place) => place.clone(),
            };
            match sites.entry(place) {
                Slot::Vacant(slot) => drop(slot.insert(group)),
                Slot::Occupied(slot) if is_same(&*source, slot.get(), &group) => twice += 1,
                Slot::Occupied(slot) => {
                    return Err(LoraError::Duplicate {
                        first: slot.get().module.clone(),
                        second: group.module,
                    });
                }
            }
        }
        let fitted = sites.into_par_iter().map(|(place, group)| {
            let site = Site::of(&place, base).ok_or_else(|| LoraError::Module {
                module: group.module.clone(),
                problem: "the model's weight has no elements",
            })?;
            Module::fit(&*source, group, site, spec, block_weights.as_ref())
        });
        let fitted: Vec<Result<Module, LoraError>> = fitted.collect();
        let (mut modules, mut first_mismatch) = (Vec::new(), None);
        for module in fitted {
            match module {
                Ok(module) => modules.push(module),
                Err(error @ (LoraError::Shape { .. } | LoraError::NoBias { .. })) => {
                    let text = error.to_string();
                    misfits.mismatched.push(text.clone());
                    first_mismatch.get_or_insert(text);
                }
                Err(error) => return Err(error),
            }
        }
        let first: Vec<&String> = misfits.unmatched.iter().take(NAMED).collect();
        let misfit = Misfit {
            modules: count,
            unmatched: misfits.unmatched.len(),
            first_unmatched: some_of(&first),
            mismatched: misfits.mismatched.len(),
            first_mismatched: first_mismatch.unwrap_or_default(),
            unused: misfits.unused.len(),
        };
        if modules.is_empty() {
            let misfits = Box::new(misfit);
            return Err(LoraError::NothingFits { misfits, guess });
        }
        if misfit.unmatched + misfit.mismatched > 0 && !allow_partial {
            let misfits = Box::new(misfit);
            return Err(LoraError::DoesNotFit { misfits, guess });
        }
        if !spec.is_off() && !modules.iter().any(Module::is_active) {
            return Err(LoraError::NoEffect(match modules.iter().all(|m| m.zero) {
                true => "every module is zero",
                false => "wherever it has modules, the strength is 0",
            }));
        }
        if twice > 0 {
            notes.push(format!(
                "{twice} modules are there twice, with the same content"
            ));
        }
        notes.extend(assumed_axes(&*source, &modules));
        Ok(Self {
            source,
            spec: spec.clone(),
            modules,
            misfits,
            block_weights,
            blocks,
            made_for: made_for.told(),
            notes,
            energies: Mutex::default(),
            embeddings,
        })
    }

    /// The file.
    #[must_use]
    pub fn source(&self) -> &dyn TensorSource {
        &*self.source
    }

    /// What the user should know of it.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The weights that it changes.
    pub fn weights(&self) -> impl Iterator<Item = Name> {
        let active = self.modules.iter().filter(|module| module.is_active());
        active.flat_map(|module| {
            let weights = module
                .site
                .names("weight")
                .filter(|_| module.changes_weight);
            let biases = module.site.names("bias").filter(|_| module.changes_bias);
            weights.chain(biases).map(|(name, _)| name)
        })
    }
}

impl Module {
    /// Reads a module once, to know that it can be read.
    fn fit(
        source: &dyn TensorSource,
        group: Group,
        site: Site,
        spec: &LoraSpec,
        block_weights: Option<&Resolved>,
    ) -> Result<Self, LoraError> {
        let parts = Parts {
            group: &group,
            source,
        };
        let of_block = block_weights.map_or(1.0, |w| w.value(site.component, site.path()));
        let of_component = spec.strength(site.component);
        let strength = of_component * of_block;
        let mut loaded = site.load(&parts)?;
        if let Some(bias) = loaded.bias.take_if(|_| !site.has_bias)
            && !bias.is_nothing()
        {
            return Err(LoraError::NoBias {
                module: group.module.clone(),
            });
        }
        let changes = [&loaded.weight, &loaded.bias].map(|change| {
            let change = change.as_ref();
            change.filter(|change| !change.is_nothing())
        });
        let computed = changes.iter().flatten().filter_map(|change| match change {
            Change::Computed(transform) => Some(transform),
            Change::Added(_) => None,
        });
        let mut additive = true;
        for transform in computed {
            additive = false;
            if site.paths.len() > 1 {
                return Err(parts.problem("this kind on fused projections is not supported"));
            }
            if strength != 0.0 && !transform.takes_strength(strength) {
                return Err(
                    parts.problem("it replaces weights, which is possible at strength 1 only")
                );
            }
        }
        let [changes_weight, changes_bias] = changes.map(|change| change.is_some());
        let rank = loaded.rank;
        drop(loaded);
        Ok(Self {
            strength,
            silenced: of_block == 0.0 && of_component != 0.0,
            zero: !changes_weight && !changes_bias,
            additive,
            changes_weight,
            changes_bias,
            rank,
            group,
            site,
        })
    }
}

/// The modules of a file, and what the user should know of them.
pub(super) fn groups(
    source: &dyn TensorSource,
    rank: Option<usize>,
) -> Result<(Vec<Group>, Vec<String>), LoraError> {
    let keys = || {
        let keys = source.tensors().keys();
        keys.filter(|key| !key.starts_with(super::bundled::PREFIX))
    };
    for key in keys() {
        if let Some((kind, remedy)) = unsupported(key) {
            let evidence = key.clone();
            return Err(LoraError::Unsupported {
                kind,
                evidence,
                remedy,
            });
        }
    }
    if !keys().any(|key| is_telling(key)) {
        let is_model = keys().any(|key| key.contains("attn1.to_q.weight"));
        return Err(LoraError::NotALora {
            tensors: source.tensors().len(),
            is_model,
        });
    }
    let (mut groups, orphans) = group(keys())?;
    let config = Config::of(source)?;
    let mut zero_alphas = 0;
    for group in &mut groups {
        group.rank = rank;
        group.config = config
            .as_ref()
            .and_then(|config| config.module(&group.module));
        let parts = Parts {
            group: &*group,
            source,
        };
        if let Some(config) = &config {
            config.check(&parts)?;
        }
        let is_rotation = group.format.name == super::oft::FORMAT.name;
        zero_alphas +=
            usize::from(!is_rotation && parts.number("alpha").is_ok_and(|a| a == Some(0.0)));
    }
    let mut notes = Vec::new();
    if zero_alphas > 0 {
        notes.push(format!(
            "alpha is 0 in {zero_alphas} modules, which is taken as \"not set\", as trainers do"
        ));
    }
    if !orphans.is_empty() {
        notes.push(format!(
            "{} modules have an alpha and nothing else",
            orphans.len()
        ));
    }
    Ok((groups, notes))
}

/// Whether a key ends as only keys of adapters do.
pub(super) fn is_telling(key: &str) -> bool {
    const COMMON: [&str; 3] = [".weight", ".bias", ".scale"];
    let Some((_, role)) = super::group::split(key) else {
        return false;
    };
    let mut suffixes = FORMATS.iter().flat_map(|format| format.parts);
    let own = suffixes.any(|(suffix, known)| *known == role && !COMMON.contains(suffix));
    own && !matches!(role, "weight" | "residual" | "scale")
}

fn is_same(source: &dyn TensorSource, a: &Group, b: &Group) -> bool {
    let content = |group| Parts { group, source }.content();
    content(a).eq(content(b))
}

/// DoRA's magnitudes on square matrices do not always tell which axis they are for.
fn assumed_axes(source: &dyn TensorSource, modules: &[Module]) -> Option<String> {
    let assumed = modules.iter().filter(|module| {
        let parts = Parts {
            group: &module.group,
            source,
        };
        dora::axis_is_assumed(&parts, &module.site.target())
    });
    let count = assumed.count();
    (count > 0).then(|| {
        format!(
            "magnitudes (DoRA) of {count} modules may be for outputs or inputs; outputs are taken"
        )
    })
}
