//! A1111's tags for extra networks: `<lora:NAME>`, `<lora:NAME:STRENGTH>`, `<lora:NAME:TEXT:UNET>`, `<lora:NAME:te=T:unet=U>`.
//!
//! LoRAs are baked into the weights when a model is converted, so a tag asks for nothing; it is taken out of the prompt if the
//! model holds the LoRA at that strength, and is an error that says how to bake it in if not.

use sd_models::manifest::{Lora, Manifest};

use super::TextError;
use crate::{Remedy, WantedLora};

/// Largest difference of strengths that are the same.
const TOLERANCE: f64 = 1e-4;

/// Shortest beginning of a SHA-256 that a LoRA may be called by.
const HASH_DIGITS: usize = 10;

/// A prompt without its tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Untagged {
    /// What is left of the prompt, with the space around tags.
    pub text: String,
    /// What the user should know of each LoRA that is in the model.
    pub notes: Vec<String>,
    /// Tags that have no effect, as `name:strength`.
    pub ignored: Vec<String>,
}

/// Takes the tags out of a prompt. With `ignore`, those that the model does not fulfil are only listed.
///
/// # Errors
/// The first tag that the model does not fulfil.
pub fn untag(
    prompt: &str,
    manifest: Option<&Manifest>,
    ignore: bool,
) -> Result<Untagged, TextError> {
    let mut untagged = Untagged::default();
    let mut rest = prompt;
    while let Some(at) = rest.find('<') {
        let (before, after) = (&rest[..at], &rest[at + 1..]);
        untagged.text += before;
        let inside = after.split_once('>').map(|(inside, _)| inside);
        let Some((inside, (kind, args))) = inside.and_then(|i| Some((i, kind_and_args(i)?))) else {
            untagged.text.push('<');
            rest = after;
            continue;
        };
        match fulfilled(inside, kind, args, manifest) {
            Ok(note) => untagged.notes.push(note),
            Err(_) if ignore => untagged.ignored.push(args.to_owned()),
            Err(error) => return Err(error),
        }
        rest = &after[inside.len() + 1..];
    }
    untagged.text += rest;
    Ok(untagged)
}

/// `word:something`, the inside of a tag.
fn kind_and_args(inside: &str) -> Option<(&str, &str)> {
    let (kind, args) = inside.split_once(':')?;
    let is_word = kind.chars().all(|c| c.is_alphanumeric() || c == '_');
    (is_word && !kind.is_empty() && !args.is_empty()).then_some((kind, args))
}

/// What a tag asks for.
struct Wanted<'a> {
    name: &'a str,
    unet: f64,
    text_encoder: f64,
}

impl<'a> Wanted<'a> {
    /// As in A1111: the text encoder's strength is 1, and the UNet's that of the text encoder, where they are not given.
    fn parse(args: &'a str) -> Result<Self, String> {
        let mut words = args.split(':');
        let name = words.next().unwrap_or_default();
        let number = |word: &str| {
            let number = word.trim().parse::<f64>().ok().filter(|x| x.is_finite());
            number.ok_or_else(|| format!("`{word}` is no strength"))
        };
        let (mut positional, mut te, mut unet) = (Vec::new(), None, None);
        for word in words {
            match word.split_once('=') {
                Some(("te", value)) => te = Some(number(value)?),
                Some(("unet", value)) => unet = Some(number(value)?),
                Some((option, _)) => {
                    return Err(format!("`{option}=` can only be given when it is baked in"));
                }
                None => positional.push(number(word)?),
            }
        }
        let text_encoder = te.or(positional.first().copied()).unwrap_or(1.0);
        Ok(Self {
            name,
            text_encoder,
            unet: unet.or(positional.get(1).copied()).unwrap_or(text_encoder),
        })
    }

    fn is(&self, lora: &Lora) -> bool {
        let stem = lora
            .name
            .rsplit_once('.')
            .map_or(&*lora.name, |(stem, _)| stem);
        let hash = self.name.len() >= HASH_DIGITS && lora.sha256.starts_with(self.name);
        hash || [stem, &lora.name].contains(&self.name) || lora.title.as_deref() == Some(self.name)
    }

    fn has_strength_of(&self, lora: &Lora) -> bool {
        let same = |a: f64, b: f64| (a - b).abs() < TOLERANCE;
        same(self.unet, lora.unet) && same(self.text_encoder, lora.text_encoder)
    }
}

/// A note if the model fulfils a tag.
fn fulfilled(
    inside: &str,
    kind: &str,
    args: &str,
    manifest: Option<&Manifest>,
) -> Result<String, TextError> {
    let error = |problem: String, remedy: Remedy| TextError::ExtraNetwork {
        tag: format!("<{inside}>"),
        problem,
        remedy,
    };
    let take_out = || Remedy::words("take the tag out of the prompt");
    if !["lora", "lyco"].contains(&kind) {
        let problem = format!("networks of the kind `{kind}` cannot be used");
        return Err(error(problem, take_out()));
    }
    let wanted = Wanted::parse(args);
    let wanted = wanted.map_err(|problem| error(problem, take_out()))?;
    let loras = manifest.map_or(&[][..], |manifest| &manifest.loras);
    let mut named = loras.iter().filter(|lora| wanted.is(lora)).peekable();
    if let Some(lora) = named.clone().find(|lora| wanted.has_strength_of(lora)) {
        let (name, strengths) = (&lora.name, strengths(lora.unet, lora.text_encoder));
        return Ok(format!(
            "`<{inside}>`: {name} is in the model already, {strengths}"
        ));
    }
    let problem = match named.peek() {
        Some(lora) => format!(
            "this model holds {} {}",
            lora.name,
            strengths(lora.unet, lora.text_encoder)
        ),
        None if loras.is_empty() => "this model holds no LoRA".to_owned(),
        None => {
            let held =
                |lora: &Lora| format!("{} {}", lora.name, strengths(lora.unet, lora.text_encoder));
            let held: Vec<String> = loras.iter().map(held).collect();
            format!("this model holds {}", held.join(", "))
        }
    };
    Err(error(problem, bake(&wanted, manifest)))
}

