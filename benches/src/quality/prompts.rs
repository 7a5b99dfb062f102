//! What the pictures are of.

use std::fs;
use std::path::Path;

use anyhow::Context;
use sd_models::demo;
use sd_runtime::pipeline::ModelDir;
use sd_ui::UsageError;

/// The first prompts of `python train.py quality`.
const DEMO: &str = include_str!("demo-prompts.txt");

/// Things, people, places and styles that models know.
const EVERYDAY: &str = include_str!("everyday-prompts.txt");

/// The prompts of a file, or those that suit a model.
pub(crate) fn read(file: Option<&Path>, model: &ModelDir) -> anyhow::Result<Vec<String>> {
    let Some(path) = file else {
        return Ok(lines(if is_demo(model) { DEMO } else { EVERYDAY }));
    };
    let text = fs::read_to_string(path);
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    let prompts = lines(&text);
    if prompts.is_empty() {
        let text = format!(
            "{}: there is no prompt in it; expected one a line, without those that are empty or begin with #",
            path.display()
        );
        return Err(UsageError(text).into());
    }
    Ok(prompts)
}

/// Lines with something on them that is no remark.
fn lines(text: &str) -> Vec<String> {
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// Whether a directory was made of the demo model alone, however it is stored. Its name is the user's to choose, so the hash of
/// its source tells.
pub(crate) fn is_demo(model: &ModelDir) -> bool {
    let Some(manifest) = &model.manifest else {
        return false;
    };
    let [source] = manifest.sources.as_slice() else {
        return false;
    };
    source.sha256 == demo::SHA256 && manifest.loras.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::shapes::Scene;

    #[test]
    fn lists_are_there_and_the_demo_models_is_read_by_its_rules() {
        assert_eq!(lines(EVERYDAY).len(), 20);
        let demo = lines(DEMO);
        assert_eq!(demo.len(), 50);
        for prompt in demo {
            assert!(Scene::read(&prompt).is_some(), "{prompt}");
        }
    }

    #[test]
    fn remarks_and_empty_lines_are_no_prompts() {
        let text = "\u{feff}# mine\r\na cat\r\n\r\n  a dog # 5 \n";
        assert_eq!(lines(text), ["a cat", "a dog # 5"]);
    }
}
