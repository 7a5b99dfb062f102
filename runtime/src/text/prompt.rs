//! A1111's attention syntax: `(more)`, `((much more))`, `[less]`, `(exactly:1.3)`, backslash escapes, and `BREAK`; and
//! `ComfyUI`'s, which has round brackets only.
//!
//! Prompt editing, alternation and `AND` come before: [`super::editing`], [`super::composition`].

/// What a prompt consists of.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Words of equal weight.
    Text {
        /// The words.
        text: String,
        /// How strongly their embeddings act.
        weight: f32,
    },
    /// The next words start a new chunk.
    Break,
}

impl Part {
    /// Text as it stands.
    #[must_use]
    pub fn plain(text: &str) -> Self {
        Self::Text {
            text: text.to_owned(),
            weight: 1.0,
        }
    }
}

const ROUND: f64 = 1.1;
const SQUARE: f64 = 1.0 / 1.1;

/// Reads the attention syntax; there is no wrong syntax, only brackets that stay literal.
///
/// `BREAK` inside brackets is a break, too: A1111 encodes the word there.
///
/// ```
/// use sd_runtime::text::prompt::{Part, parse_attention};
///
/// let text = |text: &str, weight| Part::Text { text: text.to_owned(), weight };
/// assert_eq!(
///     parse_attention("a (red:1.5) house"),
///     [text("a ", 1.0), text("red", 1.5), text(" house", 1.0)]
/// );
/// ```
#[must_use]
pub fn parse_attention(prompt: &str) -> Vec<Part> {
    // Weights are doubles until the end, as Python's are.
    let mut parts: Vec<(Option<String>, f64)> = Vec::new();
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let mut rest = prompt;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|c| "()[]\\".contains(*c));
                let literal = escaped.map(String::from).unwrap_or_default();
                let length = 1 + literal.len();
                parts.push((Some(literal), 1.0));
                length
            }
            '(' => {
                round.push(parts.len());
                1
            }
            '[' => {
                square.push(parts.len());
                1
            }
            ':' => match (closing_weight(rest), round.last()) {
                (Some((weight, length)), Some(&from)) => {
                    round.pop();
                    multiply(&mut parts, from, weight);
                    length
                }
                (Some((_, length)), None) => {
                    push_text(&mut parts, &rest[..length]);
                    length
                }
                (None, _) => {
                    push_text(&mut parts, ":");
                    1
                }
            },
            ')' | ']' => {
                let (open, factor) = if c == ')' {
                    (&mut round, ROUND)
                } else {
                    (&mut square, SQUARE)
                };
                match open.pop() {
                    Some(from) => multiply(&mut parts, from, factor),
                    None => push_text(&mut parts, &rest[..1]),
                }
                1
            }
            _ => {
                let length = rest
                    .find(['\\', '(', ')', '[', ']', ':'])
                    .unwrap_or(rest.len());
                push_text(&mut parts, &rest[..length]);
                length
            }
        };
        rest = &rest[length..];
    }
    round
        .into_iter()
        .for_each(|from| multiply(&mut parts, from, ROUND));
    square
        .into_iter()
        .for_each(|from| multiply(&mut parts, from, SQUARE));
    merge(parts)
}

