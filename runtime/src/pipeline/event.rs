//! What happens during a run, for whoever follows it: a bar on a terminal, a job's handle, a socket.

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
