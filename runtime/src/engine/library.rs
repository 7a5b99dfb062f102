//! Which ONNX Runtime library is loaded.
//!
//! In order: the one that is named (by the caller, then by `ORT_DYLIB_PATH`); where [`super::setup`] puts that of the provider, if
//! it is not the CPU's; beside the executable; where [`super::setup`] puts the CPU's; in an installed Python package `onnxruntime`.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ort::environment::EnvironmentBuilder;

use super::{EngineError, Ep};

/// The variable that names a library, as for every program that uses the `ort` crate.
pub const VARIABLE: &str = "ORT_DYLIB_PATH";

/// The variable that names the folder for libraries and models, instead of the system's place for user data.
pub const DATA_VARIABLE: &str = "SDRT_DATA_DIR";

/// A library and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// How it was found.
    pub origin: Origin,
}

/// How a library was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The caller named it.
    Named,
    /// `ORT_DYLIB_PATH` named it.
    Variable,
    /// It lies beside the executable.
    Executable,
    /// [`super::setup`] put it there.
    Setup,
    /// It belongs to a Python package.
    Python,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Named => "named",
            Self::Variable => VARIABLE,
            Self::Executable => "beside the executable",
            Self::Setup => "setup",
            Self::Python => "Python's onnxruntime",
        })
    }
}

/// Where libraries and models of this program lie.
#[must_use]
pub fn data_dir() -> PathBuf {
    if let Some(dir) = env::var_os(DATA_VARIABLE).filter(|dir| !dir.is_empty()) {
        return dir.into();
    }
    match directories::ProjectDirs::from("", "", "sdrt") {
        Some(dirs) => dirs.data_dir().to_owned(),
        None => PathBuf::from(".sdrt"),
    }
}

/// The folder of [`super::setup`] for a provider. Each has its own, so that libraries can be there side by side.
#[must_use]
pub fn setup_dir(ep: Ep) -> PathBuf {
    let name = match ep {
        Ep::Cpu => "onnxruntime".to_owned(),
        ep => format!("onnxruntime-{ep}"),
    };
    data_dir().join(name)
}

/// Finds the library for a provider.
///
/// # Errors
/// A named library is not there, or there is none anywhere.
pub fn find(named: Option<&Path>, ep: Ep) -> Result<Found, EngineError> {
    let executable = env::current_exe().ok();
    let beside = executable.and_then(|exe| Some(exe.parent()?.to_owned()));
    let of_provider: &[Ep] = match ep {
        Ep::Cpu => &[],
        // Both are in one library.
        Ep::TensorRt => &[Ep::TensorRt, Ep::Cuda],
        _ => &[ep],
    };
    let folders = of_provider
        .iter()
        .map(|ep| (setup_dir(*ep), Origin::Setup))
        .chain(beside.map(|dir| (dir, Origin::Executable)))
        .chain([(setup_dir(Ep::Cpu), Origin::Setup)]);
    let places = Places {
        named: named.map(Path::to_owned),
        variable: env::var_os(VARIABLE).filter(|v| !v.is_empty()),
        folders: folders.collect(),
        ep,
    };
    places.find(python_package)
}

struct Places {
    named: Option<PathBuf>,
    variable: Option<OsString>,
    folders: Vec<(PathBuf, Origin)>,
    ep: Ep,
}

impl Places {
    fn find(self, python: impl FnOnce() -> Option<PathBuf>) -> Result<Found, EngineError> {
        for (path, origin) in [
            (self.named, Origin::Named),
            (self.variable.map(PathBuf::from), Origin::Variable),
        ] {
            if let Some(path) = path {
                return named(path, origin, self.ep);
            }
        }
        let mut looked = vec![VARIABLE.to_owned()];
        for (dir, origin) in self.folders {
            if let Some(path) = library_in(&dir) {
                return Ok(Found { path, origin });
            }
            looked.push(dir.display().to_string());
        }
        looked.push("Python's onnxruntime".to_owned());
        match python().and_then(|dir| library_in(&dir)) {
            Some(path) => Ok(Found {
                path,
                origin: Origin::Python,
            }),
            None => Err(EngineError::NoLibrary {
                looked: looked.join(", "),
                ep: self.ep,
            }),
        }
    }
}

impl Found {
    /// Whether the file of a provider lies beside the library, which need not be loaded to tell. None of a provider that is no file.
    #[must_use]
    pub fn has(&self, ep: Ep) -> Option<bool> {
        has_provider(self.path.parent()?, ep)
    }

    /// Loads what a provider needs and what lies beside the library, or in the packages beside Python's. The system's loader, which
    /// would look for it elsewhere, then finds that it is loaded. What lies in neither place is left to the system's loader.
    pub(super) fn load_needed(&self, ep: Ep) -> Result<(), EngineError> {
        let Some(beside) = self.path.parent() else {
            return Ok(());
        };
        let packages = beside.join("../../nvidia");
        let folders = [
            beside.to_owned(),
            packages.join("cu13/lib"),
            packages.join("cudnn/lib"),
        ];
        for name in ep.needs() {
            let mut places = folders.iter().map(|folder| folder.join(name));
            if let Some(path) = places.find(|path| path.is_file()) {
                ort::util::preload_dylib(&path).map_err(|error| EngineError::LibraryBroken {
                    path,
                    problem: loaders_reason(&error),
                    ep,
                })?;
            }
        }
        Ok(())
    }
}

