//! What the converter's tests share: the program, and synthetic checkpoints.

#![allow(dead_code, reason = "each test file uses some of it")]

pub(crate) mod lora;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sd_converter::progress::Unwatched;
use sd_converter::synth::{Kind, Synth};

/// Runs `sdconvert`.
pub(crate) fn sdconvert(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_sdconvert");
    let mut command = Command::new(program);
    command.args(args).env("NO_COLOR", "1").output().unwrap()
}

/// What a program printed.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A family's tiny checkpoint, `FAMILY-SEED.safetensors` in a folder.
pub(crate) fn synthetic(dir: &Path, family: &str, seed: u64) -> PathBuf {
    let path = dir.join(format!("{family}-{seed}.safetensors"));
    let synth = Synth {
        kind: Kind::named(family).unwrap(),
        tiny: true,
        seed,
    };
    synth.write(&path, true, &Unwatched).unwrap();
    path
}
