//! A1111's prompt editing: `[from:to:when]`, `[to:when]`, `[from::when]`, and alternation `[a|b|c]`, nested at will.
//!
//! A prompt that is no text of this grammar is taken literally: one with `|` outside of an alternation, or with a backslash at
//! the end of a line. Brackets that enclose nothing of the kind stay for the attention syntax. A1111's grammar is ambiguous
//! where such brackets stand right beside an edit (`[a:b:3]))`), and what its parser makes of that depends on the parser's
//! version; edits are edits here.

use super::Timeline;

/// A piece of a prompt.
#[derive(Debug)]
enum Item<'a> {
    /// What is always there.
    Text(&'a str),
    /// One until a step, the other after it.
    Scheduled {
        before: Vec<Item<'a>>,
        after: Vec<Item<'a>>,
        when: &'a str,
    },
    /// In turn, step by step.
    Alternate(Vec<Vec<Item<'a>>>),
}

/// An open bracket and what has been seen in it.
struct Frame<'a> {
    open: &'a str,
    /// What lies between the separators.
    sections: Vec<Vec<Item<'a>>>,
    /// `:` or `|`.
    separators: Vec<&'a str>,
}

/// Steps that edits are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// Steps of this pass.
    pub count: usize,
    /// Steps of the pass before it, if this one goes on: whole numbers count from there, and fractions from 1.
    pub before: Option<usize>,
}

impl Steps {
    /// Steps of a first pass.
    #[must_use]
    pub fn first(count: usize) -> Self {
        Self {
            count,
            before: None,
        }
    }

    /// The last step before an edit; none of them if it is negative.
    fn until(self, when: &str) -> i64 {
        // The grammar lets nothing through that is no number.
        let value: f64 = when.parse().unwrap_or_default();
        let steps = self.count as f64;
        let value = match when.contains('.') {
            true => (value - f64::from(u8::from(self.before.is_some()))) * steps,
            false => value - self.before.unwrap_or(0) as f64,
        };
        value.min(steps) as i64
    }
}

/// The texts that a prompt is over the steps: each with the last step that it holds for.
///
/// ```
/// use sd_runtime::text::editing::{Steps, schedule};
///
/// let timeline = schedule("a [cat:dog:3]", Steps::first(10));
/// let turns: Vec<_> = timeline.turns().map(|(until, text)| (until, text.as_str())).collect();
/// assert_eq!(turns, [(3, "a cat"), (10, "a dog")]);
/// ```
#[must_use]
pub fn schedule(prompt: &str, steps: Steps) -> Timeline<String> {
    let last = steps.count.max(1);
    let Some(items) = parse(prompt) else {
        return Timeline::new([(last, prompt.to_owned())]);
    };
    let mut ends = vec![false; last + 1];
    ends[last] = true;
    mark_ends(&items, steps, &mut ends);
    let ends = (1..).zip(&ends[1..]).filter(|(_, is_end)| **is_end);
    Timeline::new(ends.map(|(step, _)| {
        let mut text = String::new();
        write(&items, step, steps, &mut text);
        (step, text)
    }))
}