/// Whether the file of a provider lies in a folder. None of a provider that is no file.
pub(super) fn has_provider(folder: &Path, ep: Ep) -> Option<bool> {
    let provider = format!("onnxruntime_providers_{}", ep.file()?);
    let names = [
        format!("lib{provider}.so"),
        format!("{provider}.dll"),
        format!("lib{provider}.dylib"),
    ];
    Some(names.iter().any(|name| folder.join(name).is_file()))
}

/// A library that somebody named is that one or none; a folder stands for the library in it.
fn named(path: PathBuf, origin: Origin, ep: Ep) -> Result<Found, EngineError> {
    let file = if path.is_dir() {
        library_in(&path)
    } else {
        Some(path.clone()).filter(|p| p.is_file())
    };
    match file {
        Some(path) => Ok(Found { path, origin }),
        None if path.is_dir() => Err(EngineError::LibraryBroken {
            path,
            problem: "no ONNX Runtime library lies in it".to_owned(),
            ep,
        }),
        None if path.exists() => Err(EngineError::LibraryBroken {
            path,
            problem: NO_FILE.to_owned(),
            ep,
        }),
        None => Err(EngineError::LibraryMissing { path, origin }),
    }
}

/// `libonnxruntime.so.1.32.0`, `libonnxruntime.1.32.0.dylib` or `onnxruntime.dll` in a folder.
pub(super) fn library_in(dir: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    found.retain(|path| {
        path.file_name()
            .and_then(|n| n.to_str())
            .is_some_and(is_library)
            && path.is_file()
    });
    found.sort();
    found.pop()
}

/// Whether a file is the library itself, not one of its providers.
pub(super) fn is_library(name: &str) -> bool {
    let rest = name.strip_prefix("lib").unwrap_or(name);
    let Some(rest) = rest.strip_prefix("onnxruntime") else {
        return false;
    };
    matches!(rest, ".so" | ".dylib" | ".dll")
        || rest.starts_with(".so.")
        || (rest.starts_with('.') && rest.ends_with(".dylib"))
}

/// The folder of the library in an installed Python package; the package itself is not imported.
fn python_package() -> Option<PathBuf> {
    let code = "import importlib.util as u; print(u.find_spec('onnxruntime').submodule_search_locations[0])";
    let output = Command::new("python3")
        .args(["-c", code])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    Some(Path::new(path.trim_end()).join("capi")).filter(|_| output.status.success())
}

/// Tells ONNX Runtime to send nothing about its use to its maker. Since 1.32 it would, and keeps a data base and an identifier
/// in the user's cache folder for that; only this variable prevents both. Where somebody set it, that is left as it is.
#[expect(
    unsafe_code,
    reason = "there is no other way to tell it before it starts"
)]
fn send_nothing() {
    const SWITCH: &str = "ORT_DISABLE_TELEMETRY";
    if env::var_os(SWITCH).is_none() {
        // SAFETY: the library is not loaded yet, and all else in this program reads variables through `std`, which locks them.
        unsafe { env::set_var(SWITCH, "1") };
    }
}

/// Loads the library.
pub(super) fn load(library: &Found, ep: Ep) -> Result<EnvironmentBuilder, EngineError> {
    send_nothing();
    let path = library.path.clone();
    if is_cut_off(&path) {
        return Err(EngineError::LibraryBroken {
            path,
            problem: CUT_OFF.to_owned(),
            ep,
        });
    }
    // Relative names would be looked up beside the executable and in the system's folders, too.
    let absolute = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
    ort::init_from(absolute).map_err(|error| match error {
        ort::LoadDynamicError::Dlopen { error, .. } => EngineError::LibraryBroken {
            path,
            problem: loaders_reason(&error),
            ep,
        },
        ort::LoadDynamicError::BadVersion { version_str, .. } => EngineError::LibraryOld {
            path,
            found: version_str.clone(),
        },
        ort::LoadDynamicError::MissingApi { .. } => EngineError::LibraryBroken {
            path,
            problem: "it is a library, but not ONNX Runtime".to_owned(),
            ep,
        },
        other @ ort::LoadDynamicError::InvalidVersionString => EngineError::LibraryBroken {
            path,
            problem: other.to_string(),
            ep,
        },
    })
}

/// What is wrong with a library that is something else than a file.
pub(super) const NO_FILE: &str = "it is a pipe or a device; expected a file";

/// What is wrong with a library that [`is_cut_off`].
pub(super) const CUT_OFF: &str = "the end of the file is missing";

