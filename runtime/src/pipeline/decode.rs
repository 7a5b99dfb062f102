//! Latents to pictures. Where a decoder's values overflow, it is run once more in single precision by the processor: half precision,
//! in which some providers compute, ends at 65504, which SDXL's own VAE exceeds, and whole numbers need finite norms.

use super::event::{Event, Listener};
use super::leases::Leases;
use super::{Models, Picture, PipelineError, Plan, stages};
use crate::denoise::Latents;
use crate::engine::{Compute, EngineError, Key, Lease};

/// Decodes the pictures of a run.
pub(super) struct Decoder<'a> {
    leases: Leases<'a>,
    models: &'a Models,
    /// What decodes at present.
    key: Key,
    network: Option<Lease>,
    /// Whether it is the one that computes in single precision because another one failed.
    is_exact: bool,
}

/// A picture, and how it came about.
pub(super) struct Decoded {
    pub(super) picture: Picture,
    /// Whether it took the exact decoder, since the values of the one that was asked for overflow.
    pub(super) again: bool,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(leases: Leases<'a>, models: &'a Models) -> Result<Self, EngineError> {
        Ok(Self {
            leases,
            models,
            key: leases.decoder_key(models)?,
            network: None,
            is_exact: false,
        })
    }

    /// Clean latents to a picture, and a word on one that is none.
    pub(super) fn picture(
        &mut self,
        plan: &Plan,
        latents: &Latents,
        listener: &mut Listener<'_>,
    ) -> Result<Decoded, PipelineError> {
        if self.is_exact {
            // Each picture is what it would be alone.
            self.key = self.leases.decoder_key(self.models)?;
            self.network = None;
            self.is_exact = false;
        }
        let mut decoded = self.decode(plan, latents);
        if let Err(PipelineError::NonFinite { count, .. }) = decoded
            && self.begins_again(count, listener)?
        {
            decoded = self.decode(plan, latents);
        }
        let picture = decoded?;
        if picture.is_constant() {
            let text = "the picture has one colour only: the model may be damaged";
            listener(Event::Warning(text));
        }
        Ok(Decoded {
            picture,
            again: self.is_exact,
        })
    }

    fn decode(&mut self, plan: &Plan, latents: &Latents) -> Result<Picture, PipelineError> {
        let Leases { engine, cancel, .. } = self.leases;
        let network = match &mut self.network {
            Some(network) => network,
            none => {
                let (folder, _) = self.models.decoder();
                none.insert(engine.lease(&self.key, folder.manifest, cancel)?)
            }
        };
        stages::decode(plan, latents, self.models, network, cancel)
    }

    /// Goes on with the exact decoder, if that is another one than the one that failed.
    fn begins_again(
        &mut self,
        count: usize,
        listener: &mut Listener<'_>,
    ) -> Result<bool, EngineError> {
        let exact = match self.is_exact {
            true => None,
            false => self.leases.exact_decoder_key(self.models)?,
        };
        let Some(key) = exact else {
            return Ok(false);
        };
        let text = format!(
            "{count} of the decoder's values are NaN or infinite as {} computes them{}: decoding again in f32 on the processor",
            self.leases.engine.ep(),
            match self.leases.plan.compute {
                Compute::F32 => String::new(),
                compute => format!(" in {}", compute.name()),
            }
        );
        listener(Event::Warning(&text));
        self.key = key;
        // It goes before the other one is loaded.
        self.network = None;
        self.is_exact = true;
        Ok(true)
    }
}
