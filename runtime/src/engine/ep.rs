//! Execution providers: who computes a graph.

use std::fmt;
use std::str::FromStr;

use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use sd_kernels::Compute;

use super::library::Found;
use super::openvino::{EpOption, EpOptionError, OpenVino};
use super::{EngineError, setup};
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
    /// AMD cards, through MIGraphX.
    MiGraphX,
    /// AMD cards, through ROCm (libraries up to 1.22).
    Rocm,
}

impl Ep {
    /// Every provider.
    pub const ALL: [Self; 5] = [
        Self::Cpu,
        Self::OpenVino,
        Self::Cuda,
        Self::MiGraphX,
        Self::Rocm,
    ];

    /// The name on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::OpenVino => "openvino",
            Self::Cuda => "cuda",
            Self::MiGraphX => "migraphx",
            Self::Rocm => "rocm",
        }
    }

    /// Whether the loaded library was built with the provider.
    #[must_use]
    pub fn is_available(self) -> bool {
        let available = match self {
            Self::Cpu => return true,
            Self::OpenVino => ep::OpenVINO::is_available(),
            Self::Cuda => ep::CUDA::is_available(),
            Self::MiGraphX => ep::MIGraphX::is_available(),
            Self::Rocm => ep::ROCm::is_available(),
        };
        available.unwrap_or(false)
    }

    /// Where to get a library with the provider.
    #[must_use]
    pub fn remedy(self) -> Remedy {
        let package = match self {
            _ if setup::fetches(self) => return Remedy::Setup { ep: self },
            Self::Cpu => return Remedy::OwnLibrary,
            Self::OpenVino => {
                "`onnxruntime-openvino` for this system, which brings its own OpenVINO on Linux and x86-64 only,"
            }
            Self::Cuda => "`onnxruntime-gpu`",
            Self::MiGraphX => "`onnxruntime-migraphx`",
            Self::Rocm => "`onnxruntime-rocm` 1.22.2, the last with this provider,",
        };
        Remedy::LibraryOf { package }
    }

    pub(super) fn require(self, library: &Found) -> Result<(), EngineError> {
        if self.is_available() {
            return Ok(());
        }
        let path = library.path.clone();
        Err(EngineError::NoProvider { path, ep: self })
    }

    /// Whether the provider takes such options.
    ///
    /// # Errors
    /// The first that it does not take, or a value that means nothing.
    pub fn check(self, options: &[EpOption]) -> Result<OpenVino, EpOptionError> {
        match (self, options.first()) {
            (Self::OpenVino, _) => OpenVino::read(options),
            (_, None) => Ok(OpenVino::default()),
            (ep, Some(option)) => {
                let key = option.key.clone();
                Err(EpOptionError::NotTaken { key, ep })
            }
        }
    }

    /// What a session registers for a network whose products are computed in `compute`. A provider that does not load is an
    /// error, never a silent fallback.
    pub(super) fn dispatch(
        self,
        options: &OpenVino,
        compute: Compute,
        threads: usize,
    ) -> Option<ExecutionProviderDispatch> {
        let dispatch = match self {
            Self::Cpu => return None,
            Self::OpenVino => options.dispatch(compute, threads),
            Self::Cuda => ep::CUDA::default().build(),
            Self::MiGraphX => ep::MIGraphX::default().build(),
            Self::Rocm => ep::ROCm::default().build(),
        };
        Some(dispatch.error_on_failure())
    }
}

impl fmt::Display for Ep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no provider's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no provider is called `{0}`; there are cpu, openvino, cuda, migraphx and rocm")]
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
