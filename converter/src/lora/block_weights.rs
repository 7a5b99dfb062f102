//! Strengths by block, as A1111's "LoRA Block Weight" extension (hako-mikan) has them: lists of 12 (SDXL) or 17 (Stable
//! Diffusion 1 and 2) numbers for the blocks with attention, of 20 or 26 for all, presets, or blocks by name.
//!
//! `BASE` is for the text encoders. Blocks that a shorter list leaves out get 0, blocks that a table leaves out 1. Time
//! embeddings and the output layers belong to no block, and get 1.

use std::collections::BTreeMap;

use sd_models::keys::Component;
use sd_models::keys::blocks::{Block, Blocks};

/// Blocks with attention of Stable Diffusion 1 and 2, and of SDXL, on the way down and up.
const SD: [&[usize]; 2] = [&[1, 2, 4, 5, 7, 8], &[3, 4, 5, 6, 7, 8, 9, 10, 11]];
const SDXL: [&[usize]; 2] = [&[4, 5, 7, 8], &[0, 1, 2, 3, 4, 5]];

/// Blocks in each direction of models with `SDXL`'s structure.
const SDXL_BLOCKS: usize = 9;

/// Presets, as values of BASE, IN01, IN02, IN04, IN05, IN07, IN08, M00, OUT03 .. OUT11.
const PRESETS: [(&str, [f64; 17]); 10] = {
    const ON: [f64; 17] = [1.0; 17];
    const HALF: [f64; 17] = [0.5; 17];
    const OFF: [f64; 17] = [0.0; 17];
    /// The base and a range of the blocks.
    const fn range(from: usize, to: usize) -> [f64; 17] {
        let mut values = OFF;
        values[0] = 1.0;
        let mut i = from;
        while i <= to {
            values[i] = 1.0;
            i += 1;
        }
        values
    }
    [
        ("NONE", OFF),
        ("ALL", ON),
        ("ALL0.5", HALF),
        ("INS", range(1, 3)),
        ("IND", range(4, 6)),
        ("INALL", range(1, 6)),
        ("MIDD", range(4, 11)),
        ("OUTD", range(8, 11)),
        ("OUTS", range(12, 16)),
        ("OUTALL", range(8, 16)),
    ]
};

/// Strengths by block, before the model is known.
#[derive(Clone, Debug, PartialEq)]
pub enum LoraBlockWeights {
    /// In the order of the blocks.
    List(Vec<f64>),
    /// Of the blocks with attention of Stable Diffusion 1 and 2.
    Preset(&'static str),
    /// By name.
    Table(BTreeMap<String, f64>),
}

/// A strength for every module.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    blocks: Blocks,
    values: BTreeMap<Block, f64>,
}

impl Resolved {
    /// The factor of a layer's strength.
    pub(super) fn value(&self, component: Component, path: &str) -> f64 {
        block(self.blocks, component, path).map_or(1.0, |block| self.values[&block])
    }

    /// The values by name, for reports.
    pub(super) fn named(&self) -> BTreeMap<String, f64> {
        let values = self.values.iter();
        values
            .map(|(block, value)| (block.to_string(), *value))
            .collect()
    }
}

/// The block that a layer belongs to, if it belongs to one.
pub(super) fn block(blocks: Blocks, component: Component, path: &str) -> Option<Block> {
    const NONE: [&str; 4] = [
        "time_embedding.",
        "add_embedding.",
        "conv_norm_out",
        "conv_out",
    ];
    let none = component == Component::UNet && NONE.iter().any(|start| path.starts_with(start));
    (!none).then(|| blocks.block(component, &format!("{path}.weight")))
}

