//! Prompts as what holds at which step, and as the tokens of every text encoder.

use std::sync::Arc;

use sd_models::family::ModelFamily;
use sd_models::tokenizer::{END_OF_TEXT, START_OF_TEXT};

use super::{Models, Request};
use crate::profile::{Profile, Prompts};
use crate::sampler::Sampler;
use crate::text::chunks::{self, Vocabulary as _};
use crate::text::editing::{Steps, schedule};
use crate::text::embeddings::{Encoder, Words as Vocabulary, missing};
use crate::text::lora_tags::untag;
use crate::text::{Chunk, Embedding, Emphasis, Guides, TextError, Timeline, composition, prompt};

/// What a request's prompts say.
pub(super) struct Words {
    /// The prompt without tags of LoRAs.
    pub(super) prompt: String,
    /// The negative prompt without tags of LoRAs.
    pub(super) negative_prompt: String,
    /// LoRAs that are asked for and missing, as they were written.
    pub(super) ignored_loras: String,
    /// The texts that these are over the run.
    pub(super) texts: Arc<Guides<String>>,
    /// Their tokens, for every model's text encoders.
    pub(super) tokens: Arc<Vec<Vec<Guides<Vec<Chunk>>>>>,
    /// The textual inversions that they name.
    pub(super) embeddings: Vec<Arc<Embedding>>,
    /// How weights act.
    pub(super) emphasis: Emphasis,
    /// Good to know.
    pub(super) notes: Vec<String>,
    /// What may be wrong.
    pub(super) warnings: Vec<String>,
}

impl Words {
    /// Reads the prompts of a request that runs a sampler for so many steps.
    pub(super) fn of(
        request: &Request,
        models: &Models,
        sampler: Sampler,
        steps: usize,
    ) -> Result<Self, TextError> {
        let (mut notes, mut warnings) = (Vec::new(), Vec::new());
        let manifest = models.base.manifest.as_ref();
        let mut untag = |prompt: &str| {
            let untagged = untag(prompt, manifest, request.ignore_lora_tags)?;
            notes.extend(untagged.notes);
            let ignored = untagged.ignored.iter();
            warnings
                .extend(ignored.map(|tag| format!("`{tag}` is ignored: it is not in the model")));
            Ok::<_, TextError>((untagged.text, untagged.ignored))
        };
        let (prompt, ignored) = untag(&request.prompt)?;
        let negative = request.negative_prompt.as_deref().unwrap_or_default();
        let (negative_prompt, of_negative) = untag(negative)?;
        let ignored_loras = [ignored, of_negative].concat().join(" ");
        let profile = request.profile;
        let edited_over = (profile.edited_over)(sampler, steps);
        let texts = guides(profile, &prompt, &negative_prompt, edited_over);
        let emphasis = request.emphasis.unwrap_or(profile.emphasis);
        if let Some(text) = models.base.texts.first() {
            for prompt in [&prompt, &negative_prompt] {
                notes.extend(missing(prompt, &models.embeddings, &text.tokenizer));
            }
        }
        let (mut tokens, mut embeddings) = (Vec::new(), Vec::new());
        for model in models.all() {
            let widths: Vec<_> = model.texts.iter().map(|text| text.width).collect();
            let mut of_model = Vec::new();
            for (number, text) in model.texts.iter().enumerate() {
                let encoder = Encoder {
                    clip: &text.tokenizer,
                    number,
                    widths: &widths,
                    is_second_alone: model.family == ModelFamily::SdxlRefiner,
                };
                let explicit = profile.prompts == Prompts::Comfyui;
                let reader = Reader {
                    profile,
                    emphasis,
                    vocabulary: Vocabulary::new(encoder, &models.embeddings, explicit)?,
                };
                of_model.push(reader.read(&texts, &mut warnings)?);
                for used in reader.vocabulary.into_used() {
                    if !embeddings.contains(&used) {
                        embeddings.push(used);
                    }
                }
            }
            tokens.push(of_model);
        }
        Ok(Self {
            prompt,
            negative_prompt,
            ignored_loras,
            texts: Arc::new(texts),
            tokens: Arc::new(tokens),
            embeddings,
            emphasis,
            notes,
            warnings,
        })
    }
}

/// The texts of a prompt and a negative prompt over a run.
fn guides(profile: Profile, prompt: &str, negative_prompt: &str, steps: usize) -> Guides<String> {
    match profile.prompts {
        Prompts::Attention => {
            let steps = Steps::first(steps);
            let parts = composition::split(prompt).into_iter();
            Guides {
                cond: parts
                    .map(|(text, weight)| (schedule(&text, steps), weight))
                    .collect(),
                uncond: schedule(negative_prompt, steps),
            }
        }
        Prompts::Comfyui | Prompts::Plain => {
            Guides::plain(prompt.to_owned(), negative_prompt.to_owned())
        }
    }
}

/// How texts become tokens.
struct Reader<'a> {
    profile: Profile,
    emphasis: Emphasis,
    vocabulary: Vocabulary<'a>,
}

impl Reader<'_> {
    /// The chunks of texts. Texts that take turns get as many chunks each, as in A1111.
    fn read(
        &self,
        texts: &Guides<String>,
        warnings: &mut Vec<String>,
    ) -> Result<Guides<Vec<Chunk>>, TextError> {
        texts.try_map(|line, _| {
            let mut line: Timeline<Vec<Chunk>> =
                line.try_map(|text| self.chunks(text, warnings))?;
            let most = line.values().iter().map(Vec::len).max().unwrap_or(0);
            for chunks in line.values_mut() {
                chunks.resize_with(most, || chunks::empty(self.vocabulary.clip()));
            }
            Ok(line)
        })
    }

    fn chunks(&self, text: &str, warnings: &mut Vec<String>) -> Result<Vec<Chunk>, TextError> {
        // Several encoders and texts have the same to say.
        let mut warn = |warning: String| {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        };
        for token in [START_OF_TEXT, END_OF_TEXT] {
            if text.contains(token) {
                warn(format!("`{token}` in the prompt is taken as text"));
            }
        }
        let parts = |parse: fn(&str) -> Vec<prompt::Part>| match self.emphasis.reads_weights() {
            true => parse(text),
            false => vec![prompt::Part::plain(text)],
        };
        match self.profile.prompts {
            Prompts::Attention => chunks::chunks(&parts(prompt::parse_attention), &self.vocabulary),
            Prompts::Comfyui => chunks::comfyui(&parts(prompt::parse_comfyui), &self.vocabulary),
            Prompts::Plain => {
                let (chunk, cut) = chunks::truncated(text, &self.vocabulary)?;
                if cut > 0 {
                    warn(format!(
                        "the prompt is too long for the {} profile: its last {cut} tokens are cut off",
                        self.profile.name
                    ));
                }
                Ok(vec![chunk])
            }
        }
    }
}
