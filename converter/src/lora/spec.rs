//! What a user says of a LoRA: which file, how strongly, where.

use std::path::PathBuf;

use sd_models::keys::Component;

use super::block_weights::LoraBlockWeights;

/// An adapter file and how strongly it is applied.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSpec {
    /// The file.
    pub path: PathBuf,
    /// Strength in the UNet.
    pub unet: f64,
    /// Strength in the text encoders.
    pub text_encoders: f64,
    /// Factors of the strength by block.
    pub block_weights: Option<LoraBlockWeights>,
    /// How many components of the rank are used, from the first: `DyLoRA`.
    pub rank: Option<usize>,
}

impl LoraSpec {
    /// A file with one strength.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, strength: f64) -> Self {
        Self {
            path: path.into(),
            unet: strength,
            text_encoders: strength,
            block_weights: None,
            rank: None,
        }
    }

    /// Reads `FILE`, `FILE:SCALE` or `FILE:unet=U,te=T,lbw=BLOCKS,dyn=RANK`, with colons in place of commas, too. As in A1111,
    /// numbers without names are `te`, `unet` and `dyn`; `te` is 1 and `unet` that of `te` where they are not given.
    ///
    /// # Errors
    /// A strength that is no number, or an option that cannot be baked in.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (path, options) = split(text);
        if options.is_empty() {
            return Ok(Self::new(text, 1.0));
        }
        let (mut unet, mut te, mut rank) = (None, None, None);
        let (mut blocks, mut x) = (Vec::new(), None);
        let mut positional = Vec::new();
        let parts = options
            .iter()
            .flat_map(|option| option.split(',').enumerate());
        for (i, part) in parts {
            match part.split_once('=') {
                Some(("unet", value)) => unet = Some(number(value)?),
                Some(("te", value)) => te = Some(number(value)?),
                Some(("lbw", value)) => blocks.push(value),
                Some(("x", value)) => x = Some(number(value)?),
                Some(("dyn", value)) => rank = Some(count(value)?),
                Some((name @ ("start" | "stop" | "step" | "lbwe"), _)) => {
                    return Err(format!(
                        "`{name}` depends on the step, which cannot be baked in"
                    ));
                }
                None if i == 0 => positional.push(part),
                // Lists have commas, too.
                _ if !blocks.is_empty() => blocks.push(part),
                _ => {
                    return Err(format!(
                        "`{part}`: unet=NUMBER, te=NUMBER, lbw=BLOCKS or dyn=RANK expected"
                    ));
                }
            }
        }
        let mut positional = positional.into_iter();
        let both = positional.next().map(number).transpose()?;
        let second = positional.next().map(number).transpose()?;
        let third = positional.next().map(count).transpose()?;
        if let Some(fourth) = positional.next() {
            return Err(format!("`{fourth}`: at most FILE:TE:UNET:DYN expected"));
        }
        let text_encoders = te.or(both).unwrap_or(1.0);
        let block_weights = match blocks.is_empty() {
            true => None,
            false => Some(LoraBlockWeights::parse(&blocks.join(","), x)?),
        };
        Ok(Self {
            path: PathBuf::from(path),
            unet: unet.or(second).or(both).unwrap_or(text_encoders),
            text_encoders,
            block_weights,
            rank: rank.or(third),
        })
    }

    /// The strength in a component.
    pub(super) fn strength(&self, component: Component) -> f64 {
        match component {
            Component::UNet => self.unet,
            _ => self.text_encoders,
        }
    }

    /// Whether it is turned off.
    pub(super) fn is_off(&self) -> bool {
        self.unet == 0.0 && self.text_encoders == 0.0
    }
}

/// A file's name, and the options behind its colons.
fn split(text: &str) -> (&str, Vec<&str>) {
    let (mut path, mut options) = (text, Vec::new());
    while let Some((before, option)) = path.rsplit_once(':') {
        // Otherwise the colon is part of the file's name.
        if before.is_empty() || !is_options(option) {
            break;
        }
        options.insert(0, option);
        path = before;
    }
    (path, options)
}