/// Reads `ComfyUI`'s syntax: a bracket weighs 1.1 times what is around it, a number in it replaces all that, and backslashes
/// escape round brackets. Nothing else means anything.
#[must_use]
pub fn parse_comfyui(prompt: &str) -> Vec<Part> {
    const ESCAPED: [[&str; 3]; 2] = [["\\)", "\0\u{1}", ")"], ["\\(", "\0\u{2}", "("]];
    let text = ESCAPED
        .iter()
        .fold(prompt.to_owned(), |text, [from, to, _]| {
            text.replace(from, to)
        });
    let mut parts = Vec::new();
    // Texts with their weights, the next one last; those that are split already are parts or brackets.
    let mut open = vec![(&text[..], 1.0, false)];
    while let Some((text, weight, is_split)) = open.pop() {
        if !is_split {
            let items = round_brackets(text).into_iter().rev();
            open.extend(items.map(|item| (item, weight, true)));
            continue;
        }
        if let Some(inner) = text
            .strip_prefix('(')
            .and_then(|text| text.strip_suffix(')'))
        {
            let number = |(words, number): (&str, &str)| -> Option<(usize, f64)> {
                let weight: f64 = number.trim().parse().ok()?;
                (!words.is_empty() && weight.is_finite()).then_some((words.len(), weight))
            };
            let (length, weight) = inner
                .rsplit_once(':')
                .and_then(number)
                .unwrap_or((inner.len(), weight * ROUND));
            open.push((&inner[..length], weight, false));
            continue;
        }
        let text = ESCAPED.iter().fold(text.to_owned(), |text, [_, from, to]| {
            text.replace(from, to)
        });
        parts.push(Part::Text {
            text,
            weight: weight as f32,
        });
    }
    parts
}

/// A text as outermost round brackets and what is between them.
fn round_brackets(text: &str) -> Vec<&str> {
    let (mut items, mut start, mut depth) = (Vec::new(), 0, 0i64);
    for (at, c) in text.char_indices() {
        match c {
            '(' => {
                if depth == 0 {
                    items.push(&text[start..at]);
                    start = at;
                }
                depth += 1;
            }
            ')' => {
                depth -= 1;
                if depth == 0 {
                    items.push(&text[start..=at]);
                    start = at + 1;
                }
            }
            _ => {}
        }
    }
    items.push(&text[start..]);
    items.retain(|item| !item.is_empty());
    items
}

/// `:` number `)`, with spaces around the number: the weight and the length of all that.
fn closing_weight(text: &str) -> Option<(f64, usize)> {
    let (number, _) = text[1..].split_once(')')?;
    let digits = number.trim();
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    if unsigned.is_empty() || !unsigned.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    Some((digits.parse().ok()?, number.len() + 2))
}

fn multiply(parts: &mut [(Option<String>, f64)], from: usize, factor: f64) {
    parts[from..]
        .iter_mut()
        .for_each(|(_, weight)| *weight *= factor);
}

/// Splits at `BREAK`, which swallows the space around it.
fn push_text(parts: &mut Vec<(Option<String>, f64)>, text: &str) {
    let mut rest = text;
    while let Some(at) = find_word(rest, "BREAK") {
        parts.push((Some(rest[..at].trim_end().to_owned()), 1.0));
        parts.push((None, 1.0));
        rest = rest[at + "BREAK".len()..].trim_start();
    }
    parts.push((Some(rest.to_owned()), 1.0));
}

/// Where `word` stands with no letter, digit or underscore beside it.
pub(super) fn find_word(text: &str, word: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .map(|(at, _)| at)
        .find(|&at| !text[..at].ends_with(is_word) && !text[at + word.len()..].starts_with(is_word))
}

