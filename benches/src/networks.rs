//! The networks of a model directory and what they are given, for all commands that time them.

use std::num::NonZero;
use std::path::PathBuf;

use anyhow::Context;
use ndarray::{Array4, ArrayD, Ix2, Ix3};
use sd_kernels::Isa;
use sd_runtime::denoise::Unet;
use sd_runtime::engine::{
    Cancel, Compute, Dialect, Engine, EngineOptions, Ep, EpOption, Input, Lease, memory,
};
use sd_runtime::noise::Rng;
use sd_runtime::pipeline::{ModelDir, Models, Plan, Plans, Request, Told};
use sd_runtime::text::chunks::{empty, truncated};
use sd_runtime::text::{Condition, Encoded, TextEncoder};
use sd_ui::Ui;

use crate::report::{Figures, Report};

/// Which model, at which size, and who computes.
#[derive(Debug, clap::Args)]
pub(crate) struct NetworksArgs {
    /// Model directory
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,
    /// Model directory of its refiner, whose networks are there, too, with `_refiner` behind their names
    #[arg(long, value_name = "DIR")]
    refiner: Option<PathBuf>,
    /// Side of the picture in pixels; the model's own if left out
    #[arg(long, value_name = "N")]
    size: Option<usize>,
    /// Who computes
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    ep: Ep,
    /// Option of the provider; repeat for several. A wrong one lists them all
    #[arg(long = "ep-option", value_name = "KEY=VALUE")]
    ep_options: Vec<EpOption>,
    /// Fail if the provider leaves operators to ONNX Runtime's own kernels
    #[arg(long)]
    strict_ep: bool,
    /// Which graphs to run
    #[arg(long, value_name = "portable|native|auto", default_value = "auto")]
    graph: Dialect,
    /// What products are computed in
    #[arg(long, value_name = "f32|bf16|i16|i8|auto", default_value = "f32")]
    compute: Compute,
    /// Threads; as many as there are processors if left out
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// Use no better vector instructions than these in native graphs: scalar, avx2, avx2-vnni, avx512, avx512-vnni or
    /// avx512-bf16
    #[arg(long, value_name = "LEVEL")]
    instructions: Option<Isa>,
    /// ONNX Runtime library
    #[arg(long, value_name = "FILE")]
    lib: Option<PathBuf>,
}

/// A network in the order of a run.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Its name in reports.
    pub(crate) name: String,
    /// Number of its model: 1 is the refiner.
    model: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A text encoder of the model, by its number.
    Text(usize),
    Unet,
    Decoder,
}

/// What the text encoders of each model say of the prompt.
#[derive(Default)]
pub(crate) struct Said([Vec<Encoded>; 2]);

/// A tensor that a network is given.
pub(crate) enum Tensor {
    F32(ArrayD<f32>),
    Ids(ArrayD<i64>),
}

/// A loaded network and what it is given.
pub(crate) struct Loaded {
    pub(crate) network: Lease,
    /// Dialect of its graph.
    pub(crate) graph: &'static str,
    /// What its products are computed in.
    pub(crate) compute: &'static str,
    pub(crate) inputs: Vec<(&'static str, Tensor)>,
    pub(crate) outputs: Vec<String>,
}

/// Model directories, a running engine, and the picture that is made.
pub(crate) struct Networks {
    pub(crate) models: Models,
    pub(crate) engine: Engine,
    pub(crate) cancel: Cancel,
    pub(crate) plan: Plan,
    graph: Dialect,
    compute: Compute,
    latents: Array4<f32>,
}

impl NetworksArgs {
    /// What picture the networks make.
    pub(crate) fn request(&self) -> anyhow::Result<Request> {
        let ep_options = self.ep.check(&self.ep_options)?;
        Ok(request(
            self.size,
            self.graph,
            ep_options.compute(self.compute)?,
        ))
    }
}

/// A picture that is measured: no prompt changes how long it takes.
pub(crate) fn request(side: Option<usize>, graph: Dialect, compute: Compute) -> Request {
    Request {
        prompt: "a lighthouse at dusk".to_owned(),
        width: side,
        height: side,
        graph,
        compute,
        ..Request::default()
    }
}

impl Networks {
    pub(crate) fn open(args: &NetworksArgs, ui: &Ui) -> anyhow::Result<Self> {
        if let Some(instructions) = args.instructions {
            instructions.limit();
        }
        let ep_options = args.ep.check(&args.ep_options)?;
        let request = args.request()?;
        let refiner = args.refiner.as_deref().map(ModelDir::open).transpose()?;
        let models = Models {
            refiner,
            ..Models::one(ModelDir::open(&args.model)?)
        };
        let mut plans = Plans::resolve(&request, &models, memory::limit())?.plans;
        let plan = plans.pop().context("a request is for a picture")?;
        let options = EngineOptions {
            library: args.lib.clone(),
            ep: args.ep,
            plugin: None,
            ep_options,
            strict: args.strict_ep,
            threads: args.threads,
        };
        let engine = Engine::start(&options)?;
        let mut latents = Array4::zeros(plan.latent_shape);
        Rng::TorchCpu
            .source(0)
            .normal(latents.as_slice_mut().expect("a new array is contiguous"));
        let cancel = Cancel::new();
        let job = cancel.clone();
        ui.on_interrupt(move || job.cancel());
        Ok(Self {
            models,
            engine,
            cancel,
            plan,
            graph: request.graph,
            compute: request.compute,
            latents,
        })
    }

