//! The networks of a run, leased with the sizes that it has.

use super::folder::Folder;
use super::{ModelDir, Models, Plan};
use crate::denoise::Unet;
use crate::engine::{Cancel, Compute, Dialect, Engine, EngineError, Ep, InBands, Key, Lease};
use crate::text::{Condition, Guides};

/// Who leases networks for pictures like a plan's.
#[derive(Clone, Copy)]
pub(super) struct Leases<'a> {
    pub(super) plan: &'a Plan,
    pub(super) engine: &'a Engine,
    pub(super) cancel: &'a Cancel,
}

impl Leases<'_> {
    /// A network with fixed dimensions, perhaps one that takes vectors in place of tokens.
    pub(super) fn network(
        &self,
        folder: Folder<'_>,
        component: &str,
        dims: &[(&str, usize)],
        takes_vectors: bool,
    ) -> Result<Lease, EngineError> {
        let wish = (self.plan.graph, self.plan.compute);
        let (key, _) = folder.key(component, dims, self.engine.ep(), wish)?;
        let key = key.takes_vectors(takes_vectors);
        self.engine.lease(&key, folder.manifest, self.cancel)
    }

    /// The UNet of a model that is told this.
    pub(super) fn unet(
        &self,
        model: &ModelDir,
        told: &Guides<Condition>,
    ) -> Result<Unet, EngineError> {
        let mut dims = self.latent_dims().to_vec();
        dims.extend(sequence(told).map(|length| ("sequence", length)));
        let network = self.network(model.folder(), "unet", &dims, false)?;
        Ok(Unet::new(network, model.prediction))
    }

    /// What makes pictures of latents, in bands of rows if the plan wants that.
    pub(super) fn decoder(&self, models: &Models) -> Result<Lease, EngineError> {
        let (folder, _) = models.decoder();
        let key = self.decoder_key(models)?;
        self.engine.lease(&key, folder.manifest, self.cancel)
    }

    /// Which network [`Self::decoder`] is.
    ///
    /// # Errors
    /// It is no graph that works in bands.
    pub(super) fn decoder_key(&self, models: &Models) -> Result<Key, EngineError> {
        decoder_key(self.plan, models, self.engine.ep(), self.plan.compute)
    }

    /// The decoder in single precision by the processor, if that is another one.
    pub(super) fn exact_decoder_key(&self, models: &Models) -> Result<Option<Key>, EngineError> {
        let exact = decoder_key(self.plan, models, Ep::Cpu, Compute::F32)?;
        let is_other = self.engine.ep() != Ep::Cpu || self.decoder_key(models)? != exact;
        Ok(is_other.then(|| exact.on_processor()))
    }

    fn latent_dims(&self) -> [(&'static str, usize); 3] {
        latent_dims(self.plan)
    }
}

/// Finds out whether a provider runs graphs of these models as a plan wants them; nothing is loaded for that.
pub(super) fn check(plan: &Plan, models: &Models, ep: Ep) -> Result<(), EngineError> {
    let wish = (plan.graph, plan.compute);
    for model in models.all() {
        model.key("unet", &[], ep, wish)?;
        // Of the other networks, too.
        model.portable(ep, wish)?;
    }
    decoder_key(plan, models, ep, plan.compute).map(drop)
}

/// The decoder that a provider runs.
fn decoder_key(plan: &Plan, models: &Models, ep: Ep, compute: Compute) -> Result<Key, EngineError> {
    let (folder, _) = models.decoder();
    let (key, chosen) = folder.key("vae_decoder", &latent_dims(plan), ep, (plan.graph, compute))?;
    if plan.tile && !chosen.is_native() {
        return Err(EngineError::NotInBands {
            path: key.folder().join(chosen.file),
            obstacle: match (chosen.reason, plan.graph) {
                (Some(reason), _) => InBands::NoGraph(reason),
                (None, Dialect::Portable) => InBands::PortableAsked,
                (None, _) if ep == Ep::Cpu => {
                    InBands::NoGraph("only native graphs do that, and the directory has none")
                }
                (None, _) => InBands::Provider(ep),
            },
        });
    }
    Ok(key.in_bands(plan.tile))
}

fn latent_dims(plan: &Plan) -> [(&'static str, usize); 3] {
    let [_, _, height, width] = plan.latent_shape;
    [("batch", 1), ("height", height), ("width", width)]
}

/// Tokens of all conditions, if they are equally long.
fn sequence(conditions: &Guides<Condition>) -> Option<usize> {
    let mut lengths = conditions.values().map(|(condition, _)| condition.tokens());
    let first = lengths.next()?;
    lengths.all(|length| length == first).then_some(first)
}
