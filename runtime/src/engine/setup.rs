//! The one place that may fetch something, and that is ONNX Runtime's library.
//!
//! The library comes in the wheel of the Python package `onnxruntime`. `pip` fetches it, so mirrors and proxies that a
//! machine has for pip are used; what comes is compared with the hash pinned here.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::EngineError;
use super::library::{is_library, library_in, setup_dir};
use super::network::sha256;

/// Version of ONNX Runtime that is fetched.
pub const VERSION: &str = "1.32.0";

/// A wheel: for whom, pip's name of the platform, and its SHA-256.
struct Wheel {
    os: &'static str,
    arch: &'static str,
    platform: &'static str,
    sha256: &'static str,
}

const WHEELS: [Wheel; 4] = [
    Wheel {
        os: "linux",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        sha256: "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8",
    },
    Wheel {
        os: "linux",
        arch: "aarch64",
        platform: "manylinux_2_28_aarch64",
        sha256: "e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054",
    },
    Wheel {
        os: "macos",
        arch: "aarch64",
        platform: "macosx_14_0_arm64",
        sha256: "d52510bbbcc880c13b826f7d75cdf33ac5cf0bb864d960000fc29ce73f0cb83e",
    },
    Wheel {
        os: "windows",
        arch: "x86_64",
        platform: "win_amd64",
        sha256: "efe7456952c243a05a53d5b8732953625144642c2f3989094277f6217f0c0c40",
    },
];

/// Fetches the library for this machine into the user's data folder.
///
/// # Errors
/// No library for this machine, no pip, no connection, another file than the pinned one, or no space.
pub fn fetch() -> Result<PathBuf, EngineError> {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let wheel = WHEELS
        .iter()
        .find(|wheel| wheel.os == os && wheel.arch == arch);
    let wheel = wheel.ok_or(EngineError::NoWheel { os, arch })?;
    let scratch =
        tempfile::tempdir().map_err(|e| problem(format!("cannot make a temporary folder: {e}")))?;
    download(wheel, scratch.path())?;
    let file = fs::read_dir(scratch.path())
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
    install(&file)
}

fn download(wheel: &Wheel, to: &Path) -> Result<(), EngineError> {
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
        .arg(format!("onnxruntime=={VERSION}"))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| EngineError::NotFetched(format!("cannot run `{python} -m pip`: {e}")))?;
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
    Err(EngineError::NotFetched(format!(
        "pip could not fetch ONNX Runtime {VERSION}: {}",
        last.join("; ")
    )))
}

/// Puts a library, or the libraries of a wheel, into the user's data folder.
///
/// # Errors
/// The file is neither, or the folder cannot be written.
pub fn install(file: &Path) -> Result<PathBuf, EngineError> {
    install_to(file, &setup_dir())
}

fn install_to(file: &Path, target: &Path) -> Result<PathBuf, EngineError> {
    let write = |path: &Path, e: &dyn std::fmt::Display| {
        problem(format!("cannot write {}: {e}", path.display()))
    };
    let parent = target.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| write(parent, &e))?;
    let staging = tempfile::Builder::new()
        .prefix(".onnxruntime-")
        .tempdir_in(parent)
        .map_err(|e| write(parent, &e))?;
    if file.extension().is_some_and(|extension| extension == "whl") {
        unpack(file, staging.path())?;
    } else {
        let name = file
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if !is_library(name) {
            return Err(problem(format!(
                "{} is neither a wheel (.whl) nor an ONNX Runtime library",
                file.display()
            )));
        }
        fs::copy(file, staging.path().join(name)).map_err(|e| write(staging.path(), &e))?;
    }
    if library_in(staging.path()).is_none() {
        return Err(problem(format!(
            "{} holds no ONNX Runtime library",
            file.display()
        )));
    }
    if target.exists() {
        fs::remove_dir_all(target).map_err(|e| write(target, &e))?;
    }
    match fs::rename(staging.path(), target) {
        Ok(()) => drop(staging.keep()),
        // Another process was faster.
        Err(_) if library_in(target).is_some() => {}
        Err(e) => return Err(write(target, &e)),
    }
    library_in(target).ok_or_else(|| problem(format!("{} vanished", target.display())))
}

/// Copies the shared libraries and licence texts of a wheel's `onnxruntime` folder.
fn unpack(wheel: &Path, to: &Path) -> Result<(), EngineError> {
    let read = |source| EngineError::Read {
        path: wheel.to_owned(),
        source,
    };
    let not_zip =
        |e: zip::result::ZipError| problem(format!("{}: not a wheel: {e}", wheel.display()));
    let mut archive = zip::ZipArchive::new(File::open(wheel).map_err(read)?).map_err(not_zip)?;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(not_zip)?;
        let inside = entry.name().map_err(not_zip)?.into_owned();
        let Some((folder, name)) = inside.rsplit_once('/') else {
            continue;
        };
        let wanted = match folder {
            "onnxruntime/capi" => {
                name.contains("onnxruntime")
                    && !name.contains("pybind")
                    && (name.contains(".so") || name.ends_with(".dylib") || name.ends_with(".dll"))
            }
            "onnxruntime" => matches!(name, "LICENSE" | "ThirdPartyNotices.txt"),
            _ => false,
        };
        if wanted {
            let mut file = File::create(to.join(name)).map_err(read)?;
            io::copy(&mut entry, &mut file)
                .map_err(|e| problem(format!("{}: `{inside}`: {e}", wheel.display())))?;
        }
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
        let target = dir.path().join("data/onnxruntime");
        fs::create_dir_all(&target).unwrap();
        fs::write(target.join("libonnxruntime.so.9.9.9"), "old").unwrap();
        let library = install_to(&file, &target).unwrap();
        assert_eq!(library, target.join(so));
        let mut names: Vec<String> = fs::read_dir(&target)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["LICENSE", so, shared]);
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
            let error = install_to(&file, &target).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(target.join("libonnxruntime.so").exists());
    }
}
