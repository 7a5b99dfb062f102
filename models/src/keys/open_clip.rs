//! OpenCLIP's names of a text encoder's tensors, which differ from transformers' also in content: queries, keys and values
//! are one matrix, and the projection is stored transposed (OpenCLIP multiplies from the right).

use super::ldm::{lookup, replace_prefix, reverse_lookup, split_index};
use super::{Part, Parts};

/// The last of OpenCLIP-H's 24 layers: Stable Diffusion 2 takes the output of the one before. Files need not have it.
pub(super) const UNUSED_LAYER: &str = "transformer.resblocks.23.";

/// Tensors outside the layers, OpenCLIP and transformers.
const TOP: &[(&str, &str)] = &[
    (
        "token_embedding.weight",
        "text_model.embeddings.token_embedding.weight",
    ),
    (
        "positional_embedding",
        "text_model.embeddings.position_embedding.weight",
    ),
    ("ln_final.weight", "text_model.final_layer_norm.weight"),
    ("ln_final.bias", "text_model.final_layer_norm.bias"),
    // Files derived from transformers' keep its orientation under this name.
    ("text_projection.weight", "text_projection.weight"),
];

/// Inside a layer, OpenCLIP and transformers.
const LAYER: &[(&str, &str)] = &[
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
];

const PROJECTIONS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// What a key without its prefix holds.
pub(super) fn to_canonical(key: &str) -> Option<Parts> {
    let whole = |name: String| Some(vec![(name, Part::Whole)]);
    if let Some(name) = lookup(TOP, key) {
        return whole(name.to_owned());
    }
    if key == "text_projection" {
        return Some(vec![(
            "text_projection.weight".to_owned(),
            Part::Transposed,
        )]);
    }
    let (layer, rest) = split_index(key.strip_prefix("transformer.resblocks.")?)?;
    let scope = format!("text_model.encoder.layers.{layer}");
    if let Some(parameter) = rest.strip_prefix("attn.in_proj_") {
        let third = |(i, name)| {
            let name = format!("{scope}.self_attn.{name}.{parameter}");
            (name, Part::Third(i))
        };
        return Some(PROJECTIONS.into_iter().enumerate().map(third).collect());
    }
    whole(format!("{scope}.{}", replace_prefix(LAYER, rest)?))
}

/// The key that holds a canonical tensor, and where in it.
pub(super) fn key_of(name: &str) -> Option<(String, Part)> {
    if name == "text_projection.weight" {
        return Some(("text_projection".to_owned(), Part::Transposed));
    }
    if let Some(key) = reverse_lookup(TOP, name) {
        return Some((key.to_owned(), Part::Whole));
    }
    let (layer, rest) = split_index(name.strip_prefix("text_model.encoder.layers.")?)?;
    let scope = format!("transformer.resblocks.{layer}");
    for (i, projection) in PROJECTIONS.into_iter().enumerate() {
        if let Some(parameter) = rest
            .strip_prefix("self_attn.")
            .and_then(|rest| rest.strip_prefix(projection)?.strip_prefix('.'))
        {
            return Some((format!("{scope}.attn.in_proj_{parameter}"), Part::Third(i)));
        }
    }
    let (from, parameter) = rest.rsplit_once('.')?;
    let key = reverse_lookup(LAYER, from)?;
    Some((format!("{scope}.{key}.{parameter}"), Part::Whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{ClipTextConfig, clip_text_encoder};

    #[test]
    fn every_tensor_is_found_again() {
        let graph = clip_text_encoder(&ClipTextConfig::open_clip_big_g()).unwrap();
        for param in graph.params {
            let (key, part) = key_of(&param.name).unwrap();
            let found = to_canonical(&key).unwrap();
            assert!(found.contains(&(param.name.clone(), part)), "{key}");
        }
    }

    #[test]
    fn a_projection_named_as_in_transformers_is_not_transposed() {
        let part = |key| to_canonical(key).unwrap()[0].1;
        assert_eq!(part("text_projection"), Part::Transposed);
        assert_eq!(part("text_projection.weight"), Part::Whole);
    }
}
