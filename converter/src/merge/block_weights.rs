//! Values by block: one number, a list, a table, or one of the presets that merge tools share.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use sd_models::keys::Component;
use sd_models::keys::blocks::{Block, Blocks};

/// Values of a list for Stable Diffusion 1 without `BASE`.
const LIST: usize = 2 * Blocks::SD + 1;

/// What a value is for.
#[derive(Clone, Debug, PartialEq)]
pub enum BlockWeights {
    /// The same for every block.
    Uniform(f64),
    /// `IN00` .. `OUT..`, and `BASE` before them if the list is one longer.
    List(Vec<f64>),
    /// By name; blocks that are not named take the value of `BASE`. `TE1`, `TE2` and `VAE` may be named too.
    Table(BTreeMap<String, f64>),
}

/// A value for every weight of a model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Resolved {
    blocks: Blocks,
    values: BTreeMap<Block, f64>,
    components: BTreeMap<Component, f64>,
}

impl Resolved {
    /// The value of a weight.
    pub(super) fn value(&self, component: Component, name: &str) -> f64 {
        let own = self.components.get(&component);
        own.copied()
            .unwrap_or_else(|| self.values[&self.blocks.block(component, name)])
    }
}

/// Values that do not fit a model.
#[derive(Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockWeightsError {
    /// A list of another length.
    #[error(
        "{got} block weights given; this model takes {want} (IN00 .. OUT{last:02}), or one more with BASE first"
    )]
    Count {
        /// How many there are.
        got: usize,
        /// How many there should be.
        want: usize,
        /// Number of the last block.
        last: usize,
    },
    /// A name that the model has no block of.
    #[error("no block is called `{name}`; this model has {known}")]
    Name {
        /// The name.
        name: String,
        /// The names there are.
        known: String,
    },
}

impl BlockWeights {
    /// Reads a preset's name or a list of numbers.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(values) = preset(text.trim()) {
            return Some(Self::List(values));
        }
        let words = text.split([',', ' ', '\t', '\n', '\r']);
        let numbers = words.filter(|word| !word.is_empty()).map(str::parse);
        let numbers: Vec<f64> = numbers.collect::<Result<_, _>>().ok()?;
        match numbers[..] {
            [] => None,
            [one] => Some(Self::Uniform(one)),
            _ => Some(Self::List(numbers)),
        }
    }

    /// Values for a model's blocks; `base` is that of `BASE` where the weights have none.
    pub(super) fn resolve(&self, blocks: Blocks, base: f64) -> Result<Resolved, BlockWeightsError> {
        let mut resolved = Resolved {
            blocks,
            values: BTreeMap::new(),
            components: BTreeMap::new(),
        };
        match self {
            Self::Uniform(value) => {
                resolved.values = blocks.all().map(|block| (block, *value)).collect();
            }
            Self::List(list) => resolved.values = from_list(list, blocks, base)?,
            Self::Table(table) => {
                let base = table.get("BASE").copied().unwrap_or(base);
                let named = |block: Block| table.get(&block.to_string()).copied();
                resolved.values = blocks
                    .all()
                    .map(|block| (block, named(block).unwrap_or(base)))
                    .collect();
                let components = [
                    ("TE1", Component::TextEncoder),
                    ("TE2", Component::TextEncoder2),
                    ("VAE", Component::Vae),
                ];
                for (name, component) in components {
                    if let Some(value) = table.get(name) {
                        resolved.components.insert(component, *value);
                    }
                }
                let known: Vec<String> = blocks.all().map(|block| block.to_string()).collect();
                let is_known = |name: &str| {
                    known.iter().any(|k| k == name) || components.iter().any(|(k, _)| *k == name)
                };
                if let Some(name) = table.keys().find(|name| !is_known(name)) {
                    return Err(BlockWeightsError::Name {
                        name: name.clone(),
                        known: format!("{}, TE1, TE2, VAE", known.join(", ")),
                    });
                }
            }
        }
        Ok(resolved)
    }
}

fn from_list(
    list: &[f64],
    blocks: Blocks,
    base: f64,
) -> Result<BTreeMap<Block, f64>, BlockWeightsError> {
    let count = blocks.count();
    let want = 2 * count + 1;
    let with_base = |list: &[f64]| match list.len() {
        n if n == want => Some([&[base], list].concat()),
        n if n == want + 1 => Some(list.to_vec()),
        _ => None,
    };
    let values = with_base(list).or_else(|| with_base(&shortened(list, count)?));
    let values = values.ok_or(BlockWeightsError::Count {
        got: list.len(),
        want,
        last: count - 1,
    })?;
    Ok(blocks.all().zip(values).collect())
}

