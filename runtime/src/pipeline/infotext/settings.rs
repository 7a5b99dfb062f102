//! What a text means: a request, the files that it names, and what this program cannot do.

use std::str::FromStr;

use serde::Serialize;

use super::writer::Writer;
use super::{Infotext, InfotextError, Wanted};
use crate::engine::Ep;
use crate::noise::Rng;
use crate::noise::texture::Texture;
use crate::pipeline::{Request, vae_approx};
use crate::profile;
use crate::sampler::{self, Knob, UNIPC, UNIPC_BH2};
use crate::text::Emphasis;
use sd_kernels::Isa;

/// A setting that has no part in a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotCarried {
    /// Its key.
    pub field: String,
    /// Its value.
    pub value: String,
}

impl NotCarried {
    pub(super) fn new(field: &str, value: &str) -> Self {
        Self {
            field: field.to_owned(),
            value: value.to_owned(),
        }
    }
}

/// What a text asks for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The request, as far as this program has what it takes. It passes [`Request::check`].
    pub request: Request,
    /// The place of the picture in the batch of the request, whose other pictures are not meant.
    pub place: usize,
    /// The files that the picture was made with.
    pub wanted: Wanted,
    /// The instructions of the processor that it was made with, where they decide its last bits.
    pub instructions: Option<Isa>,
    /// The provider that computed it.
    pub ep: Ep,
    /// The plugin that this provider was, as [`crate::engine::plugin_title`] names it.
    pub plugin: Option<String>,
    /// Every setting that is left out.
    pub not_carried: Vec<NotCarried>,
}

/// Keys that change no pixel, or whose files [`Wanted`] has.
const TELL_ONLY: [&str; 26] = [
    "App",
    "Batch",
    "Batch pos",
    "Batch size",
    "Civitai metadata",
    "Civitai resources",
    "Created Date",
    "Guidance",
    "Hashes",
    "JPEG quality",
    "Lora hashes",
    "Model",
    "Model hash",
    "Noise hash",
    "Operations",
    "Refiner",
    "Refiner weights hash",
    "TI",
    "TI hashes",
    "Time taken",
    "VAE",
    "VAE Decoder hash",
    "VAE hash",
    "VAE retry",
    "Version",
    "Weights hash",
];

/// Settings at which nothing happens, in programs that write them all the same.
const IDLE: [(&str, &str); 20] = [
    ("Backend", "Original"),
    ("Backend", "Legacy"),
    ("Beta schedule alpha", "0.6"),
    ("Beta schedule beta", "0.6"),
    ("CFG end", "1.0"),
    ("Clip skip", "0"),
    ("Eta", "0"),
    ("Eta DDIM", "0"),
    ("Mask mode", "Inpaint masked"),
    ("Parser", "a1111"),
    ("Parser", "Full parser"),
    ("Pipeline", "SD"),
    ("Pipeline", "StableDiffusionPipeline"),
    ("Pipeline", "StableDiffusionXLPipeline"),
    ("Sigma churn", "0"),
    ("UniPC order", "3"),
    ("UniPC skip type", "time_uniform"),
    ("VAE Decoder", "Full"),
    ("VAE Encoder", "Full"),
    ("Weights", "int8"),
];

impl Settings {
    /// Reads a text of this or another program.
    ///
    /// # Errors
    /// As of [`Infotext::read`].
    ///
    /// ```
    /// use sd_runtime::noise::Rng;
    /// use sd_runtime::pipeline::infotext::Settings;
    ///
    /// let text = "a cat\nSteps: 20, Sampler: DPM++ 2M Karras, Seed: 1, Size: 512x768, Hires upscale: 2, Version: v1.6.0";
    /// let read = Settings::read(text)?;
    /// assert_eq!((read.request.steps, read.request.height), (Some(20), Some(768)));
    /// assert_eq!(read.request.rng, Rng::Philox); // A1111 says nothing of the card's noise
    /// assert_eq!(read.not_carried[0].field, "Hires upscale");
    /// # Ok::<_, sd_runtime::pipeline::infotext::InfotextError>(())
    /// ```
    pub fn read(text: &str) -> Result<Self, InfotextError> {
        let text = Infotext::read(text)?;
        let writer = Writer::of(&text);
        let mut reader = Reader {
            text: &text,
            writer,
            settings: Self {
                request: Request::default(),
                place: 0,
                wanted: Wanted::of(&text, writer == Writer::Sdrt),
                instructions: None,
                ep: Ep::Cpu,
                plugin: None,
                not_carried: Vec::new(),
            },
        };
        reader.words();
        reader.basis();
        for (key, value) in &text.pairs {
            if !reader.take(key, value) {
                let left_out = NotCarried::new(key, value);
                reader.settings.not_carried.push(left_out);
            }
        }
        if writer == Writer::Sdrt {
            reader.batch();
        }
        let old = writer.old_rules(&text).into_iter();
        let old = old.map(|rule| NotCarried::new(rule, "True"));
        reader.settings.not_carried.extend(old);
        Ok(reader.settings)
    }
}

