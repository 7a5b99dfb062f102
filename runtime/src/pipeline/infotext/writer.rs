//! Which program wrote a text, and what it leaves unsaid: defaults differ between programs and their versions.

use super::Infotext;
use crate::sampler::{self, RESTART, Sampler};
use crate::sigmas::Spread;

/// A version as A1111 compares them: 1.7.0-225 is 225 commits after 1.7.0, -1 is before it.
type Version = ([u32; 3], i32);

/// The program that wrote a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// This one.
    Sdrt,
    /// A1111's web UI, or Forge, which follows one of its versions. Texts name none before 1.3, where somebody turned that off, and by other programs.
    WebUi(Option<Version>),
    /// SD.Next.
    SdNext,
    /// stable-diffusion.cpp.
    SdCpp,
}

impl Writer {
    pub(super) fn of(text: &Infotext) -> Self {
        let version = text.get("Version").unwrap_or_default();
        let app = text.get("App").unwrap_or_default();
        match version {
            _ if app.starts_with("SD.Next") => Self::SdNext,
            _ if text.get("Backend").is_some() && text.get("Parser").is_some() => Self::SdNext,
            _ if version.starts_with("sdrt-") => Self::Sdrt,
            _ if version.starts_with("stable-diffusion.cpp") => Self::SdCpp,
            _ => Self::WebUi(parse(version)),
        }
    }

    /// The spread of a sampler where the text names none.
    ///
    /// Names of samplers had it inside before A1111 1.9: "DPM++ 2M" was the one that is even in time. Later versions always name it, so
    /// a text without a version is from before.
    pub(super) fn spread(self, sampler: Sampler) -> Option<Spread> {
        match self {
            Self::WebUi(found) if found.is_none_or(|it| it < ([1, 9, 0], -1)) => {
                Some(match sampler {
                    s if s == &RESTART => Spread::Karras,
                    _ => Spread::Uniform,
                })
            }
            Self::SdCpp => Some(Spread::Uniform),
            _ => None,
        }
    }

    /// Rules of the time that this program does not have, by the names of A1111's settings for them, where a text may show the
    /// difference. As in A1111, which goes by the version alone, a text without one follows today's rules.
    pub(super) fn old_rules(self, text: &Infotext) -> Vec<&'static str> {
        let Self::WebUi(Some(version)) = self else {
            return Vec::new();
        };
        let negative = text.negative_prompt.as_deref().unwrap_or_default();
        let edits = [&text.prompt, negative]
            .into_iter()
            .any(is_edited_in_fractions);
        let sampler = text
            .get("Sampler")
            .and_then(|name| sampler::parse(name).ok());
        let has_timesteps = sampler.is_some_and(|(s, _)| ["DDIM", "PLMS"].contains(&s.name));
        [
            (([1, 6, 0], 0), edits, "Old prompt editing timelines"),
            (([1, 6, 0], 0), has_timesteps, "Pad conds v0"),
            (([1, 7, 0], 225), true, "Downcast alphas_cumprod"),
            (
                ([1, 8, 0], 0),
                text.get("Refiner").is_some(),
                "Refiner switch by sampling steps",
            ),
        ]
        .into_iter()
        .filter(|&(until, shows, name)| shows && version < until && text.get(name).is_none())
        .map(|(_, _, name)| name)
        .collect()
    }
}

/// `v1.6.0`, `1.7.0-225-g..`, `v1.6.0-RC-63-g..`, and Forge's `f0.0.17v1.8.0rc-latest-..`.
fn parse(text: &str) -> Option<Version> {
    let of_webui = match text.strip_prefix('f') {
        Some(forge) => forge.split_once('v')?.1,
        None => text.strip_prefix('v').unwrap_or(text),
    };
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let end = of_webui.find(|c| !is_number(c)).unwrap_or(of_webui.len());
    let (number, rest) = of_webui.split_at(end);
    let mut parts = number.split('.').map(|part| part.parse().ok());
    let version = [
        parts.next()??,
        parts.next()??,
        parts.next().unwrap_or(Some(0))?,
    ];
    let rest = rest.trim_start_matches('-').to_lowercase();
    let commits = rest.split('-').next().unwrap_or_default();
    let after = match commits.parse() {
        Ok(commits) => commits,
        Err(_) if commits.starts_with("rc") => -1,
        Err(_) => 0,
    };
    Some((version, after))
}

/// Whether a prompt has an edit that was read in another way before 1.6: `[a:b:2.5]` was step 2, and is 2.5 times all steps since.
fn is_edited_in_fractions(prompt: &str) -> bool {
    let mut open = 0usize;
    prompt.split_inclusive(['[', ']']).any(|piece| {
        let Some(piece) = piece.strip_suffix(']') else {
            open += usize::from(piece.ends_with('['));
            return false;
        };
        let is_inside = open > 0;
        open = open.saturating_sub(1);
        let when = piece.rsplit_once(':').map_or("", |(_, when)| when.trim());
        is_inside && when.contains('.') && when.parse().is_ok_and(|x: f64| x >= 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_what_they_say() {
        let webui = |version| Writer::WebUi(Some(version));
        for (pairs, writer) in [
            ("Version: v1.6.0", webui(([1, 6, 0], 0))),
            ("Version: 1.10.1", webui(([1, 10, 1], 0))),
            ("Version: v1.7.0-225-gabc", webui(([1, 7, 0], 225))),
            ("Version: v1.6.0-RC-63-g1", webui(([1, 6, 0], -1))),
            (
                "Version: f0.0.17v1.8.0rc-latest-276-g29be1da7",
                webui(([1, 8, 0], -1)),
            ),
            (
                "Version: f2.0.1v1.10.1-previous-669-gdfdcbab6",
                webui(([1, 10, 1], 0)),
            ),
            ("Version: 8c12a6e", Writer::WebUi(None)),
            ("Model: x", Writer::WebUi(None)),
            ("App: SD.Next", Writer::SdNext),
            ("Version: stable-diffusion.cpp", Writer::SdCpp),
            ("Version: sdrt-0.1.0", Writer::Sdrt),
        ] {
            let text = Infotext::read(&format!("a\nSteps: 20, Seed: 1, {pairs}")).unwrap();
            assert_eq!(Writer::of(&text), writer, "{pairs}");
        }
    }

    #[test]
    fn edits_that_old_versions_read_in_another_way_are_found() {
        for prompt in ["[a:b:1.5]", "a [b:2.0] c", "[[a:b:3]:c:4.5]"] {
            assert!(is_edited_in_fractions(prompt), "{prompt}");
        }
        for prompt in ["[a:b:0.5]", "[a:b:5]", "(a:1.5)", "(a:1.5), [b]", "a: 1.5]"] {
            assert!(!is_edited_in_fractions(prompt), "{prompt}");
        }
    }
}
