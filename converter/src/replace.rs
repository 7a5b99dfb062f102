//! A model with some components of another: a VAE baked in, the text encoder of another model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sd_models::keys::Component;
use sd_models::keys::layout::Layout;

use crate::ConvertError;
use crate::checkpoint::TensorSource;
use crate::lora::Adapter;
use crate::model::{Entry, Hints, Model, Name, Residue, Tensor};

/// `base` with `components` of `donor`.
pub struct Replaced {
    base: Box<dyn Model>,
    donor: Box<dyn Model>,
    components: Vec<Component>,
    entries: BTreeMap<Name, Entry>,
    hints: Hints,
    residue: Residue,
}

impl Replaced {
    /// Every weight of the components comes from the donor, never only some of them.
    ///
    /// # Errors
    /// The donor has none of a component.
    pub fn new(
        base: Box<dyn Model>,
        donor: Box<dyn Model>,
        components: &[Component],
    ) -> Result<Self, ConvertError> {
        if let Some(missing) = components.iter().find(|c| !donor.has(**c)) {
            return Err(ConvertError::NoComponent {
                path: donor.path().to_owned(),
                component: match missing {
                    Component::Vae => "VAE",
                    _ => "text encoder",
                },
                remedy: None,
            });
        }
        let replaced = |name: &Name| components.contains(&name.0);
        let own = base.entries().iter().filter(|(name, _)| !replaced(name));
        let given = donor.entries().iter().filter(|(name, _)| replaced(name));
        let entries = own.chain(given).map(|(n, e)| (n.clone(), e.clone()));
        let entries = entries.collect();

        let mut residue = base.residue().clone();
        let lost = base.entries().iter().filter(|(name, _)| replaced(name));
        residue.replaced.extend(lost.map(|(_, e)| e.key.clone()));
        residue.ignorable.extend(donor.residue().ignorable.clone());
        let left = donor.entries().iter().filter(|(name, _)| !replaced(name));
        let left: BTreeSet<&String> = left.map(|(_, entry)| &entry.key).collect();
        residue.other.extend(left.into_iter().cloned());
        residue.other.extend(donor.residue().unknown.clone());
        let mut hints = base.hints().clone();
        for component in components {
            match donor.hints().configs.get(component) {
                Some(config) => hints.configs.insert(*component, config.clone()),
                None => hints.configs.remove(component),
            };
            match donor.hints().tokenizers.get(component) {
                Some(folder) => hints.tokenizers.insert(*component, folder.clone()),
                None => hints.tokenizers.remove(component),
            };
        }
        Ok(Self {
            base,
            donor,
            components: components.to_vec(),
            entries,
            hints,
            residue,
        })
    }
}

impl Model for Replaced {
    fn path(&self) -> &Path {
        self.base.path()
    }

    fn entries(&self) -> &BTreeMap<Name, Entry> {
        &self.entries
    }

    fn read(&self, name: &Name) -> Result<Tensor<'_>, ConvertError> {
        if self.components.contains(&name.0) {
            self.donor.read(name)
        } else {
            self.base.read(name)
        }
    }

    fn sources(&self) -> Vec<(&'static str, &dyn TensorSource)> {
        let role = match self.components[0] {
            Component::Vae => "vae",
            _ => "text_encoder",
        };
        let given = self.donor.sources().into_iter();
        let mut sources = self.base.sources();
        sources.extend(given.map(|(_, source)| (role, source)));
        sources
    }

    fn hints(&self) -> &Hints {
        &self.hints
    }

    fn residue(&self) -> &Residue {
        &self.residue
    }

    fn layout(&self) -> Option<&Layout> {
        self.base.layout()
    }

    fn adapters(&self) -> Vec<&Adapter> {
        self.base.adapters()
    }

    fn spelled(&self, name: &Name) -> String {
        if self.components.contains(&name.0) {
            self.donor.spelled(name)
        } else {
            self.base.spelled(name)
        }
    }
}
