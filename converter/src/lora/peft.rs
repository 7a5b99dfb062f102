//! Scales of adapters that PEFT or diffusers wrote: their tensors have no alpha, which stands in `adapter_config.json` beside
//! the file, or in the file's metadata (`lora_adapter_metadata`, JSON whose keys begin with the component).
//! `alpha / rank`, or `alpha / sqrt(rank)` for rank-stabilized LoRA (Kalajdzievski 2023, arXiv:2312.03732).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use regex::{RegexSet, escape};
use serde_json::{Map, Value};

use super::group::Parts;
use super::{LoraError, dora, ia3, locon, loha, lokr, oft};
use crate::checkpoint::TensorSource;

/// Name of PEFT's files without their ending, and of the configuration beside them.
pub(super) const MODEL: &str = "adapter_model";
const CONFIG: &str = "adapter_config.json";

/// Entry of a file's metadata.
const METADATA: &str = "lora_adapter_metadata";

/// What PEFT calls kinds of adapters, and what we call them.
const KINDS: [(&str, &str); 5] = [
    ("LORA", locon::FORMAT.name),
    ("LOHA", loha::FORMAT.name),
    ("LOKR", lokr::FORMAT.name),
    ("IA3", ia3::FORMAT.name),
    ("OFT", oft::FORMAT.name),
];

/// Largest configuration that is read.
const MAX_BYTES: u64 = 1 << 20;

/// What a configuration says of a module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ModuleConfig {
    alpha: Option<f64>,
    /// The rank it was trained with, if that is told.
    rank: Option<f64>,
    stabilized: bool,
    /// Kind of adapter, by PEFT's name and ours, if it is one of [`KINDS`].
    kind: Option<(&'static str, &'static str)>,
    /// Whether it has magnitudes (DoRA).
    magnitudes: bool,
    /// Of (IA)^3: whether it stretches inputs.
    pub(super) feedforward: bool,
}

impl ModuleConfig {
    /// The scale of a product of this rank.
    pub(super) fn of_rank(&self, rank: usize) -> f64 {
        self.scale(rank as f64)
    }

    /// The scale of a module whose tensors do not show a rank.
    pub(super) fn of_configured_rank(&self) -> f64 {
        self.rank.map_or(1.0, |rank| self.scale(rank))
    }

    fn scale(&self, rank: f64) -> f64 {
        let rank = if self.stabilized { rank.sqrt() } else { rank };
        self.alpha.map_or(1.0, |alpha| alpha / rank)
    }
}

/// A configuration, by component; `""` is for all.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// Where it stands.
    place: String,
    components: BTreeMap<String, ComponentConfig>,
}

#[derive(Clone, Debug)]
struct ComponentConfig {
    alpha: Option<f64>,
    rank: Option<f64>,
    stabilized: bool,
    kind: Option<(&'static str, &'static str)>,
    magnitudes: bool,
    alphas: Patterns,
    ranks: Patterns,
    feedforward: RegexSet,
}

/// Values of the modules that match; the first pattern counts.
#[derive(Clone, Debug)]
struct Patterns {
    patterns: RegexSet,
    values: Vec<f64>,
}

impl Config {
    /// The configuration of a file, if it has one.
    pub(super) fn of(source: &dyn TensorSource) -> Result<Option<Self>, LoraError> {
        let (place, text) = match source.metadata().get(METADATA) {
            Some(text) => (format!("metadata `{METADATA}`"), text.clone()),
            None => match beside(source.path())? {
                Some(text) => (CONFIG.to_owned(), text),
                None => return Ok(None),
            },
        };
        match Self::parse(&text) {
            Ok(components) => Ok(Some(Self { place, components })),
            Err(problem) => Err(LoraError::Config { place, problem }),
        }
    }

    fn parse(text: &str) -> Result<BTreeMap<String, ComponentConfig>, String> {
        let fields: Map<String, Value> = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let mut components: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
        for (key, value) in fields {
            let (component, name) = key.rsplit_once('.').unwrap_or(("", &key));
            let component = components.entry(component.to_owned()).or_default();
            component.insert(name.to_owned(), value);
        }
        let components = components.into_iter();
        let parsed = components.map(|(name, fields)| Ok((name, ComponentConfig::parse(&fields)?)));
        parsed.collect()
    }

    /// What it says of a module, named as in the file.
    pub(super) fn module(&self, module: &str) -> Option<ModuleConfig> {
        let component = module.split('.').next().unwrap_or_default();
        let components = &self.components;
        let config = components.get(component).or_else(|| components.get(""))?;
        Some(ModuleConfig {
            alpha: config.alphas.value(module).or(config.alpha),
            rank: config.ranks.value(module).or(config.rank),
            stabilized: config.stabilized,
            kind: config.kind,
            magnitudes: config.magnitudes,
            feedforward: config.feedforward.is_match(module),
        })
    }