fn strengths(unet: f64, text_encoder: f64) -> String {
    if unet == text_encoder {
        format!("at strength {unet}")
    } else {
        format!("at strength {unet} in the UNet and {text_encoder} in the text encoder")
    }
}

/// A model that fulfils a tag, and holds whatever else the present one does.
fn bake(wanted: &Wanted<'_>, manifest: Option<&Manifest>) -> Remedy {
    let checkpoint = manifest.and_then(|manifest| manifest.sources.first());
    let loras = manifest.map_or(&[][..], |manifest| &manifest.loras).iter();
    let kept = loras.filter(|lora| !wanted.is(lora));
    let kept = kept.map(|lora| WantedLora {
        file: lora.name.clone(),
        unet: lora.unet,
        text_encoder: lora.text_encoder,
    });
    let new = WantedLora {
        file: match wanted.name.contains('.') {
            true => wanted.name.to_owned(),
            false => format!("{}.safetensors", wanted.name),
        },
        unet: wanted.unet,
        text_encoder: wanted.text_encoder,
    };
    Remedy::Bake {
        checkpoint: checkpoint.map(|source| source.name.clone()),
        loras: kept.chain([new]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(loras: &[(&str, f64, f64)]) -> Manifest {
        let lora = |(name, unet, te): &(&str, f64, f64)| serde_json::json!({"name": name, "sha256": "0123456789abcdef", "unet": unet, "text_encoder": te, "title": "Pixel"});
        let json = serde_json::json!({
            "schema": 1, "converter": "", "prediction_type": "epsilon", "default_size": [1, 1], "components": {},
            "latent": {"channels": 4, "downscale": 8, "scaling_factor": 1.0}, "title": "",
            "sources": [{"role": "checkpoint", "name": "base.ckpt", "size": 1, "sha256": ""}],
            "loras": loras.iter().map(lora).collect::<Vec<_>>(),
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_tag_that_the_model_fulfils_is_taken_out() {
        let model = manifest(&[("foo.safetensors", 0.8, 0.8), ("bar.pt", 0.5, 1.0)]);
        let untag = |prompt| untag(prompt, Some(&model), false).map(|u| (u.text, u.notes.len()));
        for (prompt, text, notes) in [
            ("a <lora:foo:0.8> b", "a  b", 1),
            ("<lora:foo:0.80001>x", "x", 1),
            ("<lyco:foo.safetensors:0.8:0.8>", "", 1),
            ("<lora:Pixel:0.8>", "", 1),
            ("<lora:0123456789:te=0.8>", "", 1),
            ("<lora:bar:1:0.5>, <lora:bar:unet=0.5>", ", ", 2),
            (
                "1 < 2 > 0, a <b>, <:x>, <lora:>",
                "1 < 2 > 0, a <b>, <:x>, <lora:>",
                0,
            ),
        ] {
            assert_eq!(untag(prompt).unwrap(), (text.to_owned(), notes), "{prompt}");
        }
    }

    #[test]
    fn a_tag_that_it_does_not_fulfil_is_an_error_that_says_what_would() {
        let model = manifest(&[("foo.safetensors", 0.8, 0.8)]);
        let refused = |prompt, model| untag(prompt, model, false).unwrap_err();
        let error = |prompt, model| refused(prompt, model).to_string();
        let bakes = |prompt, wanted: &[(&str, f64, f64)]| {
            let Some(Remedy::Bake { checkpoint, loras }) = refused(prompt, Some(&model)).hint()
            else {
                panic!("{prompt}")
            };
            assert_eq!(checkpoint.as_deref(), Some("base.ckpt"));
            let loras = loras.iter().map(|l| (&*l.file, l.unet, l.text_encoder));
            assert_eq!(loras.collect::<Vec<_>>(), wanted);
        };
        let other = error("a <lora:foo:0.5>", Some(&model));
        assert!(other.contains("foo.safetensors at strength 0.8"), "{other}");
        bakes("a <lora:foo:0.5>", &[("foo.safetensors", 0.5, 0.5)]);
        let both = [("foo.safetensors", 0.8, 0.8), ("baz.safetensors", 0.5, 1.0)];
        bakes("<lora:baz:1:0.5>", &both);
        assert!(error("<lora:foo:0.8>", None).contains("holds no LoRA"));
        assert!(error("<hypernet:x>", Some(&model)).contains("hypernet"));
        assert!(error("<lora:foo:x>", Some(&model)).contains("no strength"));
        assert!(error("<lora:foo:0.8:lbw=INS>", Some(&model)).contains("lbw"));
    }

    #[test]
    fn ignored_tags_are_listed() {
        let untagged = untag("a <lora:foo:0.8> b", None, true).unwrap();
        assert_eq!(
            (&*untagged.text, &untagged.ignored[..]),
            ("a  b", &["foo:0.8".to_owned()][..])
        );
    }
}
