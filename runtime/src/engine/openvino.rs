//! Options of the OpenVINO provider: what may be asked for, and what the provider is then given.
//!
//! The provider's own `precision` fixes a processor's arithmetic to single precision, and its `num_of_threads` makes as many
//! requests as threads. So both go into `load_config`, OpenVINO's own properties, which are applied last.

use std::path::{Path, PathBuf};

use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProviderDispatch};
use sd_kernels::{Compute, Isa};
use serde_json::{Map, Value, json};

use super::Compute as Wish;

/// An option as it is written, `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpOption {
    /// Before the first equals sign.
    pub key: String,
    /// Behind it.
    pub value: String,
}

impl std::str::FromStr for EpOption {
    type Err = EpOptionError;

    fn from_str(text: &str) -> Result<Self, EpOptionError> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(EpOptionError::Form(text.to_owned())),
        }
    }
}

/// An option that is none, or has no such value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EpOptionError {
    /// It is not written as one.
    #[error("`{0}`: expected KEY=VALUE; {KNOWN}")]
    Form(String),
    /// The provider takes others, or none.
    #[error("`{key}`: the {ep} provider takes {known}; the options of openvino are: {KNOWN}")]
    NotTaken {
        /// The option.
        key: String,
        /// The provider.
        ep: super::Ep,
        /// What it takes.
        known: &'static str,
    },
    /// Nobody knows it.
    #[error("there is no option `{0}`; there are: {KNOWN}")]
    Unknown(String),
    /// It is there twice.
    #[error("`{0}` is given twice")]
    Twice(String),
    /// Its value means nothing.
    #[error("`{key}={value}`: expected {expected}")]
    Value {
        /// The option.
        key: &'static str,
        /// The value.
        value: String,
        /// What would be understood.
        expected: &'static str,
    },
    /// It says something else than another setting.
    #[error("`precision={0}` and {1} as the numbers to compute in contradict each other")]
    Contradiction(&'static str, &'static str),
}

/// Every option, for people.
const KNOWN: &str = "precision=fp32|bf16|fp16|accuracy, device_type=CPU|GPU|GPU.N|NPU|AUTO:..|HETERO:.., num_of_threads=N, \
     num_streams=N, cache_dir=DIR, load_config=JSON|FILE";

/// Numbers that a device computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Precision {
    Fp32,
    Bf16,
    /// Graphics cards.
    Fp16,
    /// What the model was made in.
    Accuracy,
}

impl Precision {
    fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
            Self::Accuracy => "accuracy",
        }
    }
}

/// The provider's options, read and checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OpenVino {
    precision: Option<Precision>,
    /// Missing: the processor.
    device: Option<String>,
    threads: Option<u32>,
    streams: Option<u32>,
    cache: Option<PathBuf>,
    /// Properties by device, which win over the others.
    config: Map<String, Value>,
}

impl OpenVino {
    /// Reads options.
    ///
    /// # Errors
    /// An unknown option, one that is there twice, or a value that means nothing.
    ///
    /// ```
    /// use sd_runtime::engine::OpenVino;
    ///
    /// assert!(OpenVino::read(&["precision=bf16".parse()?]).is_ok());
    /// let error = OpenVino::read(&["speed=high".parse()?]).unwrap_err();
    /// assert!(error.to_string().contains("num_of_threads"));
    /// # Ok::<_, sd_runtime::engine::EpOptionError>(())
    /// ```
    pub fn read(options: &[EpOption]) -> Result<Self, EpOptionError> {
        let mut read = Self::default();
        for (i, EpOption { key, value }) in options.iter().enumerate() {
            if options[..i].iter().any(|other| other.key == *key) {
                return Err(EpOptionError::Twice(key.clone()));
            }
            let wrong = |key, expected| EpOptionError::Value {
                key,
                value: value.clone(),
                expected,
            };
            let number = |key| {
                let number = value.parse().ok().filter(|n| (1..=1024).contains(n));
                number.ok_or_else(|| wrong(key, "a number from 1 to 1024"))
            };
            match key.as_str() {
                "precision" => {
                    let expected = "fp32, bf16, fp16 or accuracy";
                    let precision = match value.to_lowercase().as_str() {
                        "fp32" | "f32" => Precision::Fp32,
                        "bf16" => Precision::Bf16,
                        "fp16" | "f16" => Precision::Fp16,
                        "accuracy" => Precision::Accuracy,
                        _ => return Err(wrong("precision", expected)),
                    };
                    read.precision = Some(precision);
                }
                "device_type" => {
                    let expected =
                        "CPU, GPU, GPU.0, NPU, or a list such as AUTO:GPU,CPU or HETERO:GPU,CPU";
                    let device = value.to_uppercase();
                    if !is_device(&device) {
                        return Err(wrong("device_type", expected));
                    }
                    read.device = Some(device).filter(|device| device != "CPU");
                }
                "num_of_threads" => read.threads = Some(number("num_of_threads")?),
                "num_streams" => read.streams = Some(number("num_streams")?),
                "cache_dir" => read.cache = Some(value.into()),
                "load_config" => {
                    let expected =
                        "JSON such as {\"CPU\":{\"NUM_STREAMS\":\"1\"}}, or a file with it";
                    let text = match value.trim_start().starts_with('{') {
                        true => Some(value.clone()),
                        false => std::fs::read_to_string(value).ok(),
                    };
                    let json = text.and_then(|text| serde_json::from_str(&text).ok());
                    let config: Option<Map<String, Value>> = json;
                    let config = config.filter(|devices| devices.values().all(Value::is_object));
                    read.config = config.ok_or_else(|| wrong("load_config", expected))?;
                }
                _ => return Err(EpOptionError::Unknown(key.clone())),
            }
        }
        read.check()?;
        Ok(read)
    }