impl LoraBlockWeights {
    /// Reads a preset's name, a list of numbers, or `BLOCK=NUMBER` pairs; `x` stands for `X` in lists.
    ///
    /// # Errors
    /// It is none of these; the text says what is expected.
    pub fn parse(text: &str, x: Option<f64>) -> Result<Self, String> {
        let text = text.trim();
        if let Some((name, _)) = PRESETS.iter().find(|(name, _)| *name == text) {
            return Ok(Self::Preset(name));
        }
        let words = text
            .split([',', ' ', '\t', '\n', '\r'])
            .filter(|w| !w.is_empty());
        let words: Vec<&str> = words.collect();
        let number = |word: &str| match word.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ if word == "X" => x.ok_or_else(|| "X in block weights needs x=NUMBER".to_owned()),
            _ if word == "R" || word == "U" => Err(format!(
                "`{word}` (random block weights) cannot be baked in"
            )),
            _ => Err(format!(
                "`{word}`: block weights are numbers, BLOCK=NUMBER pairs, or one of {}",
                PRESETS.map(|(name, _)| name).join(", ")
            )),
        };
        if !words.is_empty() && words.iter().all(|word| word.contains('=')) {
            let mut table = BTreeMap::new();
            for word in words {
                let (name, value) = word.split_once('=').expect("every word has one");
                table.insert(name.to_uppercase(), number(value)?);
            }
            return Ok(Self::Table(table));
        }
        let list: Vec<f64> = words.into_iter().map(number).collect::<Result<_, _>>()?;
        if list.len() < 2 {
            return Err("block weights: a list of 12, 17, 20 or 26 numbers expected".to_owned());
        }
        Ok(Self::List(list))
    }

    /// Values for a model's blocks.
    pub(super) fn resolve(&self, blocks: Blocks) -> Result<Resolved, String> {
        let all: Vec<Block> = blocks.all().collect();
        let values = match self {
            Self::List(list) if list.len() == all.len() => {
                all.into_iter().zip(list.iter().copied()).collect()
            }
            Self::List(list) => sparse(list, blocks)?,
            Self::Preset(name) => {
                let preset = PRESETS.iter().find(|(known, _)| known == name);
                let (_, values) = preset.expect("presets are made from the table");
                if blocks.count() != Blocks::SD {
                    let problem =
                        "is for the blocks of Stable Diffusion 1 and 2; give a list instead";
                    return Err(format!("block weight preset {name} {problem}"));
                }
                sparse(values, blocks)?
            }
            Self::Table(table) => {
                let known: Vec<String> = all.iter().map(Block::to_string).collect();
                if let Some(name) = table.keys().find(|name| !known.contains(name)) {
                    return Err(format!(
                        "no block is called `{name}`; this model has {}",
                        known.join(", ")
                    ));
                }
                let value = |block: &Block| table.get(&block.to_string()).copied().unwrap_or(1.0);
                all.iter().map(|block| (*block, value(block))).collect()
            }
        };
        Ok(Resolved { blocks, values })
    }
}

/// The values of a list for the blocks with attention; others get 0.
fn sparse(list: &[f64], blocks: Blocks) -> Result<BTreeMap<Block, f64>, String> {
    let with_attention = match blocks.count() {
        Blocks::SD => Some(SD),
        SDXL_BLOCKS => Some(SDXL),
        _ => None,
    };
    let named: Vec<Block> = with_attention.map_or(Vec::new(), |[down, up]| {
        let down = down.iter().map(|n| Block::In(*n));
        let up = up.iter().map(|n| Block::Out(*n));
        [Block::Base]
            .into_iter()
            .chain(down)
            .chain([Block::Mid])
            .chain(up)
            .collect()
    });
    if list.len() != named.len() || list.is_empty() {
        let all = blocks.all().count();
        let short = if named.is_empty() {
            String::new()
        } else {
            format!("{} or ", named.len())
        };
        return Err(format!(
            "{} block weights given; this model takes {short}{all}",
            list.len()
        ));
    }
    let mut values: BTreeMap<Block, f64> = blocks.all().map(|block| (block, 0.0)).collect();
    values.extend(named.into_iter().zip(list.iter().copied()));
    Ok(values)
}

#[cfg(test)]
mod tests {
    use sd_models::presets::Preset;

    use super::*;

    fn blocks(name: &str) -> Blocks {
        Blocks::of(&Preset::named(name).unwrap().unet(false))
    }

    fn list(count: usize) -> LoraBlockWeights {
        LoraBlockWeights::List((0..count).map(|i| i as f64).collect())
    }

