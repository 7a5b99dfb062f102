//! One file per subcommand: its options, and what it does with them.

mod batch;
mod calibrate;
mod completions;
mod demo;
mod doctor;
mod replay;
mod setup;
mod txt2img;

use std::ffi::{OsStr, OsString};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::parser::ValueSource;
use sd_kernels::Isa;
use sd_runtime::engine::{
    Cancel, Compute, Engine, EngineOptions, Ep, EpOption, EpOptionError, EpOptions, UnknownEp,
    plugin_title,
};
use sd_runtime::pipeline::Request;
use sd_runtime::pipeline::infotext::{NotCarried, Settings};
use sd_runtime::sensors::{Ceiling, Limits, NoSensor, Sensors};
use sd_ui::{Ui, UsageError};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Demo(demo::DemoArgs),
    Txt2img(Box<txt2img::Txt2ImgArgs>),
    Replay(replay::ReplayArgs),
    Batch(Box<batch::BatchArgs>),
    Calibrate(calibrate::CalibrateArgs),
    Setup(setup::SetupArgs),
    Doctor(doctor::DoctorArgs),
    Completions(completions::CompletionsArgs),
}

impl Command {
    pub(crate) fn run(&self, ui: &Ui) -> anyhow::Result<()> {
        match self {
            Self::Demo(args) => demo::run(args, ui),
            Self::Txt2img(args) => txt2img::run(args, ui),
            Self::Replay(args) => replay::run(args, ui),
            Self::Batch(args) => batch::run(args, ui),
            Self::Calibrate(args) => calibrate::run(args, ui),
            Self::Setup(args) => setup::run(args, ui),
            Self::Doctor(args) => doctor::run(args, ui),
            Self::Completions(args) => completions::run(args, ui),
        }
    }
}

/// What `--ep` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Provider {
    /// This one.
    Named(Ep),
    /// The fastest of those that are there.
    Auto,
}

impl Default for Provider {
    fn default() -> Self {
        Self::Named(Ep::default())
    }
}

impl FromStr for Provider {
    type Err = UnknownEp;

    fn from_str(name: &str) -> Result<Self, UnknownEp> {
        match name {
            "auto" => Ok(Self::Auto),
            name => name.parse().map(Self::Named),
        }
    }
}

/// Whether `--ep` was given, since its value may be the default one all the same.
#[derive(Clone, Copy, Debug, Default)]
struct EpGiven(bool);

impl clap::Args for EpGiven {
    fn augment_args(command: clap::Command) -> clap::Command {
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        command
    }
}

impl clap::FromArgMatches for EpGiven {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(
            matches.value_source("ep") == Some(ValueSource::CommandLine),
        ))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Options of every command that computes.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct EngineArgs {
    // Before `ep`, whose value is taken from what was parsed.
    #[command(flatten)]
    ep_given: EpGiven,
    /// Who computes: cpu, openvino, cuda, tensorrt, migraphx, rocm, directml, coreml, xnnpack, webgpu, plugin (that of --ep-library), or
    /// auto, the fastest one of cpu, openvino and cuda by measurement
    #[arg(
        long,
        default_value = "cpu",
        default_value_if("ep_library", clap::builder::ArgPredicate::IsPresent, "plugin"),
        value_name = "NAME",
        help_heading = "Engine"
    )]
    pub(crate) ep: Provider,
    /// Library with a provider's plugin, which computes then; its option device=N takes one of several devices
    #[arg(long, value_name = "FILE", help_heading = "Engine")]
    ep_library: Option<PathBuf>,
    /// Option of the provider, such as precision=bf16; repeat for several. A wrong one lists them all
    #[arg(long = "ep-option", value_name = "KEY=VALUE", help_heading = "Engine")]
    ep_options: Vec<EpOption>,
    /// Fail if the provider leaves operators to ONNX Runtime's own kernels, instead of warning
    #[arg(long, help_heading = "Engine")]
    strict_ep: bool,
    /// Threads; as many as there are processors if left out, and never more
    #[arg(long, value_name = "N", help_heading = "Engine")]
    threads: Option<NonZero<usize>>,
    /// Use no better vector instructions than these in native graphs, to compute what an older processor does: scalar, avx2, avx2-vnni,
    /// avx512, avx512-vnni or avx512-bf16. ONNX Runtime's own kernels, which portable graphs run, choose theirs themselves
    #[arg(long, value_name = "LEVEL", help_heading = "Engine")]
    instructions: Option<Isa>,
    /// ONNX Runtime library to load instead of the one that `sdrun setup` fetched
    #[arg(long, value_name = "FILE", help_heading = "Engine")]
    pub(crate) lib: Option<PathBuf>,
}

