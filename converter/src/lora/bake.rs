//! A model with adapters added to its weights, which are computed when they are asked for.
//!
//! On each weight, adapters act in the order of the command line: `W <- W + m D(W)`. Neighbours that do not depend on the weight
//! are added in an order that their content decides, so that the order of adapters of these kinds does not matter to the
//! last bit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rayon::prelude::*;
use sd_models::keys::layout::Layout;

use super::fit::Module;
use super::group::Parts;
use super::report::Energies;
use super::tiles::{Order, Step, apply};
use super::{Adapter, LoraError, LoraSpec, ROLE, Target};
use crate::ConvertError;
use crate::checkpoint::{CheckpointError, Dtype, TensorSource};
use crate::merge::{Stored, convert, overflowing, storage};
use crate::model::{Entry, Hints, Model, Name, Residue, Tensor};

/// What the user allows and asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Use what fits of an adapter that does not fit as a whole.
    pub allow_partial: bool,
    /// Type of the changed weights; that in which they were published if not given.
    pub storage: Option<Dtype>,
}

/// A model with adapters added to its weights.
pub struct WithLoras {
    base: Box<dyn Model>,
    adapters: Vec<Adapter>,
    /// Which modules change a weight, in the order of application.
    uses: BTreeMap<Name, Vec<Use>>,
    entries: BTreeMap<Name, Entry>,
    hints: Hints,
}

/// A module's change of one weight.
#[derive(Clone, Copy, Debug)]
struct Use {
    adapter: usize,
    module: usize,
    of_bias: bool,
    /// Rows of the module that belong to weights before this one.
    first_row: usize,
}

