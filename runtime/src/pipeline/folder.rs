//! The networks of a directory: which graph of each is run, and what that takes.

use std::path::Path;

use sd_kernels::Isa;
use sd_models::manifest::{self, Manifest};
use sha2::{Digest, Sha256};

use crate::engine::memory::{self, Needs};
use crate::engine::{Chosen, Compute, Dialect, EngineError, Ep, Key, choose};

/// A directory, and what its manifest says of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Folder<'a> {
    pub(super) path: &'a Path,
    /// Directories of other programs have none.
    pub(super) manifest: Option<&'a Manifest>,
}

impl<'a> Folder<'a> {
    /// What the manifest says of a component.
    pub(super) fn recorded(self, component: &str) -> Option<&'a manifest::Component> {
        self.manifest?.components.get(component)
    }

    /// As [`super::ModelDir::key`].
    pub(super) fn key(
        self,
        component: &str,
        dims: &[(&str, usize)],
        ep: Ep,
        (dialect, compute): (Dialect, Compute),
    ) -> Result<(Key, Chosen), EngineError> {
        let chosen = choose(ep, self.recorded(component), dialect, compute)?;
        let open = |name: &str| match name {
            "batch" => chosen.is_native(),
            "sequence" => ep == Ep::Cpu,
            _ => false,
        };
        let fixed: Vec<_> = dims
            .iter()
            .copied()
            .filter(|(name, _)| !open(name))
            .collect();
        let key = Key::new(self.path, component, &fixed)
            .variant(chosen.file)
            .compute(match chosen.is_native() {
                true => compute.on(Isa::detect()).unwrap_or_default(),
                false if compute == Compute::Bf16 => sd_kernels::Compute::Bf16,
                false => sd_kernels::Compute::F32,
            });
        Ok((key, chosen))
    }

    /// What the graph of a component that a provider runs needs with so many scores and bytes of activations.
    pub(super) fn needs(
        self,
        component: &str,
        dialect: Dialect,
        ep: Ep,
        [scores, activations]: [u64; 2],
    ) -> Needs {
        let recorded = self.recorded(component);
        let chosen = choose(ep, recorded, dialect, Compute::F32);
        let graph = chosen.map_or(Key::PLAIN, |chosen| chosen.file);
        let weights = memory::network(&self.path.join(component), graph, recorded);
        match graph {
            // Scores and their softmax, in single precision.
            Key::PLAIN => Needs {
                total: weights + 2 * 4 * scores + activations,
                own: weights + 2 * 4 * scores + activations,
                mapped: 0,
            },
            // Native graphs have no scores, and read weights where they are mapped.
            _ => Needs {
                total: weights + activations,
                own: activations,
                mapped: weights,
            },
        }
    }

    /// As [`super::ModelDir::portable_form`].
    pub(super) fn portable_form(self) -> Option<String> {
        let unet = self.recorded("unet")?;
        if !unet.storage.iter().any(|stored| stored == "I8") {
            return None;
        }
        let variant = unet.variants.get(Key::PLAIN)?;
        let numbers = variant.multiplies.as_deref().unwrap_or("f32");
        // Every calibration has ranges of its own.
        let graph = unet.files.get(Key::PLAIN);
        Some(match (variant.ranges.as_deref(), graph) {
            (None, _) => numbers.to_owned(),
            (Some(ranges @ "runs"), Some(graph)) => {
                let hash: String = graph.sha256.chars().take(10).collect();
                format!("{numbers} {ranges} [{hash}]")
            }
            (Some(ranges), _) => format!("{numbers} {ranges}"),
        })
    }

    /// As [`super::ModelDir::weights_hash`].
    pub(super) fn weights_hash(self) -> Option<String> {
        let components = &self.manifest?.components;
        let weights = components.iter().filter_map(|(name, component)| {
            let file = component.files.get(manifest::DATA_FILE)?;
            Some(format!("{name} {}\n", file.sha256))
        });
        let digest = Sha256::digest(weights.collect::<String>());
        Some(manifest::hex(&digest[..5]))
    }
}
