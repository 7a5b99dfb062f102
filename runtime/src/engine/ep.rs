//! Execution providers: who computes a graph.

use std::fmt;
use std::str::FromStr;

use ort::ep::{
    self, ArbitrarilyConfigurableExecutionProvider, ExecutionProvider, ExecutionProviderDispatch,
};
use sd_kernels::Compute;

use super::library::Found;
use super::openvino::{EpOption, EpOptionError, OpenVino};
use super::{Compute as Wish, EngineError, setup};
use crate::Remedy;

/// An execution provider. Except for the CPU's, it must be in the library.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ep {
    /// ONNX Runtime's own kernels.
    #[default]
    Cpu,
    /// Intel's OpenVINO.
    OpenVino,
    /// NVIDIA cards.
    Cuda,
    /// NVIDIA cards, through `TensorRT`; what that does not take goes to CUDA.
    TensorRt,
    /// AMD cards, through MIGraphX.
    MiGraphX,
    /// AMD cards, through ROCm (libraries up to 1.22).
    Rocm,
    /// Cards of Windows, through `DirectML`.
    DirectMl,
    /// Apple's processors.
    CoreMl,
    /// Processors, through Google's XNNPACK.
    Xnnpack,
    /// Cards, through WebGPU.
    WebGpu,
    /// A library of its own, with the provider of anybody.
    Plugin,
}

/// What there is to know of a provider.
struct Row {
    ep: Ep,
    name: &'static str,
    /// Whether the loaded library was built with it.
    available: fn() -> ort::Result<bool>,
    /// Python's package with such a library, and what to know of it.
    package: &'static str,
    options: Options,
    /// The providers that a session registers, given options.
    dispatch: fn(&[EpOption]) -> Vec<ExecutionProviderDispatch>,
}

/// Which options a provider takes.
#[derive(Clone, Copy, PartialEq)]
enum Options {
    None,
    /// Those of [`OpenVino`].
    OpenVino,
    /// `device_id` alone.
    Device,
    /// Its own. It refuses what it does not know.
    Own,
}

/// In the order of lists.
const ROWS: [Row; 11] = [
    Row {
        ep: Ep::Cpu,
        name: "cpu",
        available: || Ok(true),
        package: "`onnxruntime`",
        options: Options::None,
        dispatch: |_| Vec::new(),
    },
    Row {
        ep: Ep::OpenVino,
        name: "openvino",
        available: || ep::OpenVINO::is_available(),
        package: "`onnxruntime-openvino` for this system, which brings its own OpenVINO on Linux and x86-64 only,",
        options: Options::OpenVino,
        dispatch: |_| Vec::new(),
    },
    Row {
        ep: Ep::Cuda,
        name: "cuda",
        available: || ep::CUDA::is_available(),
        package: "`onnxruntime-gpu`",
        options: Options::Own,
        dispatch: |options| vec![cuda(options)],
    },
    Row {
        ep: Ep::TensorRt,
        name: "tensorrt",
        available: || ep::TensorRT::is_available(),
        package: "`onnxruntime-gpu`, with TensorRT beside it,",
        options: Options::Own,
        dispatch: |options| {
            let device = options.iter().filter(|option| option.key == "device_id");
            let behind = cuda(&device.cloned().collect::<Vec<_>>());
            vec![own::<ep::TensorRT>(options), behind]
        },
    },
    Row {
        ep: Ep::MiGraphX,
        name: "migraphx",
        available: || ep::MIGraphX::is_available(),
        package: "`onnxruntime-migraphx`",
        options: Options::Device,
        dispatch: |options| {
            let provider = ep::MIGraphX::default();
            vec![
                provider
                    .with_device_id(device(options).unwrap_or(0))
                    .build(),
            ]
        },
    },
    Row {
        ep: Ep::Rocm,
        name: "rocm",
        available: || ep::ROCm::is_available(),
        package: "`onnxruntime-rocm` 1.22.2, the last with this provider,",
        options: Options::Own,
        dispatch: |options| vec![own::<ep::ROCm>(options)],
    },
    Row {
        ep: Ep::DirectMl,
        name: "directml",
        available: || ep::DirectML::is_available(),
        package: "`onnxruntime-directml`, which is for Windows,",
        options: Options::Device,
        dispatch: |options| {
            let provider = ep::DirectML::default();
            vec![match device(options) {
                Some(device) => provider.with_device_id(device).build(),
                None => provider.build(),
            }]
        },
    },
    Row {
        ep: Ep::CoreMl,
        name: "coreml",
        available: || ep::CoreML::is_available(),
        package: "`onnxruntime` for macOS",
        options: Options::Own,
        dispatch: |options| vec![own::<ep::CoreML>(options)],
    },
    Row {
        ep: Ep::Xnnpack,
        name: "xnnpack",
        available: || ep::XNNPACK::is_available(),
        package: "`onnxruntime`, built with XNNPACK,",
        options: Options::Own,
        dispatch: |options| vec![own::<ep::XNNPACK>(options)],
    },
    Row {
        ep: Ep::WebGpu,
        name: "webgpu",
        available: || ep::WebGPU::is_available(),
        package: "`onnxruntime`, built with WebGPU,",
        options: Options::Own,
        dispatch: |options| vec![own::<ep::WebGPU>(options)],
    },
    Row {
        ep: Ep::Plugin,
        name: "plugin",
        // It is in no library, but one itself.
        available: || Ok(false),
        package: "",
        options: Options::Own,
        dispatch: |_| Vec::new(),
    },
];