impl WithLoras {
    /// Adds adapters to a model, in this order.
    ///
    /// # Errors
    /// One cannot be read, does not fit the model, or would do nothing.
    pub fn new(
        base: Box<dyn Model>,
        specs: &[LoraSpec],
        options: Options,
    ) -> Result<Self, ConvertError> {
        let open = |spec| Adapter::open(spec, &*base, options.allow_partial);
        let adapters: Vec<Adapter> = specs.par_iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self::of(base, adapters, options.storage))
    }

    /// Adds adapters that were fitted to this model.
    #[must_use]
    pub fn of(base: Box<dyn Model>, adapters: Vec<Adapter>, storage_type: Option<Dtype>) -> Self {
        let mut uses: BTreeMap<Name, Vec<Use>> = BTreeMap::new();
        for (adapter, fitted) in adapters.iter().enumerate() {
            for (module, fitted) in fitted.modules.iter().enumerate() {
                for (of_bias, parameter) in [(false, "weight"), (true, "bias")] {
                    let changes = if of_bias {
                        fitted.changes_bias
                    } else {
                        fitted.changes_weight
                    };
                    if !changes || !fitted.is_active() {
                        continue;
                    }
                    for (name, first_row) in fitted.site.names(parameter) {
                        uses.entry(name).or_default().push(Use {
                            adapter,
                            module,
                            of_bias,
                            first_row,
                        });
                    }
                }
            }
        }
        let mut entries = base.entries().clone();
        for (name, entry) in &mut entries {
            if uses.contains_key(name) || storage_type.is_some() || entry.dtype != entry.published {
                entry.dtype = storage(storage_type, entry.published);
            }
        }
        let mut model = Self {
            hints: base.hints().clone(),
            base,
            adapters,
            uses,
            entries,
        };
        let order = model.order_matters();
        model.hints.notes.extend(order);
        model
    }

    /// Where a change depends on what others did before.
    fn order_matters(&self) -> Option<String> {
        let depends = |uses: &&Vec<Use>| {
            let several = uses.iter().any(|u| u.adapter != uses[0].adapter);
            several && uses.iter().any(|u| !self.module(*u).additive)
        };
        let dependent: Vec<&Vec<Use>> = self.uses.values().filter(depends).collect();
        let involved: BTreeSet<usize> = dependent
            .iter()
            .flat_map(|u| *u)
            .map(|u| u.adapter)
            .collect();
        let files: Vec<String> = involved.iter().map(|i| self.adapters[*i].name()).collect();
        (!dependent.is_empty()).then(|| {
            format!(
                "the order of LoRAs matters for {} weights; they are applied in this order: {}",
                dependent.len(),
                files.join(", ")
            )
        })
    }

    fn module(&self, used: Use) -> &Module {
        &self.adapters[used.adapter].modules[used.module]
    }

    fn parts(&self, used: Use) -> Parts<'_> {
        Parts {
            group: &self.module(used).group,
            source: self.adapters[used.adapter].source(),
        }
    }

    /// A weight that no adapter touches, in the result's type.
    fn unchanged(&self, name: &Name) -> Result<Tensor<'_>, ConvertError> {
        let (tensor, entry) = (self.base.read(name)?, &self.entries[name]);
        if tensor.dtype == entry.dtype {
            return Ok(tensor);
        }
        convert(&tensor, entry)
    }

    /// A weight changed by `uses`, in the result's type and order.
    fn changed(
        &self,
        name: &Name,
        uses: &[Use],
        order: Order,
    ) -> Result<Tensor<'static>, ConvertError> {
        let (source, entry) = (self.base.read(name)?, &self.entries[name]);
        let target = Target {
            shape: &self.base.entries()[name].shape,
            has_bias: false,
        };
        let steps = self.steps(uses)?;
        let applied = apply(&source, &steps, &target, entry.dtype, order).map_err(|problem| {
            CheckpointError::Convert {
                path: entry.file.to_path_buf(),
                name: entry.key.clone(),
                problem,
            }
        })?;
        let (base, bytes) = (applied.base, applied.bytes.into());
        let tensor = match applied.stored {
            Stored::Finite => Tensor::finite(entry.dtype, bytes),
            Stored::NonFinite if !base.is_finite() => Tensor::new(entry.dtype, bytes),
            Stored::Overflow(value) => return Err(overflowing(entry, value)),
            Stored::NonFinite => {
                let last = uses[uses.len() - 1].adapter;
                return Err(ConvertError::Lora {
                    path: self.adapters[last].spec.path.clone(),
                    source: LoraError::NonFiniteResult {
                        name: name.1.clone(),
                    },
                });
            }
        };
        let mut energies: BTreeMap<usize, f64> = BTreeMap::new();
        for (step, change) in steps.iter().zip(applied.changes) {
            *energies.entry(step.adapter).or_default() += change;
        }
        for (adapter, change) in energies {
            self.adapters[adapter].record(name, Energies { change, base });
        }
        Ok(tensor)
    }

    /// The changes of a weight in the order of application.
    fn steps(&self, uses: &[Use]) -> Result<Vec<Step<'_>>, ConvertError> {
        let additive = |used: &Use| self.module(*used).additive;
        let mut ordered = Vec::new();
        for run in uses.chunk_by(|a, b| additive(a) && additive(b)) {
            let mut run = run.to_vec();
            if run.len() > 1 {
                run.sort_by_cached_key(|used| {
                    let content: Vec<_> = self.parts(*used).content().collect();
                    (
                        content,
                        self.module(*used).strength.to_bits(),
                        used.first_row,
                    )
                });
            }
            ordered.extend(run);
        }
        let step = |used: Use| {
            let module = self.module(used);
            let loaded = module.site.load(&self.parts(used));
            let loaded = loaded.map_err(|source| ConvertError::Lora {
                path: self.adapters[used.adapter].spec.path.clone(),
                source,
            })?;
            let change = if used.of_bias {
                loaded.bias
            } else {
                loaded.weight
            };
            Ok(Step {
                adapter: used.adapter,
                strength: module.strength,
                first_row: used.first_row,
                change: change.expect("the module was found to change this"),
            })
        };
        ordered.into_par_iter().map(step).collect()
    }
}

impl Model for WithLoras {
    fn path(&self) -> &Path {
        self.base.path()
    }

    fn entries(&self) -> &BTreeMap<Name, Entry> {
        &self.entries
    }

    fn read(&self, name: &Name) -> Result<Tensor<'_>, ConvertError> {
        match self.uses.get(name) {
            None => self.unchanged(name),
            Some(uses) => self.changed(name, uses, Order::Rows),
        }
    }

    fn read_transposed(&self, name: &Name) -> Result<Tensor<'_>, ConvertError> {
        match self.uses.get(name) {
            None => Ok(self.unchanged(name)?.transposed(&self.entries[name].shape)),
            Some(uses) => self.changed(name, uses, Order::Columns),
        }
    }

    fn sources(&self) -> Vec<(&'static str, &dyn TensorSource)> {
        let mut sources = self.base.sources();
        sources.extend(self.adapters.iter().map(|adapter| (ROLE, adapter.source())));
        sources
    }

    fn hints(&self) -> &Hints {
        &self.hints
    }

    fn residue(&self) -> &Residue {
        self.base.residue()
    }

    fn spelled(&self, name: &Name) -> String {
        self.base.spelled(name)
    }

    fn layout(&self) -> Option<&Layout> {
        self.base.layout()
    }

    fn adapters(&self) -> Vec<&Adapter> {
        let mut adapters = self.base.adapters();
        adapters.extend(&self.adapters);
        adapters
    }
}
