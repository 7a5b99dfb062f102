//! The keys of an adapter file: which module each is for, and what part of it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::names::without_processor;
use super::peft::ModuleConfig;
use super::{FORMATS, Format, LoraError, SHARED, Target};
use crate::checkpoint::{Dtype, TensorSource, count_non_finite, to_f32};

/// The tensors of one module, by what they are to it.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) module: String,
    pub(super) format: &'static Format,
    parts: BTreeMap<&'static str, String>,
    /// What the file's configuration says of it.
    pub(super) config: Option<ModuleConfig>,
    /// How many components of the rank are wanted, if not all.
    pub(super) rank: Option<usize>,
}

/// Splits a file's keys into modules. The second part are modules of which there is only an alpha, which are harmless.
pub(super) fn group<'a>(
    keys: impl Iterator<Item = &'a String>,
) -> Result<(Vec<Group>, Vec<String>), LoraError> {
    let mut modules: BTreeMap<String, BTreeMap<&'static str, String>> = BTreeMap::new();
    for key in keys {
        let (module, role) = split(key).ok_or_else(|| LoraError::UnknownPart(key.clone()))?;
        let parts = modules.entry(module).or_default();
        if let Some(first) = parts.insert(role, key.clone()) {
            return Err(LoraError::Duplicate {
                first,
                second: key.clone(),
            });
        }
    }
    let (mut groups, mut orphans) = (Vec::new(), Vec::new());
    for (module, parts) in modules {
        let shared = |role: &str| SHARED.iter().any(|(_, shared)| *shared == role);
        let own: Vec<&str> = parts.keys().copied().filter(|role| !shared(role)).collect();
        if own.is_empty() {
            orphans.push(module);
            continue;
        }
        let knows =
            |format: &Format, role: &str| format.parts.iter().any(|(_, known)| *known == role);
        let format = FORMATS
            .into_iter()
            .find(|format| own.iter().all(|role| knows(format, role)));
        let Some(format) = format else {
            let keys: Vec<String> = parts.values().map(|key| format!("`{key}`")).collect();
            return Err(LoraError::MixedParts {
                module,
                parts: keys.join(", "),
            });
        };
        groups.push(Group {
            module,
            format,
            parts,
            config: None,
            rank: None,
        });
    }
    Ok((groups, orphans))
}

/// Module and role of a key, by the longest suffix that ends it.
pub(super) fn split(key: &str) -> Option<(String, &'static str)> {
    let key = without_adapter_name(key);
    let suffixes = FORMATS.iter().flat_map(|f| f.parts).chain(SHARED);
    let (module, role) = suffixes
        .filter_map(|(suffix, role)| Some((key.strip_suffix(suffix)?, *role)))
        .min_by_key(|(module, _)| module.len())?;
    Some((without_processor(module), role))
}

/// PEFT may put an adapter's name into keys: `q.lora_A.NAME.weight`.
fn without_adapter_name(key: &str) -> String {
    const NAMED: [&str; 3] = [".lora_A.", ".lora_B.", ".lora_magnitude_vector."];
    for part in NAMED {
        let Some((module, rest)) = key.split_once(part) else {
            continue;
        };
        let last = rest.rsplit('.').next().unwrap_or(rest);
        let (name, last) = match last {
            "weight" | "bias" => (rest.strip_suffix(last).unwrap_or(rest), last),
            // `lora_magnitude_vector.NAME`
            _ => (rest, "weight"),
        };
        if !name.is_empty() && !name.trim_end_matches('.').contains('.') {
            return format!("{module}{part}{last}");
        }
    }
    key.to_owned()
}

/// A module's tensors, with their file.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) group: &'a Group,
    pub(super) source: &'a dyn TensorSource,
}

impl<'a> Parts<'a> {
    pub(super) fn has(&self, role: &str) -> bool {
        self.group.parts.contains_key(role)
    }

