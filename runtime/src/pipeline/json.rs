//! How a [`Request`] is written: one object, with a field's name for each of its fields. Things with names (samplers, schedules,
//! profiles, generators, noises) are written as those; an infinite bound is null.

#![expect(
    clippy::ref_option,
    clippy::trivially_copy_pass_by_ref,
    reason = "serde gives references"
)]

use std::fmt::Display;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

use super::{Request, RequestError};

impl Request {
    /// Reads a request from JSON. What is missing is as in [`Request::default`].
    ///
    /// # Errors
    /// No JSON, an unknown field, or a value that is none of its field's; the message names the field. Values out of range are
    /// left to [`Request::check`].
    ///
    /// ```
    /// use sd_runtime::pipeline::Request;
    ///
    /// let request = Request::from_json(
    ///     r#"{"prompt": "a lighthouse", "sampler": "DPM++ 2M", "spread": "karras", "steps": 12, "options": {"s_noise": 1.01}}"#,
    /// )?;
    /// assert_eq!(request.steps, Some(12));
    /// assert_eq!(request.batch, 1);
    ///
    /// let error = Request::from_json(r#"{"options": {"eta": "much"}}"#).unwrap_err();
    /// assert!(error.to_string().starts_with("options.eta: "));
    /// # Ok::<_, sd_runtime::pipeline::RequestError>(())
    /// ```
    pub fn from_json(json: &str) -> Result<Self, RequestError> {
        let mut reader = serde_json::Deserializer::from_str(json);
        let request =
            serde_path_to_error::deserialize(&mut reader).map_err(|e| RequestError::Value {
                field: e.path().to_string(),
                problem: problem(e.inner()),
            })?;
        let rest = reader.end().map_err(|e| RequestError::Value {
            field: ".".to_owned(),
            problem: problem(&e),
        });
        rest.map(|()| request)
    }

    /// [`Self::from_json`] of JSON that was read already.
    ///
    /// # Errors
    /// As there.
    pub fn from_value(json: serde_json::Value) -> Result<Self, RequestError> {
        serde_path_to_error::deserialize(json).map_err(|e| RequestError::Value {
            field: e.path().to_string(),
            problem: problem(e.inner()),
        })
    }
}

/// What serde says of a JSON value, in JSON's words instead of Rust's.
///
/// ```
/// use sd_runtime::pipeline::problem;
///
/// let error = serde_json::from_str::<u64>("\"many\"").unwrap_err();
/// let said = "invalid type: text \"many\", expected a whole number from 0 on at line 1 column 6";
/// assert_eq!(problem(&error), said);
/// ```
#[must_use]
pub fn problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // What was found may be any text; what was expected comes from code.
    let Some((found, rest)) = text.rsplit_once(", expected ") else {
        return text;
    };
    let (expected, place) = match rest.split_once(" at line ") {
        Some((expected, place)) => (expected, format!(" at line {place}")),
        None => (rest, String::new()),
    };
    let found = match found.split_once(": ") {
        Some((kind, what)) => format!("{kind}: {}", found_in_json(what)),
        None => found.to_owned(),
    };
    format!("{found}, expected {}{place}", expected_in_json(expected))
}

fn found_in_json(what: &str) -> String {
    let number = |kind: &str| what.strip_prefix(kind).map(|rest| rest.trim_matches('`'));
    if let Some(text) = what.strip_prefix("string ") {
        return format!("text {text}");
    }
    if let Some(number) = number("integer ").or_else(|| number("floating point ")) {
        return format!("number {number}");
    }
    match what {
        "map" => "an object".to_owned(),
        "sequence" => "a list".to_owned(),
        "boolean `true`" => "true".to_owned(),
        "boolean `false`" => "false".to_owned(),
        other => other.to_owned(),
    }
}