/// A list for Stable Diffusion 1 made one for SDXL: the blocks that SDXL has not are dropped.
fn shortened(list: &[f64], count: usize) -> Option<Vec<f64>> {
    const SDXL: usize = 9;
    let (base, list) = match list.len() {
        LIST => (&[][..], list),
        n if n == LIST + 1 => list.split_at(1),
        _ => return None,
    };
    let (down, up) = (&list[..Blocks::SD], &list[Blocks::SD + 1..]);
    let middle = [list[Blocks::SD]];
    (count == SDXL).then(|| [base, &down[..SDXL], &middle, &up[..SDXL]].concat())
}

/// Names of presets, without reversed ones.
pub const PRESETS: [&str; 28] = [
    "GRAD_V",
    "GRAD_A",
    "FLAT_25",
    "FLAT_75",
    "WRAP08",
    "WRAP12",
    "WRAP14",
    "WRAP16",
    "MID12_50",
    "OUT07",
    "OUT12",
    "OUT12_5",
    "RING08_SOFT",
    "RING08_5",
    "RING10_5",
    "RING10_3",
    "SMOOTHSTEP",
    "SMOOTHSTEP*2",
    "SMOOTHSTEP*3",
    "SMOOTHSTEP*4",
    "SMOOTHSTEP/2",
    "SMOOTHSTEP/3",
    "SMOOTHSTEP/4",
    "COSINE",
    "FAKE_CUBIC_HERMITE",
    "TRUE_CUBIC_HERMITE",
    "ALL_A",
    "ALL_B",
];

/// The 26 values of a preset; reversed ones are 1 minus the values of the blocks. `BASE` is 0 but in `ALL_B`.
fn preset(name: &str) -> Option<Vec<f64>> {
    let reversed = |word: &str| {
        let (before, after) = name.split_once(word)?;
        ["", "TRUE_", "FAKE_"]
            .contains(&before)
            .then(|| format!("{before}{after}"))
    };
    let original = reversed("REVERSE-")
        .or_else(|| reversed("REVERSE_"))
        .or_else(|| name.strip_prefix("R_").map(str::to_owned));
    let plain = original.as_deref().unwrap_or(name);
    let mut values = vec![if plain == "ALL_B" { 1.0 } else { 0.0 }];
    for i in 0..LIST {
        let value = preset_value(plain, i)?;
        values.push(if original.is_some() {
            1.0 - value
        } else {
            value
        });
    }
    Some(values)
}

/// Value of block `i` of 25.
fn preset_value(name: &str, i: usize) -> Option<f64> {
    let x = i as f64 / (LIST - 1) as f64;
    let smoothstep = |x: f64| 3.0 * x * x - 2.0 * x * x * x;
    // Folded at 1: up, down, up, ..
    let triangle = |v: f64| match v.rem_euclid(2.0) {
        v if v <= 1.0 => v,
        v => 2.0 - v,
    };
    let on = |yes: bool| if yes { 1.0 } else { 0.0 };
    let half_at = |full: bool, half: bool| if half { 0.5 } else { on(full) };
    if let Some(k) = name.strip_prefix("SMOOTHSTEP*") {
        return Some(triangle(factor(k)? * smoothstep(x)));
    }
    if let Some(k) = name.strip_prefix("SMOOTHSTEP/") {
        return Some(smoothstep(triangle(factor(k)? * x)));
    }
    Some(match name {
        "GRAD_V" => (1.0 - 2.0 * x).abs(),
        "GRAD_A" => 1.0 - (1.0 - 2.0 * x).abs(),
        "FLAT_25" => 0.25,
        "FLAT_75" => 0.75,
        "WRAP08" => on(i <= 3 || i >= 21),
        "WRAP12" => on(i <= 5 || i >= 19),
        "WRAP14" => on(i <= 6 || i >= 18),
        "WRAP16" => on(i <= 7 || i >= 17),
        "MID12_50" => half_at(false, (5..=18).contains(&i)),
        "OUT07" => on(i >= 18),
        "OUT12" => on(i >= 13),
        "OUT12_5" => half_at(i >= 13, i == 12),
        "RING08_SOFT" => half_at(
            (6..=8).contains(&i) || (16..=18).contains(&i),
            [5, 9, 15, 19].contains(&i),
        ),
        "RING08_5" => on((6..=9).contains(&i) || (15..=18).contains(&i)),
        "RING10_5" => on((5..=9).contains(&i) || (15..=19).contains(&i)),
        "RING10_3" => on((6..=10).contains(&i) || (14..=18).contains(&i)),
        "SMOOTHSTEP" => smoothstep(x),
        "COSINE" => f64::midpoint(1.0, (PI * x).cos()),
        "FAKE_CUBIC_HERMITE" => 25.0 / 6.0 * x - 19.0 / 2.0 * x.powi(2) + 19.0 / 3.0 * x.powi(3),
        "TRUE_CUBIC_HERMITE" => match i {
            0 => 0.0,
            24 => 1.0,
            _ => 1.0 / 24.0 + 25.0 / 6.0 * x - 77.0 / 8.0 * x.powi(2) + 77.0 / 12.0 * x.powi(3),
        },
        "ALL_A" => 0.0,
        "ALL_B" => 1.0,
        _ => return None,
    })
}