    /// Checks that a module's tensors are what the configuration says: with other ones, its scale is for something else.
    ///
    /// # Errors
    /// They are not.
    pub(super) fn check(&self, parts: &Parts<'_>) -> Result<(), LoraError> {
        let format = parts.group.format.name;
        let Some(config) = parts.group.config else {
            return Ok(());
        };
        let contradicts = |says: String, found: String| {
            Err(LoraError::Contradiction {
                place: self.place.clone(),
                says,
                found,
            })
        };
        if let Some((said, kind)) = config.kind
            && kind != format
            && KINDS.iter().any(|(_, known)| *known == format)
        {
            let key = parts.first_key();
            return contradicts(
                format!("its peft_type is {said}"),
                format!("`{key}` is of a {format}"),
            );
        }
        let (Some(key), Some(&[rank, ..])) = (parts.key("down"), parts.shape("down")) else {
            return Ok(());
        };
        match config.rank {
            Some(said) if said != rank as f64 => contradicts(
                format!("it says rank {said}"),
                format!("`{key}` has rank {rank}"),
            ),
            _ if config.magnitudes && !dora::has_magnitude(parts) => contradicts(
                "it says use_dora".to_owned(),
                format!("there is no magnitude beside `{key}`"),
            ),
            _ => Ok(()),
        }
    }
}

impl ComponentConfig {
    fn parse(fields: &Map<String, Value>) -> Result<Self, String> {
        let is_set = |name: &str| fields.get(name) == Some(&Value::Bool(true));
        if is_set("fan_in_fan_out") {
            return Err("fan_in_fan_out is not supported".to_owned());
        }
        let number = |name: &str| fields.get(name).and_then(Value::as_f64);
        let set = |patterns: Vec<String>| RegexSet::new(patterns).map_err(|e| e.to_string());
        let patterns = |name: &str| {
            let table = fields.get(name).and_then(Value::as_object);
            let entries = table.into_iter().flatten();
            let (keys, values) = entries
                .filter_map(|(key, value)| Some((format!("^(.*\\.)?({key})$"), value.as_f64()?)))
                .unzip();
            let patterns = set(keys)?;
            Ok::<_, String>(Patterns { patterns, values })
        };
        let feedforward = match fields.get("feedforward_modules") {
            Some(Value::String(pattern)) => vec![format!("^({pattern})$")],
            Some(Value::Array(ends)) => {
                let ends = ends.iter().filter_map(Value::as_str);
                ends.map(|end| format!("{}$", escape(end))).collect()
            }
            _ => Vec::new(),
        };
        Ok(Self {
            alpha: number("lora_alpha").or_else(|| number("alpha")),
            rank: number("r"),
            stabilized: is_set("use_rslora"),
            kind: KINDS
                .into_iter()
                .find(|(said, _)| fields.get("peft_type").and_then(Value::as_str) == Some(said)),
            magnitudes: is_set("use_dora"),
            alphas: patterns("alpha_pattern")?,
            ranks: patterns("rank_pattern")?,
            feedforward: set(feedforward)?,
        })
    }
}

impl Patterns {
    fn value(&self, module: &str) -> Option<f64> {
        let first = self.patterns.matches(module).iter().next()?;
        Some(self.values[first])
    }
}

/// The configuration beside a file of PEFT's.
fn beside(file: &Path) -> Result<Option<String>, LoraError> {
    let path = file.with_file_name(CONFIG);
    let is_model = file.file_stem().is_some_and(|stem| stem == MODEL);
    if !is_model || !path.is_file() {
        return Ok(None);
    }
    let failed = |problem: String| LoraError::Config {
        place: path.display().to_string(),
        problem,
    };
    let size = fs::metadata(&path)
        .map_err(|e| failed(e.to_string()))?
        .len();
    if size > MAX_BYTES {
        return Err(failed(format!(
            "it has {size} bytes; at most {MAX_BYTES} expected"
        )));
    }
    let text = fs::read_to_string(&path).map_err(|e| failed(e.to_string()))?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config {
            place: CONFIG.to_owned(),
            components: Config::parse(text).unwrap(),
        }
    }

    #[test]
    fn patterns_are_regular_expressions_for_ends_of_names() {
        let config = config(
            r#"{"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn[12].to_q": 1, "to_q": 2},
                "unet.use_rslora": false, "text_encoder.r": 4, "text_encoder.lora_alpha": 6, "text_encoder.use_rslora": true}"#,
        );
        let scale = |module: &str| config.module(module).unwrap().of_rank(4);
        assert_eq!(scale("unet.mid.attn1.to_k"), 2.0);
        assert_eq!(scale("unet.mid.attn3.to_q"), 0.5);
        assert_eq!(scale("unet.mid.attn2.to_q"), 0.25);
        assert_eq!(scale("unet.mid.not_to_q"), 2.0);
        assert_eq!(scale("text_encoder.layers.0.q_proj"), 3.0);
        assert_eq!(config.module("vae.x"), None);
    }

    #[test]
    fn a_configuration_without_components_is_for_all() {
        let config = config(
            r#"{"r": 8, "alpha": 4, "rank_pattern": {"x": 2}, "use_rslora": null, "feedforward_modules": ["ff.net"]}"#,
        );
        let module = |module: &str| config.module(module).unwrap();
        assert_eq!(module("base_model.model.x").of_configured_rank(), 2.0);
        assert_eq!(module("base_model.model.y").of_configured_rank(), 0.5);
        assert!(module("a.ff.net").feedforward && !module("a.ff").feedforward);
    }

    #[test]
    fn what_cannot_be_used_is_an_error() {
        for text in [
            "[]",
            "{",
            r#"{"fan_in_fan_out": true}"#,
            r#"{"alpha_pattern": {"(": 1}}"#,
        ] {
            assert!(Config::parse(text).is_err(), "{text}");
        }
    }
}
