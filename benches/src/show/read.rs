//! Reports from files. What is wrong with one is said with its file and field.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::report::SCHEMA;
use crate::run::{COMMAND, MOST_ROUNDS, Measured, RunReport};

/// Reads a report of `sdbench run`.
///
/// # Errors
/// There is none, or one of another version or command, or one that was changed.
pub(crate) fn read(path: &Path) -> anyhow::Result<RunReport> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> anyhow::Result<RunReport> {
    let json: Value = serde_json::from_str(text).context("it is no JSON")?;
    let found = |field: &str| match &json[field] {
        Value::Null => "missing".to_owned(),
        value => value.to_string(),
    };
    if json["schema"].as_u64().is_none() || !json["command"].is_string() {
        let [schema, command] = ["schema", "command"].map(found);
        bail!(
            "it is no report of sdbench: `schema` is {schema} and `command` {command}; expected {SCHEMA} and \"{COMMAND}\""
        );
    }
    if json["command"] != COMMAND {
        bail!("`command` is {}; expected \"{COMMAND}\"", found("command"));
    }
    if json["schema"] != SCHEMA {
        bail!(
            "`schema` is {}; expected {SCHEMA}: it was written by another version, so measure again",
            found("schema")
        );
    }
    let report: RunReport = serde_path_to_error::deserialize(&json)
        .map_err(|e| anyhow::anyhow!("`{}`: {}", e.path(), e.inner()))?;
    check(&report)?;
    Ok(report)
}

/// Times and energies are positive, and figures are those of what was measured.
fn check(report: &RunReport) -> anyhow::Result<()> {
    for (i, configuration) in report.configurations.iter().enumerate() {
        let figures = configuration.measured.iter().flat_map(Measured::figures);
        for figure in figures {
            if figure.spread.all.len() > MOST_ROUNDS as usize {
                bail!(
                    "`configurations[{i}].measured`: {} has {} rounds; expected {MOST_ROUNDS} at most",
                    figure.name,
                    figure.spread.all.len()
                );
            }
            let wrong = |x: &&f64| !(x.is_finite() && **x > 0.0);
            if let Some(wrong) = figure.spread.all.iter().find(wrong) {
                bail!(
                    "`configurations[{i}].measured`: {} is {wrong}; expected more than 0",
                    figure.name
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        format!("{:#}", parse(text).unwrap_err())
    }

    #[test]
    fn what_is_wrong_is_named() {
        let whole = serde_json::to_value(crate::show::tests::report(&["cpu"])).unwrap();
        assert!(parse(&whole.to_string()).is_ok());
        let changed = |pointer: &str, value: Value| {
            let mut json = whole.clone();
            *json.pointer_mut(pointer).unwrap() = value;
            refused(&json.to_string())
        };
        for (said, expected) in [
            (refused("{\"schema\": 2,"), "it is no JSON: EOF"),
            (refused("[1]"), "it is no report of sdbench"),
            (refused("{\"schema\": 2}"), "`command` missing"),
            (changed("/schema", 1.into()), "`schema` is 1; expected 2"),
            (
                refused("{\"schema\": 1, \"command\": \"determinism\"}"),
                "`command` is \"determinism\"; expected \"run\"",
            ),
            (changed("/schema", "x".into()), "`schema` is \"x\""),
            (
                changed("/command", "quality".into()),
                "`command` is \"quality\"; expected \"run\"",
            ),
            (
                changed(
                    "/configurations/0/measured/picture/total_s/all/1",
                    "fast".into(),
                ),
                "`configurations[0].measured.picture.total_s.all[1]`: invalid type",
            ),
            (
                changed("/configurations/0/measured/picture/total_s/all/1", 0.into()),
                "`configurations[0].measured`: picture is 0; expected more than 0",
            ),
            (
                changed(
                    "/configurations/0/measured/start_s/all",
                    vec![1.0; 101].into(),
                ),
                "start has 101 rounds; expected 100 at most",
            ),
            (
                changed("/machine/processors", (-1).into()),
                "`machine.processors`: invalid value",
            ),
        ] {
            assert!(said.contains(expected), "{said}");
        }
        let mut json = whole.clone();
        json["machine"].as_object_mut().unwrap().remove("flags");
        let said = refused(&json.to_string());
        assert!(said.contains("`machine`: missing field `flags`"), "{said}");
    }
}