impl EngineArgs {
    /// The library of a file for a provider, and everything else as usual.
    pub(crate) fn of(ep: Ep, lib: PathBuf) -> Self {
        Self {
            ep: Provider::Named(ep),
            lib: Some(lib),
            ..Self::default()
        }
    }

    /// The plugin that computes.
    pub(crate) fn plugin(&self) -> Option<&Path> {
        self.ep_library.as_deref()
    }

    /// The same with this provider, which gets the options if they are its own: those beside `auto` are OpenVINO's.
    pub(crate) fn with(&self, ep: Ep) -> Self {
        let ep_options = match (self.ep, ep) {
            (_, Ep::Cpu) => Vec::new(),
            (Provider::Auto, ep) if ep != Ep::OpenVino => Vec::new(),
            _ => self.ep_options.clone(),
        };
        Self {
            ep: Provider::Named(ep),
            ep_options,
            ..self.clone()
        }
    }

    /// What a picture was computed with and is not now.
    pub(crate) fn not_carried(&self, settings: &Settings) -> Vec<NotCarried> {
        let mut left_out = Vec::new();
        let mut add = |field: &str, value: &str| {
            left_out.push(NotCarried {
                field: field.to_owned(),
                value: value.to_owned(),
            });
        };
        if self.ep != Provider::Named(settings.ep) {
            add("EP", settings.ep.name());
        }
        let is_here = |there: &&String| {
            let here = self.plugin().and_then(|library| plugin_title(library).ok());
            here.as_ref() == Some(there)
        };
        if let Some(there) = settings.plugin.as_ref().filter(|there| !is_here(there)) {
            add("Plugin", there);
        }
        let here = self.instructions.unwrap_or_else(Isa::detect);
        if let Some(instructions) = settings.instructions.filter(|there| *there != here) {
            add("Instructions", instructions.name());
        }
        left_out
    }

    /// The same with the provider and instructions that a picture was computed with, as far as this machine has them and nobody says
    /// otherwise.
    pub(crate) fn like(&self, settings: &Settings) -> Self {
        let provider = match self.ep_given.0 || self.ep_library.is_some() {
            false => self.with(settings.ep),
            true => self.clone(),
        };
        let there = settings.instructions;
        Self {
            instructions: self
                .instructions
                .or(there.filter(|isa| Isa::available().any(|own| own == *isa))),
            ..provider
        }
    }

    /// The provider, or the one that is always among those to choose from.
    pub(crate) fn least(&self) -> Ep {
        match self.ep {
            Provider::Named(ep) => ep,
            Provider::Auto => Ep::Cpu,
        }
    }

    /// The provider that is asked for by name.
    pub(crate) fn named(&self) -> anyhow::Result<Ep> {
        match self.ep {
            Provider::Named(ep) => Ok(ep),
            Provider::Auto => {
                let text = "--ep auto measures when a picture is made; this command needs the name of a provider";
                Err(UsageError(text.to_owned()).into())
            }
        }
    }

    /// That the provider computes in such numbers, which is known before anything is opened.
    pub(crate) fn check_numbers(&self, compute: Compute) -> Result<(), UsageError> {
        match self.ep {
            Provider::Named(ep) if !ep.computes_in(compute) => Err(UsageError(format!(
                "--compute {}: {ep} does not compute in it, but cpu does",
                compute.name()
            ))),
            _ => Ok(()),
        }
    }

    /// The provider's options, as they are written.
    pub(crate) fn options(&self) -> Vec<String> {
        let written = |EpOption { key, value }: &EpOption| format!("{key}={value}");
        self.ep_options.iter().map(written).collect()
    }

    /// These arguments for another process.
    pub(crate) fn as_options(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: &dyn AsRef<OsStr>| {
            words.extend([name.into(), value.as_ref().to_owned()]);
        };
        if let Provider::Named(ep) = self.ep {
            add("--ep", &ep.name());
        }
        for option in self.options() {
            add("--ep-option", &option);
        }
        if let Some(library) = &self.ep_library {
            add("--ep-library", library);
        }
        if let Some(threads) = self.threads {
            add("--threads", &threads.to_string());
        }
        if let Some(instructions) = self.instructions {
            add("--instructions", &instructions.name());
        }
        if let Some(lib) = &self.lib {
            add("--lib", lib);
        }
        if self.strict_ep {
            words.push("--strict-ep".into());
        }
        words
    }