    #[test]
    fn lists_are_for_all_blocks_or_for_those_with_attention() {
        let value = |count: usize, model: &str, block: Block| {
            list(count).resolve(blocks(model)).map(|r| r.values[&block])
        };
        for (count, model, block, expected) in [
            (17, "sd15", Block::Base, 0.0),
            (17, "sd15", Block::In(1), 1.0),
            (17, "sd21", Block::In(8), 6.0),
            (17, "sd15", Block::Mid, 7.0),
            (17, "sd15", Block::Out(3), 8.0),
            (17, "sd15", Block::Out(11), 16.0),
            (17, "sd15", Block::In(3), 0.0),
            (26, "sd15", Block::In(0), 1.0),
            (26, "sd15", Block::Out(11), 25.0),
            (12, "sdxl", Block::In(4), 1.0),
            (12, "sdxl", Block::Mid, 5.0),
            (12, "sdxl", Block::Out(5), 11.0),
            (12, "sdxl", Block::Out(6), 0.0),
            (20, "sdxl", Block::In(0), 1.0),
            (20, "sdxl", Block::Out(8), 19.0),
        ] {
            assert_eq!(
                value(count, model, block),
                Ok(expected),
                "{count} {model} {block}"
            );
        }
        let wrong = |count, model| value(count, model, Block::Mid).unwrap_err();
        assert!(wrong(12, "sd15").contains("takes 17 or 26"));
        assert!(wrong(17, "sdxl").contains("takes 12 or 20"));
        assert!(wrong(26, "sdxl").contains("26 block weights"));
    }

    #[test]
    fn presets_have_their_published_values() {
        let names = |name: &str| {
            let weights = LoraBlockWeights::parse(name, None).unwrap();
            let resolved = weights.resolve(blocks("sd15")).unwrap();
            let on = resolved.values.iter().filter(|(_, value)| **value == 1.0);
            on.map(|(block, _)| block.to_string())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(names("INS"), "BASE IN01 IN02 IN04");
        assert_eq!(names("IND"), "BASE IN05 IN07 IN08");
        assert_eq!(
            names("MIDD"),
            "BASE IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06"
        );
        assert_eq!(names("OUTD"), "BASE OUT03 OUT04 OUT05 OUT06");
        assert_eq!(names("OUTS"), "BASE OUT07 OUT08 OUT09 OUT10 OUT11");
        assert_eq!(names("NONE"), "");
        assert!(
            LoraBlockWeights::parse("INS", None)
                .unwrap()
                .resolve(blocks("sdxl"))
                .is_err()
        );
    }

    #[test]
    fn texts_are_lists_presets_or_pairs() {
        let parse = |text| LoraBlockWeights::parse(text, Some(0.25));
        assert_eq!(
            parse("1, X\n0"),
            Ok(LoraBlockWeights::List(vec![1.0, 0.25, 0.0]))
        );
        assert!(
            LoraBlockWeights::parse("1,X", None)
                .unwrap_err()
                .contains("x=NUMBER")
        );
        assert!(parse("1,R").unwrap_err().contains("random"));
        assert!(parse("INS2").unwrap_err().contains("one of NONE"));
        let table = parse("out03=0.5, BASE=0")
            .unwrap()
            .resolve(blocks("sd15"))
            .unwrap();
        let unet = Component::UNet;
        assert_eq!(table.value(unet, "up_blocks.1.resnets.0.conv1"), 0.5);
        assert_eq!(table.value(unet, "up_blocks.1.resnets.1.conv1"), 1.0);
        assert_eq!(table.value(Component::TextEncoder, "text_model.x"), 0.0);
        assert!(
            parse("OUT99=1")
                .unwrap()
                .resolve(blocks("sd15"))
                .unwrap_err()
                .contains("OUT99")
        );
    }

    #[test]
    fn time_and_output_belong_to_no_block() {
        let none = LoraBlockWeights::Preset("NONE")
            .resolve(blocks("sd15"))
            .unwrap();
        let value = |path| none.value(Component::UNet, path);
        assert_eq!(value("time_embedding.linear_1"), 1.0);
        assert_eq!(value("conv_norm_out"), 1.0);
        assert_eq!((value("conv_out"), value("conv_in")), (1.0, 0.0));
    }
}