    fn check(&self) -> Result<(), EpOptionError> {
        let wrong = |precision: Precision, expected| EpOptionError::Value {
            key: "precision",
            value: precision.name().to_owned(),
            expected,
        };
        match (self.precision, &self.device) {
            (Some(precision @ Precision::Fp16), None) => Err(wrong(
                precision,
                "fp32 or bf16, since processors do not compute in fp16",
            )),
            (Some(precision @ Precision::Bf16), Some(_)) => Err(wrong(
                precision,
                "fp32, fp16 or accuracy, since only processors compute in bf16",
            )),
            _ => Ok(()),
        }
    }

    /// What products are computed in where `wish` is asked for beside these options.
    ///
    /// # Errors
    /// They contradict each other.
    pub fn compute(&self, wish: Wish) -> Result<Wish, EpOptionError> {
        let contradiction =
            |precision: Precision, wish| Err(EpOptionError::Contradiction(precision.name(), wish));
        match (self.precision, wish) {
            (Some(Precision::Bf16), Wish::F32 | Wish::Auto | Wish::Bf16) => Ok(Wish::Bf16),
            (Some(precision), Wish::Bf16) => contradiction(precision, "bf16"),
            (_, wish) => Ok(wish),
        }
    }

    /// The provider with these options, for a network whose products are computed in `compute`, with so many threads.
    pub(super) fn dispatch(&self, compute: Compute, threads: usize) -> ExecutionProviderDispatch {
        let mut provider = ep::OpenVINO::default();
        for (key, value) in self.given(compute, threads) {
            provider = provider.with_arbitrary_config(key, value);
        }
        provider.build()
    }

    /// What the provider is given.
    fn given(&self, compute: Compute, threads: usize) -> Vec<(&'static str, String)> {
        let mut given = vec![(
            "device_type",
            self.device.clone().unwrap_or_else(|| "CPU".to_owned()),
        )];
        let mut config = self.config.clone();
        if self.device.is_none() {
            let threads = self.threads.map_or(threads, |threads| threads as usize);
            let cpu = config.entry("CPU").or_insert_with(|| json!({}));
            if let Value::Object(cpu) = cpu {
                let mut set = |key: &str, value: String| {
                    cpu.entry(key).or_insert(Value::String(value));
                };
                set("INFERENCE_NUM_THREADS", threads.to_string());
                // Else inputs of layers whose weights are whole numbers are rounded to 8 bits, too.
                set("DYNAMIC_QUANTIZATION_GROUP_SIZE", "0".to_owned());
                if compute == Compute::Bf16 {
                    set("INFERENCE_PRECISION_HINT", "bf16".to_owned());
                }
            }
        } else if let Some(threads) = self.threads {
            given.push(("num_of_threads", threads.to_string()));
        }
        match self.precision {
            Some(precision @ (Precision::Fp16 | Precision::Accuracy)) => {
                given.push(("precision", precision.name().to_uppercase()));
            }
            _ => given.push(("precision", "FP32".to_owned())),
        }
        if let Some(streams) = self.streams {
            given.push(("num_streams", streams.to_string()));
        }
        if let Some(cache) = &self.cache {
            given.push(("cache_dir", absolute(cache).display().to_string()));
        }
        if !config.is_empty() {
            given.push(("load_config", Value::Object(config).to_string()));
        }
        given
    }
}