fn factor(k: &str) -> Option<f64> {
    ["2", "3", "4"].contains(&k).then(|| k.parse().ok())?
}

#[cfg(test)]
mod tests {
    use sd_models::presets::Preset;

    use super::*;

    fn blocks(name: &str) -> Blocks {
        Blocks::of(&Preset::named(name).unwrap().unet(false))
    }

    #[test]
    fn presets_have_their_published_values() {
        let close = |a: f64, b: f64| (a - b).abs() < 5e-9;
        let at = |name: &str, i: usize| preset(name).unwrap()[1 + i];
        assert!(close(at("SMOOTHSTEP", 1), 0.005_063_657));
        assert!(close(at("SMOOTHSTEP/2", 1), 0.019_675_926));
        assert!(close(at("COSINE", 1), 0.995_722_431));
        assert_eq!(
            (at("GRAD_V", 0), at("GRAD_V", 12), at("GRAD_V", 24)),
            (1.0, 0.0, 1.0)
        );
        assert_eq!((at("ALL_B", 3), preset("ALL_B").unwrap()[0]), (1.0, 1.0));
        assert!(close(at("REVERSE_COSINE", 1), 1.0 - 0.995_722_431));
        assert!(close(at("R_SMOOTHSTEP*2", 1), 1.0 - 2.0 * 0.005_063_657));
        let true_reverse = at("TRUE_REVERSE_CUBIC_HERMITE", 7);
        assert!(close(true_reverse, 1.0 - at("TRUE_CUBIC_HERMITE", 7)));
        assert_eq!(preset("NONE_SUCH"), None);
        for name in PRESETS {
            assert_eq!(preset(name).unwrap().len(), 26, "{name}");
        }
    }

    #[test]
    fn lists_take_their_length_from_the_model() {
        let list = |n: usize| BlockWeights::List((0..n).map(|i| i as f64).collect());
        let value = |weights: &BlockWeights, model: &str, block: Block| {
            weights
                .resolve(blocks(model), -1.0)
                .map(|r| r.values[&block])
        };
        assert_eq!(value(&list(25), "sd15", Block::In(0)), Ok(0.0));
        assert_eq!(value(&list(25), "sd15", Block::Base), Ok(-1.0));
        assert_eq!(value(&list(26), "sd15", Block::Base), Ok(0.0));
        assert_eq!(value(&list(26), "sd15", Block::Out(11)), Ok(25.0));
        assert_eq!(value(&list(20), "sdxl", Block::Mid), Ok(10.0));
        assert_eq!(value(&list(19), "sdxl", Block::Out(8)), Ok(18.0));
        // A list for SD 1: IN09 to IN11 and OUT09 to OUT11 go.
        assert_eq!(value(&list(25), "sdxl", Block::Mid), Ok(12.0));
        assert_eq!(value(&list(25), "sdxl", Block::Out(8)), Ok(21.0));
        assert_eq!(value(&list(26), "sdxl", Block::Out(0)), Ok(14.0));
        let wrong = BlockWeightsError::Count {
            got: 24,
            want: 25,
            last: 11,
        };
        assert_eq!(value(&list(24), "sd15", Block::Mid), Err(wrong));
    }

    #[test]
    fn tables_name_blocks_and_components() {
        let table = |entries: &[(&str, f64)]| {
            let entries = entries.iter().map(|(name, v)| ((*name).to_owned(), *v));
            BlockWeights::Table(entries.collect())
        };
        let weights = table(&[("BASE", 0.25), ("IN03", 1.0), ("TE2", 0.75)]);
        let resolved = weights.resolve(blocks("sdxl"), 0.0).unwrap();
        let unet = Component::UNet;
        assert_eq!(
            resolved.value(unet, "down_blocks.0.downsamplers.0.conv.bias"),
            1.0
        );
        assert_eq!(resolved.value(unet, "conv_in.weight"), 0.25);
        assert_eq!(resolved.value(Component::TextEncoder2, "x.weight"), 0.75);
        assert_eq!(resolved.value(Component::TextEncoder, "x.weight"), 0.25);
        let error = table(&[("IN11", 1.0)]).resolve(blocks("sdxl"), 0.0);
        assert!(matches!(error, Err(BlockWeightsError::Name { .. })));
    }

    #[test]
    fn texts_are_numbers_lists_or_presets() {
        assert_eq!(BlockWeights::parse("0.5"), Some(BlockWeights::Uniform(0.5)));
        let list = BlockWeights::List(vec![0.0, 0.5, 1.0]);
        assert_eq!(BlockWeights::parse(" 0,0.5\n1 "), Some(list));
        assert!(
            matches!(BlockWeights::parse("GRAD_V"), Some(BlockWeights::List(l)) if l.len() == 26)
        );
        assert_eq!(BlockWeights::parse("GRAD_X"), None);
        assert_eq!(BlockWeights::parse(""), None);
    }
}