fn expected_in_json(what: &str) -> String {
    if let Some(count) = what.strip_prefix("an array of length ") {
        return format!("a list of {count} values");
    }
    let words = match what {
        "u64" | "usize" => "a whole number from 0 on",
        "u32" => return format!("a whole number from 0 to {}", u32::MAX),
        "i32" => return format!("a whole number from {} to {}", i32::MIN, i32::MAX),
        "i64" => "a whole number",
        "f32" | "f64" => "a number",
        "a string" | "path string" | "string or map" => "text",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        structure if structure.starts_with("struct ") => "an object",
        other => other,
    };
    words.to_owned()
}

/// Reads a name by `parse`.
fn named<'de, D: Deserializer<'de>, T, E: Display>(
    from: D,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    parse(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// [`named`], or null.
fn perhaps_named<'de, D: Deserializer<'de>, T, E: Display>(
    from: D,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>, D::Error> {
    let name = Option::<String>::deserialize(from)?;
    let named = name.map(|name| parse(&name)).transpose();
    named.map_err(D::Error::custom)
}

pub(super) mod sampler {
    use super::{Deserializer, Serializer, perhaps_named};
    use crate::sampler::{Sampler, parse};

    pub(crate) fn serialize<S: Serializer>(it: &Option<Sampler>, to: S) -> Result<S::Ok, S::Error> {
        serde::Serialize::serialize(&it.map(|sampler| sampler.name), to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Sampler>, D::Error> {
        perhaps_named(from, |name| match parse(name) {
            Ok((sampler, None)) => Ok(sampler),
            Ok((sampler, Some(spread))) => Err(format!(
                "`{name}` is the sampler {sampler} with the schedule {}; write that as `spread`",
                spread.word()
            )),
            Err(error) => Err(error.to_string()),
        })
    }
}

pub(super) mod spread {
    use super::{Deserializer, Serializer, perhaps_named};
    use crate::sigmas::Spread;

    pub(crate) fn serialize<S: Serializer>(it: &Option<Spread>, to: S) -> Result<S::Ok, S::Error> {
        serde::Serialize::serialize(&it.map(Spread::word), to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Spread>, D::Error> {
        perhaps_named(from, str::parse)
    }
}

pub(super) mod profile {
    use super::{Deserializer, Serializer, named};
    use crate::profile::{self, Profile};

    pub(crate) fn serialize<S: Serializer>(it: &Profile, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(it.name)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Profile, D::Error> {
        named(from, profile::named)
    }
}

pub(super) mod rng {
    use super::{Deserializer, Serializer, named};
    use crate::noise::Rng;

    pub(crate) fn serialize<S: Serializer>(it: &Rng, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(it.name())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Rng, D::Error> {
        named(from, str::parse)
    }
}

pub(super) mod noise {
    use std::path::PathBuf;

    use super::{Deserializer, Serializer, named};
    use crate::noise::texture::Texture;

    pub(crate) fn serialize<S: Serializer>(
        it: &Texture<PathBuf>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(it)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Texture<PathBuf>, D::Error> {
        named(from, str::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Compute, Dialect};
    use crate::noise::Rng;
    use crate::noise::texture::Texture;
    use crate::pipeline::Micro;
    use crate::profile::PROFILES;
    use crate::sampler::{METHODS, Options};
    use crate::sigmas::Spread;
    use crate::text::Emphasis;

    fn json(request: &Request) -> String {
        serde_json::to_string(request).unwrap()
    }

    #[test]
    fn a_request_is_read_back() {
        let full = Request {
            prompt: "a \"cat\"".to_owned(),
            negative_prompt: Some(String::new()),
            width: Some(64),
            height: Some(128),
            steps: Some(3),
            guidance_scale: Some(1.5),
            guidance_rescale: 0.7,
            micro: Micro {
                original_size: Some([1024, 512]),
                target_size: Some([8, 16]),
                crop: [1, 2],
            },
            refiner_start: 0.5,
            aesthetic: [1.0, 2.0],
            seed: u64::MAX,
            subseed: Some(7),
            subseed_strength: 0.25,
            seed_resize: Some([64, 72]),
            ensd: -31337,
            noise: Texture::Image("a b.png".into()),
            batch: 2,
            sampler: Some(METHODS[1]),
            options: Options {
                eta: Some(0.5),
                s_noise: 1.1,
                s_churn: 2.0,
                s_tmin: 0.1,
                s_tmax: 9.0,
                idle_draws: true,
            },
            spread: Some(Spread::SgmUniform),
            profile: PROFILES[2],
            rng: Rng::Philox,
            clip_skip: 2,
            initial_noise: Some("noise.safetensors".into()),
            ignore_lora_tags: true,
            graph: Dialect::Portable,
            compute: Compute::Auto,
            tile: true,
            emphasis: Some(Emphasis::NoNorm),
        };
        for request in [Request::default(), full] {
            assert_eq!(Request::from_json(&json(&request)).unwrap(), request);
        }
        assert_eq!(Request::from_json("{}").unwrap(), Request::default());
    }

    #[test]
    fn every_name_is_read_back() {
        let read_back = |request: Request| {
            assert_eq!(Request::from_json(&json(&request)).unwrap(), request);
        };
        let default = Request::default;
        for sampler in METHODS {
            read_back(Request {
                sampler: Some(sampler),
                ..default()
            });
        }
        for spread in Spread::ALL {
            read_back(Request {
                spread: Some(spread),
                ..default()
            });
        }
        for profile in PROFILES {
            read_back(Request {
                profile,
                ..default()
            });
        }
        for rng in Rng::ALL {
            read_back(Request { rng, ..default() });
        }
        for noise in [Texture::White, Texture::Perlin, Texture::Pink] {
            read_back(Request { noise, ..default() });
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_field() {
        for (json, said) in [
            (
                r#"{"promt": "x"}"#,
                &["promt", "unknown field", "`prompt`"][..],
            ),
            (r#"{"steps": "20"}"#, &["steps: ", "invalid type", "column"]),
            (
                r#"{"seed": -1}"#,
                &["seed: ", "-1, expected a whole number"],
            ),
            (
                r#"{"micro": {"crop": [1]}}"#,
                &["micro.crop", "length 1", "list of 2 values"],
            ),
            (
                r#"{"micro": {"corp": [1, 2]}}"#,
                &["micro.corp", "unknown field"],
            ),
            (r#"{"options": {"s_tmax": "far"}}"#, &["options.s_tmax: "]),
            (r#"{"sampler": "Eler"}"#, &["sampler: ", "Euler"]),
            (
                r#"{"sampler": "DPM++ 2M Karras"}"#,
                &["sampler: ", "karras", "`spread`"],
            ),
            (r#"{"spread": "karas"}"#, &["spread: ", "Karras"]),
            (r#"{"profile": "a1112"}"#, &["profile: ", "a1111"]),
            (r#"{"rng": "cuda"}"#, &["rng: ", "philox"]),
            (r#"{"noise": "brown"}"#, &["noise: ", "perlin"]),
            (
                r#"{"prompt": 5}"#,
                &["prompt: invalid type: number 5, expected text"],
            ),
            (
                r#"{"prompt": ["a, expected u32"]}"#,
                &["a list, expected text"],
            ),
            (
                r#"{"width": "a, expected u32"}"#,
                &["text \"a, expected u32\", expected a whole number from 0 on at"],
            ),
            (
                r#"{"steps": 2.5}"#,
                &["number 2.5, expected a whole number"],
            ),
            (
                r#"{"guidance_scale": {}}"#,
                &["an object, expected a number"],
            ),
            (r#"{"micro": 1}"#, &["number 1, expected an object"]),
            (
                r#"{"ignore_lora_tags": "yes"}"#,
                &["text \"yes\", expected true or false"],
            ),
            ("{} {}", &["trailing"]),
            ("", &["EOF"]),
        ] {
            let error = Request::from_json(json).unwrap_err().to_string();
            for said in said {
                assert!(error.contains(said), "{json}: {error}");
            }
        }
    }
}