/// What a processor lacks that does not compute in bf16: OpenVINO would take single precision and say nothing.
pub(super) fn lacks_bf16() -> bool {
    !Isa::detect().multiplies_bf16()
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Whether OpenVINO has such names of devices.
fn is_device(name: &str) -> bool {
    let one = |name: &str| {
        let (kind, number) = name.split_once('.').unwrap_or((name, "0"));
        matches!(kind, "CPU" | "GPU" | "NPU")
            && !number.is_empty()
            && number.bytes().all(|digit| digit.is_ascii_digit())
    };
    match name.split_once(':') {
        Some(("AUTO" | "HETERO" | "MULTI", list)) => list.split(',').all(one),
        Some(_) => false,
        None => one(name) || name == "AUTO",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[&str]) -> Result<OpenVino, EpOptionError> {
        let options: Result<Vec<EpOption>, _> = options.iter().map(|text| text.parse()).collect();
        OpenVino::read(&options?)
    }

    fn given(options: &[&str], compute: Compute) -> Vec<(&'static str, String)> {
        read(options).unwrap().given(compute, 2)
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        for (options, said) in [
            (&["speed=high"][..], "num_of_threads"),
            (&["precision"], "KEY=VALUE"),
            (&["cache_dir="], "KEY=VALUE"),
            (&["precision=fp8"], "bf16"),
            (&["precision=fp16"], "do not compute in fp16"),
            (&["precision=bf16", "device_type=GPU"], "only processors"),
            (&["device_type=TPU"], "HETERO"),
            (&["device_type=GPU."], "HETERO"),
            (&["num_of_threads=0"], "1 to 1024"),
            (&["num_streams=two"], "1 to 1024"),
            (&["load_config={\"CPU\":3}"], "JSON"),
            (&["load_config=no/such.json"], "JSON"),
            (&["precision=fp32", "precision=bf16"], "twice"),
        ] {
            let error = read(options).unwrap_err().to_string();
            assert!(error.contains(said), "{options:?}: {error}");
        }
    }

    #[test]
    fn a_processor_gets_threads_and_numbers_as_properties() {
        let config = |given: &[(&str, String)]| -> Value {
            let (_, text) = given.iter().find(|(key, _)| *key == "load_config").unwrap();
            serde_json::from_str(text).unwrap()
        };
        let plain = given(&[], Compute::F32);
        assert_eq!(
            config(&plain),
            json!({"CPU": {"INFERENCE_NUM_THREADS": "2", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}})
        );
        assert!(plain.contains(&("precision", "FP32".to_owned())));
        let own = r#"load_config={"CPU":{"INFERENCE_PRECISION_HINT":"f32","NUM_STREAMS":"1"}}"#;
        let more = given(&[own, "num_of_threads=7"], Compute::Bf16);
        let expected = json!({"CPU": {
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_NUM_THREADS": "7", "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1",
        }});
        assert_eq!(config(&more), expected);
    }

    #[test]
    fn other_devices_get_what_they_know() {
        let given = given(
            &[
                "device_type=gpu.1",
                "precision=fp16",
                "num_streams=3",
                "cache_dir=/x",
            ],
            Compute::F32,
        );
        let expected = [
            ("device_type", "GPU.1"),
            ("precision", "FP16"),
            ("num_streams", "3"),
            ("cache_dir", "/x"),
        ];
        assert_eq!(given, expected.map(|(key, value)| (key, value.to_owned())));
    }

    #[test]
    fn numbers_are_asked_for_in_two_ways_that_agree() {
        let compute = |options: &[&str], wish| read(options).unwrap().compute(wish);
        assert_eq!(compute(&["precision=bf16"], Wish::F32), Ok(Wish::Bf16));
        assert_eq!(compute(&[], Wish::Bf16), Ok(Wish::Bf16));
        assert_eq!(compute(&[], Wish::Auto), Ok(Wish::Auto));
        assert!(compute(&["precision=fp32"], Wish::Bf16).is_err());
    }
}