    /// The networks that make a picture, in the order in which they run.
    pub(crate) fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        for (number, (model, suffix)) in self.models.all().zip(["", "_refiner"]).enumerate() {
            let place = |component: &str, kind| Place {
                name: format!("{component}{suffix}"),
                model: number,
                kind,
            };
            let texts = model.texts.iter().enumerate();
            places.extend(texts.map(|(i, text)| place(text.component, Kind::Text(i))));
            places.push(place("unet", Kind::Unet));
        }
        places.push(Place {
            name: "vae_decoder".to_owned(),
            model: 0,
            kind: Kind::Decoder,
        });
        places
    }

    /// Figures, and where they were taken.
    pub(crate) fn report(&self, figures: Figures) -> Report {
        Report::new(&self.engine, &self.models, self.plan.size, figures)
    }

    /// A place's model, and what that is told of the picture.
    fn model(&self, place: &Place) -> anyhow::Result<(&ModelDir, &Told)> {
        let mut all = self.models.all().zip(&self.plan.told);
        all.nth(place.model).context("a plan tells every model")
    }

    /// Loads a network, and makes what it is given from what the text encoders before it said.
    pub(crate) fn load(&self, place: &Place, said: &Said) -> anyhow::Result<Loaded> {
        const TIMESTEP: f64 = 500.0;
        let (model, told) = self.model(place)?;
        let component = match place.kind {
            Kind::Text(i) => model.texts[i].component,
            Kind::Unet => "unet",
            Kind::Decoder => "vae_decoder",
        };
        let [_, _, height, width] = self.plan.latent_shape;
        // Of one chunk of the prompt.
        let sequence = match place.kind {
            Kind::Text(i) => empty(&model.texts[i].tokenizer).ids.len(),
            _ => {
                let encoded = said.0[place.model].first();
                encoded.map_or(0, |encoded| encoded.states.shape()[1])
            }
        };
        let dims = [
            ("batch", 1),
            ("height", height),
            ("width", width),
            ("sequence", sequence),
        ];
        let wish = (self.graph, self.compute);
        let (key, graph) = model.key(component, &dims, self.engine.ep(), wish)?;
        let compute = key.compute;
        let manifest = model.manifest.as_ref();
        let network = self.engine.lease(&key, manifest, &self.cancel)?;
        let one = |name: &str| vec![name.to_owned()];
        let (inputs, outputs) = match place.kind {
            Kind::Text(i) => {
                let (chunk, _) = truncated(&self.plan.prompt, &model.texts[i].tokenizer)?;
                let ids = Tensor::Ids(chunk.row().into_dyn());
                let outputs = TextEncoder::outputs(&network, told.layers[0])?;
                (vec![("input_ids", ids)], outputs)
            }
            Kind::Unet => {
                let encoded = &said.0[place.model];
                let condition = Condition::join(encoded, told.time_ids[0].as_deref())?;
                let guidance = network.has_input("timestep_cond");
                let guidance = guidance.then_some(self.plan.guidance_scale);
                let inputs = Unet::inputs(&self.latents, TIMESTEP, &condition, guidance);
                let inputs = inputs.into_iter().map(|(name, x)| (name, Tensor::F32(x)));
                (inputs.collect(), one("out_sample"))
            }
            Kind::Decoder => {
                let latents = Tensor::F32(self.latents.clone().into_dyn());
                (vec![("latent_sample", latents)], one("sample"))
            }
        };
        Ok(Loaded {
            network,
            graph: graph.dialect(),
            compute: compute.name(),
            inputs,
            outputs,
        })
    }
}

impl Said {
    /// Keeps what a text encoder said, for the UNet of its model.
    pub(crate) fn hear(&mut self, place: &Place, outputs: Vec<ArrayD<f32>>) -> anyhow::Result<()> {
        if !matches!(place.kind, Kind::Text(_)) {
            return Ok(());
        }
        let mut outputs = outputs.into_iter();
        let states = outputs.next().context("a layer's states")?;
        let pooled = outputs.next().map(ArrayD::into_dimensionality::<Ix2>);
        self.0[place.model].push(Encoded {
            states: states.into_dimensionality::<Ix3>()?,
            pooled: pooled.transpose()?,
        });
        Ok(())
    }
}

impl Place {
    /// Whether another place's network needs what this one says.
    pub(crate) fn is_heard_by(&self, other: &Self) -> bool {
        let same = self.model == other.model;
        same && matches!((self.kind, other.kind), (Kind::Text(_), Kind::Unet))
    }
}

impl Tensor {
    fn view(&self) -> Input<'_> {
        match self {
            Self::F32(x) => Input::F32(x.view()),
            Self::Ids(x) => Input::Ids(x.view()),
        }
    }
}

impl Loaded {
    /// One pass, and its outputs.
    pub(crate) fn pass(&mut self, cancel: &Cancel) -> anyhow::Result<Vec<ArrayD<f32>>> {
        let inputs = self.inputs.iter().map(|(name, x)| (*name, x.view()));
        let inputs: Vec<_> = inputs.collect();
        let outputs: Vec<_> = self.outputs.iter().map(String::as_str).collect();
        Ok(self.network.run(&inputs, &outputs, cancel)?)
    }

    /// Goes to the next noise level, if it has one, as a run does. What a network remembers of a prompt stays.
    pub(crate) fn step(&mut self) {
        for (name, tensor) in &mut self.inputs {
            if let (&mut "timestep", Tensor::F32(t)) = (name, tensor) {
                *t -= 1.0;
            }
        }
    }
}