/// Notes the steps after which a text may change.
fn mark_ends(items: &[Item<'_>], steps: Steps, ends: &mut [bool]) {
    for item in items {
        match item {
            Item::Text(_) => {}
            Item::Scheduled {
                before,
                after,
                when,
            } => {
                if let Ok(until @ 1..) = usize::try_from(steps.until(when)) {
                    ends[until] = true;
                }
                mark_ends(before, steps, ends);
                mark_ends(after, steps, ends);
            }
            Item::Alternate(options) => {
                ends[1..].fill(true);
                let options = options.iter();
                options.for_each(|option| mark_ends(option, steps, ends));
            }
        }
    }
}

/// The text at a step.
fn write(items: &[Item<'_>], step: usize, steps: Steps, text: &mut String) {
    for item in items {
        match item {
            Item::Text(words) => text.push_str(words),
            Item::Scheduled {
                before,
                after,
                when,
            } => {
                let is_before = step as i64 <= steps.until(when);
                write(if is_before { before } else { after }, step, steps, text);
            }
            Item::Alternate(options) => {
                write(&options[(step - 1) % options.len()], step, steps, text);
            }
        }
    }
}

/// How deep brackets may be nested for their edits to be followed; deeper ones are literal text.
const DEEPEST: usize = 200;

/// A prompt as pieces; none if it is to be taken literally.
fn parse(prompt: &str) -> Option<Vec<Item<'_>>> {
    let mut root = Vec::new();
    let mut open: Vec<Frame<'_>> = Vec::new();
    let mut at = 0;
    while let Some(c) = prompt[at..].chars().next() {
        let start = at;
        at += match c {
            '\\' => match prompt[at + 1..].chars().next() {
                None | Some('\n') => return None,
                Some(escaped) => 1 + escaped.len_utf8(),
            },
            '(' | ')' | '[' | ']' | ':' | '|' => 1,
            _ => {
                let rest = &prompt[at..];
                rest.find(['\\', '(', ')', '[', ']', ':', '|'])
                    .unwrap_or(rest.len())
            }
        };
        let piece = &prompt[start..at];
        match c {
            '(' | '[' => {
                if open.len() == DEEPEST {
                    return None;
                }
                open.push(Frame {
                    open: piece,
                    sections: vec![Vec::new()],
                    separators: Vec::new(),
                });
            }
            ':' | '|' => match open.last_mut() {
                Some(frame) => {
                    frame.separators.push(piece);
                    frame.sections.push(Vec::new());
                }
                None if c == '|' => return None,
                None => root.push(Item::Text(piece)),
            },
            ')' | ']' => match open.pop().map(|frame| close(frame, piece)) {
                Some(Ok(items)) => section(&mut root, &mut open).extend(items),
                // Brackets around one that does not fit cannot fit either.
                Some(Err(frame)) => {
                    open.push(frame);
                    give_up(&mut root, &mut open)?;
                    root.push(Item::Text(piece));
                }
                None => root.push(Item::Text(piece)),
            },
            _ => section(&mut root, &mut open).push(Item::Text(piece)),
        }
    }
    give_up(&mut root, &mut open)?;
    Some(root)
}

/// Where the next piece belongs.
fn section<'a, 'b>(
    root: &'b mut Vec<Item<'a>>,
    open: &'b mut [Frame<'a>],
) -> &'b mut Vec<Item<'a>> {
    match open.last_mut() {
        Some(frame) => frame.sections.last_mut().expect("a frame has sections"),
        None => root,
    }
}

/// Makes open brackets literal; none if that leaves a bar.
fn give_up<'a>(root: &mut Vec<Item<'a>>, open: &mut Vec<Frame<'a>>) -> Option<()> {
    for frame in open.drain(..) {
        if frame.separators.contains(&"|") {
            return None;
        }
        root.extend(literal(frame));
    }
    Some(())
}

/// What a bracket holds, as it stands there, with the bracket.
fn literal(frame: Frame<'_>) -> impl Iterator<Item = Item<'_>> {
    let separators = std::iter::once(frame.open).chain(frame.separators);
    let sections = separators.zip(frame.sections);
    sections.flat_map(|(separator, items)| std::iter::once(Item::Text(separator)).chain(items))
}

/// What a closed bracket means; the bracket itself if it means nothing.
fn close<'a>(mut frame: Frame<'a>, closing: &'a str) -> Result<Vec<Item<'a>>, Frame<'a>> {
    match (frame.open, closing, &frame.separators[..]) {
        ("(", ")", [] | [":"]) | ("[", "]", []) => {
            Ok(literal(frame).chain([Item::Text(closing)]).collect())
        }
        ("[", "]", [":"] | [":", ":"]) => {
            let Some(when) = frame.sections.last().and_then(|last| number(last)) else {
                return Err(frame);
            };
            frame.sections.pop();
            let after = frame.sections.pop().expect("a section for every separator");
            let before = frame.sections.pop().unwrap_or_default();
            Ok(vec![Item::Scheduled {
                before,
                after,
                when,
            }])
        }
        ("[", "]", bars) if bars.iter().all(|&bar| bar == "|") => {
            Ok(vec![Item::Alternate(frame.sections)])
        }
        _ => Err(frame),
    }
}

