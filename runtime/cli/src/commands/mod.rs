//! One file per subcommand: its options, and what it does with them.

mod demo;
mod doctor;
mod setup;
mod txt2img;

use std::num::NonZero;
use std::path::PathBuf;

use sd_kernels::Isa;
use sd_runtime::engine::{Cancel, Engine, EngineError, EngineOptions, Ep};
use sd_ui::Ui;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Demo(demo::DemoArgs),
    Txt2img(Box<txt2img::Txt2ImgArgs>),
    Setup(setup::SetupArgs),
    Doctor(doctor::DoctorArgs),
}

impl Command {
    pub(crate) fn run(&self, ui: &Ui) -> anyhow::Result<()> {
        match self {
            Self::Demo(args) => demo::run(args, ui),
            Self::Txt2img(args) => txt2img::run(args, ui),
            Self::Setup(args) => setup::run(args, ui),
            Self::Doctor(args) => doctor::run(args, ui),
        }
    }
}

/// Options of every command that computes.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct EngineArgs {
    /// Who computes: cpu, openvino, cuda, migraphx or rocm
    #[arg(
        long,
        default_value = "cpu",
        value_name = "NAME",
        help_heading = "Engine"
    )]
    ep: Ep,
    /// Threads; as many as there are processors if left out, and never more
    #[arg(long, value_name = "N", help_heading = "Engine")]
    threads: Option<NonZero<usize>>,
    /// Use no better vector instructions than these in native graphs, to compute what an older processor does: scalar, avx2, avx512,
    /// avx512-vnni or avx512-bf16. ONNX Runtime's own kernels, which portable graphs run, choose theirs themselves
    #[arg(long, value_name = "LEVEL", help_heading = "Engine")]
    instructions: Option<Isa>,
    /// ONNX Runtime library to load instead of the one that `sdrun setup` fetched
    #[arg(long, value_name = "FILE", help_heading = "Engine")]
    lib: Option<PathBuf>,
}

impl EngineArgs {
    /// Starts ONNX Runtime and says which library and provider are used.
    pub(crate) fn start(&self, ui: &Ui) -> Result<Engine, EngineError> {
        if let Some(instructions) = self.instructions {
            instructions.limit();
        }
        let options = EngineOptions {
            library: self.lib.clone(),
            ep: self.ep,
            threads: self.threads,
        };
        let engine = Engine::start(&options)?;
        if let Some(asked) = self.threads.map(NonZero::get)
            && asked > engine.threads()
        {
            ui.note(format!(
                "--threads {asked}: this process may use {} processors, so there are {0} threads",
                engine.threads()
            ));
        }
        tracing::info!(library = %engine.library().path.display(), ep = engine.ep().name(), threads = engine.threads(), "engine");
        Ok(engine)
    }
}

/// A job that ends when the user wants to stop.
pub(crate) fn cancel_with(ui: &Ui) -> Cancel {
    let cancel = Cancel::new();
    let job = cancel.clone();
    ui.on_interrupt(move || job.cancel());
    cancel
}
