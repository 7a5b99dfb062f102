//! Styles: pieces of prompts with names, in A1111's `styles.csv` (columns `name`, `prompt`, `negative_prompt`; RFC 4180).
//!
//! The reader is written here since places of broken quotes are to be told; those of libraries read on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Remedy;

/// Where a style puts the prompt.
const PLACEHOLDER: &str = "{prompt}";

/// A file of styles that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StyleError {
    /// It is no table of styles.
    #[error("{}: line {line}, column {column}: {problem}", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
        /// What is wrong.
        problem: String,
    },
    /// No file has a style of the name.
    #[error("no style is called `{name}`")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
}

impl StyleError {
    /// What can be done about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        let Self::Unknown { name, known } = self else {
            return None;
        };
        let nearest = known.iter().max_by(|a, b| {
            let likeness =
                |other: &str| strsim::jaro_winkler(&name.to_lowercase(), &other.to_lowercase());
            likeness(a).total_cmp(&likeness(b))
        });
        Some(Remedy::Words(match nearest {
            Some(nearest) => format!("`{nearest}` is the nearest of {}", known.len()).into(),
            None => "the files hold no styles".into(),
        }))
    }
}

/// What a style adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// To the prompt: around it, where this has `{prompt}`, or behind it.
    pub prompt: String,
    /// To the negative prompt.
    pub negative_prompt: String,
}

/// Styles by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Styles(BTreeMap<String, Style>);

impl Styles {
    /// Adds those of a file's text; of several with one name the last. `path` is for messages.
    ///
    /// # Errors
    /// It is no table with the columns `name` and `prompt`.
    pub fn add(&mut self, text: &str, path: &Path) -> Result<(), StyleError> {
        let wrong = |Wrong { at, problem }| {
            let before = &text[..at];
            StyleError::Csv {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before
                    .rsplit('\n')
                    .next()
                    .unwrap_or_default()
                    .chars()
                    .count()
                    + 1,
                problem,
            }
        };
        self.0.extend(table(text).map_err(wrong)?);
        Ok(())
    }

    /// A prompt and a negative prompt with styles, one after the other.
    ///
    /// # Errors
    /// There is no style of a name.
    ///
    /// ```
    /// # use sd_runtime::text::styles::{Style, Styles};
    /// let style = Style { prompt: "oil painting of {prompt}".into(), negative_prompt: "photo".into() };
    /// let styles = Styles::from_iter([("oil".to_owned(), style)]);
    /// let with = styles.apply(&["oil"], "a cat", "blurry").unwrap();
    /// assert_eq!(with, ["oil painting of a cat", "blurry, photo"]);
    /// ```
    pub fn apply(
        &self,
        names: &[impl AsRef<str>],
        prompt: &str,
        negative_prompt: &str,
    ) -> Result<[String; 2], StyleError> {
        let mut prompts = [prompt.to_owned(), negative_prompt.to_owned()];
        for name in names.iter().map(AsRef::as_ref) {
            let style = self.0.get(name).ok_or_else(|| StyleError::Unknown {
                name: name.to_owned(),
                known: self.0.keys().cloned().collect(),
            })?;
            let [prompt, negative] = &mut prompts;
            *prompt = merged(&style.prompt, prompt);
            *negative = merged(&style.negative_prompt, negative);
        }
        Ok(prompts)
    }
}

impl FromIterator<(String, Style)> for Styles {
    fn from_iter<I: IntoIterator<Item = (String, Style)>>(styles: I) -> Self {
        Self(styles.into_iter().collect())
    }
}

fn merged(style: &str, prompt: &str) -> String {
    if style.contains(PLACEHOLDER) {
        return style.replace(PLACEHOLDER, prompt);
    }
    let parts = [prompt.trim(), style.trim()];
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}

/// What is wrong, and at which byte.
#[derive(Debug, PartialEq)]
struct Wrong {
    at: usize,
    problem: String,
}

/// The styles of a table with a header.
fn table(text: &str) -> Result<Vec<(String, Style)>, Wrong> {
    let mut rows = Rows {
        text,
        at: usize::from(text.starts_with('\u{feff}')) * '\u{feff}'.len_utf8(),
    };
    let header = rows.next_row()?.unwrap_or_default();
    let column = |names: &[&str]| {
        let mut titles = header.iter();
        titles.position(|title| names.contains(&title.trim()))
    };
    let missing = |name: &str| Wrong {
        at: 0,
        problem: format!("the table has no column `{name}`"),
    };
    let name = column(&["name"]).ok_or_else(|| missing("name"))?;
    // Old versions called it otherwise.
    let prompt = column(&["prompt", "text"]).ok_or_else(|| missing("prompt"))?;
    let negative = column(&["negative_prompt"]);
    let mut styles = Vec::new();
    while let Some(row) = rows.next_row()? {
        let field = |place: Option<usize>| {
            let field = place.and_then(|place| row.get(place));
            field.cloned().unwrap_or_default()
        };
        let style = Style {
            prompt: field(Some(prompt)),
            negative_prompt: field(negative),
        };
        styles.push((field(Some(name)), style));
    }
    Ok(styles)
}

