//! LoRA from the difference of two models: the best low-rank approximation of every layer's difference (Eckart and Young
//! 1936), under the names that kohya's sd-scripts write.

use std::fmt;

use faer::Mat;
use sd_models::family::ModelFamily;
use sd_models::keys::Component;
use sd_models::keys::kohya::{self, Target};
use sd_models::keys::layout::Layout;

use crate::ConvertError;
use crate::lora::factors::{self, Factors};
use crate::model::{Model, Name};
use crate::output::StagedFile;
use crate::progress::Progress;
use crate::svd::svd;

/// How many singular values are kept of each layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rank {
    /// This many, at most the full rank.
    Fixed(usize),
    /// As few as keep this part of the difference's energy (the sum of squares), 0..1.
    Energy(f64),
    /// Those above this value.
    Threshold(f64),
}

/// What to extract.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rank of matrices and 1x1 convolutions of attention layers.
    pub rank: Rank,
    /// The text encoders count as trained if some value of their weights differs by more than this.
    pub min_difference: f32,
    /// Rank of residual blocks' and resampling layers, if they are wanted (LoCon).
    pub conv_rank: Option<usize>,
    /// Values are clamped to this quantile of themselves: lossy, and off if not given.
    pub clamp_quantile: Option<f64>,
}

/// What an extraction found.
#[derive(Debug, Default)]
pub struct Report {
    /// Layers in the LoRA.
    pub modules: usize,
    /// Layers whose difference is zero.
    pub unchanged: usize,
    /// Smallest and largest rank.
    pub ranks: (usize, usize),
    /// Part of the layers' energy that lower ranks would keep, by rank.
    pub curve: Vec<(usize, f64)>,
    /// Part of the layers' energy that the LoRA keeps.
    pub kept: f64,
    /// Part of the models' whole difference that is in no layer of the LoRA: norms, biases, layers not asked for.
    pub left_out: f64,
    /// The text encoders' largest difference, if they are left out since it is small.
    pub text_left_out: Option<f32>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (least, most) = self.ranks;
        writeln!(
            f,
            "{} layers of rank {least} to {most}, {} unchanged",
            self.modules, self.unchanged
        )?;
        let points = self.curve.iter();
        let points = points.map(|(rank, part)| format!("{rank}: {:.1} %", 100.0 * part));
        writeln!(
            f,
            "energy kept by rank: {}",
            points.collect::<Vec<_>>().join(", ")
        )?;
        write!(f, "energy kept: {:.1} %", 100.0 * self.kept)?;
        if self.left_out > 0.0 {
            let percent = 100.0 * self.left_out;
            write!(
                f,
                "; {percent:.1} % of the whole difference is in norms, biases and layers that were not asked for"
            )?;
        }
        Ok(())
    }
}

/// A LoRA in memory.
#[derive(Debug)]
pub struct Extracted {
    modules: Vec<Factors>,
    family: ModelFamily,
    velocity: bool,
    /// What was found.
    pub report: Report,
}

