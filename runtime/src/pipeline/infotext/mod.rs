//! A picture's settings as A1111 writes and reads them: prompt, negative prompt, then one line of `key: value` pairs.
//!
//! The grammar is here. `told.rs` says what of a plan is written; [`Settings`] is what texts of this and other programs mean, and
//! `writer.rs` tells these programs apart.
//! A text of ours is read back to what was written, whatever the prompts hold: those that A1111's grammar cannot hold are written once
//! more among the pairs.

#[cfg(test)]
mod cases;
mod reach;
mod settings;
mod told;
mod wanted;
mod writer;

use std::fmt;

pub use reach::within_reach;
pub use settings::{NotCarried, Settings};
pub(super) use told::{NoiseFile, Picture, negative, settings};
pub use wanted::{Missing, Wanted};

/// Longest text in bytes that is read.
pub const LONGEST: usize = 1 << 20;

/// What begins a negative prompt.
const NEGATIVE: &str = "Negative prompt:";

/// Prompts that A1111's grammar does not hold.
const EXACT: [&str; 2] = ["Exact prompt", "Exact negative prompt"];

/// A text that holds no settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InfotextError {
    /// There are no pairs.
    #[error(
        "no settings in the text: expected a last line such as `Steps: 20, Sampler: Euler a, Seed: 1`"
    )]
    NoSettings,
    /// It is longer than [`LONGEST`].
    #[error("{0} bytes of settings; at most {LONGEST} are read")]
    Long(usize),
}

/// Prompts and settings, as they are in a picture's file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Infotext {
    /// What should be seen.
    pub prompt: String,
    /// What should not be seen. Most programs write none if it is empty.
    pub negative_prompt: Option<String>,
    /// Key and value, in the order of the text; no key is there twice.
    pub pairs: Vec<(String, String)>,
}

impl Infotext {
    /// Reads a text. Keys have two characters or more; the last of several equal ones counts.
    ///
    /// # Errors
    /// The last line is no list of settings, or the text is too long.
    ///
    /// ```
    /// use sd_runtime::pipeline::infotext::Infotext;
    ///
    /// let text = "a cat\nNegative prompt: fog\nSteps: 20, Sampler: Euler a, Seed: 1";
    /// let read = Infotext::read(text)?;
    /// assert_eq!(read.negative_prompt.as_deref(), Some("fog"));
    /// assert_eq!(read.get("Sampler"), Some("Euler a"));
    /// assert_eq!(read.to_string(), text);
    /// # Ok::<_, sd_runtime::pipeline::infotext::InfotextError>(())
    /// ```
    pub fn read(text: &str) -> Result<Self, InfotextError> {
        if text.len() > LONGEST {
            return Err(InfotextError::Long(text.len()));
        }
        let text = text.trim_end();
        let (words, last) = text.rsplit_once('\n').unwrap_or(("", text));
        let pairs = pairs(last);
        // As in A1111: fewer may be words of a prompt.
        if pairs.len() < 3 {
            return Err(InfotextError::NoSettings);
        }
        let mut read = Self::default();
        for (key, value) in pairs {
            read.set(&key, value);
        }
        let [prompt, negative] = EXACT.map(|key| read.take(key));
        (read.prompt, read.negative_prompt) = match prompt {
            Some(prompt) => (prompt, negative),
            None => prompts(words),
        };
        Ok(read)
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let pair = self.pairs.iter().find(|(known, _)| known == key);
        pair.map(|(_, value)| &**value)
    }

