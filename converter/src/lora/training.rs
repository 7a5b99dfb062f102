//! What an adapter file says of its training: words that trigger it, the base it was trained on, settings. From the metadata
//! of kohya's sd-scripts (`ss_..`), Stability's model specification (`modelspec..`) and diffusers.

use std::collections::BTreeMap;

use serde_json::Value;

/// Most trigger words that are told.
const WORDS: usize = 10;

/// Entries of metadata that tell how something was trained, and what they are called in reports.
const SETTINGS: [(&str, &str); 14] = [
    ("ss_output_name", "name"),
    ("modelspec.title", "title"),
    ("modelspec.author", "author"),
    ("ss_sd_model_name", "trained on"),
    ("ss_base_model_version", "base model version"),
    ("modelspec.architecture", "architecture"),
    ("ss_network_module", "network module"),
    ("ss_network_dim", "network dim"),
    ("ss_network_alpha", "network alpha"),
    ("ss_resolution", "resolution"),
    ("ss_num_train_images", "training images"),
    ("ss_steps", "steps"),
    ("ss_num_epochs", "epochs"),
    ("ss_learning_rate", "learning rate"),
];

/// Settings of the training, by their names in reports.
pub(super) fn settings(metadata: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let known = SETTINGS.iter().filter_map(|(key, name)| {
        let value = metadata.get(*key)?.trim();
        let told = !value.is_empty() && value != "None";
        told.then(|| ((*name).to_owned(), value.chars().take(200).collect()))
    });
    known.collect()
}

/// Words that trigger it: those that its writer names, else those of its captions, the most frequent first.
pub(super) fn trigger_words(metadata: &BTreeMap<String, String>) -> Vec<String> {
    for key in [
        "modelspec.trigger_phrase",
        "ss_trigger_words",
        "trigger_words",
    ] {
        if let Some(text) = metadata.get(key).filter(|text| !text.trim().is_empty()) {
            let words = text
                .split(',')
                .map(str::trim)
                .filter(|word| !word.is_empty());
            return words.take(WORDS).map(str::to_owned).collect();
        }
    }
    let frequencies = metadata.get("ss_tag_frequency").and_then(|text| {
        let folders: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_str(text).ok()?;
        let mut counts: BTreeMap<String, f64> = BTreeMap::new();
        for (word, count) in folders.into_values().flatten() {
            *counts.entry(word.trim().to_owned()).or_default() += count.as_f64().unwrap_or(0.0);
        }
        Some(counts)
    });
    let mut words: Vec<(String, f64)> = frequencies.into_iter().flatten().collect();
    words.sort_by(|a, b| b.1.total_cmp(&a.1));
    words
        .into_iter()
        .take(WORDS)
        .map(|(word, _)| word)
        .collect()
}

/// Which family the metadata names as its base.
pub(super) fn base(metadata: &BTreeMap<String, String>) -> Option<&'static str> {
    const VERSIONS: [(&str, &str); 9] = [
        ("sd_v1", "Stable Diffusion 1.x"),
        ("sd_v2", "Stable Diffusion 2.x"),
        ("sdxl", "SDXL"),
        ("stable-diffusion-v1", "Stable Diffusion 1.x"),
        ("stable-diffusion-v2", "Stable Diffusion 2.x"),
        ("stable-diffusion-xl-v1-refiner", "SDXL refiner"),
        ("stable-diffusion-xl", "SDXL"),
        ("sd3", "Stable Diffusion 3"),
        ("flux", "Flux"),
    ];
    for key in [
        "ss_base_model_version",
        "modelspec.architecture",
        "baseModel",
    ] {
        if let Some(value) = metadata.get(key) {
            let value = value.to_lowercase();
            let known = VERSIONS.iter().find(|(start, _)| value.starts_with(start));
            if let Some((_, family)) = known {
                return Some(family);
            }
        }
    }
    match metadata.get("ss_v2").map(String::as_str) {
        Some("True") => Some("Stable Diffusion 2.x"),
        Some("False") => Some("Stable Diffusion 1.x"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        let entries = entries
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        entries.collect()
    }

    #[test]
    fn trigger_words_are_the_captions_most_frequent_ones() {
        let tags = r#"{"10_cat": {"pixel art": 10, "cat": 4}, "5_dog": {"dog": 7, "cat": 5}}"#;
        let words = trigger_words(&metadata(&[("ss_tag_frequency", tags)]));
        assert_eq!(words, ["pixel art", "cat", "dog"]);
        let both = [
            ("ss_tag_frequency", tags),
            ("modelspec.trigger_phrase", "pxl, 8bit"),
        ];
        assert_eq!(trigger_words(&metadata(&both)), ["pxl", "8bit"]);
        assert!(trigger_words(&metadata(&[("ss_tag_frequency", "no json")])).is_empty());
    }

    #[test]
    fn metadata_names_the_base() {
        let base = |key, value| base(&metadata(&[(key, value)]));
        assert_eq!(
            base("ss_base_model_version", "sd_v1"),
            Some("Stable Diffusion 1.x")
        );
        assert_eq!(
            base("ss_base_model_version", "sdxl_base_v1-0"),
            Some("SDXL")
        );
        assert_eq!(
            base("modelspec.architecture", "stable-diffusion-xl-v1-base/lora"),
            Some("SDXL")
        );
        assert_eq!(base("ss_v2", "True"), Some("Stable Diffusion 2.x"));
        assert_eq!(base("ss_steps", "100"), None);
    }
}
