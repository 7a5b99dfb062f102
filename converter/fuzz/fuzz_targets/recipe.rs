//! Merge recipes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_converter::merge::Recipe;

fuzz_target!(|text: &str| {
    let _ = Recipe::parse(text, "recipe.toml".as_ref());
});
