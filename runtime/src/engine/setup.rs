//! The one place that may fetch something, and that is ONNX Runtime's library.
//!
//! The library comes in the wheel of a Python package ([`super::wheels`]); CUDA's libraries in others, which end up beside it. `pip`
//! fetches them, so mirrors and proxies that a machine has for pip are used; what comes is compared with the pinned hashes.
//!
//! OpenVINO's newer plugin (`onnxruntime-ep-openvino`) is not taken: it offers a device on Intel's processors only, and the package
//! with the provider inside runs on those, too.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::library::{has_provider, is_library, library_in, setup_dir};
use super::network::sha256;
use super::wheels::{self, Wheel};
use super::{EngineError, Ep};

/// Version of ONNX Runtime that is fetched for a provider.
#[must_use]
pub fn version(ep: Ep) -> &'static str {
    wheels::library(ep).map_or("", |wheel| wheel.version)
}

/// Packages with their versions, as pip is asked for what a provider needs; of any system, if this one has none.
#[must_use]
pub fn requirements(ep: Ep) -> Vec<String> {
    let here = wheels(ep);
    let wheels = if here.is_empty() {
        wheels::library(ep)
            .map(std::slice::from_ref)
            .unwrap_or_default()
    } else {
        here
    };
    wheels.iter().map(Wheel::requirement).collect()
}

/// Whether a library with a provider can be fetched for some system.
#[must_use]
pub fn is_packaged(ep: Ep) -> bool {
    wheels::library(ep).is_some()
}

/// What is fetched for a provider on this machine: the library, then what it needs besides. Nothing where no library is known.
#[must_use]
pub fn wheels(ep: Ep) -> &'static [Wheel] {
    wheels::of(ep, std::env::consts::OS, std::env::consts::ARCH)
}

/// A library in the user's data folder, which was put there just now.
#[derive(Debug)]
pub struct Installed {
    /// The library.
    pub library: PathBuf,
    /// Its folder.
    folder: PathBuf,
    /// What was there before, until this is dropped.
    old: TempDir,
}

impl Installed {
    const OLD: &str = "old";

    /// Puts back what was there before, if there was something: the new library is of no use.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn undo(self) -> Result<(), EngineError> {
        let write = |e| problem(format!("cannot write {}: {e}", self.folder.display()));
        let old = self.old.path().join(Self::OLD);
        if old.is_dir() {
            fs::remove_dir_all(&self.folder).map_err(write)?;
            fs::rename(old, &self.folder).map_err(write)?;
        }
        Ok(())
    }
}

/// Fetches the library with a provider for this machine, and what it needs, into the user's data folder; `begins` hears of each file.
///
/// # Errors
/// No library for this machine, no pip, no connection, another file than the pinned one, or no space.
pub fn fetch(ep: Ep, mut begins: impl FnMut(&Wheel)) -> Result<Installed, EngineError> {
    let wheels = wheels(ep);
    if wheels.is_empty() {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        return Err(EngineError::NoWheel { ep, os, arch });
    }
    let scratch =
        tempfile::tempdir().map_err(|e| problem(format!("cannot make a temporary folder: {e}")))?;
    let mut files = Vec::new();
    for wheel in wheels {
        begins(wheel);
        files.push(fetched(ep, wheel, &scratch.path().join(wheel.package))?);
    }
    install(&files, Some(ep))
}

/// Fetches a wheel into a folder of its own.
fn fetched(ep: Ep, wheel: &Wheel, folder: &Path) -> Result<PathBuf, EngineError> {
    download(ep, wheel, folder)?;
    let file = fs::read_dir(folder)
        .ok()
        .and_then(|mut entries| entries.next()?.ok());
    let file = file
        .ok_or_else(|| problem("pip reported success, but fetched nothing".to_owned()))?
        .path();
    let found = sha256(&file).map_err(|source| EngineError::Read {
        path: file.clone(),
        source,
    })?;
    if found != wheel.sha256 {
        let (name, pinned) = (file.file_name().unwrap_or_default().display(), wheel.sha256);
        return Err(problem(format!(
            "{name} has SHA-256 {found}, but {pinned} is expected; it is not used"
        )));
    }
    Ok(file)
}

