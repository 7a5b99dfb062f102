//! A line of a jobs file: a request, and beside it how the job is called and whose it is.

use std::io::{self, BufRead, Read};

use sd_runtime::pipeline::{Request, RequestError, problem};

use super::once::{Once, TWICE};
use serde::Deserialize;
use serde_json::{Map, Value};

/// What `--schema` prints: a line in JSON Schema.
pub(crate) const SCHEMA: &str = include_str!("job.schema.json");

/// A longer line is no request.
const LONGEST: u64 = 1 << 20;

/// A job, as a line asks for it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    /// Number of the line, from 1.
    pub(crate) number: usize,
    /// What its pictures are called.
    pub(crate) name: String,
    /// On whose behalf.
    pub(crate) client: String,
    /// Which jobs of a client are first.
    pub(crate) priority: i32,
    /// Without comments.
    pub(crate) request: Request,
    /// Comments that its prompts had.
    pub(crate) comments: Vec<String>,
}

/// The fields beside those of a request.
#[derive(Deserialize)]
struct Beside {
    id: Option<String>,
    client: Option<String>,
    priority: Option<i32>,
    #[serde(flatten)]
    request: Map<String, Value>,
}

/// Names of the fields of [`Beside`].
const BESIDE: [&str; 3] = ["id", "client", "priority"];

/// A field of a line that is none, and those that there are.
fn unknown_field(line: &Value) -> Option<String> {
    let of_requests = serde_json::to_value(Request::default()).ok()?;
    let of_requests = of_requests.as_object()?.keys().map(String::as_str);
    let known: Vec<&str> = BESIDE.into_iter().chain(of_requests).collect();
    let mut fields = line.as_object()?.keys();
    let unknown = fields.find(|field| !known.contains(&field.as_str()))?;
    let known = known.join("`, `");
    Some(format!(
        "{unknown}: unknown field `{unknown}`, expected one of `{known}`"
    ))
}

impl Line {
    /// Reads line `number`. What is missing is as everywhere; the name is the number, the client has no name.
    ///
    /// # Errors
    /// No JSON object, an unknown field or one that is given twice, or a value that is none of its field's.
    pub(crate) fn read(text: &str, number: usize) -> Result<Self, String> {
        let no_json = |e: serde_json::Error| {
            let text = e.to_string();
            let problem = text.split(" at line ").next().unwrap_or_default();
            match e.is_data() {
                true => problem.to_owned(),
                false => format!("no JSON: {problem} (column {})", e.column()),
            }
        };
        let mut json = serde_json::Deserializer::from_str(text);
        let once = serde_path_to_error::deserialize(&mut json).map_err(|e| {
            let place = e.path().to_string();
            let problem = no_json(e.into_inner());
            match place.as_str() {
                _ if !problem.ends_with(TWICE) => problem,
                "." => problem,
                place => format!("{place}: {problem}"),
            }
        });
        let Once(value) = once?;
        json.end().map_err(no_json)?;
        if let Some(unknown) = unknown_field(&value) {
            return Err(unknown);
        }
        if !value.is_object() {
            return Err(
                "a job is a JSON object, such as {\"prompt\": \"a lighthouse\"}".to_owned(),
            );
        }
        let beside: Beside = serde_path_to_error::deserialize(value)
            .map_err(|e| format!("{}: {}", e.path(), problem(e.inner())))?;
        let name = match beside.id {
            Some(id) if is_name(&id) => id,
            Some(_) => {
                return Err(
                    "id: a picture's name has 1 to 100 letters, digits, `-`, `_` and `.`, and does not begin with a `.`"
                        .to_owned(),
                );
            }
            None => format!("{number:06}"),
        };
        let wrong = |e: RequestError| e.to_string();
        let mut request = Request::from_value(Value::Object(beside.request)).map_err(wrong)?;
        Ok(Self {
            number,
            name,
            client: beside.client.unwrap_or_default(),
            priority: beside.priority.unwrap_or(0),
            comments: request.strip_comments(),
            request,
        })
    }

    /// The files of its pictures.
    pub(crate) fn files(&self) -> Vec<String> {
        match self.request.batch {
            1 => vec![format!("{}.png", self.name)],
            count => (0..count)
                .map(|i| format!("{}-{i:03}.png", self.name))
                .collect(),
        }
    }
}

fn is_name(id: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=100).contains(&id.len()) && !id.starts_with('.') && id.chars().all(good)
}

/// The next line of a file or a stream, without its end; none at the end. What is inside is wrong with this line alone.
///
/// # Errors
/// It cannot be read.
pub(crate) fn next_line(from: &mut impl BufRead) -> io::Result<Option<Result<String, String>>> {
    let mut bytes = Vec::new();
    let read = Read::take(&mut *from, LONGEST).read_until(b'\n', &mut bytes)?;
    if read == 0 {
        return Ok(None);
    }
    let whole = bytes.last() == Some(&b'\n');
    if !whole && read as u64 == LONGEST {
        skip_line(from)?;
        return Ok(Some(Err(format!(
            "the line is longer than {LONGEST} bytes"
        ))));
    }
    let text = String::from_utf8(bytes);
    let text = text.map_err(|e| format!("no UTF-8 from byte {} on", e.utf8_error().valid_up_to()));
    Ok(Some(text.map(|text| {
        text.trim_start_matches('\u{feff}').trim().to_owned()
    })))
}