/// Ranks at which the curve of kept energy is told.
const CURVE: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// Takes the difference of `tuned` and `base` apart.
///
/// # Errors
/// The models are of different structures, a weight cannot be read or is not finite, or the user interrupts.
pub fn extract(
    base: &dyn Model,
    tuned: &dyn Model,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Extracted, ConvertError> {
    let family = same_family(base, tuned)?;
    let layout = Layout::single_file(family, &base.unet_config()?, 4, false);
    let largest = text_difference(base, tuned, options.min_difference)?;
    let text = largest > options.min_difference;
    let mut sums = Sums::default();
    let mut modules = Vec::new();
    let mut report = Report {
        text_left_out: (!text && largest > 0.0).then_some(largest),
        ranks: (usize::MAX, 0),
        ..Report::default()
    };
    for (name, entry) in base.entries() {
        if progress.cancelled() {
            return Err(ConvertError::Interrupted);
        }
        let bytes = entry.byte_len() as u64;
        let difference = difference(base, tuned, name)?;
        let energy: f64 = difference.iter().map(|x| f64::from(*x).powi(2)).sum();
        sums.whole += energy;
        let rank = match kohya::target(name.0, &name.1) {
            Some(Target::Linear) if name.0 == Component::UNet || text => Some(options.rank),
            Some(Target::Conv) => options.conv_rank.map(Rank::Fixed),
            _ => None,
        };
        let module = kohya::module(family, &layout, name.0, &name.1);
        if let (Some(rank), Some(module)) = (rank, module) {
            if energy == 0.0 {
                report.unchanged += 1;
            } else {
                let shape = &entry.shape;
                let factors = decompose(module, &difference, shape, rank, energy, &mut sums);
                let mut module = factors.ok_or_else(|| ConvertError::NonFinite {
                    path: tuned.path().to_owned(),
                    name: entry.key.clone(),
                    count: difference.iter().filter(|x| !x.is_finite()).count(),
                })?;
                if let Some(quantile) = options.clamp_quantile {
                    clamp(&mut module, quantile);
                }
                report.ranks.0 = report.ranks.0.min(module.rank);
                report.ranks.1 = report.ranks.1.max(module.rank);
                modules.push(module);
            }
        }
        progress.advance(bytes);
    }
    if modules.is_empty() {
        return Err(ConvertError::NothingToExtract {
            base: base.path().to_owned(),
            tuned: tuned.path().to_owned(),
            text_left_out: report.text_left_out,
        });
    }
    report.modules = modules.len();
    report.kept = sums.kept / sums.layers;
    report.left_out = 1.0 - sums.layers / sums.whole;
    let told = CURVE.iter().zip(sums.curve).filter(|(_, sum)| *sum > 0.0);
    let computed = report.ranks.1;
    let told = told.filter(|(rank, _)| **rank <= computed);
    report.curve = told.map(|(rank, sum)| (*rank, sum / sums.layers)).collect();
    Ok(Extracted {
        modules,
        family,
        velocity: base.hints().velocity.is_some(),
        report,
    })
}

/// Energies: of everything, of the layers in the LoRA, of what is kept of them, and of what lower ranks would keep.
#[derive(Default)]
struct Sums {
    whole: f64,
    layers: f64,
    kept: f64,
    curve: [f64; CURVE.len()],
}

fn decompose(
    name: String,
    difference: &[f32],
    shape: &[usize],
    rank: Rank,
    energy: f64,
    sums: &mut Sums,
) -> Option<Factors> {
    let rows = shape[0];
    let columns = difference.len() / rows;
    let d = Mat::from_fn(rows, columns, |i, j| f64::from(difference[i * columns + j]));
    let wanted = match rank {
        Rank::Fixed(rank) => Some(rank),
        Rank::Energy(_) | Rank::Threshold(_) => None,
    };
    let svd = svd(d.as_ref(), wanted)?;
    let full = rows.min(columns);
    let kept = match rank {
        Rank::Fixed(rank) => rank,
        Rank::Energy(part) => {
            let mut sum = 0.0;
            let enough = svd.s.iter().position(|s| {
                sum += s * s;
                sum >= part * energy
            });
            enough.map_or(full, |i| i + 1)
        }
        Rank::Threshold(least) => svd.s.iter().filter(|s| **s > least).count(),
    };
    let kept = kept.clamp(1, full);
    let energy_of = |rank: usize| svd.s.iter().take(rank).map(|s| s * s).sum::<f64>();
    sums.layers += energy;
    sums.kept += energy_of(kept);
    for (sum, rank) in sums.curve.iter_mut().zip(CURVE) {
        *sum += energy_of(rank);
    }
    let up = (0..rows * kept).map(|n| {
        let (i, j) = (n / kept, n % kept);
        (svd.u[(i, j)] * svd.s[j]) as f32
    });
    let down = (0..kept * columns).map(|n| svd.v[(n % columns, n / columns)] as f32);
    Some(Factors {
        name,
        rank: kept,
        up: up.collect(),
        down: down.collect(),
        shape: shape.to_vec(),
    })
}

/// As sd-scripts: both factors to the quantile of their signed values together.
fn clamp(module: &mut Factors, quantile: f64) {
    let mut values: Vec<f32> = module.up.iter().chain(&module.down).copied().collect();
    let place = quantile * (values.len() - 1) as f64;
    let (low, part) = (place.floor() as usize, place.fract());
    let (_, lower, above) = values.select_nth_unstable_by(low, f32::total_cmp);
    let lower = *lower;
    let upper = above
        .iter()
        .copied()
        .min_by(f32::total_cmp)
        .unwrap_or(lower);
    let limit = (f64::from(lower) + part * (f64::from(upper) - f64::from(lower))) as f32;
    for value in module.up.iter_mut().chain(&mut module.down) {
        *value = value.clamp(-limit.abs(), limit.abs());
    }
}

fn difference(base: &dyn Model, tuned: &dyn Model, name: &Name) -> Result<Vec<f32>, ConvertError> {
    let entry = &base.entries()[name];
    let Some(other) = tuned.entries().get(name) else {
        return Err(ConvertError::ExtractKeyMissing {
            key: entry.key.clone(),
            has: base.path().to_owned(),
            lacks: tuned.path().to_owned(),
        });
    };
    if entry.shape.iter().product::<usize>() != other.shape.iter().product::<usize>() {
        return Err(ConvertError::MergeShape {
            key: entry.key.clone(),
            a: base.path().to_owned(),
            shape_a: entry.shape.clone(),
            b: tuned.path().to_owned(),
            shape_b: other.shape.clone(),
        });
    }
    let mut values = tuned.read_f32(name)?;
    for (value, base) in values.iter_mut().zip(base.read_f32(name)?) {
        *value -= base;
    }
    Ok(values)
}

/// The largest difference of a value in the text encoders' layers, or the first that is more than `enough`.
fn text_difference(base: &dyn Model, tuned: &dyn Model, enough: f32) -> Result<f32, ConvertError> {
    let mut largest = 0f32;
    for name in base.entries().keys() {
        let is_text = matches!(name.0, Component::TextEncoder | Component::TextEncoder2);
        if is_text && kohya::target(name.0, &name.1).is_some() && largest <= enough {
            let difference = difference(base, tuned, name)?;
            largest = difference.iter().fold(largest, |x, y| x.max(y.abs()));
        }
    }
    Ok(largest)
}

fn same_family(base: &dyn Model, tuned: &dyn Model) -> Result<ModelFamily, ConvertError> {
    let (a, b) = (base.unet_config()?, tuned.unet_config()?);
    let (a, b) = (ModelFamily::of(&a), ModelFamily::of(&b));
    if a == b {
        return Ok(a);
    }
    Err(ConvertError::FamilyMismatch {
        a: base.path().to_owned(),
        family_a: a.to_string(),
        b: tuned.path().to_owned(),
        family_b: b.to_string(),
    })
}

impl Extracted {
    /// Writes the LoRA in half precision.
    ///
    /// # Errors
    /// The file cannot be written, or the user interrupts.
    pub fn write(&self, file: StagedFile, progress: &dyn Progress) -> Result<(), ConvertError> {
        let version = version(self.family, self.velocity);
        factors::write(&self.modules, &[], version, false, file, progress)
    }
}

/// What sd-scripts call a base model's version.
pub(crate) fn version(family: ModelFamily, velocity: bool) -> &'static str {
    match (family, velocity) {
        (ModelFamily::Sd15, _) => "sd_v1",
        (ModelFamily::Sd21, true) => "sd_v2_v",
        (ModelFamily::Sd21, false) => "sd_v2",
        _ => "sdxl_base_v1-0",
    }
}
