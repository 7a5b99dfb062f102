//! The tiny autoencoder's original names: positions in two lists of layers. The decoder's list begins with a clamp that
//! has no parameters and that diffusers does not count.

use super::ldm::split_index;

/// Canonical name of a key of the encoder's file.
pub(super) fn encoder(key: &str) -> Option<String> {
    let (k, rest) = split_index(key)?;
    Some(format!("encoder.layers.{k}.{rest}"))
}

/// Canonical name of a key of the decoder's file.
pub(super) fn decoder(key: &str) -> Option<String> {
    let (k, rest) = split_index(key)?;
    Some(format!("decoder.layers.{}.{rest}", k.checked_sub(1)?))
}

/// Key of a canonical name, without prefix, in the file of its half.
pub(super) fn key_of(name: &str) -> Option<String> {
    if let Some(rest) = name.strip_prefix("encoder.layers.") {
        return Some(rest.to_owned());
    }
    let (k, rest) = split_index(name.strip_prefix("decoder.layers.")?)?;
    Some(format!("{}.{rest}", k + 1))
}
