//! A1111's comments in prompts: from a `#` to the end of its line.
//!
//! The web UI replaces them by ends of lines in two passes: first those that are whole lines, with the end of the line before, then
//! the others. Of lines that follow each other, the first pass sees every second one, since it has taken the end of the line before.

/// What is left of a prompt without its comments.
///
/// ```
/// use sd_runtime::text::comments::strip;
///
/// assert_eq!(strip("a cat # or a dog\n# at night\nin a house"), "a cat \nin a house");
/// ```
#[must_use]
pub fn strip(prompt: &str) -> String {
    let whole_lines = |rest: &str, is_first: bool| match is_first && rest.starts_with('#') {
        true => Some(0),
        false => rest.find("\n#"),
    };
    let left = replace(prompt, whole_lines);
    replace(&left, |rest, _| rest.find('#'))
}

/// The comments of a prompt.
pub fn comments(prompt: &str) -> impl Iterator<Item = &str> {
    let lines = prompt.split('\n');
    lines.filter_map(|line| Some(line[line.find('#')?..].trim_end()))
}

/// Replaces comments by an end of a line each. `start` finds the next one in the rest of a text, which may be the whole text.
fn replace(text: &str, start: impl Fn(&str, bool) -> Option<usize>) -> String {
    let (mut left, mut rest) = (String::new(), text);
    while let Some(at) = start(rest, rest.len() == text.len()) {
        left += &rest[..at];
        left.push('\n');
        // Behind the `#`, or the end of the line before it.
        let inside = &rest[at + 1..];
        rest = inside.split_once('\n').map_or("", |(_, after)| after);
    }
    left + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_left_out_as_a1111_leaves_them_out() {
        let golden = include_str!("../../../tests/golden/comments.json");
        let cases: Vec<[String; 2]> = serde_json::from_str(golden).unwrap();
        assert!(cases.len() > 300);
        for [prompt, expected] in cases {
            assert_eq!(strip(&prompt), expected, "{prompt:?}");
        }
    }

    #[test]
    fn comments_are_told_line_by_line() {
        let prompt = "a # b # c\r\n#\nd\n#e";
        assert_eq!(comments(prompt).collect::<Vec<_>>(), ["# b # c", "#", "#e"]);
        assert_eq!(comments("a").count(), 0);
    }
}