/// Whether the text behind a colon is about strengths, rather than a part of a file's name.
fn is_options(text: &str) -> bool {
    let first = text.split(',').next().unwrap_or_default();
    first.contains('=') || first.trim().parse::<f64>().is_ok()
}

fn number(word: &str) -> Result<f64, String> {
    match word.trim().parse::<f64>() {
        Ok(x) if x.is_finite() => Ok(x),
        _ => Err(format!("strength `{word}` is no number")),
    }
}

fn count(word: &str) -> Result<usize, String> {
    let count = word.trim().parse().ok().filter(|rank| *rank > 0);
    count.ok_or_else(|| format!("dyn={word}: a rank expected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strengths(text: &str) -> (String, f64, f64) {
        let spec = LoraSpec::parse(text).unwrap();
        (
            spec.path.display().to_string(),
            spec.unet,
            spec.text_encoders,
        )
    }

    #[test]
    fn strengths_are_read_off_the_end() {
        for (text, path, unet, te) in [
            ("a.safetensors", "a.safetensors", 1.0, 1.0),
            ("a:0.8", "a", 0.8, 0.8),
            ("a:-1", "a", -1.0, -1.0),
            ("a:unet=0.6,te=0.3", "a", 0.6, 0.3),
            ("a:te=0.5", "a", 0.5, 0.5),
            ("a:unet=0.5", "a", 0.5, 1.0),
            ("a:0.7,te=0", "a", 0.7, 0.0),
            ("c:/loras/a.pt", "c:/loras/a.pt", 1.0, 1.0),
            ("c:/loras/a.pt:0.5", "c:/loras/a.pt", 0.5, 0.5),
        ] {
            assert_eq!(strengths(text), (path.to_owned(), unet, te), "{text}");
        }
    }

    #[test]
    fn options_behind_colons_are_those_of_a1111s_tags() {
        for (text, unet, te) in [
            ("a:1:0.5", 0.5, 1.0),
            ("a:0.5:lbw=OUTALL", 0.5, 0.5),
            ("a:lbw=MIDD:0.5", 0.5, 0.5),
            ("a:te=0.5:unet=0.25", 0.25, 0.5),
            ("a:0.5:1,te=0", 1.0, 0.0),
        ] {
            assert_eq!(strengths(text), ("a".to_owned(), unet, te), "{text}");
        }
        let spec = LoraSpec::parse("c:/a.pt:0.8:1:4:lbw=1,0,0.5").unwrap();
        assert_eq!((spec.path, spec.rank), ("c:/a.pt".into(), Some(4)));
        let list = LoraBlockWeights::List(vec![1.0, 0.0, 0.5]);
        assert_eq!(spec.block_weights, Some(list));
    }

    #[test]
    fn lists_of_block_weights_have_commas_too() {
        let spec = LoraSpec::parse("a:0.8,lbw=1,0,0.5,X,dyn=4,x=0.25").unwrap();
        let list = LoraBlockWeights::List(vec![1.0, 0.0, 0.5, 0.25]);
        assert_eq!(
            (spec.unet, spec.block_weights, spec.rank),
            (0.8, Some(list), Some(4))
        );
        let preset = LoraSpec::parse("a:unet=1,te=0.5,lbw=MIDD").unwrap();
        assert_eq!(preset.block_weights, Some(LoraBlockWeights::Preset("MIDD")));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, said) in [
            ("a:unet=x", "no number"),
            ("a:0.5,foo", "`foo`"),
            ("a:0.5,start=3", "cannot be baked"),
            ("a:1,dyn=0", "dyn=0"),
            ("a:1:1:1:1", "at most"),
            ("a:1:stop=5", "cannot be baked"),
            ("a:1,lbw=FOO", "FOO"),
            ("a:inf", "no number"),
        ] {
            let error = LoraSpec::parse(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
