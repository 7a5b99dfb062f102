//! Which of a network's graphs is run, and in which numbers.

use std::str::FromStr;

use sd_kernels::Isa;
use sd_models::graph::custom;
use sd_models::manifest::{Component, Variant};
use serde::{Deserialize, Serialize};

use super::openvino::lacks_bf16;
use super::{EngineError, Ep, Key};

/// A kind of graph over the same weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// Native where that runs, else portable.
    #[default]
    Auto,
    /// Operators of ONNX, which every provider has.
    Portable,
    /// Operators of our own, for this machine's processor.
    Native,
}

/// The numbers that products of float layers are computed in. Sums are in single precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// Single precision.
    #[default]
    F32,
    /// Truncated single precision, which some processors multiply twice as fast (3 x 3 convolutions in whole numbers). The UNet's
    /// error is about 1 %.
    Bf16,
    /// Whole 16-bit numbers, scaled row by row, which most processors multiply faster. The UNet's error is about 0.1 %.
    I16,
    /// Whole 8-bit numbers in linear layers, the rest as [`Compute::I16`]. The UNet's error is about 3 %.
    I8,
    /// The fastest that the processor and the model directory have.
    Auto,
}

/// A name that means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is none of {known}")]
pub struct UnknownName {
    name: String,
    known: &'static str,
}

impl FromStr for Dialect {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Ok(match name {
            "auto" => Self::Auto,
            "portable" => Self::Portable,
            "native" => Self::Native,
            _ => {
                return Err(UnknownName {
                    name: name.to_owned(),
                    known: "portable, native, auto",
                });
            }
        })
    }
}

impl Dialect {
    /// The name in options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Portable => "portable",
            Self::Native => "native",
        }
    }
}

impl FromStr for Compute {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Ok(match name {
            "f32" => Self::F32,
            "bf16" => Self::Bf16,
            "i16" => Self::I16,
            "i8" => Self::I8,
            "auto" => Self::Auto,
            _ => {
                return Err(UnknownName {
                    name: name.to_owned(),
                    known: "f32, bf16, i16, i8, auto",
                });
            }
        })
    }
}

impl Compute {
    /// The name in options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::I16 => "i16",
            Self::I8 => "i8",
            Self::Auto => "auto",
        }
    }

    /// What is computed in on a processor; none where it lacks the instructions.
    #[must_use]
    pub fn on(self, isa: Isa) -> Option<sd_kernels::Compute> {
        let bf16 = isa.multiplies_bf16().then_some(sd_kernels::Compute::Bf16);
        let int16 = isa.multiplies_int16().then_some(sd_kernels::Compute::Int16);
        let int8 = isa.multiplies_int8().then_some(sd_kernels::Compute::Int8);
        match self {
            Self::F32 => Some(sd_kernels::Compute::F32),
            Self::Bf16 => bf16,
            Self::I16 => int16,
            Self::I8 => int8,
            // As fast as bf16 where both are, and more exact.
            Self::Auto => int16.or(Some(sd_kernels::Compute::F32)),
        }
    }

    /// What a processor lacks that does not compute in it.
    #[must_use]
    pub fn needs(self) -> &'static str {
        match self {
            Self::Bf16 => {
                "this processor does not multiply bf16 numbers (AVX512-BF16), or shall not; auto takes what it has"
            }
            Self::I16 => {
                "whole numbers are no faster than f32 with these instructions (that takes AVX2, AVX-VNNI or AVX512-VNNI); auto takes f32"
            }
            Self::I8 => {
                "this processor does not multiply 8-bit numbers (AVX-VNNI or AVX512-VNNI), or shall not; auto takes what it has"
            }
            Self::F32 | Self::Auto => "nothing",
        }
    }

    /// Whether only native graphs compute in it.
    #[must_use]
    pub fn is_native(self) -> bool {
        matches!(self, Self::Bf16 | Self::I16 | Self::I8)
    }
}

/// The graph that was chosen, and why if it is not the one that this program prefers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// File name of the graph.
    pub file: &'static str,
    /// Why the native graph was not taken although nobody asked for the portable one.
    pub reason: Option<&'static str>,
}

impl Chosen {
    /// Whether its operators are our own.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.file == NATIVE
    }

    /// The name of its dialect.
    #[must_use]
    pub fn dialect(&self) -> &'static str {
        if self.is_native() {
            "native"
        } else {
            "portable"
        }
    }
}

/// File name of the graph of our own operators.
const NATIVE: &str = "native.onnx";