fn skip_line(from: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = from.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let used = end.map_or(buffer.len(), |end| end + 1);
        from.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_request_and_what_stands_beside_it() {
        let line = Line::read(r#"{"prompt": "a cat", "seed": 18446744073709551615}"#, 7).unwrap();
        assert_eq!(
            (line.name.as_str(), line.client.as_str(), line.priority),
            ("000007", "", 0)
        );
        assert_eq!(line.request.seed, u64::MAX);
        assert_eq!(line.files(), ["000007.png"]);
        let text = r#"{"id": "x.1", "client": "me", "priority": -2, "batch": 2}"#;
        let line = Line::read(text, 1).unwrap();
        assert_eq!((line.client.as_str(), line.priority), ("me", -2));
        assert_eq!(line.files(), ["x.1-000.png", "x.1-001.png"]);
        for (text, said) in [
            ("", "no JSON"),
            ("{\"prompt\": \"a", "no JSON"),
            ("[]", "JSON object"),
            (r#"{"promt": "x"}"#, "unknown field `promt`"),
            // Nobody would look at them.
            (r#"{"preview": 5}"#, "unknown field `preview`"),
            (r#"{"steps": "20"}"#, "steps: "),
            (
                r#"{"priority": "high"}"#,
                "priority: invalid type: text \"high\", expected a whole number",
            ),
            (r#"{"id": "../x"}"#, "id: "),
            (r#"{"id": ".x"}"#, "id: "),
            (r#"{"id": ""}"#, "id: "),
        ] {
            let error = Line::read(text, 1).unwrap_err();
            assert!(
                error.contains(said) && !error.contains("line 1"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn lines_are_read_one_by_one() {
        let long = "x".repeat(LONGEST as usize + 5);
        let text = format!("\u{feff}{{}}\r\n\n{long}\nlast");
        let mut bytes = text.into_bytes();
        bytes.extend(b"\nbroken \xff\n");
        let mut from = io::BufReader::with_capacity(64, &bytes[..]);
        let mut next = || next_line(&mut from).unwrap();
        assert_eq!(next(), Some(Ok("{}".to_owned())));
        assert_eq!(next(), Some(Ok(String::new())));
        assert!(next().unwrap().unwrap_err().contains("longer"));
        assert_eq!(next(), Some(Ok("last".to_owned())));
        assert!(next().unwrap().unwrap_err().contains("byte 7"));
        assert_eq!(next(), None);
    }

    /// The schema's fields, ranges and names are those that are read: what it allows at its ends is accepted, what lies beyond
    /// is refused.
    #[test]
    fn the_schema_says_what_is_accepted() {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let read = |path: &[&str], value: &Value| {
            let mut job = value.clone();
            for name in path.iter().rev() {
                job = Value::Object(Map::from_iter([((*name).to_owned(), job)]));
            }
            // What goes with a field.
            let fields = job.as_object_mut().unwrap();
            match path {
                ["subseed_strength"] => drop(fields.insert("subseed".to_owned(), 1.into())),
                ["options", "eta"] => drop(fields.insert("sampler".to_owned(), "DDIM".into())),
                ["options", _] => drop(fields.insert("sampler".to_owned(), "Euler".into())),
                _ => {}
            }
            Line::read(&job.to_string(), 1)
        };
        let accepted = |path: &[&str], value: &Value| {
            let line = read(path, value);
            line.is_ok_and(|line| line.request.check().is_ok())
        };
        let mut known = serde_json::to_value(Request::default()).unwrap();
        let fields = known.as_object_mut().unwrap();
        for beside in ["id", "client", "priority"] {
            fields.insert(beside.to_owned(), Value::Null);
        }
        let object = |schema: &Value, known: &Value, at: &[&str]| {
            assert_eq!(schema["additionalProperties"], false, "{at:?}");
            let names = |value: &Value| -> Vec<String> {
                let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
                names.sort();
                names
            };
            assert_eq!(names(&schema["properties"]), names(known), "{at:?}");
        };
        object(&schema, &known, &[]);
        object(
            &schema["properties"]["options"],
            &known["options"],
            &["options"],
        );
        object(&schema["properties"]["micro"], &known["micro"], &["micro"]);
        let mut leaves = 0;
        let mut all = vec![(Vec::new(), schema.clone())];
        while let Some((path, schema)) = all.pop() {
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                for (name, of_name) in properties {
                    assert!(of_name["description"].is_string(), "{name}");
                    let path: Vec<&str> = path
                        .iter()
                        .copied()
                        .chain([&*Box::leak(name.clone().into_boxed_str())])
                        .collect();
                    all.push((path, of_name.clone()));
                }
                continue;
            }
            leaves += 1;
            let names = ["enum", "examples"].map(|key| schema[key].as_array());
            for name in names.into_iter().flatten().flatten() {
                // Not every processor has every number type.
                read(&path, name).unwrap();
            }
            if schema["enum"].is_array() {
                assert!(!accepted(&path, &"no such name".into()), "{path:?}");
            }
            if schema["type"]
                .as_array()
                .is_some_and(|types| types.contains(&"null".into()))
            {
                assert!(accepted(&path, &Value::Null), "{path:?}");
            }
            let whole = schema["multipleOf"].as_u64();
            for (end, beyond) in [("minimum", -1.0), ("maximum", 1.0)] {
                let Some(value) = schema.get(end) else {
                    continue;
                };
                assert!(accepted(&path, value), "{path:?}: {value}");
                let outside = match (value.as_i64(), whole) {
                    (Some(value), step) => {
                        Value::from(value.saturating_add(beyond as i64 * step.unwrap_or(1) as i64))
                    }
                    _ => Value::from(value.as_f64().unwrap() + beyond),
                };
                // Beyond some ends there is no number.
                assert!(
                    outside == *value || !accepted(&path, &outside),
                    "{path:?}: {outside}"
                );
            }
        }
        assert!(leaves > 30, "{leaves}");
        for example in schema["examples"].as_array().unwrap() {
            let line = Line::read(&example.to_string(), 1).unwrap();
            line.request.check().unwrap();
        }
    }
}
