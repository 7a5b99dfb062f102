//! What one model would change in another: `sdconvert inspect FILE --against BASE`.

use std::collections::BTreeMap;
use std::fmt;

use sd_models::family::ModelFamily;
use sd_models::keys::Component;
use sd_models::keys::blocks::{Block, Blocks};
use sd_models::structure::unet_config;
use serde::Serialize;

use crate::ConvertError;
use crate::model::Model;
use crate::progress::Progress;

/// Version of [`Comparison`]'s JSON form.
const SCHEMA: u32 = 1;

/// How a model differs from another.
#[derive(Debug, Serialize)]
pub struct Comparison {
    schema: u32,
    /// Family of each, if it has a UNet.
    families: [Option<ModelFamily>; 2],
    /// By component.
    components: BTreeMap<&'static str, Change>,
    /// Of the UNet, by the blocks of block-weighted merging.
    blocks: Vec<(String, f64)>,
    /// Tensors that only one has, or that have another shape, with the reason.
    misfits: Vec<String>,
}

/// What happens to a component.
#[derive(Debug, Default, Serialize)]
struct Change {
    /// Tensors that are equal in both.
    equal: usize,
    /// Tensors that differ.
    changed: usize,
    /// Norm of the difference over the norm of the base.
    relative: f64,
    #[serde(skip)]
    energies: Energies,
}

#[derive(Clone, Copy, Debug, Default)]
struct Energies {
    difference: f64,
    base: f64,
}

impl Energies {
    fn add(&mut self, other: Self) {
        self.difference += other.difference;
        self.base += other.base;
    }

    fn relative(self) -> f64 {
        if self.base > 0.0 {
            (self.difference / self.base).sqrt()
        } else {
            0.0
        }
    }
}

/// Compares `model` with `base`, tensor by tensor.
///
/// # Errors
/// A weight cannot be read, or the user interrupts.
pub fn compare(
    model: &dyn Model,
    base: &dyn Model,
    progress: &dyn Progress,
) -> Result<Comparison, ConvertError> {
    let cfg = |model: &dyn Model| unet_config(&model.shapes(Component::UNet)).ok();
    let configs = [cfg(model), cfg(base)];
    let blocks = configs[1].as_ref().map(Blocks::of);
    let mut by_block: BTreeMap<Block, Energies> = BTreeMap::new();
    let mut comparison = Comparison {
        schema: SCHEMA,
        families: configs.each_ref().map(|c| c.as_ref().map(ModelFamily::of)),
        components: BTreeMap::new(),
        blocks: Vec::new(),
        misfits: Vec::new(),
    };
    for (name, entry) in model.entries() {
        if progress.cancelled() {
            return Err(ConvertError::Interrupted);
        }
        progress.advance(entry.byte_len() as u64);
        let Some(other) = base.entries().get(name) else {
            let misfit = format!("`{}` has no counterpart", entry.key);
            comparison.misfits.push(misfit);
            continue;
        };
        if entry.shape.iter().product::<usize>() != other.shape.iter().product::<usize>() {
            let misfit = format!(
                "`{}` is {:?}, not {:?}",
                entry.key, entry.shape, other.shape
            );
            comparison.misfits.push(misfit);
            continue;
        }
        let (values, base_values) = (model.read_f32(name)?, base.read_f32(name)?);
        let mut energies = Energies::default();
        for (value, base) in values.iter().zip(&base_values) {
            energies.difference += f64::from(value - base).powi(2);
            energies.base += f64::from(*base).powi(2);
        }
        let change = comparison.components.entry(name.0.name()).or_default();
        if energies.difference == 0.0 {
            change.equal += 1;
        } else {
            change.changed += 1;
        }
        change.energies.add(energies);
        if let Some(blocks) = blocks
            && name.0 == Component::UNet
        {
            let block = blocks.block(name.0, &name.1);
            by_block.entry(block).or_default().add(energies);
        }
    }
    for change in comparison.components.values_mut() {
        change.relative = change.energies.relative();
    }
    let blocks = by_block.into_iter();
    comparison.blocks = blocks
        .map(|(block, energies)| (block.to_string(), energies.relative()))
        .collect();
    Ok(comparison)
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.families {
            [Some(a), Some(b)] if a != b => {
                writeln!(
                    f,
                    "it is {a}, the base is {b}: neither merging nor extracting is possible"
                )?;
            }
            [Some(family), Some(_)] => writeln!(f, "both are {family}")?,
            [None, _] => writeln!(
                f,
                "it has no UNet; its parts would replace those of the base"
            )?,
            [_, None] => writeln!(f, "the base has no UNet")?,
        }
        for (name, change) in &self.components {
            let percent = 100.0 * change.relative;
            writeln!(
                f,
                "  {name}: {} tensors differ, {} are equal; relative change {percent:.3} %",
                change.changed, change.equal
            )?;
        }
        if !self.blocks.is_empty() {
            let blocks = self.blocks.iter();
            let blocks = blocks.map(|(name, x)| format!("{name} {:.2} %", 100.0 * x));
            writeln!(f, "  by block: {}", blocks.collect::<Vec<_>>().join(", "))?;
        }
        if !self.misfits.is_empty() {
            writeln!(
                f,
                "  {} tensors do not fit: {}",
                self.misfits.len(),
                self.misfits
                    .iter()
                    .take(5)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(", ")
            )?;
        }
        Ok(())
    }
}
