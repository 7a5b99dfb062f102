//! The one place that may fetch something, and that is ONNX Runtime's library.
//!
//! The library comes in the wheel of a Python package: `onnxruntime`, or `onnxruntime-openvino`, which has OpenVINO inside. `pip`
//! fetches it, so mirrors and proxies that a machine has for pip are used; what comes is compared with the hash pinned here.
//!
//! OpenVINO's newer plugin (`onnxruntime-ep-openvino`) is not taken: it offers a device on Intel's processors only, and the package
//! with the provider inside runs on those, too.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::library::{has_openvino, is_library, library_in, setup_dir};
use super::network::sha256;
use super::{EngineError, Ep};

/// Version of ONNX Runtime that is fetched for a provider.
#[must_use]
pub fn version(ep: Ep) -> &'static str {
    match ep {
        // The last with the provider inside.
        Ep::OpenVino => "1.24.1",
        _ => "1.32.0",
    }
}

/// Python's package with the library that has a provider.
#[must_use]
pub fn package(ep: Ep) -> &'static str {
    match ep {
        Ep::OpenVino => "onnxruntime-openvino",
        _ => "onnxruntime",
    }
}

/// Whether a library with this provider can be fetched for this machine.
#[must_use]
pub fn fetches(ep: Ep) -> bool {
    wheel(ep, std::env::consts::OS, std::env::consts::ARCH).is_some()
}

/// A wheel: for whom, pip's name of the platform, and its SHA-256.
struct Wheel {
    ep: Ep,
    os: &'static str,
    arch: &'static str,
    platform: &'static str,
    sha256: &'static str,
}

const WHEELS: [Wheel; 5] = [
    Wheel {
        ep: Ep::Cpu,
        os: "linux",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        sha256: "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8",
    },
    Wheel {
        ep: Ep::Cpu,
        os: "linux",
        arch: "aarch64",
        platform: "manylinux_2_28_aarch64",
        sha256: "e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054",
    },
    Wheel {
        ep: Ep::Cpu,
        os: "macos",
        arch: "aarch64",
        platform: "macosx_14_0_arm64",
        sha256: "d52510bbbcc880c13b826f7d75cdf33ac5cf0bb864d960000fc29ce73f0cb83e",
    },
    Wheel {
        ep: Ep::Cpu,
        os: "windows",
        arch: "x86_64",
        platform: "win_amd64",
        sha256: "efe7456952c243a05a53d5b8732953625144642c2f3989094277f6217f0c0c40",
    },
    Wheel {
        ep: Ep::OpenVino,
        os: "linux",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        sha256: "d617fac2f59a6ab5ea59a788c3e1592240a129642519aaeaa774761dfe35150e",
    },
];

fn wheel(ep: Ep, os: &str, arch: &str) -> Option<&'static Wheel> {
    let mut wheels = WHEELS.iter();
    wheels.find(|wheel| wheel.ep == ep && wheel.os == os && wheel.arch == arch)
}

/// Fetches the library with a provider for this machine into the user's data folder.
///
/// # Errors
/// No library for this machine, no pip, no connection, another file than the pinned one, or no space.
pub fn fetch(ep: Ep) -> Result<PathBuf, EngineError> {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let wheel = wheel(ep, os, arch).ok_or(EngineError::NoWheel { ep, os, arch })?;
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
    install(&file, Some(ep))
}

fn download(wheel: &Wheel, to: &Path) -> Result<(), EngineError> {
    let not_fetched = |problem| EngineError::NotFetched {
        ep: wheel.ep,
        problem,
    };
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
        .arg(format!("{}=={}", package(wheel.ep), version(wheel.ep)))
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
        package(wheel.ep),
        version(wheel.ep),
        last.join("; ")
    )))
}

/// Puts a library with what belongs to it, or the libraries of a wheel, into the user's data folder: that of `ep`, or else of the
/// provider that comes along.
///
/// # Errors
/// The file is neither, lacks the provider, or the folder cannot be written.
pub fn install(file: &Path, ep: Option<Ep>) -> Result<PathBuf, EngineError> {
    install_to(file, ep, setup_dir)
}

fn install_to(
    file: &Path,
    ep: Option<Ep>,
    folder_of: impl Fn(Ep) -> PathBuf,
) -> Result<PathBuf, EngineError> {
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
    if file.extension().is_some_and(|extension| extension == "whl") {
        unpack(file, staging.path())?;
    } else {
        copy(file, staging.path())?;
    }
    if library_in(staging.path()).is_none() {
        return Err(problem(format!(
            "{} holds no ONNX Runtime library",
            file.display()
        )));
    }
    let ep = match (ep, has_openvino(staging.path())) {
        (Some(Ep::OpenVino), false) => {
            return Err(problem(format!(
                "{} brings no openvino provider",
                file.display()
            )));
        }
        (Some(ep), _) => ep,
        (None, true) => Ep::OpenVino,
        (None, false) => Ep::Cpu,
    };
    let target = &folder_of(ep);
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

/// Copies the shared libraries and licence texts of a wheel's `onnxruntime` folder. A wheel has no links: it holds libraries under
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
        let target = dir.path().join("data/onnxruntime");
        fs::create_dir_all(&target).unwrap();
        fs::write(target.join("libonnxruntime.so.9.9.9"), "old").unwrap();
        let folder_of = |ep: Ep| target.with_file_name(package(ep));
        let library = install_to(&file, None, folder_of).unwrap();
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
            let error = install_to(&file, None, |_| target.clone());
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
        let folder_of = |ep: Ep| dir.path().join("data").join(package(ep));
        let library = install_to(&file, None, folder_of).unwrap();
        assert_eq!(library, folder_of(Ep::OpenVino).join(OPENVINO[0]));
        let all = |folder: &Path| OPENVINO.iter().all(|name| folder.join(name).is_file());
        assert!(all(&folder_of(Ep::OpenVino)) && !folder_of(Ep::Cpu).exists());
        // A library that is given alone brings those beside it along, and nothing else.
        fs::write(library.with_file_name("libm.so.6"), "").unwrap();
        let another = |ep: Ep| dir.path().join("another").join(package(ep));
        install_to(&library, Some(Ep::OpenVino), another).unwrap();
        let folder = another(Ep::OpenVino);
        assert!(all(&folder) && !folder.join("libm.so.6").exists());
    }

    #[test]
    fn a_library_without_the_provider_is_not_taken_for_one_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("libonnxruntime.so");
        fs::write(&file, "").unwrap();
        let folder_of = |ep: Ep| dir.path().join("data").join(package(ep));
        let error = install_to(&file, Some(Ep::OpenVino), folder_of).unwrap_err();
        assert!(error.to_string().contains("no openvino provider"));
    }

    #[test]
    fn wheels_are_chosen_by_provider_and_machine() {
        let of = |ep, os, arch| super::wheel(ep, os, arch).map(|wheel| wheel.platform);
        let manylinux = Some("manylinux_2_28_x86_64");
        assert_eq!(of(Ep::Cpu, "linux", "x86_64"), manylinux);
        assert_eq!(of(Ep::OpenVino, "linux", "x86_64"), manylinux);
        assert!(of(Ep::Cpu, "windows", "x86_64").is_some());
        assert_eq!(of(Ep::OpenVino, "windows", "x86_64"), None);
        assert_eq!(of(Ep::OpenVino, "linux", "aarch64"), None);
        assert_eq!(of(Ep::Cuda, "linux", "x86_64"), None);
        let hashes: std::collections::BTreeSet<_> =
            WHEELS.iter().map(|wheel| wheel.sha256).collect();
        assert_eq!(hashes.len(), WHEELS.len());
    }
}