fn download(ep: Ep, wheel: &Wheel, to: &Path) -> Result<(), EngineError> {
    let not_fetched = |problem| EngineError::NotFetched { ep, problem };
    let python = if cfg!(windows) { "python" } else { "python3" };
    let output = Command::new(python)
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "--no-input",
        ])
        .args([
            "--python-version",
            "3.12",
            "--implementation",
            "cp",
            "--abi",
            "cp312",
            "--platform",
            wheel.platform,
        ])
        .arg("--dest")
        .arg(to)
        .arg(wheel.requirement())
        .stdin(Stdio::null())
        .output()
        .map_err(|e| not_fetched(format!("cannot run `{python} -m pip`: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said
        .lines()
        .rev()
        .filter(|line| !line.trim().is_empty())
        .take(3)
        .collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(not_fetched(format!(
        "pip could not fetch {} {}: {}",
        wheel.package,
        wheel.version,
        last.join("; ")
    )))
}

/// Puts a library with what belongs to it, or the libraries of wheels, into the user's data folder: that of `ep`, or else of the
/// provider that comes along.
///
/// # Errors
/// A file is neither, they lack the library or the provider, or the folder cannot be written.
pub fn install(files: &[PathBuf], ep: Option<Ep>) -> Result<Installed, EngineError> {
    install_to(files, ep, setup_dir)
}

fn install_to(
    files: &[PathBuf],
    ep: Option<Ep>,
    folder_of: impl Fn(Ep) -> PathBuf,
) -> Result<Installed, EngineError> {
    let write = |path: &Path, e: &dyn std::fmt::Display| {
        problem(format!("cannot write {}: {e}", path.display()))
    };
    let parent = folder_of(Ep::Cpu);
    let parent = parent.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| write(parent, &e))?;
    let staging = tempfile::Builder::new()
        .prefix(".onnxruntime-")
        .tempdir_in(parent)
        .map_err(|e| write(parent, &e))?;
    for file in files {
        if file.extension().is_some_and(|extension| extension == "whl") {
            unpack(file, staging.path())?;
        } else {
            copy(file, staging.path())?;
        }
    }
    let lacks = |what: &str| {
        let first = files.first().map(|file| file.display().to_string());
        problem(format!("{} {what}", first.unwrap_or_default()))
    };
    if library_in(staging.path()).is_none() {
        return Err(lacks("holds no ONNX Runtime library"));
    }
    let brings = |ep: Ep| has_provider(staging.path(), ep);
    let ep = match ep {
        Some(ep) if brings(ep) == Some(false) => {
            return Err(lacks(&format!("brings no {ep} provider")));
        }
        Some(ep) => ep,
        None => {
            let mut came = Ep::ALL.into_iter().filter(|ep| brings(*ep) == Some(true));
            came.next().unwrap_or(Ep::Cpu)
        }
    };
    let target = &folder_of(ep);
    let old = tempfile::Builder::new()
        .prefix(".onnxruntime-")
        .tempdir_in(parent)
        .map_err(|e| write(parent, &e))?;
    if target.exists() {
        fs::rename(target, old.path().join(Installed::OLD)).map_err(|e| write(target, &e))?;
    }
    match fs::rename(staging.path(), target) {
        Ok(()) => drop(staging.keep()),
        // Another process was faster.
        Err(_) if library_in(target).is_some() => {}
        Err(e) => return Err(write(target, &e)),
    }
    let library = library_in(target);
    Ok(Installed {
        library: library.ok_or_else(|| problem(format!("{} vanished", target.display())))?,
        folder: target.clone(),
        old,
    })
}

/// Copies a library and those that its providers need.
fn copy(library: &Path, to: &Path) -> Result<(), EngineError> {
    let name_of = |path: &Path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    if !is_library(&name_of(library)) {
        return Err(problem(format!(
            "{} is neither a wheel (.whl) nor an ONNX Runtime library",
            library.display()
        )));
    }
    let beside = library.parent().and_then(|folder| folder.read_dir().ok());
    let beside = beside.into_iter().flatten().flatten();
    let needed = beside.map(|entry| entry.path()).filter(|path| {
        let name = name_of(path);
        let name = name.strip_prefix("lib").unwrap_or(&name);
        let providers = ["onnxruntime_providers_", "openvino", "tbb"];
        is_shared(name) && providers.iter().any(|start| name.starts_with(start))
    });
    for path in needed.chain([library.to_owned()]) {
        fs::copy(&path, to.join(name_of(&path)))
            .map_err(|e| problem(format!("cannot copy {}: {e}", path.display())))?;
    }
    Ok(())
}

/// Whether a file of this name is a shared library.
fn is_shared(name: &str) -> bool {
    name.contains(".so") || name.ends_with(".dylib") || name.ends_with(".dll")
}

/// Copies the shared libraries of a wheel that ONNX Runtime or NVIDIA made, and the former's licence texts. A wheel has no links: it holds libraries under
/// each of their names, which become one file with several names here.
fn unpack(wheel: &Path, to: &Path) -> Result<(), EngineError> {
    let read = |source| EngineError::Read {
        path: wheel.to_owned(),
        source,
    };
    let not_zip =
        |e: zip::result::ZipError| problem(format!("{}: not a wheel: {e}", wheel.display()));
    let mut archive = zip::ZipArchive::new(File::open(wheel).map_err(read)?).map_err(not_zip)?;
    let mut unpacked: HashMap<(u32, u64), PathBuf> = HashMap::new();
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(not_zip)?;
        let inside = entry.name().map_err(not_zip)?.into_owned();
        let Some((folder, name)) = inside.rsplit_once('/') else {
            continue;
        };
        let wanted = match folder {
            "onnxruntime/capi" => is_shared(name) && !name.contains("pybind"),
            "onnxruntime" => matches!(name, "LICENSE" | "ThirdPartyNotices.txt"),
            "nvidia/cu13/lib" | "nvidia/cudnn/lib" => is_shared(name) && !name.contains(".alt."),
            _ => false,
        };
        if !wanted {
            continue;
        }
        let (path, content) = (to.join(name), (entry.crc32(), entry.size()));
        if let Some(same) = unpacked.get(&content)
            && fs::hard_link(same, &path).is_ok()
        {
            continue;
        }
        let mut file = File::create(&path).map_err(read)?;
        io::copy(&mut entry, &mut file)
            .map_err(|e| problem(format!("{}: `{inside}`: {e}", wheel.display())))?;
        unpacked.insert(content, path);
    }
    Ok(())
}

