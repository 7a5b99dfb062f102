//! A way of computing a picture: model directory, provider, numbers, graphs, threads, instructions and noise.

use std::num::NonZero;
use std::path::PathBuf;

use anyhow::Context;
use sd_kernels::Isa;
use sd_runtime::engine::{Compute, Dialect, EngineOptions, Ep, EpOption, memory};
use sd_runtime::noise::Rng;
use sd_runtime::pipeline::{ModelDir, Models, Plan, Plans, Request};
use serde::{Deserialize, Serialize};

/// One way. Names are those of command lines, since recordings hold them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Way {
    /// Model directory.
    pub(crate) model: PathBuf,
    /// Execution provider.
    pub(crate) ep: String,
    /// Its options, `key=value`.
    pub(crate) ep_options: Vec<String>,
    /// Whether the provider has to take every operator.
    pub(crate) strict_ep: bool,
    /// What products are computed in.
    pub(crate) compute: Compute,
    /// Which graphs are run.
    pub(crate) graph: Dialect,
    /// Threads; none is as many as there are processors.
    pub(crate) threads: Option<NonZero<usize>>,
    /// Instruction level that native graphs may use at most.
    pub(crate) instructions: Option<String>,
    /// Generator of noise.
    pub(crate) rng: String,
    /// ONNX Runtime library that was named.
    pub(crate) library: Option<PathBuf>,
}

impl Way {
    pub(crate) fn ep(&self) -> anyhow::Result<Ep> {
        Ok(self.ep.parse()?)
    }

    pub(crate) fn rng(&self) -> anyhow::Result<Rng> {
        Ok(self.rng.parse()?)
    }

    pub(crate) fn instructions(&self) -> anyhow::Result<Option<Isa>> {
        let level = self.instructions.as_deref().map(str::parse);
        level.transpose().map_err(anyhow::Error::msg)
    }

    /// What an engine is started with.
    pub(crate) fn engine(&self) -> anyhow::Result<EngineOptions> {
        let ep = self.ep()?;
        let options = self.ep_options.iter().map(|text| text.parse());
        let options: Vec<EpOption> = options.collect::<Result<_, _>>()?;
        Ok(EngineOptions {
            library: self.library.clone(),
            ep,
            plugin: None,
            ep_options: ep.check(&options)?,
            strict: self.strict_ep,
            threads: self.threads,
        })
    }

    /// What products are computed in, when the provider's options had their say.
    pub(crate) fn compute(&self) -> anyhow::Result<Compute> {
        Ok(self.engine()?.ep_options.compute(self.compute)?)
    }

    /// Opens the model.
    pub(crate) fn models(&self) -> anyhow::Result<Models> {
        Ok(Models::one(ModelDir::open(&self.model)?))
    }

    /// The plan of a request that is computed in this way, with noise of `rng`.
    pub(crate) fn plan(
        &self,
        request: &Request,
        models: &Models,
        rng: Rng,
    ) -> anyhow::Result<Plan> {
        let request = Request {
            compute: self.compute()?,
            graph: self.graph,
            rng,
            batch: 1,
            ..request.clone()
        };
        let plans = Plans::resolve(&request, models, memory::limit())?.plans;
        plans
            .into_iter()
            .next()
            .context("a request is for a picture")
    }
}