    /// Gives a key a value.
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        let value = value.into();
        match self.pairs.iter_mut().find(|(known, _)| known == key) {
            Some(pair) => pair.1 = value,
            None => self.pairs.push((key.to_owned(), value)),
        }
    }

    /// The same with more pairs, before the version, which is the last.
    #[must_use]
    pub fn with(&self, more: &[(&'static str, String)]) -> Self {
        let mut all = self.clone();
        let version = all.take("Version");
        for (key, value) in more {
            all.set(key, value.as_str());
        }
        if let Some(version) = version {
            all.set("Version", version);
        }
        all
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.pairs.iter().position(|(known, _)| known == key)?;
        Some(self.pairs.remove(at).1)
    }
}

impl fmt::Display for Infotext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let negative = self.negative_prompt.as_deref();
        // A NUL would end the text in some files.
        let words = match negative {
            Some(negative) => format!("{}\n{NEGATIVE} {negative}", self.prompt),
            None => self.prompt.clone(),
        };
        let words = words.replace('\0', " ");
        let mut pairs: Vec<(&str, &str)> = self
            .pairs
            .iter()
            .map(|(key, value)| (&**key, &**value))
            .collect();
        if prompts(&words) != (self.prompt.clone(), self.negative_prompt.clone()) {
            pairs.push((EXACT[0], &self.prompt));
            pairs.extend(negative.map(|negative| (EXACT[1], negative)));
        }
        writeln!(f, "{words}")?;
        for (i, (key, value)) in pairs.into_iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{key}: {}", quote(value))?;
        }
        Ok(())
    }
}

/// Prompt and negative prompt of the lines before the settings. As in A1111, spaces around lines are lost.
fn prompts(words: &str) -> (String, Option<String>) {
    let (mut prompt, mut negative) = (Vec::new(), None::<Vec<&str>>);
    for line in words.trim().lines() {
        let line = line.trim();
        match (line.strip_prefix(NEGATIVE), &mut negative) {
            (Some(rest), None) => negative = Some(vec![rest.trim()]),
            (Some(rest), Some(lines)) => lines.push(rest.trim()),
            (None, Some(lines)) => lines.push(line),
            (None, None) => prompt.push(line),
        }
    }
    (prompt.join("\n"), negative.map(|lines| lines.join("\n")))
}