fn problem(text: String) -> EngineError {
    EngineError::Setup(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn wheel(path: &Path, entries: &[&str]) {
        let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
        for name in entries {
            zip.start_file(*name, zip::write::SimpleFileOptions::default())
                .unwrap();
            zip.write_all(b"content").unwrap();
        }
        zip.finish().unwrap();
    }

    #[test]
    fn a_wheels_libraries_are_unpacked_and_an_old_setup_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("onnxruntime-1.32.0-cp312-cp312-linux.whl");
        let (so, shared) = (
            "libonnxruntime.so.1.32.0",
            "libonnxruntime_providers_shared.so",
        );
        wheel(
            &file,
            &[
                "onnxruntime/LICENSE",
                &format!("onnxruntime/capi/{so}"),
                &format!("onnxruntime/capi/{shared}"),
                "onnxruntime/capi/onnxruntime_pybind11_state.so",
                "../../evil.so",
                "onnxruntime/tools/x.py",
            ],
        );
        let target = dir.path().join("data/cpu");
        fs::create_dir_all(&target).unwrap();
        fs::write(target.join("libonnxruntime.so.9.9.9"), "old").unwrap();
        let folder_of = |ep: Ep| target.with_file_name(ep.name());
        let installed = install_to(&[file], None, folder_of).unwrap();
        assert_eq!(installed.library, target.join(so));
        let mut names: Vec<String> = fs::read_dir(&target)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["LICENSE", so, shared]);
        installed.undo().unwrap();
        assert!(target.join("libonnxruntime.so.9.9.9").is_file() && !target.join(so).exists());
        let left = fs::read_dir(dir.path().join("data")).unwrap().count();
        assert_eq!(left, 1, "nothing else stays");
    }

    #[test]
    fn what_is_no_library_is_refused_and_an_old_setup_kept() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("onnxruntime");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("libonnxruntime.so"), "old").unwrap();
        let (empty, text) = (dir.path().join("empty.whl"), dir.path().join("notes.txt"));
        wheel(&empty, &["numpy/core.so"]);
        fs::write(&text, "").unwrap();
        fs::write(dir.path().join("bad.whl"), "no zip").unwrap();
        for (file, said) in [
            (empty, "holds no"),
            (text, "neither"),
            (dir.path().join("bad.whl"), "not a wheel"),
        ] {
            let error = install_to(&[file], None, |_| target.clone());
            let error = error.unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(target.join("libonnxruntime.so").exists());
    }

    const OPENVINO: [&str; 6] = [
        "libonnxruntime.so.1.24.1",
        "libonnxruntime_providers_openvino.so",
        "libonnxruntime_providers_shared.so",
        "libopenvino.so.2541",
        "libopenvino_intel_cpu_plugin.so",
        "libtbb.so.12",
    ];

    #[test]
    fn a_wheel_with_a_provider_goes_into_a_folder_of_its_own_with_its_neighbours() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("onnxruntime_openvino.whl");
        let inside = OPENVINO.map(|name| format!("onnxruntime/capi/{name}"));
        wheel(&file, &inside.each_ref().map(String::as_str));
        let folder_of = |ep: Ep| dir.path().join("data").join(ep.name());
        let library = install_to(&[file], None, folder_of).unwrap().library;
        assert_eq!(library, folder_of(Ep::OpenVino).join(OPENVINO[0]));
        let all = |folder: &Path| OPENVINO.iter().all(|name| folder.join(name).is_file());
        assert!(all(&folder_of(Ep::OpenVino)) && !folder_of(Ep::Cpu).exists());
        // A library that is given alone brings those beside it along, and nothing else.
        fs::write(library.with_file_name("libm.so.6"), "").unwrap();
        let another = |ep: Ep| dir.path().join("another").join(ep.name());
        install_to(std::slice::from_ref(&library), Some(Ep::OpenVino), another).unwrap();
        let folder = another(Ep::OpenVino);
        assert!(all(&folder) && !folder.join("libm.so.6").exists());
    }

    #[test]
    fn a_library_without_the_provider_is_not_taken_for_one_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("libonnxruntime.so");
        fs::write(&file, "").unwrap();
        let folder_of = |ep: Ep| dir.path().join("data").join(ep.name());
        let error = install_to(&[file], Some(Ep::OpenVino), folder_of).unwrap_err();
        assert!(error.to_string().contains("no openvino provider"));
    }

    #[test]
    fn cudas_libraries_end_up_beside_the_library() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["onnxruntime_gpu.whl", "nvidia_cublas.whl"].map(|name| dir.path().join(name));
        wheel(
            &files[0],
            &[
                "onnxruntime/capi/libonnxruntime.so.1.31.1",
                "onnxruntime/capi/libonnxruntime_providers_cuda.so",
            ],
        );
        wheel(
            &files[1],
            &[
                "nvidia/cu13/lib/libcublas.so.13",
                "nvidia/cu13/lib/libnvrtc.alt.so.13",
                "nvidia/cu13/include/cublas.h",
            ],
        );
        let folder_of = |ep: Ep| dir.path().join("data").join(ep.name());
        let library = install_to(&files, None, folder_of).unwrap().library;
        let mut names: Vec<_> = fs::read_dir(library.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(library.parent(), Some(&*folder_of(Ep::Cuda)));
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names.contains(&"libcublas.so.13".to_owned()));
    }
}