/// A number with space around it.
fn number<'a>(items: &[Item<'a>]) -> Option<&'a str> {
    let [Item::Text(text)] = items else {
        return None;
    };
    let number = text.trim();
    let unsigned = number.strip_prefix(['+', '-']).unwrap_or(number);
    // Rust knows words for numbers, too.
    let is_number = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    (is_number && number.parse::<f64>().is_ok()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(prompt: &str, steps: Steps) -> Vec<(usize, String)> {
        let line = schedule(prompt, steps);
        line.turns()
            .map(|(until, text)| (until, text.clone()))
            .collect()
    }

    #[test]
    fn edits_are_read_as_a1111_reads_them() {
        let cases: [(&str, &[(usize, &str)]); 24] = [
            ("test", &[(10, "test")]),
            ("a [b:3]", &[(3, "a "), (10, "a b")]),
            ("a [b: 3]", &[(3, "a "), (10, "a b")]),
            ("a [b:3 ]", &[(3, "a "), (10, "a b")]),
            ("a [[[b]]:2]", &[(2, "a "), (10, "a [[b]]")]),
            ("[(a:2):3]", &[(3, ""), (10, "(a:2)")]),
            ("a [b : c : 1] d", &[(1, "a b  d"), (10, "a  c  d")]),
            ("a[b:[c:d:2]:1]e", &[(1, "abe"), (2, "ace"), (10, "ade")]),
            ("a [unbalanced", &[(10, "a [unbalanced")]),
            ("a [b:.5] c", &[(5, "a  c"), (10, "a b c")]),
            ("a [{b|d{:.5] c", &[(10, "a [{b|d{:.5] c")]),
            ("((a][:b:c [d:3]", &[(3, "((a][:b:c "), (10, "((a][:b:c d")]),
            ("[a::4]", &[(4, "a"), (10, "")]),
            ("[a:b:0]", &[(10, "b")]),
            ("[a:b:-2]", &[(10, "b")]),
            ("[a:b:99]", &[(10, "a")]),
            ("[a:b:1e400]", &[(10, "a")]),
            ("[a:b:inf]", &[(10, "[a:b:inf]")]),
            ("[a:b:c:3]", &[(10, "[a:b:c:3]")]),
            ("[a:3b]", &[(10, "[a:3b]")]),
            ("a|b [c:3]", &[(10, "a|b [c:3]")]),
            (r"a\ [b:3\]", &[(10, r"a\ [b:3\]")]),
            ("[a:b:3] \\", &[(10, "[a:b:3] \\")]),
            (r"[\[a\]|b:c]", &[(10, r"[\[a\]|b:c]")]),
        ];
        for (prompt, expected) in cases {
            let expected: Vec<_> = expected
                .iter()
                .map(|(n, t)| (*n, (*t).to_owned()))
                .collect();
            assert_eq!(turns(prompt, Steps::first(10)), expected, "{prompt}");
        }
    }

    #[test]
    fn alternatives_take_turns() {
        let texts = |prompt| -> Vec<String> {
            let turns = turns(prompt, Steps::first(5));
            assert!(turns.iter().map(|(until, _)| *until).eq(1..=5), "{prompt}");
            turns.into_iter().map(|(_, text)| text).collect()
        };
        assert_eq!(texts("[a|(b:1.1)]"), ["a", "(b:1.1)", "a", "(b:1.1)", "a"]);
        assert_eq!(
            texts("[fe|]male"),
            ["female", "male", "female", "male", "female"]
        );
        assert_eq!(
            texts("[fe|||]male"),
            ["female", "male", "male", "male", "female"]
        );
        assert_eq!(texts("[a|[b:c:3]]"), ["a", "b", "a", "c", "a"]);
    }

    #[test]
    fn a_second_pass_counts_its_own_steps() {
        let second = Steps {
            count: 10,
            before: Some(10),
        };
        let own = |(until, text): (usize, &str)| (until, text.to_owned());
        assert_eq!(turns("a [b:.5] c", second), [own((10, "a b c"))]);
        let half = [(5, "a  c"), (10, "a b c")].map(own);
        assert_eq!(turns("a [b:1.5] c", second), half);
        assert_eq!(turns("a [b:15] c", second), half);
    }

    #[test]
    fn brackets_of_any_depth_take_bounded_time() {
        let deep = ["[".repeat(100_000), "a".to_owned(), ":3]".repeat(100_000)].concat();
        assert_eq!(schedule(&deep, Steps::first(20)).values(), [deep]);
        let wide = "[a|b]".repeat(100_000);
        assert_eq!(schedule(&wide, Steps::first(20)).values().len(), 2);
    }
}