/// The rows of a table.
struct Rows<'a> {
    text: &'a str,
    at: usize,
}

impl Rows<'_> {
    /// The next row with something in it.
    fn next_row(&mut self) -> Result<Option<Vec<String>>, Wrong> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches(['\n', '\r']).len();
        if self.at == self.text.len() {
            return Ok(None);
        }
        let mut row = Vec::new();
        loop {
            row.push(self.field()?);
            match self.text.as_bytes().get(self.at) {
                Some(b',') => self.at += 1,
                _ => return Ok(Some(row)),
            }
        }
    }

    /// A field, up to the comma or the end of the line behind it.
    fn field(&mut self) -> Result<String, Wrong> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches(' ').len();
        let rest = &self.text[self.at..];
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let end = rest.find([',', '\n', '\r']).unwrap_or(rest.len());
            self.at += end;
            return Ok(rest[..end].to_owned());
        };
        let mut field = String::new();
        loop {
            let Some(end) = quoted.find('"') else {
                return Err(Wrong {
                    at: self.at,
                    problem: "a quote that is opened here is not closed".to_owned(),
                });
            };
            field += &quoted[..end];
            quoted = &quoted[end + 1..];
            // Two quotes are one that is meant.
            match quoted.strip_prefix('"') {
                Some(more) => {
                    field.push('"');
                    quoted = more;
                }
                None => break,
            }
        }
        self.at = self.text.len() - quoted.len();
        match quoted.chars().next() {
            None | Some(',' | '\n' | '\r') => Ok(field),
            Some(c) => Err(Wrong {
                at: self.at,
                problem: format!(
                    "`{c}` follows a closed quote; expected a comma or the end of the line (quotes inside of quotes are written twice)"
                ),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, prompts and negative prompts, or line, column and problem.
    fn read(text: &str) -> Result<Vec<[String; 3]>, String> {
        let mut styles = Styles::default();
        let path = Path::new("styles.csv");
        styles.add(text, path).map_err(|e| e.to_string())?;
        let row = |(name, style): (String, Style)| [name, style.prompt, style.negative_prompt];
        Ok(styles.0.into_iter().map(row).collect())
    }

    #[test]
    fn tables_are_read_as_a1111_reads_them() {
        let rows = |rows: &[[&str; 3]]| Ok(rows.iter().map(|row| row.map(str::to_owned)).collect());
        let whole = "\u{feff}name,prompt,negative_prompt\r\na,\"x, \"\"y\"\"\nz\", n\r\n\r\nb,5\" tall,\nc\n";
        assert_eq!(
            read(whole),
            rows(&[
                ["a", "x, \"y\"\nz", "n"],
                ["b", "5\" tall", ""],
                ["c", "", ""]
            ])
        );
        assert_eq!(read("name,text\na,b"), rows(&[["a", "b", ""]]));
        assert_eq!(
            read("negative_prompt,name,prompt,more\nn,a,p,x,y\n"),
            rows(&[["a", "p", "n"]])
        );
        assert_eq!(read("name,prompt\na,1\na,2"), rows(&[["a", "2", ""]]));
    }

    #[test]
    fn broken_quotes_are_told_with_their_place() {
        for (text, expected) in [
            (
                "name,prompt\né,\"open\nx,y",
                "line 2, column 3: a quote that is opened here is not closed",
            ),
            (
                "name,prompt\na,b\nc,\"d\"e",
                "line 3, column 6: `e` follows a closed quote",
            ),
            (
                "name,prompt\na,\"two\nlines\" x",
                "line 3, column 7: ` ` follows",
            ),
            (
                "title,prompt\n",
                "line 1, column 1: the table has no column `name`",
            ),
            ("name\na", "no column `prompt`"),
            ("", "no column `name`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn styles_go_around_prompts_or_behind_them() {
        let style = |prompt: &str, negative: &str| Style {
            prompt: prompt.to_owned(),
            negative_prompt: negative.to_owned(),
        };
        let styles = Styles::from_iter([
            (
                "oil".to_owned(),
                style("oil painting of {prompt}, {prompt}", "{prompt}, photo"),
            ),
            ("night".to_owned(), style(" at night ", "")),
        ]);
        let apply = |names: &[&str], prompt, negative| styles.apply(names, prompt, negative);
        let with = |names, prompt, negative| apply(names, prompt, negative).unwrap();
        assert_eq!(with(&["night"], "a cat ", "x"), ["a cat, at night", "x"]);
        assert_eq!(
            with(&["night", "oil"], "a", ""),
            ["oil painting of a, at night, a, at night", ", photo"]
        );
        assert_eq!(with(&["night"], "", ""), ["at night", ""]);
        let error = apply(&["nigth"], "", "").unwrap_err();
        assert!(error.to_string().contains("`nigth`"));
        assert_eq!(
            error.hint(),
            Some(Remedy::Words("`night` is the nearest of 2".into()))
        );
    }
}
