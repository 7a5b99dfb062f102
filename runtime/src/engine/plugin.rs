//! A provider that is a library of its own: ONNX Runtime's plugins, which any version from 1.22 on loads beside what it was built with.
//!
//! A plugin names the devices that it computes with. A session takes one of them; the option `device` says which.

use std::io;
use std::path::{Path, PathBuf};

use ort::device::Device;
use ort::environment::Environment;
use ort::session::builder::SessionBuilder;

use super::library::{CUT_OFF, NO_FILE, is_cut_off};
use super::network::sha256;
use super::{EngineError, Ep, EpOption, EpOptions};

/// The option that is ours: which of the plugin's devices, from 0.
const DEVICE: &str = "device";

/// What tells a plugin from others: its file's name and the first digits of its SHA-256.
///
/// # Errors
/// It cannot be read.
pub fn plugin_title(library: &Path) -> io::Result<String> {
    let name = library.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{name} [{}]", &sha256(library)?[..10]))
}

/// A plugin that was loaded.
#[derive(Clone, Debug)]
pub(super) struct Plugin {
    path: PathBuf,
    /// Its [`plugin_title`].
    title: String,
    /// What ONNX Runtime calls its provider.
    provider: String,
}

impl Plugin {
    /// Loads a library.
    pub(super) fn load(environment: &Environment, path: &Path) -> Result<Self, EngineError> {
        /// What ONNX Runtime knows the library by.
        const NAME: &str = "sdrt.plugin";
        let broken = |problem: String| broken(path, problem);
        if !path.is_file() {
            let problem = match path {
                path if path.is_dir() => "it is a folder; expected a file",
                path if path.exists() => NO_FILE,
                _ => "there is no such file",
            };
            return Err(broken(problem.to_owned()));
        }
        if is_cut_off(path) {
            return Err(broken(CUT_OFF.to_owned()));
        }
        let title = plugin_title(path).map_err(|e| broken(e.to_string()))?;
        // Relative names would be looked up in the system's folders.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let known = environment.devices().count();
        environment
            .register_ep_library(NAME, absolute)
            .map_err(|e| broken(e.to_string()))?;
        let mut new = environment.devices().skip(known);
        let device = new.next().ok_or_else(|| {
            broken("it is a plugin, but finds no device that it computes with".to_owned())
        })?;
        let provider = device.ep().map_err(|e| broken(e.to_string()))?.to_owned();
        Ok(Self {
            path: path.to_owned(),
            title,
            provider,
        })
    }

    /// What tells it from others.
    pub(super) fn title(&self) -> &str {
        &self.title
    }

    /// Whether it is OpenVINO, which has passes of its own.
    pub(super) fn is_openvino(&self) -> bool {
        self.provider == "OpenVINOExecutionProvider"
    }

    /// Lets a session compute with the plugin's device that the options name, with all other options.
    pub(super) fn register(
        &self,
        builder: SessionBuilder,
        environment: &Environment,
        options: &EpOptions,
    ) -> Result<SessionBuilder, EngineError> {
        let broken = |problem: String| broken(&self.path, problem);
        let options = match options {
            EpOptions::Own(options) => &options[..],
            EpOptions::OpenVino(_) => &[],
        };
        let (own, others): (Vec<&EpOption>, Vec<&EpOption>) =
            options.iter().partition(|option| option.key == DEVICE);
        let wanted = match own.first() {
            None => Some(0),
            Some(option) => option.value.parse().ok(),
        };
        let ours = |device: &Device<'_>| device.ep().is_ok_and(|name| name == self.provider);
        let mut devices: Vec<Device<'_>> = environment.devices().filter(ours).collect();
        let Some(place) = wanted.filter(|place| *place < devices.len()) else {
            let names = devices.iter().enumerate().map(|(i, device)| {
                let hardware = device.hardware_device();
                let vendor = hardware.vendor().unwrap_or_default();
                format!("{i} ({:?} of {vendor})", hardware.ty())
            });
            let names: Vec<String> = names.collect();
            return Err(broken(format!(
                "its devices are {}; the option `{DEVICE}` takes one of these numbers",
                names.join(", ")
            )));
        };
        let named = |option: &&EpOption| {
            let key = format!("{}.{}", self.provider, option.key);
            (key, option.value.clone())
        };
        let others: Vec<(String, String)> = others.iter().map(named).collect();
        let device = devices.swap_remove(place);
        let builder = builder.with_devices([device], Some(&others));
        builder.map_err(|e| broken(e.to_string()))
    }
}

fn broken(path: &Path, problem: String) -> EngineError {
    EngineError::ProviderBroken {
        path: path.to_owned(),
        ep: Ep::Plugin,
        problem,
    }
}
