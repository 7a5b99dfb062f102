//! Text to picture: encode the prompts, denoise, decode. One network is in memory at a time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ndarray::{Axis, Ix4, s};
use sd_models::tokenizer::{END_OF_TEXT, START_OF_TEXT};

use super::{Dump, ModelDir, Picture, PipelineError, RequestError, infotext};
use crate::denoise::{DenoiseError, Guided, Latents};
use crate::engine::{Engine, EngineError, Input, memory};
use crate::noise::{NoiseSource, Rng};
use crate::sampler::{Profile, Run, Sampler, Schedule, SigmaSchedule};
use crate::text::lora_tags::untag;
use crate::text::{Chunk, ClipTokenizer, Conditioning, TextEncoder, TextError, chunks, prompt};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Txt2Img {
    /// What should be seen.
    pub prompt: String,
    /// What should not be seen.
    pub negative_prompt: String,
    /// Width in pixels; the model's default if absent.
    pub width: Option<usize>,
    /// Height in pixels; the model's default if absent.
    pub height: Option<usize>,
    /// Steps of the sampler, 1 to 1000.
    pub steps: usize,
    /// How strongly the prompt is followed; 1 is without guidance. Below 1 it depends on the profile.
    pub guidance_scale: f64,
    /// Seed of the first picture; the next ones count on.
    pub seed: u64,
    /// How many pictures.
    pub batch: usize,
    /// The solver; the profile's default if absent.
    pub sampler: Option<Sampler>,
    /// How noise levels are spread; the profile's choice if absent.
    pub schedule: Option<SigmaSchedule>,
    /// Whose rules are followed.
    pub profile: Profile,
    /// Where noise comes from.
    pub rng: Rng,
    /// Which layer of the text encoder is used, counted from the end: 1 is the last. Profiles differ in what it acts on.
    pub clip_skip: usize,
    /// A file with the first noise, instead of drawing it.
    pub initial_noise: Option<PathBuf>,
    /// Whether prompts may ask for LoRAs that the model does not hold, which then have no effect.
    pub ignore_lora_tags: bool,
}

impl Default for Txt2Img {
    /// A1111's settings.
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: String::new(),
            width: None,
            height: None,
            steps: 20,
            guidance_scale: 7.0,
            seed: 0,
            batch: 1,
            sampler: None,
            schedule: None,
            profile: Profile::A1111,
            rng: Rng::TorchCpu,
            clip_skip: 1,
            initial_noise: None,
            ignore_lora_tags: false,
        }
    }
}

/// Part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Prompts become embeddings.
    Encode,
    /// The UNet is loaded.
    Load {
        /// Bytes of memory that the run will take at most.
        memory: u64,
    },
    /// The sampler runs.
    Denoise {
        /// How many model calls it will make.
        calls: usize,
    },
    /// Latents become pictures.
    Decode,
}

/// Follows a run.
pub trait Watch {
    /// A part begins.
    fn phase(&mut self, phase: Phase);

    /// So many model calls are done.
    fn called(&mut self, calls: usize);

    /// Something good to know.
    fn note(&mut self, text: &str);

    /// Something that may be wrong.
    fn warn(&mut self, text: &str);
}

/// How long the parts took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Text encoder, with its loading.
    pub encode: Duration,
    /// Loading of the UNet.
    pub load: Duration,
    /// The sampler.
    pub denoise: Duration,
    /// VAE decoder, with its loading.
    pub decode: Duration,
}

/// What a run made.
#[derive(Debug)]
pub struct Outcome {
    /// Pictures with their seeds and infotexts.
    pub pictures: Vec<(Picture, u64, String)>,
    /// How long it took.
    pub timing: Timing,
    /// The solver that ran.
    pub sampler: Sampler,
    /// Calls of the UNet's denoiser per picture.
    pub calls: usize,
}