/// A provider with options as it knows them.
fn own<E>(options: &[EpOption]) -> ExecutionProviderDispatch
where
    E: ArbitrarilyConfigurableExecutionProvider + Default + Into<ExecutionProviderDispatch>,
{
    let with =
        |provider: E, option: &EpOption| provider.with_arbitrary_config(&option.key, &option.value);
    options.iter().fold(E::default(), with).into()
}

/// CUDA, in single precision unless fewer bits are asked for: by default it multiplies numbers of 19 bits (TF32).
///
/// Algorithms of exact convolutions are cuDNN's usual ones. ONNX Runtime would measure all: on an H100 that takes up to 62 GB of the
/// card for workspaces, and makes a UNet pass of 512x512 pixels 1.55 times as long (but one of 1024x1024 0.88 times). With TF32 it is
/// needed: the usual ones do not use its units.
fn cuda(options: &[EpOption]) -> ExecutionProviderDispatch {
    let option = |key: &str, value: &str| EpOption {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let tf32 = options.iter().find(|option| option.key == "use_tf32");
    let defaults = match tf32 {
        Some(tf32) if tf32.value != "0" => vec![],
        _ => vec![
            option("use_tf32", "0"),
            option("cudnn_conv_algo_search", "DEFAULT"),
        ],
    };
    own::<ep::CUDA>(&[&defaults, options].concat())
}

/// The card that is asked for.
fn device(options: &[EpOption]) -> Option<i32> {
    options.first()?.value.parse().ok()
}

impl Ep {
    /// Every provider.
    pub const ALL: [Self; ROWS.len()] = {
        let mut all = [Self::Cpu; ROWS.len()];
        let mut i = 0;
        while i < ROWS.len() {
            all[i] = ROWS[i].ep;
            i += 1;
        }
        all
    };

    fn row(self) -> &'static Row {
        let found = ROWS.iter().find(|row| row.ep == self);
        found.expect("every provider has a row")
    }

    /// The name on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Whether the loaded library was built with the provider.
    #[must_use]
    pub fn is_available(self) -> bool {
        (self.row().available)().unwrap_or(false)
    }

    /// The provider's name in the name of its file, if it is one beside the library.
    pub(super) fn file(self) -> Option<&'static str> {
        match self {
            Self::OpenVino | Self::Cuda | Self::TensorRt | Self::MiGraphX | Self::Rocm => {
                Some(self.name())
            }
            Self::Cpu
            | Self::DirectMl
            | Self::CoreMl
            | Self::Xnnpack
            | Self::WebGpu
            | Self::Plugin => None,
        }
    }

    /// Libraries of others that the provider loads, in an order in which each finds those before it.
    pub(super) fn needs(self) -> impl Iterator<Item = &'static str> {
        let needs: [&[&str]; 2] = match self {
            Self::Cuda | Self::TensorRt => [ep::cuda::CUDA_DYLIBS, ep::cuda::CUDNN_DYLIBS],
            _ => [&[], &[]],
        };
        needs.into_iter().flatten().copied()
    }

    /// What the provider needs that no library brings along.
    pub(super) fn system(self) -> Option<&'static str> {
        match self {
            Self::Cuda => {
                Some("NVIDIA's driver, version 580 or newer for CUDA 13, must be installed")
            }
            Self::TensorRt => {
                Some("TensorRT 10 and NVIDIA's driver, version 580 or newer, must be installed")
            }
            Self::MiGraphX => Some("AMD's ROCm 7 with MIGraphX must be installed"),
            Self::Rocm => Some("AMD's ROCm 7 must be installed"),
            _ => None,
        }
    }

    /// Where to get a library with the provider.
    #[must_use]
    pub fn remedy(self) -> Remedy {
        match self {
            _ if !setup::wheels(self).is_empty() => Remedy::Setup { ep: self },
            Self::Cpu => Remedy::OwnLibrary,
            Self::Plugin => Remedy::Plugin,
            _ => Remedy::LibraryOf {
                package: self.row().package,
            },
        }
    }

    /// Whether it computes in such numbers on machines that have them: those of native graphs are the processor's own, but for bf16, which
    /// OpenVINO has, too.
    #[must_use]
    pub fn computes_in(self, compute: Wish) -> bool {
        match self {
            Self::Cpu => true,
            Self::OpenVino => !compute.is_native() || compute == Wish::Bf16,
            _ => !compute.is_native(),
        }
    }

    pub(super) fn require(self, library: &Found) -> Result<(), EngineError> {
        if self.is_available() {
            return Ok(());
        }
        let path = library.path.clone();
        Err(EngineError::NoProvider { path, ep: self })
    }

    /// Reads options as the provider takes them.
    ///
    /// # Errors
    /// The first that it does not take, or a value that means nothing. What a provider's own options are, only it knows: it refuses
    /// others when it is loaded.
    pub fn check(self, options: &[EpOption]) -> Result<EpOptions, EpOptionError> {
        let taken = self.row().options;
        if taken == Options::OpenVino {
            return OpenVino::read(options).map(EpOptions::OpenVino);
        }
        for (i, option) in options.iter().enumerate() {
            let EpOption { key, value } = option;
            if options[..i].iter().any(|other| other.key == *key) {
                return Err(EpOptionError::Twice(key.clone()));
            }
            let not_taken = |known| EpOptionError::NotTaken {
                key: key.clone(),
                ep: self,
                known,
            };
            match taken {
                Options::None => return Err(not_taken("no options")),
                Options::Device if key != "device_id" => return Err(not_taken("device_id=N")),
                Options::Device if !value.parse().is_ok_and(|id: i32| id >= 0) => {
                    return Err(EpOptionError::Value {
                        key: "device_id",
                        value: value.clone(),
                        expected: "the number of a card, from 0",
                    });
                }
                _ => {}
            }
        }
        Ok(EpOptions::Own(options.to_vec()))
    }

    /// What a session registers for a network whose products are computed in `compute`. A provider that does not load is an
    /// error, never a silent fallback.
    pub(super) fn dispatch(
        self,
        options: &EpOptions,
        compute: Compute,
        threads: usize,
    ) -> Vec<ExecutionProviderDispatch> {
        let providers = match (self, options) {
            (Self::OpenVino, EpOptions::OpenVino(options)) => {
                vec![options.dispatch(compute, threads)]
            }
            (Self::OpenVino, EpOptions::Own(_)) => {
                vec![OpenVino::default().dispatch(compute, threads)]
            }
            (_, EpOptions::Own(options)) => (self.row().dispatch)(options),
            (_, EpOptions::OpenVino(_)) => (self.row().dispatch)(&[]),
        };
        let strictly = ExecutionProviderDispatch::error_on_failure;
        providers.into_iter().map(strictly).collect()
    }
}

