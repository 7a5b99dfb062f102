//! Prompts by the rules of A1111, against those rules written down in another language (`tests/golden/prompts.py`).

use serde_json::Value;

use super::composition::split;
use super::editing::{Steps, schedule};
use super::prompt::{parse_attention, parse_comfyui};
use super::tokenizer::tests::tokenizer;
use super::{ClipTokenizer, TextError, chunks};
use sd_models::tokenizer::Pad;

fn golden() -> Value {
    let golden = include_str!("../../../tests/golden/prompts.json");
    serde_json::from_str(golden).unwrap()
}

#[test]
fn prompts_are_edited_composed_and_weighted_as_in_a1111() {
    let golden = golden();
    let texts = golden["texts"].as_array().unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    assert!(prompts.len() >= 250);
    for case in prompts {
        let prompt = case[0].as_str().unwrap();
        let steps = Steps::first(case[2].as_u64().unwrap() as usize);
        let parts = match case[1] == "cond" {
            true => split(prompt),
            false => vec![(prompt.to_owned(), 1.0)],
        };
        let expected = case[3].as_array().unwrap();
        assert_eq!(parts.len(), expected.len(), "{prompt}");
        for ((text, weight), part) in parts.iter().zip(expected) {
            assert_eq!(*weight, part[0].as_f64().unwrap(), "{prompt}");
            let line = schedule(text, steps);
            let found = line.turns().map(|(until, text)| (until as u64, &**text));
            let turns = part[1].as_array().unwrap().iter().map(|turn| {
                let text = &texts[turn[1].as_u64().unwrap() as usize];
                (turn[0].as_u64().unwrap(), text[0].as_str().unwrap())
            });
            assert_eq!(
                found.collect::<Vec<_>>(),
                turns.collect::<Vec<_>>(),
                "{prompt}"
            );
        }
    }
}

#[test]
fn texts_have_the_ids_and_weights_of_a1111() {
    let clip = tokenizer(Pad::EndOfText);
    for case in golden()["texts"].as_array().unwrap() {
        let text = case[0].as_str().unwrap();
        let found = chunks::chunks(&parse_attention(text), &clip).unwrap();
        let expected = case[1].as_array().unwrap();
        assert_eq!(found.len(), expected.len(), "{text}");
        for (chunk, expected) in found.iter().zip(expected) {
            let ids: Vec<u32> = serde_json::from_value(expected[0].clone()).unwrap();
            let runs: Vec<(usize, f32)> = serde_json::from_value(expected[1].clone()).unwrap();
            let weights = runs.iter().flat_map(|&(count, weight)| vec![weight; count]);
            let end = ids.len() + 1;
            assert_eq!(chunk.ids[1..end], ids, "{text}");
            assert!(
                chunk.ids[end..].iter().all(|&id| id == clip.end()),
                "{text}"
            );
            // Six digits are written down.
            let near = |(a, b): (&f32, f32)| (a - b).abs() < 2e-6;
            assert!(
                chunk.weights[1..end].iter().zip(weights).all(near),
                "{text}"
            );
            assert!(
                chunk.weights[end..].iter().all(|&weight| weight == 1.0),
                "{text}"
            );
        }
    }
}

/// Pieces that grammars care for, in an order that chance makes.
pub(super) fn random_prompt(state: &mut u64) -> String {
    const PIECES: [&str; 28] = [
        "(",
        ")",
        "[",
        "]",
        ":",
        "|",
        "\\",
        "AND",
        "BREAK",
        " ",
        "\n",
        "3",
        ".5",
        ":1.2)",
        ":3]",
        "[a:b:3]",
        "[x|y]",
        "<lora:",
        ">",
        "é",
        "🙂",
        "\u{0}",
        "1e9",
        "-",
        ",",
        "embedding:",
        "İ",
        "\u{301}",
    ];
    let mut next = |count: u64| {
        // Numerical Recipes' generator.
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % count
    };
    let count = next(24);
    (0..count)
        .map(|_| PIECES[next(PIECES.len() as u64) as usize])
        .collect()
}

fn read(prompt: &str, clip: &ClipTokenizer) {
    for (text, weight) in split(prompt) {
        assert!(weight.is_finite(), "{prompt}");
        for text in schedule(&text, Steps::first(5)).values() {
            for parts in [parse_attention(text), parse_comfyui(text)] {
                match chunks::chunks(&parts, clip) {
                    Ok(chunks) => {
                        for chunk in chunks {
                            assert_eq!((chunk.ids.len(), chunk.weights.len()), (77, 77));
                        }
                    }
                    // Some hundred brackets.
                    Err(TextError::Weight { weight, .. }) => assert!(weight.abs() > 1e5),
                    Err(e) => panic!("{e}"),
                }
                if let Ok(chunks) = chunks::comfyui(&parts, clip) {
                    assert!(!chunks.is_empty());
                }
            }
        }
    }
}

#[test]
fn every_text_is_a_prompt() {
    let clip = tokenizer(Pad::EndOfText);
    let mut state = 1;
    for _ in 0..1500 {
        read(&random_prompt(&mut state), &clip);
    }
}

#[test]
fn long_prompts_take_bounded_time() {
    const LENGTH: usize = 100_000;
    let clip = tokenizer(Pad::EndOfText);
    let half = LENGTH / 2;
    for prompt in [
        "(".repeat(LENGTH),
        ["(".repeat(half), ")".repeat(half)].concat(),
        "(a".repeat(half),
        "[a:b:3]".repeat(LENGTH / 7),
        ["[".repeat(LENGTH / 4), ":3]".repeat(LENGTH / 4)].concat(),
        "a AND ".repeat(LENGTH / 6),
        "a,".repeat(half),
    ] {
        read(&prompt, &clip);
    }
}
