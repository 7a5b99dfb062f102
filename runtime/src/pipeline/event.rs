//! What happens during a run, for whoever follows it: a bar on a terminal, a job's handle, a socket.

use super::Picture;

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// A part of the work begins.
    Stage(Stage),
    /// So many of a picture's model calls are done.
    Called {
        /// Which picture, from 0.
        picture: usize,
        /// Calls so far.
        calls: usize,
    },
    /// What a picture looks like so far, by what is left of its noise; [`super::Plans::preview`] asks for them.
    Preview {
        /// Which picture, from 0.
        picture: usize,
        /// Steps so far.
        steps: usize,
        /// What the denoiser thinks that it will be.
        image: &'a Picture,
    },
    /// Something good to know.
    Note(&'a str),
    /// Something that may be wrong.
    Warning(&'a str),
}

/// Part of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Prompts become embeddings.
    Encode,
    /// The UNet is loaded.
    Load,
    /// The sampler runs.
    Denoise {
        /// How many model calls each picture takes; none where the picture decides.
        calls: Option<usize>,
        /// How many pictures.
        pictures: usize,
    },
    /// Latents become pictures.
    Decode,
}

/// Who follows a run.
pub type Listener<'a> = dyn FnMut(Event<'_>) + 'a;