struct Reader<'a> {
    text: &'a Infotext,
    writer: Writer,
    settings: Settings,
}

impl Reader<'_> {
    /// Changes the request, unless it would make no sense then.
    fn set(&mut self, change: impl FnOnce(&mut Request)) -> bool {
        let mut changed = self.settings.request.clone();
        change(&mut changed);
        let makes_sense = changed.check().is_ok();
        if makes_sense {
            self.settings.request = changed;
        }
        makes_sense
    }

    /// [`Self::set`] with a value that is read first.
    fn read<T: FromStr>(&mut self, value: &str, change: impl FnOnce(&mut Request, T)) -> bool {
        let value = value.parse();
        value.is_ok_and(|value| self.set(|request| change(request, value)))
    }

    fn words(&mut self) {
        let text = self.text;
        let prompts = [
            ("Prompt", Some(&text.prompt)),
            ("Negative prompt", text.negative_prompt.as_ref()),
        ];
        for (i, (field, prompt)) in prompts.into_iter().enumerate() {
            let Some(prompt) = prompt else { continue };
            let kept = self.set(|request| match i {
                0 => request.prompt.clone_from(prompt),
                _ => request.negative_prompt = Some(prompt.clone()),
            });
            if !kept {
                let length = format!("{} bytes", prompt.len());
                self.settings
                    .not_carried
                    .push(NotCarried::new(field, &length));
            }
        }
    }

    /// What other settings stand on, and what texts leave unsaid: rules, sampler, generator.
    fn basis(&mut self) {
        let text = self.text;
        let request = &mut self.settings.request;
        if let Some(profile) = text
            .get("Profile")
            .and_then(|name| profile::named(name).ok())
        {
            request.profile = profile;
        }
        if self.writer != Writer::Sdrt {
            // Cards draw otherwise than processors, and A1111 says so only where it is not a card.
            request.rng = Rng::Philox;
        }
        if self.writer == Writer::SdNext && text.get("CFG scale").is_none() {
            request.guidance_scale = Some(1.0);
        }
        let named = text
            .get("Sampler")
            .and_then(|name| sampler::parse(name).ok());
        let Some((sampler, spread)) = named else {
            return;
        };
        let sampler = match text.get("UniPC variant") {
            Some("bh2") if sampler == &UNIPC => &UNIPC_BH2,
            _ => sampler,
        };
        self.set(|request| request.sampler = Some(sampler));
        let unsaid = match text.get("Schedule type") {
            None => spread.or_else(|| self.writer.spread(sampler)),
            Some(_) => spread,
        };
        self.set(|request| request.spread = unsaid);
    }

    fn has(&self, knob: Knob) -> bool {
        let sampler = self.settings.request.sampler;
        sampler.is_some_and(|sampler| sampler.knobs.contains(&knob))
    }

    /// Carries a setting over; false if that cannot be.
    fn take(&mut self, key: &str, value: &str) -> bool {
        let is_idle = |(idle, at): &(&str, &str)| {
            let number = || value.parse::<f64>().ok().zip(at.parse().ok());
            *idle == key && (*at == value || number().is_some_and(|(a, b): (f64, f64)| a == b))
        };
        let request = &self.settings.request;
        match key {
            "Steps" => self.read(value, |request, steps| request.steps = Some(steps)),
            "Sampler" => request.sampler.is_some(),
            "Schedule type" if value == "Automatic" => true,
            "Schedule type" => match value.parse() {
                // What is resolved for a sampler without a choice says nothing.
                Ok(spread) => self.set(|request| request.spread = Some(spread)),
                Err(_) => false,
            },
            "CFG scale" => self.read(value, |request, scale| request.guidance_scale = Some(scale)),
            "Guidance rescale" | "CFG rescale" => {
                self.read(value, |request, share| request.guidance_rescale = share)
            }
            "Seed" => self.read(value, |request, seed| request.seed = seed),
            "Size" => size(value).is_some_and(|[width, height]| {
                self.set(|request| {
                    request.width = Some(width);
                    request.height = Some(height);
                })
            }),
            "Variation seed" => match self.text.get("Variation seed strength").map(str::parse) {
                Some(Ok(strength)) => self.read(value, |request, seed| {
                    request.subseed = Some(seed);
                    request.subseed_strength = strength;
                }),
                _ => false,
            },
            "Variation seed strength" => {
                request.subseed.is_some() || self.text.get("Variation seed").is_some()
            }
            "Seed resize from" => {
                size(value).is_some_and(|size| self.set(|request| request.seed_resize = Some(size)))
            }
            "Clip skip" if value == "0" => true,
            "Clip skip" => self.read(value, |request, skip| request.clip_skip = skip),
            "ENSD" => self.read(value, |request, ensd| request.ensd = ensd),
            "Emphasis" => match Emphasis::ALL.into_iter().find(|rule| rule.label() == value) {
                Some(rule) => self.set(|request| request.emphasis = Some(rule)),
                None => false,
            },
            "RNG" => match value {
                "CPU" | "cpu" => self.set(|request| request.rng = Rng::TorchCpu),
                "NV" | "GPU" | "cuda" => self.set(|request| request.rng = Rng::Philox),
                _ => false,
            },
            "UniPC variant" => match request.sampler {
                Some(sampler) => [(&UNIPC, "bh1"), (&UNIPC_BH2, "bh2")].contains(&(sampler, value)),
                None => false,
            },
            "Eta" | "Eta DDIM" if self.has(Knob::Eta) => {
                self.read(value, |request, eta| request.options.eta = Some(eta))
            }
            "Sigma noise" if self.has(Knob::Noise) => {
                self.read(value, |request, s_noise| request.options.s_noise = s_noise)
            }
            "Sigma churn" if self.has(Knob::Churn) => {
                self.read(value, |request, s_churn| request.options.s_churn = s_churn)
            }
            "Sigma tmin" if self.has(Knob::Churn) => {
                self.read(value, |request, s_tmin| request.options.s_tmin = s_tmin)
            }
            "Sigma tmax" if self.has(Knob::Churn) => {
                self.read(value, |request, s_tmax| request.options.s_tmax = s_tmax)
            }
            "Refiner switch at" => self.read(value, |request, start| request.refiner_start = start),
            // It is among the files.
            "VAE Decoder" if value == vae_approx::NAME => true,
            _ if TELL_ONLY.contains(&key) => true,
            _ if IDLE.iter().any(is_idle) => true,
            _ if self.writer == Writer::Sdrt => self.take_own(key, value),
            _ => false,
        }
    }

    /// Carries a setting over that other programs do not have.
    fn take_own(&mut self, key: &str, value: &str) -> bool {
        match key {
            "Profile" => self.settings.request.profile.name == value,
            "Original size" => size(value)
                .is_some_and(|size| self.set(|request| request.micro.original_size = Some(size))),
            "Target size" => size(value)
                .is_some_and(|size| self.set(|request| request.micro.target_size = Some(size))),
            "Crop" => {
                pair(value, ',').is_some_and(|crop| self.set(|request| request.micro.crop = crop))
            }
            "Aesthetic scores" => {
                match value.split_once(',').map(|(a, b)| (a.parse(), b.parse())) {
                    Some((Ok(high), Ok(low))) => {
                        self.set(|request| request.aesthetic = [high, low])
                    }
                    _ => false,
                }
            }
            "Compute" => self.read(value, |request, compute| request.compute = compute),
            "Graph" => self.read(value, |request, graph| request.graph = graph),
            "Instructions" => match value.parse() {
                Ok(instructions) => {
                    self.settings.instructions = Some(instructions);
                    true
                }
                Err(_) => false,
            },
            "EP" => match value.parse() {
                Ok(ep) => {
                    self.settings.ep = ep;
                    true
                }
                Err(_) => false,
            },
            "Plugin" => {
                self.settings.plugin = Some(value.to_owned());
                true
            }
            // It is among the files.
            "Portable graph" => true,
            "Noise" => match value.parse() {
                Ok(noise @ (Texture::White | Texture::Perlin | Texture::Pink)) => {
                    self.set(|request| request.noise = noise)
                }
                // Files that a picture names are not opened.
                _ => false,
            },
            "VAE tiling" => self.set(|request| request.tile = value == "True"),
            "Ignored LoRA" => self.set(|request| request.ignore_lora_tags = true),
            "Idle draws" => self.set(|request| request.options.idle_draws = value == "True"),
            _ => false,
        }
    }

    /// The pictures of a batch are parts of one draw in some programs.
    fn batch(&mut self) {
        let number = |key| self.text.get(key).and_then(|value| value.parse().ok());
        let (Some(size), Some(place)) = (number("Batch size"), number("Batch pos")) else {
            return;
        };
        if place < size
            && self.settings.request.profile.batch_is_one_draw
            && self.set(|request| request.batch = size)
        {
            self.settings.place = place;
        }
    }
}

fn size(value: &str) -> Option<[usize; 2]> {
    pair(value, 'x')
}

fn pair(value: &str, sign: char) -> Option<[usize; 2]> {
    let (a, b) = value.split_once(sign)?;
    Some([a.trim().parse().ok()?, b.trim().parse().ok()?])
}