impl Txt2Img {
    /// Checks what can be checked before anything is opened.
    ///
    /// # Errors
    /// A number out of range, or options that exclude each other.
    pub fn check(&self) -> Result<(), RequestError> {
        for (side, value) in [("width", self.width), ("height", self.height)] {
            if let Some(value) = value.filter(|n| n % 8 != 0 || !(64..=4096).contains(n)) {
                let nearest = ((value.min(4096) + 4) / 8 * 8).clamp(64, 4096);
                return Err(RequestError::Size {
                    side,
                    value,
                    nearest,
                });
            }
        }
        let range = |name, value, range| Err(RequestError::Range { name, value, range });
        if !(1..=1000).contains(&self.steps) {
            return range("steps", self.steps as f64, "1 to 1000");
        }
        if !(1..=1000).contains(&self.batch) {
            return range("batch", self.batch as f64, "1 to 1000");
        }
        if !(1..=12).contains(&self.clip_skip) {
            return range("clip-skip", self.clip_skip as f64, "1 to 12");
        }
        if !(0.0..=100.0).contains(&self.guidance_scale) {
            return range("cfg", self.guidance_scale, "0 to 100");
        }
        match (self.sampler, self.schedule) {
            (Some(sampler), Some(schedule)) if !self.profile.spreads(sampler) => {
                Err(RequestError::Schedule {
                    sampler: sampler.name(),
                    schedule: schedule.name(),
                    profile: self.profile.name(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Makes the pictures. `dump`, if given, gets the inside of the run.
    ///
    /// # Errors
    /// Whatever goes wrong first; `EngineError::Interrupted` inside if `interrupt` is set.
    pub fn run(
        &self,
        engine: &Engine,
        model: &ModelDir,
        interrupt: &Arc<AtomicBool>,
        watch: &mut dyn Watch,
        mut dump: Option<&mut Dump>,
    ) -> Result<Outcome, PipelineError> {
        self.check()?;
        let sampler = self.sampler(model)?;
        let spread = self.spread(sampler, model)?;
        let schedule = self.schedule(sampler, spread, model)?;
        let [width, height] = self.size(model)?;
        let memory = model.memory_within([width, height], memory::limit())?;
        let mut timing = Timing::default();
        model.notes.iter().for_each(|note| watch.note(note));
        if self.profile == Profile::A1111 && self.guidance_scale == 0.0 {
            watch.note("guidance 0 follows the negative prompt only");
        }

        let prompts = self.untagged(model, watch)?;
        watch.phase(Phase::Encode);
        let start = Instant::now();
        let (cond, uncond) = self.encode(engine, model, &prompts, watch)?;
        timing.encode = start.elapsed();
        if let Some(dump) = dump.as_deref_mut() {
            for (conditioning, suffix) in [(&cond, ""), (&uncond, "_uncond")] {
                dump.add_ids(format!("token_ids{suffix}"), &conditioning.token_ids.view());
                dump.add(
                    format!("text_embeddings{suffix}"),
                    &conditioning.embeddings.view(),
                );
            }
        }

        let factor = model.latent.downscale;
        let shape = [
            self.batch,
            model.latent.channels,
            height / factor,
            width / factor,
        ];
        let mut sources: Vec<Box<dyn NoiseSource + Send>> = (0..self.batch as u64)
            .map(|i| self.rng.source(self.seed.wrapping_add(i)))
            .collect();
        let noise = self.first_noise(shape, &mut sources)?;
        if let Some(dump) = dump.as_deref_mut() {
            dump.add("initial_noise", &noise.view());
        }

        watch.phase(Phase::Load { memory });
        let start = Instant::now();
        let dims = [("batch", 1), ("height", shape[2]), ("width", shape[3])];
        let mut unet = engine.load(&model.path, "unet", model.manifest.as_ref(), &dims)?;
        timing.load = start.elapsed();

        let calls = schedule.steps.len();
        watch.phase(Phase::Denoise { calls });
        let start = Instant::now();
        let mut guided = Guided {
            unet: &mut unet,
            prediction: model.prediction,
            cond: &cond.embeddings,
            uncond: &uncond.embeddings,
            scale: self.profile.guidance_scale(self.guidance_scale),
        };
        let mut observer = Observer {
            sources,
            watch,
            dump,
            interrupt,
        };
        let latents = sampler.run(&mut guided, noise, &schedule, &mut observer)?;
        let Observer { watch, dump, .. } = observer;
        drop(unet);
        timing.denoise = start.elapsed();
        if let Some(dump) = dump {
            dump.add("final_latents", &latents.view());
            let convention = if sampler.is_variance_preserving() {
                "vp"
            } else {
                "ve"
            };
            dump.set("convention", convention);
            for (key, value) in self.pairs(self.seed, sampler, spread, [width, height], model) {
                dump.set(key, &value);
            }
            dump.set("prompt", &self.prompt);
            dump.set("negative_prompt", &self.negative_prompt);
            dump.set("profile", self.profile.name());
        }

        watch.phase(Phase::Decode);
        let start = Instant::now();
        let decoded = self.decode(engine, model, &latents, watch)?;
        timing.decode = start.elapsed();
        let pictures = decoded.into_iter().zip(0..).map(|(picture, i)| {
            let seed = self.seed.wrapping_add(i);
            let pairs = self.pairs(seed, sampler, spread, [width, height], model);
            (
                picture,
                seed,
                infotext::infotext(&self.prompt, &self.negative_prompt, &pairs),
            )
        });
        Ok(Outcome {
            pictures: pictures.collect(),
            timing,
            sampler,
            calls,
        })
    }

    /// The solver: the one that is asked for, or A1111's first one, or that of the directory's scheduler class.
    fn sampler(&self, model: &ModelDir) -> Result<Sampler, PipelineError> {
        let sampler = match (self.sampler, self.profile) {
            (Some(sampler), _) => sampler,
            (None, Profile::A1111) => Sampler::Dpmpp2m,
            (None, Profile::Diffusers) => {
                let sampler = model.scheduler()?.sampler();
                sampler.map_err(|source| model.scheduler_error(source))?
            }
        };
        Self {
            sampler: Some(sampler),
            ..self.clone()
        }
        .check()?;
        Ok(sampler)
    }

    /// How noise levels are spread: as asked for, or by the profile's choice. Nothing for samplers with levels of their own.
    fn spread(
        &self,
        sampler: Sampler,
        model: &ModelDir,
    ) -> Result<Option<SigmaSchedule>, PipelineError> {
        if !self.profile.spreads(sampler) {
            return Ok(None);
        }
        let automatic = match self.profile {
            Profile::A1111 => SigmaSchedule::automatic(sampler),
            Profile::Diffusers => model.scheduler()?.spread(),
        };
        Ok(Some(self.schedule.unwrap_or(automatic)))
    }

    fn schedule(
        &self,
        sampler: Sampler,
        spread: Option<SigmaSchedule>,
        model: &ModelDir,
    ) -> Result<Schedule, PipelineError> {
        let spread = spread.unwrap_or(SigmaSchedule::Normal);
        Ok(match self.profile {
            Profile::A1111 => Schedule::a1111(sampler, spread, self.steps),
            Profile::Diffusers => {
                Schedule::diffusers(sampler, spread, self.steps, model.scheduler()?)
            }
        })
    }

    fn size(&self, model: &ModelDir) -> Result<[usize; 2], RequestError> {
        let size = [
            self.width.unwrap_or(model.default_size[0]),
            self.height.unwrap_or(model.default_size[1]),
        ];
        let with_size = Self {
            width: Some(size[0]),
            height: Some(size[1]),
            ..self.clone()
        };
        with_size.check().map(|()| size)
    }

    /// Prompt and negative prompt without tags of LoRAs, which the model holds, or the user allows to be absent.
    fn untagged(&self, model: &ModelDir, watch: &mut dyn Watch) -> Result<[String; 2], TextError> {
        let untag = |prompt: &str| untag(prompt, model.manifest.as_ref(), self.ignore_lora_tags);
        let untagged = [untag(&self.prompt)?, untag(&self.negative_prompt)?];
        for untagged in &untagged {
            untagged.notes.iter().for_each(|note| watch.note(note));
            for tag in &untagged.ignored {
                watch.warn(&format!("`{tag}` is ignored: it is not in the model"));
            }
        }
        Ok(untagged.map(|untagged| untagged.text))
    }

    fn encode(
        &self,
        engine: &Engine,
        model: &ModelDir,
        [prompt, negative]: &[String; 2],
        watch: &mut dyn Watch,
    ) -> Result<(Conditioning, Conditioning), PipelineError> {
        let cond = self.chunks(prompt, false, &model.tokenizer, watch)?;
        let uncond = self.chunks(negative, true, &model.tokenizer, watch)?;
        let network = engine.load(
            &model.path,
            "text_encoder",
            model.manifest.as_ref(),
            &[("batch", 1)],
        )?;
        let [skip, negative_skip] = self.clip_skips(model, watch);
        let mut encoder = TextEncoder::new(network);
        Ok((
            encoder.encode(&cond, skip)?,
            encoder.encode(&uncond, negative_skip)?,
        ))
    }

    /// Which layer is used for the prompt and for the negative prompt.
    fn clip_skips(&self, model: &ModelDir, watch: &mut dyn Watch) -> [usize; 2] {
        match self.profile {
            // The web UI leaves OpenCLIP as it was trained.
            Profile::A1111 if model.open_clip && self.clip_skip > 1 => {
                watch.note(
                    "clip skip has no effect on Stable Diffusion 2's text encoder under a1111's rules",
                );
                [1, 1]
            }
            Profile::A1111 => [self.clip_skip; 2],
            // The pipeline hands the number to the prompt's encoding only.
            Profile::Diffusers => [self.clip_skip, 1],
        }
    }

    fn chunks(
        &self,
        text: &str,
        negative: bool,
        clip: &ClipTokenizer,
        watch: &mut dyn Watch,
    ) -> Result<Vec<Chunk>, TextError> {
        for token in [START_OF_TEXT, END_OF_TEXT] {
            if text.contains(token) {
                watch.warn(&format!("`{token}` in the prompt is taken as text"));
            }
        }
        match self.profile {
            Profile::A1111 => {
                prompt::refuse_unsupported(text, negative)?;
                chunks::chunks(&prompt::parse_attention(text), clip)
            }
            Profile::Diffusers => {
                let (chunk, cut) = chunks::truncated(text, clip)?;
                if cut > 0 {
                    watch.warn(&format!("the prompt is too long for the diffusers profile: its last {cut} tokens are cut off"));
                }
                Ok(vec![chunk])
            }
        }
    }

    /// One draw per picture, [C, h, w] each, from its own generator; or what the user gives.
    fn first_noise(
        &self,
        shape: [usize; 4],
        sources: &mut [Box<dyn NoiseSource + Send>],
    ) -> Result<Latents, PipelineError> {
        let mut noise = Latents::zeros(shape);
        draw(&mut noise, sources);
        let Some(path) = &self.initial_noise else {
            return Ok(noise);
        };
        let given = super::dump::read_initial_noise(path)?;
        if given.shape() != shape {
            let problem = format!(
                "`initial_noise` has shape {:?}; this run needs {shape:?}",
                given.shape()
            );
            return Err(PipelineError::InitNoise {
                path: path.clone(),
                problem,
            });
        }
        Ok(given
            .into_dimensionality::<Ix4>()
            .expect("the shape has four dimensions"))
    }

    fn decode(
        &self,
        engine: &Engine,
        model: &ModelDir,
        latents: &Latents,
        watch: &mut dyn Watch,
    ) -> Result<Vec<Picture>, PipelineError> {
        let (count, _, height, width) = latents.dim();
        let dims = [("batch", 1), ("height", height), ("width", width)];
        let mut decoder =
            engine.load(&model.path, "vae_decoder", model.manifest.as_ref(), &dims)?;
        let unscaled = latents / model.latent.scaling_factor as f32;
        let factor = model.latent.downscale;
        let mut pictures = Vec::new();
        for i in 0..count {
            let one = unscaled.slice(s![i..=i, .., .., ..]);
            let input = Input::F32(one.into_dyn());
            let decoded = decoder
                .run(&[("latent_sample", input)], &["sample"])?
                .remove(0);
            let expected = vec![1, 3, height * factor, width * factor];
            if decoded.shape() != expected {
                return Err(PipelineError::Shape {
                    found: decoded.shape().to_vec(),
                    expected,
                });
            }
            let non_finite = decoded.iter().filter(|x| !x.is_finite()).count();
            if non_finite > 0 {
                return Err(PipelineError::NonFinite { count: non_finite });
            }
            let decoded = decoded
                .into_dimensionality::<Ix4>()
                .expect("the shape has four dimensions");
            let picture = Picture::from_decoded(&decoded.index_axis(Axis(0), 0), self.profile);
            if picture.is_constant() {
                watch.warn("the picture has one colour only: the model may be damaged");
            }
            pictures.push(picture);
        }
        Ok(pictures)
    }

    /// The settings in A1111's words and order.
    fn pairs(
        &self,
        seed: u64,
        sampler: Sampler,
        spread: Option<SigmaSchedule>,
        size: [usize; 2],
        model: &ModelDir,
    ) -> Vec<(&'static str, String)> {
        let mut pairs = vec![
            ("Steps", self.steps.to_string()),
            ("Sampler", sampler.name().to_owned()),
        ];
        if let Some(spread) = spread {
            pairs.push(("Schedule type", spread.name().to_owned()));
        }
        pairs.push(("CFG scale", self.guidance_scale.to_string()));
        pairs.push(("Seed", seed.to_string()));
        pairs.push(("Size", format!("{}x{}", size[0], size[1])));
        if let Some(hash) = model.hash() {
            pairs.push(("Model hash", hash.to_owned()));
        }
        pairs.push(("Model", model.title()));
        if self.clip_skip > 1 {
            pairs.push(("Clip skip", self.clip_skip.to_string()));
        }
        let rng = match self.rng {
            Rng::TorchCpu => "CPU",
            Rng::Philox => "NV",
        };
        pairs.push(("RNG", rng.to_owned()));
        if self.profile != Profile::A1111 {
            pairs.push(("Profile", self.profile.name().to_owned()));
        }
        // Prompts were read before.
        let untagged = untag(&self.prompt, model.manifest.as_ref(), true);
        let ignored = untagged.map(|u| u.ignored.join(" ")).unwrap_or_default();
        if !ignored.is_empty() {
            pairs.push(("Ignored LoRA", ignored));
        }
        pairs.push(("Version", format!("sdrt-{}", env!("CARGO_PKG_VERSION"))));
        pairs
    }
}

/// Draws one tensor for every picture from its own generator.
fn draw(noise: &mut Latents, sources: &mut [Box<dyn NoiseSource + Send>]) {
    for (mut image, source) in noise.axis_iter_mut(Axis(0)).zip(sources) {
        source.normal(
            image
                .as_slice_mut()
                .expect("whole pictures of a new array are contiguous"),
        );
    }
}

/// What a sampler gets: noise, and somebody who looks on.
struct Observer<'a> {
    sources: Vec<Box<dyn NoiseSource + Send>>,
    watch: &'a mut dyn Watch,
    dump: Option<&'a mut Dump>,
    interrupt: &'a Arc<AtomicBool>,
}

impl Run for Observer<'_> {
    fn noise(&mut self, noise: &mut Latents) {
        draw(noise, &mut self.sources);
    }

    fn observe(
        &mut self,
        call: usize,
        x: &Latents,
        denoised: &Latents,
    ) -> Result<(), DenoiseError> {
        if let Some(dump) = self.dump.as_deref_mut() {
            dump.add(format!("latents.{call:03}"), &x.view());
            dump.add(format!("denoised.{call:03}"), &denoised.view());
        }
        self.watch.called(call + 1);
        if self.interrupt.load(Ordering::SeqCst) {
            return Err(EngineError::Interrupted.into());
        }
        Ok(())
    }
}
