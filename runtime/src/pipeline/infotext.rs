//! A picture's settings as A1111 writes and reads them: prompt, negative prompt, then one line of `key: value` pairs.

use std::fmt::Write;

/// The text for a PNG's `parameters`. `pairs` are in A1111's order.
#[must_use]
pub fn infotext(prompt: &str, negative_prompt: &str, pairs: &[(&str, String)]) -> String {
    let mut text = prompt.to_owned();
    if !negative_prompt.is_empty() {
        let _ = write!(text, "\nNegative prompt: {negative_prompt}");
    }
    let line: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{key}: {}", quote(value)))
        .collect();
    let _ = write!(text, "\n{}", line.join(", "));
    text
}

/// Values that would break the line are JSON strings.
fn quote(value: &str) -> String {
    if value.contains([',', '\n', ':']) {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_a1111s() {
        let pairs = [
            ("Steps", "20".to_owned()),
            ("Size", "512x512".to_owned()),
            ("Model", "a, b: \"c\"".to_owned()),
        ];
        let text = infotext("a cat,\nno dog", "blurry", &pairs);
        assert_eq!(
            text,
            "a cat,\nno dog\nNegative prompt: blurry\nSteps: 20, Size: 512x512, Model: \"a, b: \\\"c\\\"\""
        );
        assert_eq!(infotext("", "", &pairs[..1]), "\nSteps: 20");
    }
}