    /// Key of a part.
    pub(super) fn key(&self, role: &str) -> Option<&'a str> {
        self.group.parts.get(role).map(String::as_str)
    }

    /// Key of some part, for messages.
    pub(super) fn first_key(&self) -> &'a str {
        let first = self.group.parts.values().next();
        first.map_or("", String::as_str)
    }

    /// Shape of a part.
    pub(super) fn shape(&self, role: &str) -> Option<&'a [usize]> {
        let key = self.group.parts.get(role)?;
        Some(&self.source.tensors()[key].shape)
    }

    /// Shape of a part that must be there.
    pub(super) fn need(&self, role: &'static str) -> Result<&'a [usize], LoraError> {
        self.shape(role).ok_or_else(|| LoraError::Incomplete {
            module: self.group.module.clone(),
            part: role,
        })
    }

    /// A part's numbers in single precision, in the order in which they lie.
    pub(super) fn singles(&self, role: &'static str) -> Result<Vec<f32>, LoraError> {
        let (dtype, bytes) = self.finite(role)?;
        if !dtype.is_float() {
            return Ok(self.values(role)?.iter().map(|x| *x as f32).collect());
        }
        to_f32(dtype, &bytes).map_err(|problem| self.damaged(role, problem))
    }

    /// A part's numbers, in the order in which they lie.
    pub(super) fn values(&self, role: &'static str) -> Result<Vec<f64>, LoraError> {
        let (dtype, bytes) = self.finite(role)?;
        self.decoded(role, dtype, &bytes)
    }

    /// Numbers of any type, which may be infinite or NaN.
    fn decoded(&self, role: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f64>, LoraError> {
        let whole =
            |f: &dyn Fn(&[u8]) -> f64, size: usize| bytes.chunks_exact(size).map(f).collect();
        Ok(match dtype {
            // Some trainers save alpha and indices as whole numbers.
            Dtype::I64 => whole(
                &|b| i64::from_le_bytes(b.try_into().expect("8 bytes")) as f64,
                8,
            ),
            Dtype::I32 => whole(
                &|b| i32::from_le_bytes(b.try_into().expect("4 bytes")).into(),
                4,
            ),
            Dtype::I16 => whole(
                &|b| i16::from_le_bytes(b.try_into().expect("2 bytes")).into(),
                2,
            ),
            Dtype::U8 | Dtype::Bool => whole(&|b| b[0].into(), 1),
            _ => {
                let singles = to_f32(dtype, bytes);
                let singles = singles.map_err(|problem| self.damaged(role, problem))?;
                singles.into_iter().map(f64::from).collect()
            }
        })
    }

    /// A part as it is in the file, if all of it is finite.
    fn finite(&self, role: &'static str) -> Result<(Dtype, Cow<'a, [u8]>), LoraError> {
        let (dtype, bytes) = self.stored(role)?;
        if count_non_finite(dtype, &bytes) > 0 {
            let problem = "it has values that are NaN or infinite";
            return Err(self.damaged(role, problem.to_owned()));
        }
        Ok((dtype, bytes))
    }

    fn damaged(&self, role: &str, problem: String) -> LoraError {
        LoraError::Tensor {
            key: self.group.parts[role].clone(),
            problem,
        }
    }

    /// A part as it is in the file.
    fn stored(&self, role: &'static str) -> Result<(Dtype, Cow<'a, [u8]>), LoraError> {
        self.need(role)?;
        let key = &self.group.parts[role];
        let bytes = self.source.bytes(key);
        let bytes = bytes.map_err(|e| self.damaged(role, e.to_string()))?;
        Ok((self.source.tensors()[key].dtype, bytes))
    }

    /// A part that is one number, which must be finite.
    pub(super) fn number(&self, role: &'static str) -> Result<Option<f64>, LoraError> {
        if self.has(role) {
            self.finite(role)?;
        }
        self.any_number(role)
    }

    /// A part that is one number, or infinite, or NaN.
    fn any_number(&self, role: &'static str) -> Result<Option<f64>, LoraError> {
        let Some(shape) = self.shape(role) else {
            return Ok(None);
        };
        if shape.iter().product::<usize>() != 1 {
            let problem = format!("its shape is {shape:?}; one number expected");
            return Err(self.damaged(role, problem));
        }
        let (dtype, bytes) = self.stored(role)?;
        Ok(Some(self.decoded(role, dtype, &bytes)?[0]))
    }

    /// `alpha`, if there is one. Zero stands for "not set", as in the trainers' constructors.
    pub(super) fn alpha(&self) -> Result<Option<f64>, LoraError> {
        match self.any_number("alpha")? {
            Some(alpha) if alpha < 0.0 || !alpha.is_finite() => Err(LoraError::BadAlpha {
                module: self.group.module.clone(),
                alpha,
            }),
            alpha => Ok(alpha.filter(|alpha| *alpha != 0.0)),
        }
    }

    /// What the product of factors of this rank is multiplied by: `scale` if it is there, else what the file's
    /// configuration says, else `alpha / rank`, else 1.
    pub(super) fn scale(&self, rank: usize) -> Result<f64, LoraError> {
        if let Some(scale) = self.number("scale")? {
            return Ok(scale);
        }
        match (self.alpha()?, &self.group.config) {
            (Some(alpha), _) => Ok(alpha / rank as f64),
            (None, Some(config)) => Ok(config.of_rank(rank)),
            (None, None) => Ok(1.0),
        }
    }

    /// Shapes of the parts, for messages.
    pub(super) fn shapes(&self) -> String {
        let parts = self.group.parts.keys().filter(|role| **role != "alpha");
        let told = parts.map(|role| format!("{role} {:?}", self.shape(role).unwrap_or_default()));
        told.collect::<Vec<_>>().join(", ")
    }

    /// The parts do not fit their target.
    pub(super) fn misfit(&self, target: &Target<'_>) -> LoraError {
        LoraError::Shape {
            module: self.group.module.clone(),
            found: self.shapes(),
            target: target.shape.to_vec(),
        }
    }

    /// The parts do not fit each other.
    pub(super) fn mismatch(&self) -> LoraError {
        LoraError::Rank {
            module: self.group.module.clone(),
            found: self.shapes(),
        }
    }

    /// Something else is wrong with the module.
    pub(super) fn problem(&self, problem: &'static str) -> LoraError {
        LoraError::Module {
            module: self.group.module.clone(),
            problem,
        }
    }

    /// Roles and bytes, which decide in which order modules are added, and whether two are the same.
    pub(super) fn content(&self) -> impl Iterator<Item = (&'static str, Cow<'a, [u8]>)> + use<'a> {
        let source = self.source;
        let parts = self.group.parts.iter();
        parts.map(move |(role, key)| (*role, source.bytes(key).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_suffix_decides() {
        let split = |key| split(key).map(|(module, role)| format!("{module} {role}"));
        let cases = [
            ("a.lora_up.weight", "a up"),
            ("a.lora_A.weight", "a down"),
            ("a.lora_A.default.weight", "a down"),
            ("a.lora_B.my_style.weight", "a up"),
            ("a.lora_B.bias", "a up bias"),
            ("a.lora_B.default.bias", "a up bias"),
            ("a.lora_A", "a down"),
            ("a.lora_magnitude_vector.default.weight", "a magnitude"),
            ("a.lora_magnitude_vector.default", "a magnitude"),
            ("a.lora_magnitude_vector", "a magnitude"),
            ("a.processor.to_q_lora.up.weight", "a.to_q up"),
            ("a.to_q.lora.down.weight", "a.to_q down"),
            ("a.q_proj.lora_linear_layer.up.weight", "a.q_proj up"),
            ("a.dora_scale", "a dora_scale"),
            ("a.hada_t1", "a hada_t1"),
            ("a.diff_b", "a diff_b"),
        ];
        for (key, expected) in cases {
            assert_eq!(split(key).as_deref(), Some(expected), "{key}");
        }
        assert_eq!(split("a.weights"), None);
    }
}
