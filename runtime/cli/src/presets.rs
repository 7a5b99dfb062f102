//! Options under a name, in a TOML file: a table for each preset, with options' names and values.
//!
//! A preset stands for its options, in front of those of the command line, which count instead of it.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::Parser;
use sd_runtime::engine::library::data_dir;
use sd_ui::{Ui, UsageError};
use toml::Value;

use crate::Cli;
use crate::commands::Command;

/// The file in the user's data folder.
const FILE_NAME: &str = "presets.toml";

/// The command line with its preset, if it has one.
pub(crate) fn applied(cli: Cli, ui: &Ui) -> anyhow::Result<Cli> {
    let Command::Txt2img(args) = &cli.command else {
        return Ok(cli);
    };
    let Some(name) = &args.preset else {
        return Ok(cli);
    };
    let file = args
        .presets
        .clone()
        .unwrap_or_else(|| data_dir().join(FILE_NAME));
    let text = ui.read_text(&file)?;
    let options =
        options(&text, name).map_err(|problem| anyhow::anyhow!("{}: {problem}", file.display()))?;
    let mut words: Vec<OsString> = std::env::args_os().collect();
    let command = words.iter().position(|word| word == "txt2img");
    let place = command.map_or(words.len(), |at| at + 1);
    words.splice(place..place, options.into_iter().map(OsString::from));
    Cli::try_parse_from(words).map_err(|error| {
        let text = error.to_string();
        let problem = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        UsageError(format!("{}: preset `{name}`: {problem}", file.display())).into()
    })
}

/// The options of a preset, as a command line has them.
fn options(text: &str, name: &str) -> Result<Vec<String>, String> {
    type Presets = BTreeMap<String, BTreeMap<String, Value>>;
    let mut presets: Presets = toml::from_str(text).map_err(|error| error.to_string())?;
    let Some(preset) = presets.remove(name) else {
        let known: Vec<String> = presets.into_keys().collect();
        return Err(format!(
            "no preset is called `{name}`; there are {}",
            known.join(", ")
        ));
    };
    let mut options = Vec::new();
    for (key, value) in preset {
        // They act before presets are read.
        if ["preset", "presets", "quiet", "verbose"].contains(&key.as_str()) {
            return Err(format!(
                "preset `{name}`: {key} belongs on the command line"
            ));
        }
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            match value {
                Value::Boolean(false) => {}
                Value::Boolean(true) => options.push(format!("--{key}")),
                Value::String(text) => options.push(format!("--{key}={text}")),
                Value::Integer(number) => options.push(format!("--{key}={number}")),
                Value::Float(number) => options.push(format!("--{key}={number}")),
                _ => {
                    return Err(format!(
                        "preset `{name}`: {key} is neither text, number, true or false, nor a list of them"
                    ));
                }
            }
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_options() {
        let text = "[quick]\nsteps = 8\ncfg = 1.5\nsampler = \"Euler a\"\njson = true\nstrict-ep = false\nstyle = [\"a\", \"b\"]\n[other]\n";
        let quick = [
            "--cfg=1.5",
            "--json",
            "--sampler=Euler a",
            "--steps=8",
            "--style=a",
            "--style=b",
        ];
        assert_eq!(options(text, "quick").unwrap(), quick);
        assert!(options(text, "other").unwrap().is_empty());
        for (text, said) in [
            (text, "there are other, quick"),
            ("[none]\na = {b = 1}", "a is neither"),
            ("[none]\nquiet = true", "quiet belongs"),
            ("none = 3", "invalid type"),
            ("[none", "unclosed"),
        ] {
            let error = options(text, "none").unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
