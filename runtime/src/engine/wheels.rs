//! The wheels that ONNX Runtime's library and what its providers need come in, as pip finds them.

use super::Ep;

/// A file that pip fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wheel {
    /// Python's package.
    pub package: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Size in megabytes (10^6 bytes).
    pub megabytes: u32,
    /// pip's name of the system it is for.
    pub(super) platform: &'static str,
    /// SHA-256 of the file.
    pub(super) sha256: &'static str,
}

impl Wheel {
    /// As pip is asked for it.
    pub(super) fn requirement(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }
}

/// What a provider needs on a system: the library first, then what it brings not along.
struct Row {
    ep: Ep,
    os: &'static str,
    arch: &'static str,
    wheels: &'static [Wheel],
}

/// The library with OpenVINO inside, in the last version that has it so.
const OPENVINO: &str = "1.24.1";
/// The library that computes on processors.
const CPU: &str = "1.32.0";

const ROWS: [Row; 8] = [
    Row {
        ep: Ep::Cpu,
        os: "linux",
        arch: "x86_64",
        wheels: &[Wheel {
            package: "onnxruntime",
            version: CPU,
            megabytes: 28,
            platform: "manylinux_2_28_x86_64",
            sha256: "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8",
        }],
    },
    Row {
        ep: Ep::Cpu,
        os: "linux",
        arch: "aarch64",
        wheels: &[Wheel {
            package: "onnxruntime",
            version: CPU,
            megabytes: 23,
            platform: "manylinux_2_28_aarch64",
            sha256: "e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054",
        }],
    },
    Row {
        ep: Ep::Cpu,
        os: "macos",
        arch: "aarch64",
        wheels: &[Wheel {
            package: "onnxruntime",
            version: CPU,
            megabytes: 23,
            platform: "macosx_14_0_arm64",
            sha256: "d52510bbbcc880c13b826f7d75cdf33ac5cf0bb864d960000fc29ce73f0cb83e",
        }],
    },
    Row {
        ep: Ep::Cpu,
        os: "windows",
        arch: "x86_64",
        wheels: &[Wheel {
            package: "onnxruntime",
            version: CPU,
            megabytes: 17,
            platform: "win_amd64",
            sha256: "efe7456952c243a05a53d5b8732953625144642c2f3989094277f6217f0c0c40",
        }],
    },
    Row {
        ep: Ep::OpenVino,
        os: "linux",
        arch: "x86_64",
        wheels: &[Wheel {
            package: "onnxruntime-openvino",
            version: OPENVINO,
            megabytes: 84,
            platform: "manylinux_2_28_x86_64",
            sha256: "d617fac2f59a6ab5ea59a788c3e1592240a129642519aaeaa774761dfe35150e",
        }],
    },
    Row {
        ep: Ep::Cuda,
        os: "linux",
        arch: "x86_64",
        wheels: &[
            Wheel {
                package: "onnxruntime-gpu",
                version: "1.31.1",
                megabytes: 256,
                platform: "manylinux_2_28_x86_64",
                sha256: "05d548956197b9d01f59b625de740e0d6be3593f874e241a12dc0362650ecdf7",
            },
            Wheel {
                package: "nvidia-cuda-runtime",
                version: "13.0.96",
                megabytes: 2,
                platform: "manylinux2014_x86_64",
                sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            },
            Wheel {
                package: "nvidia-cublas",
                version: "13.0.2.14",
                megabytes: 421,
                platform: "manylinux_2_27_x86_64",
                sha256: "0cf238ffdbe46c00cb9aa98e7bca745c223a5ca5a53e686ac8b3e5a08fe80d6c",
            },
            Wheel {
                package: "nvidia-curand",
                version: "10.4.0.35",
                megabytes: 60,
                platform: "manylinux_2_27_x86_64",
                sha256: "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
            },
            Wheel {
                package: "nvidia-cuda-nvrtc",
                version: "13.0.88",
                megabytes: 90,
                platform: "manylinux2010_x86_64",
                sha256: "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
            },
            Wheel {
                package: "nvidia-cudnn-cu13",
                version: "9.14.0.64",
                megabytes: 351,
                platform: "manylinux_2_27_x86_64",
                sha256: "024ce8f7571d322991ecadbe82907df2e89b5f36597d03436413ec6dd7c9fe54",
            },
        ],
    },
    Row {
        ep: Ep::MiGraphX,
        os: "linux",
        arch: "x86_64",
        wheels: &[Wheel {
            package: "onnxruntime-migraphx",
            version: "1.27.1",
            megabytes: 21,
            platform: "manylinux_2_34_x86_64",
            sha256: "089c992442b6bff9f7786173ce6a31db111b104ae66be34d5467593951d905a4",
        }],
    },
    Row {
        ep: Ep::Rocm,
        os: "linux",
        arch: "x86_64",
        wheels: &[Wheel {
            package: "onnxruntime-rocm",
            version: "1.22.2.post3",
            megabytes: 57,
            platform: "manylinux_2_34_x86_64",
            sha256: "ccd3b2dba26fe73687f3a29d10fcc154c73b23d5b9ecc938b8c045471743fe52",
        }],
    },
];

/// What a provider needs on a system: ONNX Runtime's library first. Nothing where no library is known.
pub(super) fn of(ep: Ep, os: &str, arch: &str) -> &'static [Wheel] {
    let mut rows = ROWS.iter();
    let found = rows.find(|row| row.ep == ep && row.os == os && row.arch == arch);
    found.map_or(&[], |row| row.wheels)
}

/// The wheel with a provider's library, of any system.
pub(super) fn library(ep: Ep) -> Option<&'static Wheel> {
    ROWS.iter().find(|row| row.ep == ep)?.wheels.first()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_are_chosen_by_provider_and_machine() {
        let of = |ep, os, arch| super::of(ep, os, arch).iter().map(|wheel| wheel.package);
        let first = |ep, os, arch| of(ep, os, arch).next();
        assert_eq!(first(Ep::Cpu, "linux", "x86_64"), Some("onnxruntime"));
        assert_eq!(first(Ep::Cpu, "windows", "x86_64"), Some("onnxruntime"));
        let openvino = Some("onnxruntime-openvino");
        assert_eq!(first(Ep::OpenVino, "linux", "x86_64"), openvino);
        assert_eq!(first(Ep::OpenVino, "windows", "x86_64"), None);
        assert_eq!(first(Ep::Cuda, "linux", "aarch64"), None);
        let cuda: Vec<_> = of(Ep::Cuda, "linux", "x86_64").collect();
        assert!(cuda[0] == "onnxruntime-gpu" && cuda.contains(&"nvidia-cudnn-cu13"));
        let all = || ROWS.iter().flat_map(|row| row.wheels);
        let hashes: std::collections::BTreeSet<_> = all().map(|wheel| wheel.sha256).collect();
        assert_eq!(hashes.len(), all().count());
    }
}