/// A provider's options, read by [`Ep::check`].
#[derive(Clone, Debug, PartialEq)]
pub enum EpOptions {
    /// Those of OpenVINO.
    OpenVino(OpenVino),
    /// Those of another one, for it to read. For OpenVINO, its usual ones.
    Own(Vec<EpOption>),
}

impl Default for EpOptions {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}

impl EpOptions {
    /// What products are computed in where `wish` is asked for beside these options.
    ///
    /// # Errors
    /// They contradict each other.
    pub fn compute(&self, wish: Wish) -> Result<Wish, EpOptionError> {
        match self {
            Self::OpenVino(options) => options.compute(wish),
            Self::Own(_) => Ok(wish),
        }
    }
}

impl fmt::Display for Ep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no provider's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no provider is called `{0}`; there are {names}", names = Ep::ALL.map(Ep::name).join(", "))]
pub struct UnknownEp(String);

impl FromStr for Ep {
    type Err = UnknownEp;

    fn from_str(name: &str) -> Result<Self, UnknownEp> {
        Self::ALL
            .into_iter()
            .find(|ep| ep.name() == name)
            .ok_or_else(|| UnknownEp(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_are_found_by_their_names() {
        for ep in Ep::ALL {
            assert_eq!(ep.name().parse(), Ok(ep));
        }
        let error = "gpu".parse::<Ep>().unwrap_err().to_string();
        assert!(error.contains("cuda, tensorrt, migraphx"), "{error}");
    }

    /// As graphs are chosen.
    #[test]
    fn numbers_of_native_graphs_are_the_processors() {
        let all = [Wish::F32, Wish::Bf16, Wish::I16, Wish::I8, Wish::Auto];
        for (ep, has) in [
            (Ep::Cpu, [true; 5]),
            (Ep::OpenVino, [true, true, false, false, true]),
            (Ep::Cuda, [true, false, false, false, true]),
        ] {
            assert_eq!(all.map(|compute| ep.computes_in(compute)), has, "{ep}");
        }
    }

    #[test]
    fn options_are_read_as_far_as_they_are_known() {
        let check = |ep: Ep, options: &[&str]| {
            let options: Result<Vec<EpOption>, _> = options.iter().map(|o| o.parse()).collect();
            ep.check(&options.unwrap()).map_err(|e| e.to_string())
        };
        let said = |ep, options: &[&str]| check(ep, options).unwrap_err();
        assert!(
            check(
                Ep::Cuda,
                &["device_id=1", "cudnn_conv_algo_search=HEURISTIC"]
            )
            .is_ok()
        );
        assert!(said(Ep::Cuda, &["device_id=1", "device_id=0"]).contains("twice"));
        assert!(said(Ep::Cpu, &["device_id=1"]).contains("no options"));
        assert!(check(Ep::DirectMl, &["device_id=1"]).is_ok());
        assert!(said(Ep::DirectMl, &["device_id=-1"]).contains("from 0"));
        assert!(said(Ep::MiGraphX, &["fp16=1"]).contains("device_id=N"));
        assert!(matches!(
            check(Ep::OpenVino, &["num_streams=1"]),
            Ok(EpOptions::OpenVino(_))
        ));
    }

    /// Every provider but the processor's own registers something, CUDA behind `TensorRT`.
    #[test]
    fn sessions_register_what_is_asked_for() {
        for ep in Ep::ALL {
            for options in [ep.check(&[]).unwrap(), EpOptions::default()] {
                let count = ep.dispatch(&options, Compute::F32, 1).len();
                let expected = match ep {
                    Ep::Cpu | Ep::Plugin => 0,
                    Ep::TensorRt => 2,
                    _ => 1,
                };
                assert_eq!(count, expected, "{ep}");
            }
        }
    }
}
