//! Which errors are the command line's. They end the program with 2, wherever they were found; all others end it with 1.

use std::error::Error;

use sd_runtime::engine::EpOptionError;
use sd_runtime::noise::UnknownRng;
use sd_runtime::pipeline::{PipelineError, RequestError};
use sd_runtime::profile::UnknownProfile;
use sd_runtime::sampler::UnknownSampler;
use sd_runtime::sigmas::UnknownSpread;
use sd_runtime::text::TextError;
use sd_ui::UsageError;

/// Makes an error that the command line is the reason for one of usage, with the option that it is about.
pub(crate) fn marked(error: anyhow::Error) -> anyhow::Error {
    match error.chain().find_map(wrong) {
        Some(text) => error.context(UsageError(text)),
        None => error,
    }
}

/// What is wrong with the command line, if that is the error.
fn wrong(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(wrong) = RequestError::of(error) {
        return Some(match wrong.field() {
            Some(field) => format!("{}: {wrong}", option_of(field)),
            None => wrong.to_string(),
        });
    }
    if let Some(wrong) = error.downcast_ref::<EpOptionError>() {
        return Some(format!("--ep-option: {wrong}"));
    }
    let is_name = error.is::<UnknownSampler>()
        || error.is::<UnknownSpread>()
        || error.is::<UnknownProfile>()
        || error.is::<UnknownRng>();
    let is_text = matches!(
        error.downcast_ref(),
        Some(PipelineError::Text(
            TextError::Weight { .. } | TextError::ClipSkip { .. }
        ))
    );
    (is_name || is_text).then(|| error.to_string())
}

/// The option that sets a field of a request, such as `options.s_noise` or `seed_resize[0]`.
fn option_of(field: &str) -> String {
    let name = field
        .strip_prefix("options.")
        .or_else(|| field.strip_prefix("micro."))
        .unwrap_or(field);
    match name.split('[').next() {
        Some("guidance_scale") => "--cfg".to_owned(),
        Some("negative_prompt") => "--negative".to_owned(),
        Some(name) => format!("--{}", name.replace('_', "-")),
        None => String::new(),
    }
}