    /// Reads the provider's options.
    fn provider_options(&self) -> Result<EpOptions, EpOptionError> {
        match self.ep {
            Provider::Named(ep) => ep.check(&self.ep_options),
            Provider::Auto => Ep::OpenVino.check(&self.ep_options),
        }
    }

    /// Checks the provider's options, and lets a request be computed in the numbers that they say.
    pub(crate) fn apply(&self, request: &mut Request) -> Result<(), EpOptionError> {
        let options = self.provider_options()?;
        if self.ep != Provider::Auto {
            request.compute = options.compute(request.compute)?;
        }
        Ok(())
    }

    /// Threads that are computed with.
    pub(crate) fn processors(&self) -> usize {
        let available = std::thread::available_parallelism().map_or(1, NonZero::get);
        self.threads.map_or(available, NonZero::get).min(available)
    }

    /// Lets this process use no better instructions than it shall.
    pub(crate) fn limit_instructions(&self) {
        if let Some(instructions) = self.instructions {
            instructions.limit();
        }
    }

    /// Lets a running engine compute with the provider that is asked for.
    pub(crate) fn provide(&self, engine: &mut Engine) -> anyhow::Result<()> {
        Ok(engine.provide(self.named()?, &self.provider_options()?, self.strict_ep)?)
    }

    /// Starts ONNX Runtime and says which library and provider are used.
    pub(crate) fn start(&self, ui: &Ui) -> anyhow::Result<Engine> {
        self.limit_instructions();
        let ep = self.named()?;
        match (ep, &self.ep_library) {
            (Ep::Plugin, None) => {
                let text = "--ep plugin needs `--ep-library FILE`, which is the plugin";
                return Err(UsageError(text.to_owned()).into());
            }
            (ep, Some(_)) if self.ep_given.0 && ep != Ep::Plugin => {
                let text = format!("--ep-library is a provider itself; leave `--ep {ep}` out");
                return Err(UsageError(text).into());
            }
            _ => {}
        }
        let options = EngineOptions {
            library: self.lib.clone(),
            ep,
            plugin: self.ep_library.clone(),
            ep_options: self.provider_options()?,
            strict: self.strict_ep,
            threads: self.threads,
        };
        let engine = Engine::start(&options)?;
        if let Some(asked) = self.threads.map(NonZero::get)
            && asked > engine.threads()
        {
            let there = match engine.threads() {
                1 => "one processor, so there is one thread".to_owned(),
                threads => format!("{threads} processors, so there are {threads} threads"),
            };
            ui.note(format!("--threads {asked}: this process may use {there}"));
        }
        tracing::info!(library = %engine.library().path.display(), ep = engine.ep().name(), threads = engine.threads(), "engine");
        Ok(engine)
    }
}

/// Options of commands that compute for long.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct CeilingArgs {
    /// Pause between steps so that the processor uses this power on average at most, in watts
    #[arg(long, value_name = "W", value_parser = positive, help_heading = "Engine")]
    max_watts: Option<f64>,
    /// Pause between steps while the processor is hotter than this, in degrees Celsius
    #[arg(long, value_name = "C", value_parser = positive, help_heading = "Engine")]
    max_temp: Option<f64>,
}

impl CeilingArgs {
    /// What holds the limits, if there are any.
    pub(crate) fn ceiling(self) -> anyhow::Result<Option<Ceiling>> {
        let limits = Limits {
            watts: self.max_watts,
            celsius: self.max_temp,
        };
        Ceiling::new(&Sensors::default(), limits).map_err(|error| {
            let option = match error {
                NoSensor::Power => "--max-watts",
                NoSensor::Temperature => "--max-temp",
            };
            anyhow::Error::from(error).context(option)
        })
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && f64::is_finite(number) => Ok(number),
        _ => Err("expected a number above 0".to_owned()),
    }
}

/// What is said of a comment in a prompt.
pub(crate) fn left_out(comment: &str) -> String {
    format!("comment left out: {comment}")
}

/// A job that ends when the user wants to stop.
pub(crate) fn cancel_with(ui: &Ui) -> Cancel {
    let cancel = Cancel::new();
    let job = cancel.clone();
    ui.on_interrupt(move || job.cancel());
    cancel
}