/// Chooses a component's graph. `recorded` is what the manifest says of the component, if there is one.
///
/// # Errors
/// The native graph was asked for, or numbers that only it can compute in, and it cannot be run here.
pub fn choose(
    ep: Ep,
    recorded: Option<&Component>,
    dialect: Dialect,
    compute: Compute,
) -> Result<Chosen, EngineError> {
    let portable = |reason| Chosen {
        file: Key::PLAIN,
        reason,
    };
    if ep == Ep::OpenVino && compute == Compute::Bf16 && dialect != Dialect::Native {
        return match lacks_bf16() {
            true => Err(EngineError::NoSuchNumbers(compute.needs())),
            false => Ok(portable(None)),
        };
    }
    let isa = Isa::detect();
    let reason = match obstacle(ep, isa, recorded) {
        _ if dialect == Dialect::Portable => "the portable graph was asked for",
        None => {
            return Ok(Chosen {
                file: NATIVE,
                reason: None,
            });
        }
        Some(reason) => reason,
    };
    match dialect {
        Dialect::Native => Err(EngineError::NoNativeGraph { reason }),
        _ if compute.is_native() => Err(EngineError::NoNativeGraph { reason }),
        Dialect::Portable => Ok(portable(None)),
        // Other providers have kernels of their own.
        Dialect::Auto => Ok(portable(recorded.filter(|_| ep == Ep::Cpu).map(|_| reason))),
    }
}

/// What keeps a native graph from being run.
fn obstacle(ep: Ep, isa: Isa, recorded: Option<&Component>) -> Option<&'static str> {
    let variant = recorded.and_then(|component| component.variants.get(NATIVE));
    let Some(variant) = variant else {
        return Some(
            "the model directory has none: it was converted by another program or an older version",
        );
    };
    let known = |domain: &String| custom::is_known(domain);
    let needed = variant
        .needs
        .iter()
        .map(|name| recorded?.variants.get(name));
    let all = std::iter::once(Some(variant)).chain(needed);
    let runs =
        |variant: Option<&Variant>| variant.is_some_and(|v| v.custom_domains.iter().all(known));
    if !all.into_iter().all(runs) {
        return Some("the model directory's has operators of another version of this program");
    }
    if ep != Ep::Cpu {
        return Some("its operators run on processors only, not on this provider");
    }
    if isa < Isa::Avx2 {
        return Some(
            "this processor lacks the instructions that make it fast (AVX2, FMA and F16C), or they shall not be used",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sd_models::manifest::Variant;

    use super::*;

    fn component(domain: Option<&str>) -> Component {
        let native = domain.map(|domain| Variant {
            opset: 17,
            custom_domains: vec![domain.to_owned()],
            ..Variant::default()
        });
        let native = native.map(|variant| (NATIVE.to_owned(), variant));
        Component {
            precision: "F32".to_owned(),
            storage: vec!["F16".to_owned()],
            variants: native.into_iter().collect(),
            files: BTreeMap::new(),
        }
    }

    #[test]
    fn a_native_graph_needs_its_operators_a_processor_and_the_cpu() {
        let isa = Isa::Avx2;
        let ours = component(Some(&custom::requirement(*custom::VERSIONS.end())));
        assert_eq!(obstacle(Ep::Cpu, isa, Some(&ours)), None);
        let why = |ep, isa, recorded| obstacle(ep, isa, recorded).unwrap_or_default();
        assert!(why(Ep::Cuda, isa, Some(&ours)).contains("provider"));
        assert!(why(Ep::Cpu, Isa::Scalar, Some(&ours)).contains("AVX2"));
        let future = component(Some("sdrt:9999"));
        assert!(why(Ep::Cpu, isa, Some(&future)).contains("another version"));
        let older = component(None);
        assert!(why(Ep::Cpu, isa, Some(&older)).contains("older"));
        assert!(why(Ep::Cpu, isa, None).contains("another program"));
    }

    #[test]
    fn other_providers_run_portable_graphs_without_a_word_and_openvino_in_bf16_too() {
        let ours = component(Some(&custom::requirement(*custom::VERSIONS.end())));
        let choose = |ep, dialect, compute| choose(ep, Some(&ours), dialect, compute);
        let chosen = choose(Ep::OpenVino, Dialect::Auto, Compute::F32).unwrap();
        assert_eq!((chosen.dialect(), chosen.reason), ("portable", None));
        assert!(choose(Ep::OpenVino, Dialect::Native, Compute::F32).is_err());
        assert!(choose(Ep::OpenVino, Dialect::Auto, Compute::I16).is_err());
        let bf16 = choose(Ep::OpenVino, Dialect::Auto, Compute::Bf16);
        assert_eq!(bf16.is_ok(), !lacks_bf16());
        assert!(choose(Ep::Cuda, Dialect::Auto, Compute::Bf16).is_err());
    }

    #[test]
    fn what_cannot_be_run_falls_to_the_portable_graph_unless_it_was_asked_for() {
        let future = component(Some("sdrt:9999"));
        let choose = |dialect, compute| choose(Ep::Cpu, Some(&future), dialect, compute);
        let fallen = choose(Dialect::Auto, Compute::F32).unwrap();
        assert_eq!(fallen.dialect(), "portable");
        assert!(fallen.reason.unwrap().contains("another version"));
        let asked = choose(Dialect::Portable, Compute::F32).unwrap();
        assert_eq!((asked.dialect(), asked.reason), ("portable", None));
        assert!(choose(Dialect::Native, Compute::F32).is_err());
        assert!(choose(Dialect::Auto, Compute::Bf16).is_err());
        assert!(choose(Dialect::Portable, Compute::Bf16).is_err());
        assert!(choose(Dialect::Auto, Compute::I16).is_err());
    }
}
