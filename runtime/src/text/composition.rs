//! A1111's `AND`: prompts that are followed at once, each as much as its weight says (Liu et al. 2022, arXiv:2206.01714).

/// The prompts that the word `AND` joins, and their weights: a number after a colon at the end, or 1.
///
/// ```
/// use sd_runtime::text::composition::split;
///
/// let parts = split("a cat AND a dog :0.5");
/// assert_eq!(parts, [("a cat".to_owned(), 1.0), (" a dog".to_owned(), 0.5)]);
/// ```
#[must_use]
pub fn split(prompt: &str) -> Vec<(String, f64)> {
    let (mut parts, mut rest) = (Vec::new(), prompt);
    while let Some(at) = super::prompt::find_word(rest, "AND") {
        parts.push(weighted(&rest[..at]));
        rest = &rest[at + "AND".len()..];
    }
    parts.push(weighted(rest));
    parts
}

/// A prompt without the weight at its end.
fn weighted(part: &str) -> (String, f64) {
    let part = part.trim_end();
    let number = part.rsplit_once(':').and_then(|(words, number)| {
        let number = number.trim_start();
        let unsigned = number.strip_prefix(['+', '-']).unwrap_or(number);
        let is_plain = unsigned.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let weight: f64 = number.parse().ok().filter(|_| is_plain)?;
        // Hundreds of digits are words.
        let weight = Some(weight).filter(|weight| weight.is_finite())?;
        Some((words.trim_end(), weight))
    });
    let (words, weight) = number.unwrap_or((part, 1.0));
    (words.to_owned(), weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_weights_are_those_of_a1111() {
        let cases: [(&str, &[(&str, f64)]); 12] = [
            ("cat AND dog :0.5", &[("cat", 1.0), (" dog", 0.5)]),
            ("a:1.5", &[("a", 1.5)]),
            ("a : -.5 ", &[("a", -0.5)]),
            ("a:1.", &[("a", 1.0)]),
            ("a:1:2", &[("a:1", 2.0)]),
            ("(a:1.5)", &[("(a:1.5)", 1.0)]),
            ("a:1e3", &[("a:1e3", 1.0)]),
            ("a:.", &[("a:.", 1.0)]),
            ("SAND AND and", &[("SAND", 1.0), (" and", 1.0)]),
            ("AND", &[("", 1.0), ("", 1.0)]),
            (":2", &[("", 2.0)]),
            ("", &[("", 1.0)]),
        ];
        for (prompt, expected) in cases {
            let own = |(text, weight): &(&str, f64)| ((*text).to_owned(), *weight);
            assert_eq!(
                split(prompt),
                expected.iter().map(own).collect::<Vec<_>>(),
                "{prompt}"
            );
        }
    }
}