/// Joins neighbours of equal weight.
fn merge(parts: Vec<(Option<String>, f64)>) -> Vec<Part> {
    let mut merged: Vec<(Option<String>, f64)> = Vec::new();
    for (text, weight) in parts {
        match (text, merged.last_mut()) {
            (Some(text), Some((Some(last), w))) if *w == weight => last.push_str(&text),
            (text, _) => merged.push((text, weight)),
        }
    }
    if merged.is_empty() {
        merged.push((Some(String::new()), 1.0));
    }
    let part = |(text, weight): (Option<String>, f64)| match text {
        Some(text) => Part::Text {
            text,
            weight: weight as f32,
        },
        None => Part::Break,
    };
    merged.into_iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comfyuis_numbers_replace_and_square_brackets_are_text() {
        for (prompt, expected) in [
            ("a cat", &[("a cat", 1.0)][..]),
            ("(cat)", &[("cat", 1.1)]),
            ("((cat))", &[("cat", 1.21)]),
            ("(cat:1.3)", &[("cat", 1.3)]),
            ("(a (b:1.5) c)", &[("a ", 1.1), ("b", 1.5), (" c", 1.1)]),
            ("((a:0.5) b:2)", &[("a", 0.5), (" b", 2.0)]),
            ("[less] a BREAK", &[("[less] a BREAK", 1.0)]),
            (r"a \(b\) (c)", &[("a (b) ", 1.0), ("c", 1.1)]),
            ("(:1.3) (a:b)", &[(":1.3", 1.1), (" ", 1.0), ("a:b", 1.1)]),
            ("(a", &[("(a", 1.0)]),
            ("a) (b)", &[("a) (b)", 1.0)]),
            ("", &[]),
        ] {
            let part = |part| match part {
                Part::Text { text, weight } => (text, weight),
                Part::Break => panic!("{prompt}"),
            };
            let found: Vec<_> = parse_comfyui(prompt).into_iter().map(part).collect();
            let own = |(text, weight): &(&str, f32)| ((*text).to_owned(), *weight);
            assert_eq!(
                found,
                expected.iter().map(own).collect::<Vec<_>>(),
                "{prompt}"
            );
        }
        // As deep as there are brackets.
        let deep = ["(".repeat(3000), "a".to_owned(), ")".repeat(3000)].concat();
        assert_eq!(parse_comfyui(&deep).len(), 1);
    }

    fn parsed(prompt: &str) -> Vec<(String, f32)> {
        let part = |part| match part {
            Part::Text { text, weight } => (text, weight),
            Part::Break => ("BREAK".to_owned(), -1.0),
        };
        parse_attention(prompt).into_iter().map(part).collect()
    }

    #[test]
    fn attention_is_read_as_a1111_reads_it() {
        let long = "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).";
        let cases: [(&str, &[(&str, f32)]); 20] = [
            ("(cat:1.3)", &[("cat", 1.3)]),
            ("((cat))", &[("cat", 1.21)]),
            ("[cat]", &[("cat", 0.909_091)]),
            ("(a (b:1.5) c)", &[("a ", 1.1), ("b", 1.65), (" c", 1.1)]),
            ("(a:1.2:1.3)", &[("a:1.2", 1.3)]),
            ("a\\(b\\)", &[("a(b)", 1.0)]),
            ("(cat:)", &[("cat:", 1.1)]),
            ("(cat:1.3", &[("cat:1.3", 1.1)]),
            ("cat)", &[("cat)", 1.0)]),
            ("(a,b:0)", &[("a,b", 0.0)]),
            ("(a:-1)", &[("a", -1.0)]),
            ("(a: +1.5 )", &[("a", 1.5)]),
            ("(a:1.2.3)", &[("a:1.2.3", 1.1)]),
            ("[a:1.2]", &[("a:1.2", 0.909_091)]),
            ("((cat:1.1):1.2)", &[("cat", 1.32)]),
            ("", &[("", 1.0)]),
            ("a:1.2)", &[("a:1.2)", 1.0)]),
            ("\\\\\\x", &[("\\x", 1.0)]),
            ("a BREAK b", &[("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
            (
                long,
                &[
                    ("a ", 1.0),
                    ("house", 1.573),
                    (" ", 1.1),
                    ("on", 1.0),
                    (" a ", 1.1),
                    ("hill", 0.55),
                    (", sun, ", 1.1),
                    ("sky", 1.4641),
                    (".", 1.1),
                ],
            ),
        ];
        for (prompt, expected) in cases {
            let found = parsed(prompt);
            assert_eq!(found.len(), expected.len(), "{prompt}: {found:?}");
            for ((text, weight), (t, w)) in found.iter().zip(expected) {
                assert_eq!(text, t, "{prompt}: {found:?}");
                assert!((weight - w).abs() < 1e-6, "{prompt}: {found:?}");
            }
        }
    }

    #[test]
    fn a_break_is_a_word_of_its_own_at_any_depth() {
        assert_eq!(parsed("BREAKFAST un_BREAK").len(), 1);
        assert_eq!(
            parsed("(a BREAK b:1.2)"),
            [("a".into(), 1.2), ("BREAK".into(), -1.0), ("b".into(), 1.2)]
        );
    }
}
