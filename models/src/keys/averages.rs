//! Running averages (EMA) of a UNet as CompVis' training code saves them, beside the weights or alone: under the weights'
//! names without dots. Where a file has nothing else, which weight is meant shows by the structures that have names.

use std::collections::{BTreeMap, BTreeSet};

use super::ldm::UNetNames;
use crate::arch::unet;
use crate::presets::PRESETS;

/// Prefix of running averages.
pub(super) const PREFIX: &str = "model_ema.";

/// What the weights' names begin with, as averages have it.
const UNET: &str = "diffusion_model";

/// Names of a UNet's averages, behind the prefix, and canonical names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AverageNames(BTreeMap<String, String>);

impl AverageNames {
    /// The largest of the known structures of whose every weight a file has the average.
    pub(super) fn detect(names: &BTreeSet<&str>) -> Option<Self> {
        names.iter().find(|name| name.starts_with(PREFIX))?;
        // Narrow models have fewer shortcuts.
        let configs = PRESETS
            .iter()
            .flat_map(|p| [false, true].map(|tiny| p.unet(tiny)));
        let known = configs.filter_map(|cfg| {
            let ldm = UNetNames::of(&cfg);
            let params = unet(&cfg).ok()?.params.into_iter();
            let flat = params.map(|param| {
                let key = ldm.key_of(&param.name)?;
                Some((format!("{UNET}{}", key.replace('.', "")), param.name))
            });
            flat.collect::<Option<BTreeMap<_, _>>>()
        });
        let has = |name: &String| names.contains(format!("{PREFIX}{name}").as_str());
        known
            .filter(|flat| flat.keys().all(has))
            .max_by_key(BTreeMap::len)
            .map(Self)
    }

    pub(super) fn to_canonical(&self, key: &str) -> Option<String> {
        self.0.get(key).cloned()
    }

    pub(super) fn key_of(&self, name: &str) -> Option<String> {
        let found = self.0.iter().find(|(_, canonical)| *canonical == name);
        found.map(|(key, _)| key.clone())
    }
}