/// Whether the end of a library (ELF of 64 bits) is missing. The system's loader maps it without a look at that, and the process would
/// end where it reads what is not there.
pub(super) fn is_cut_off(path: &Path) -> bool {
    let mut header = [0; 64];
    let Ok(mut file) = File::open(path) else {
        return false;
    };
    if file.read_exact(&mut header).is_err() || !header.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let number = |place: std::ops::Range<usize>| {
        let bytes = header[place].iter().rev();
        bytes.fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    };
    // The table of sections, which is behind everything else: its place, and the size and count of its rows.
    let end = number(40..48).saturating_add(number(58..60) * number(60..62));
    file.metadata().is_ok_and(|file| file.len() < end)
}

/// What the system's loader says: the innermost cause, which names the file or symbol that is missing.
fn loaders_reason(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Remedy;

    fn folder(root: &Path, name: &str, file: Option<&str>) -> PathBuf {
        let dir = root.join(name);
        fs::create_dir(&dir).unwrap();
        if let Some(file) = file {
            fs::write(dir.join(file), "").unwrap();
        }
        dir
    }

    #[test]
    fn places_are_tried_in_order() {
        let root = tempfile::tempdir().unwrap();
        let dir = |name| folder(root.path(), name, Some("libonnxruntime.so.1.32.0"));
        let (named, variable, executable, setup, python) = (
            dir("named"),
            dir("variable"),
            dir("executable"),
            dir("setup"),
            dir("python"),
        );
        let empty = folder(root.path(), "empty", None);
        let origin = |first: usize| {
            let at = |i: usize, dir: &PathBuf| (i >= first).then(|| dir.clone());
            let places = Places {
                named: at(0, &named),
                variable: at(1, &variable).map(OsString::from),
                folders: vec![
                    (
                        at(2, &executable).unwrap_or(empty.clone()),
                        Origin::Executable,
                    ),
                    (at(3, &setup).unwrap_or(empty.clone()), Origin::Setup),
                ],
                ep: Ep::Cpu,
            };
            places.find(|| at(4, &python)).map(|found| found.origin)
        };
        let origins: Vec<Origin> = (0..5).map(|first| origin(first).unwrap()).collect();
        let expected = [
            Origin::Named,
            Origin::Variable,
            Origin::Executable,
            Origin::Setup,
            Origin::Python,
        ];
        assert_eq!(origins, expected);
        let error = origin(5).unwrap_err();
        assert!(error.to_string().contains("empty"), "{error}");
        assert_eq!(error.hint(), Some(Remedy::Setup { ep: Ep::Cpu }));
    }

    #[test]
    fn a_named_library_that_is_not_there_is_no_reason_to_take_another() {
        let root = tempfile::tempdir().unwrap();
        let setup = folder(root.path(), "setup", Some("libonnxruntime.so"));
        let places = Places {
            named: None,
            variable: Some("no/such.so".into()),
            folders: vec![(setup, Origin::Setup)],
            ep: Ep::Cpu,
        };
        let error = places.find(|| None).unwrap_err().to_string();
        assert!(
            error.contains("ORT_DYLIB_PATH") && error.contains("no/such.so"),
            "{error}"
        );
    }

    #[test]
    #[cfg(unix)]
    fn devices_are_not_said_to_be_missing() {
        let error = find(Some(Path::new("/dev/null")), Ep::Cpu).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("/dev/null cannot be loaded: it is a pipe or a device"),
            "{text}"
        );
    }

    #[test]
    fn providers_are_not_taken_for_the_library() {
        for name in [
            "libonnxruntime.so",
            "libonnxruntime.so.1.32.0",
            "libonnxruntime.1.32.0.dylib",
            "onnxruntime.dll",
        ] {
            assert!(is_library(name), "{name}");
        }
        for name in [
            "libonnxruntime_providers_shared.so",
            "onnxruntime_pybind11_state.so",
            "libonnx.so",
        ] {
            assert!(!is_library(name), "{name}");
        }
    }

    #[test]
    fn libraries_whose_end_is_missing_are_not_loaded() {
        let root = tempfile::tempdir().unwrap();
        let whole = fs::read(env::current_exe().unwrap()).unwrap();
        let path = root.path().join("libonnxruntime.so");
        for (length, is_cut) in [
            (whole.len(), false),
            (whole.len() / 2, cfg!(target_os = "linux")),
        ] {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(is_cut_off(&path), is_cut, "{length}");
        }
    }

    #[test]
    fn files_that_are_no_library_are_said_to_be_broken() {
        let root = tempfile::tempdir().unwrap();
        let dir = folder(root.path(), "lib", Some("libonnxruntime.so"));
        let found = find(Some(&dir), Ep::Cpu).unwrap();
        let error = load(&found, Ep::Cpu).err().unwrap();
        assert!(error.to_string().contains("cannot be loaded"), "{error}");
        assert_eq!(error.hint(), Some(Remedy::Setup { ep: Ep::Cpu }));
    }
}