/// Values that would break the line, or would be read as something else, are JSON strings.
fn quote(value: &str) -> String {
    let breaks = |c: char| ",:".contains(c) || c.is_control();
    if value.contains(breaks) || value.starts_with('"') || value.trim() != value {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}

/// The pairs of a line. A key is letters, digits, spaces, `_`, `-` and `/`, two or more; a value is JSON, or everything up to a
/// comma. What is neither is passed over.
fn pairs(line: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once(':') {
        let is_key = |c: &char| c.is_alphanumeric() || "_ -/".contains(*c);
        let length: usize = before
            .chars()
            .rev()
            .take_while(is_key)
            .map(char::len_utf8)
            .sum();
        let key = before[before.len() - length..]
            .trim_start_matches(|c: char| !c.is_alphanumeric() && c != '_')
            .trim_end();
        let value = after.trim_start();
        let (value, next) = match json(value) {
            Some((text, end)) => (text, &value[end..]),
            None => {
                let end = value.find(',').unwrap_or(value.len());
                (value[..end].trim_end().to_owned(), &value[end..])
            }
        };
        if key.chars().count() > 1 {
            pairs.push((key.to_owned(), value));
        }
        rest = next;
    }
    pairs
}

/// The JSON that a text begins with, if it does and a comma or the end follows, and where it ends: the content of a string, or an
/// object or list as it stands, which some programs write without quotes.
fn json(text: &str) -> Option<(String, usize)> {
    if !text.starts_with(['"', '{', '[']) {
        return None;
    }
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let value = values.next()?.ok()?;
    let end = values.byte_offset();
    let follows = text[end..].trim_start();
    let is_whole = follows.is_empty() || follows.starts_with(',');
    let value = match value {
        serde_json::Value::String(string) => string,
        _ => text[..end].to_owned(),
    };
    is_whole.then_some((value, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(prompt: &str, negative: Option<&str>) -> Infotext {
        let pairs = [
            ("Steps", "20"),
            ("Size", "512x512"),
            ("Model", "a, b: \"c\""),
            ("Weights", "\"quoted\""),
        ];
        Infotext {
            prompt: prompt.to_owned(),
            negative_prompt: negative.map(ToOwned::to_owned),
            pairs: pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        }
    }

    #[test]
    fn the_text_is_a1111s() {
        let mut text = with("a cat,\nno dog", Some("blurry"));
        text.pairs.pop();
        let written = "a cat,\nno dog\nNegative prompt: blurry\nSteps: 20, Size: 512x512, Model: \"a, b: \\\"c\\\"\"";
        assert_eq!(text.to_string(), written);
        let none = with("", None).to_string();
        assert!(none.starts_with("\nSteps: 20, "), "{none}");
    }

    /// Every pair of these, and long random mixtures of their pieces.
    #[test]
    fn what_is_written_is_read_back() {
        const PIECES: [&str; 24] = [
            "",
            "a cat",
            "\n",
            ", ",
            ": ",
            "\"",
            "\\",
            "'",
            "猫の絵",
            "Ünïcödé",
            "🦀",
            "Steps: 20, Sampler: Euler, Seed: 3",
            "\nSteps: 1, Size: 2x2, Seed: 5",
            "Negative prompt: x",
            "\nNegative prompt: y",
            " ",
            "\t",
            "\r\n",
            "\0",
            "\u{2028}",
            "Exact prompt: \"no\", Exact negative prompt: 3, Steps: 1",
            "<lora:a:0.5>",
            "(word:1.3)",
            "\u{7f}\u{1}",
        ];
        let read_back = |prompt: &str, negative: Option<&str>| {
            let mut text = with(prompt, negative);
            text.set("Note", prompt);
            let written = text.to_string();
            assert!(!written.contains('\0'));
            let read = Infotext::read(&written).unwrap();
            assert_eq!(read, text, "{written}");
        };
        for prompt in PIECES {
            read_back(prompt, None);
            for negative in PIECES {
                read_back(prompt, Some(negative));
            }
        }
        let mut state = 1u64;
        let mut random = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % below
        };
        for _ in 0..3000 {
            let mut mixture = || -> String {
                let count = random(7);
                (0..count).map(|_| PIECES[random(PIECES.len())]).collect()
            };
            read_back(&mixture(), Some(&mixture()));
        }
    }

    #[test]
    fn odd_texts_are_read_as_a1111_reads_them() {
        let text = "\n a dog \n\nNegative prompt:blurry\nugly\nSteps: 20,Sampler:Euler a , Hires upscaler: R-ESRGAN 4x+, \
                    Lora hashes: \"a: 12, b: 34\", Size: 512x768, Steps: 21, x: 3, Model: say \"hi\", Hashes: {\"model\": \"1\", \"lora:a\": \"2\"}, Tail: \"open, Last: ";
        let read = Infotext::read(text).unwrap();
        assert_eq!(read.prompt, "a dog\n");
        assert_eq!(read.negative_prompt.as_deref(), Some("blurry\nugly"));
        for (key, value) in [
            ("Steps", "21"),
            ("Sampler", "Euler a"),
            ("Hires upscaler", "R-ESRGAN 4x+"),
            ("Lora hashes", "a: 12, b: 34"),
            ("Size", "512x768"),
            ("Model", "say \"hi\""),
            ("Hashes", "{\"model\": \"1\", \"lora:a\": \"2\"}"),
            ("Tail", "\"open"),
            ("Last", ""),
        ] {
            assert_eq!(read.get(key), Some(value), "{key}");
        }
        assert_eq!(read.pairs.len(), 9);
        for text in [
            "",
            "a cat",
            "a cat\nSteps: 20, Seed: 3",
            "\n\n",
            ":::,,,\"\"\"",
            "a: b: c",
        ] {
            assert_eq!(
                Infotext::read(text),
                Err(InfotextError::NoSettings),
                "{text}"
            );
        }
        let long = "a".repeat(LONGEST + 1);
        assert_eq!(Infotext::read(&long), Err(InfotextError::Long(LONGEST + 1)));
    }
}
