//! The ways that a command line asks for: every combination of what its lists name, the first of each being the reference's.

use std::collections::HashSet;
use std::num::NonZero;
use std::path::PathBuf;

use anyhow::Context;
use sd_kernels::Isa;
use sd_runtime::engine::{Compute, Dialect, Ep, EpOption};
use sd_runtime::noise::Rng;
use sd_runtime::pipeline::ModelDir;
use sd_ui::Ui;

use super::record::processors;
use super::way::Way;
use crate::providers;

/// Who computes, in lists.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WaysArgs {
    /// Model directory; repeat for others of the same checkpoint, stored in other numbers for example
    #[arg(short, long = "model", value_name = "DIR", required = true)]
    models: Vec<PathBuf>,
    /// Who computes: cpu, openvino, cuda, tensorrt, migraphx, rocm, directml, coreml, xnnpack, webgpu
    #[arg(
        long = "ep",
        value_name = "NAME,..",
        default_value = "cpu",
        value_delimiter = ','
    )]
    eps: Vec<Ep>,
    /// Option of providers that take one; repeat for several. A wrong one lists them all
    #[arg(long = "ep-option", value_name = "KEY=VALUE")]
    ep_options: Vec<EpOption>,
    /// Fail if a provider leaves operators to ONNX Runtime's own kernels
    #[arg(long)]
    strict_ep: bool,
    /// What products are computed in: f32, i16, bf16, i8
    #[arg(
        long = "compute",
        value_name = "KIND,..",
        default_value = "f32",
        value_delimiter = ','
    )]
    computes: Vec<Compute>,
    /// Which graphs are run: native, portable or auto
    #[arg(
        long = "graph",
        value_name = "NAME,..",
        default_value = "auto",
        value_delimiter = ','
    )]
    graphs: Vec<Dialect>,
    /// Threads; as many as there are processors if left out
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    threads: Vec<NonZero<usize>>,
    /// Use no better vector instructions than these in native graphs: scalar, avx2, avx2-vnni, avx512, avx512-vnni or
    /// avx512-bf16
    #[arg(long, value_name = "LEVEL,..", value_delimiter = ',')]
    instructions: Vec<Isa>,
    /// Where noise comes from: torch-cpu, or philox as on NVIDIA cards
    #[arg(
        long = "rng",
        value_name = "NAME,..",
        default_value = "torch-cpu",
        value_delimiter = ','
    )]
    rngs: Vec<Rng>,
    /// Make every picture so often
    #[arg(long, value_name = "N", default_value = "1")]
    repeats: NonZero<usize>,
    /// Only ways that differ from the reference in one thing
    #[arg(long)]
    one_by_one: bool,
    /// ONNX Runtime library
    #[arg(long, value_name = "FILE")]
    lib: Option<PathBuf>,
}

impl WaysArgs {
    /// The ways in order, repeats behind each other. What cannot be computed is left out with a note; the first way can be.
    ///
    /// # Errors
    /// A model directory, an option of a provider or the first way that cannot be.
    pub(crate) fn ways(&self, ui: &Ui) -> anyhow::Result<Vec<Way>> {
        let models = self.models.iter().map(|path| ModelDir::open(path));
        let models: Vec<ModelDir> = models.collect::<Result<_, _>>()?;
        for threads in self.threads.iter().filter(|n| n.get() > processors()) {
            ui.note(format!(
                "--threads {threads}: this process may use {0} processors, so there are {0} threads",
                processors()
            ));
        }
        let providers = providers::with_options(&self.eps, &self.ep_options)?;
        let (mut ways, mut known) = (Vec::new(), HashSet::new());
        for choice in self.choices() {
            let (way, model) = self.way(choice, &models, &providers)?;
            let runs = way.compute().and_then(|compute| {
                let wish = (way.graph, compute);
                Ok(model.key("unet", &[], way.ep()?, wish)?)
            });
            let (key, graph) = match runs {
                Ok(runs) => runs,
                Err(error) if ways.is_empty() => return Err(error),
                Err(error) => {
                    ui.note(format!(
                        "{} {}: left out: {error}",
                        way.ep,
                        way.compute.name()
                    ));
                    continue;
                }
            };
            // Several wishes may lead to the same graph and numbers.
            let threads = way
                .threads
                .map_or(processors(), NonZero::get)
                .min(processors());
            let runs = (
                (way.model.clone(), way.ep.clone(), way.rng.clone(), threads),
                (graph.file, key.compute.name(), way.instructions.clone()),
            );
            if known.insert(runs) {
                ways.extend(vec![way; self.repeats.get()]);
            }
        }
        Ok(ways)
    }

    /// How many there are of each thing that is chosen.
    fn counts(&self) -> [usize; 7] {
        [
            self.models.len(),
            self.eps.len(),
            self.graphs.len(),
            self.computes.len(),
            self.threads.len().max(1),
            self.instructions.len().max(1),
            self.rngs.len(),
        ]
    }

    /// Places in the lists, the first being those of the reference.
    fn choices(&self) -> Vec<[usize; 7]> {
        let mut choices = vec![[0; 7]];
        for (i, count) in self.counts().into_iter().enumerate() {
            let longer = choices.iter().flat_map(|choice: &[usize; 7]| {
                (0..count).map(move |place| {
                    let mut choice = *choice;
                    choice[i] = place;
                    choice
                })
            });
            choices = longer.collect();
        }
        let others = |choice: &[usize; 7]| choice.iter().filter(|&&place| place > 0).count();
        choices.retain(|choice| !self.one_by_one || others(choice) < 2);
        choices
    }

    fn way<'m>(
        &self,
        [model, ep, graph, compute, threads, instructions, rng]: [usize; 7],
        models: &'m [ModelDir],
        providers: &[(Ep, &[EpOption])],
    ) -> anyhow::Result<(Way, &'m ModelDir)> {
        let model = models.get(model).context("a choice is among the models")?;
        let (ep, options) = providers[ep];
        let options = options.iter();
        let way = Way {
            model: model.path.clone(),
            ep: ep.name().to_owned(),
            ep_options: options.map(|o| format!("{}={}", o.key, o.value)).collect(),
            strict_ep: self.strict_ep,
            compute: self.computes[compute],
            graph: self.graphs[graph],
            threads: self.threads.get(threads).copied(),
            instructions: self
                .instructions
                .get(instructions)
                .map(|isa| isa.name().to_owned()),
            rng: self.rngs[rng].name().to_owned(),
            library: self.lib.clone(),
        };
        Ok((way, model))
    }
}
