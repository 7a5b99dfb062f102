//! One LoRA of several: factors side by side, which is exact (`up = [w1 s1 up1 | w2 s2 up2 ..]`, `down` one below the other), or
//! the best factors of a lower rank (Eckart and Young 1936).
//!
//! sd-scripts' merge adds factors instead, which adds products of one LoRA's `up` with another's `down`; that is not here.

use std::collections::BTreeMap;
use std::path::Path;

use faer::Mat;
use rayon::prelude::*;
use sd_models::family::ModelFamily;
use sd_models::keys::blocks::Blocks;
use sd_models::keys::kohya;
use sd_models::keys::layout::Layout;

use super::bundled::PREFIX;
use super::factors::{self, Factors, Norm};
use super::fit::groups;
use super::group::{Group, Parts};
use super::made_for::{Known, MadeFor, known};
use super::names::Place;
use super::{Change, Delta, LoraError, LoraSpec, Target, load, product};
use crate::ConvertError;
use crate::checkpoint::{Dtype, TensorSource};
use crate::extract::version;
use crate::output::StagedFile;
use crate::progress::Progress;
use crate::svd::{Svd, svd};

/// A LoRA file that takes part.
struct Part {
    source: Box<dyn TensorSource>,
    spec: LoraSpec,
    groups: Vec<Group>,
}

/// What several LoRAs are together.
#[derive(Debug)]
pub struct Merged {
    modules: Vec<Factors>,
    norms: Vec<Norm>,
    family: ModelFamily,
    single: bool,
    /// Smallest and largest rank of those modules that have one.
    pub ranks: Option<(usize, usize)>,
    /// Part of the changes' energy that is kept.
    pub kept: f64,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Merged {
    /// How many modules it has.
    #[must_use]
    pub fn modules(&self) -> usize {
        self.modules.len() + self.norms.len()
    }

    /// Writes the LoRA under kohya's names, in single precision if one of the files is.
    ///
    /// # Errors
    /// The file cannot be written, or the user interrupts.
    pub fn write(&self, file: StagedFile, progress: &dyn Progress) -> Result<(), ConvertError> {
        let version = version(self.family, false);
        factors::write(
            &self.modules,
            &self.norms,
            version,
            self.single,
            file,
            progress,
        )
    }
}

/// Puts LoRAs together; with `rank`, every module gets at most that rank.
///
/// # Errors
/// A file cannot be read, is for another family than those before it, or has modules that factors cannot hold.
pub fn merge(specs: &[LoraSpec], rank: Option<usize>) -> Result<Merged, ConvertError> {
    let (mut parts, mut notes, mut single) = (Vec::new(), Vec::new(), false);
    let mut families = MadeFor::default();
    for spec in specs {
        let failed = failed(&spec.path);
        let source = super::open(&spec.path)?;
        let (groups, told) = groups(&*source, spec.rank).map_err(&failed)?;
        let file = spec.path.display();
        notes.extend(told.into_iter().map(|note| format!("{file}: {note}")));
        if source.tensors().keys().any(|key| key.starts_with(PREFIX)) {
            notes.push(format!("{file}: the textual inversions in it are left out"));
        }
        let made_for = MadeFor::of(&groups, &*source);
        families = families.and(&made_for).ok_or_else(|| {
            failed(LoraError::OtherFamily {
                family: made_for.told().unwrap_or_default(),
                others: families.told().unwrap_or_default(),
            })
        })?;
        single |= source
            .tensors()
            .values()
            .any(|info| info.dtype == Dtype::F32);
        parts.push(Part {
            source,
            spec: spec.clone(),
            groups,
        });
    }
    let known = common(&parts, &families);
    let mut places: BTreeMap<&Place, Vec<(&Part, &Group)>> = BTreeMap::new();
    for part in &parts {
        for group in &part.groups {
            let place = known.names.place(&group.module);
            let place = place.ok_or_else(|| {
                let unknown = LoraError::Module {
                    module: group.module.clone(),
                    problem: "no published model has such a layer",
                };
                failed(&part.spec.path)(unknown)
            })?;
            places.entry(place).or_default().push((part, group));
        }
    }
    let layout = Layout::single_file(known.family, &known.unet, 4, false);
    let merged = places.into_par_iter().map(|(place, groups)| {
        let Place::Layer(component, path) = place else {
            let (part, group) = groups[0];
            let problem = "only layers of their own can be merged";
            let error = LoraError::Module {
                module: group.module.clone(),
                problem,
            };
            return Err(failed(&part.spec.path)(error));
        };
        let name = kohya::module(known.family, &layout, *component, &format!("{path}.weight"));
        let name = name.expect("adapters are for UNets and text encoders");
        let of_norm = known.shapes[&(*component, format!("{path}.weight"))].len() == 1;
        Ok(match of_norm {
            true => Module::Norm(merge_norm(name, place, &groups, known)?),
            false => Module::Factors(merge_module(name, place, &groups, known, rank)?),
        })
    });
    let merged: Vec<Module> = merged.collect::<Result<_, _>>()?;
    let (mut modules, mut norms, mut all, mut kept) = (Vec::new(), Vec::new(), 0.0, 0.0);
    for module in merged {
        match module {
            Module::Norm(norm) => norms.extend(norm),
            Module::Factors((factors, energies)) => {
                modules.extend(factors);
                all += energies[0];
                kept += energies[1];
            }
        }
    }
    let ranks = modules.iter().map(|module: &Factors| module.rank);
    let ranks = ranks.clone().min().zip(ranks.max());
    if modules.is_empty() && norms.is_empty() {
        let nothing = LoraError::NoEffect("nothing is left of the files at these strengths");
        return Err(failed(&specs[0].path)(nothing));
    }
    Ok(Merged {
        modules,
        norms,
        family: known.family,
        single,
        ranks,
        kept: if all > 0.0 { kept / all } else { 1.0 },
        notes,
    })
}

fn failed(path: &Path) -> impl Fn(LoraError) -> ConvertError + use<> {
    let path = path.to_owned();
    move |source| ConvertError::Lora {
        path: path.clone(),
        source,
    }
}

/// Of the published models that the files may be made for, the one that has most of their modules' names.
fn common(parts: &[Part], families: &MadeFor) -> &'static Known {
    let candidates = known().iter().filter(|known| families.may_be(known.family));
    let named = |known: &&Known| {
        let groups = parts.iter().flat_map(|part| &part.groups);
        groups
            .filter(|group| known.names.place(&group.module).is_some())
            .count()
    };
    // Of several the first: SD 1 before SD 2, which have the same names.
    let by_names = candidates.rev().max_by_key(named);
    // Metadata may name a family that is none of these.
    by_names.unwrap_or(&known()[0])
}

/// The modules of one layer as one; none if they cancel out.
enum Module {
    /// With the energy of their change, and what is kept of it.
    Factors((Option<Factors>, [f64; 2])),
    /// Exact, since it has as many numbers as the norm.
    Norm(Option<Norm>),
}

/// The differences of one norm's parameters as one.
fn merge_norm(
    name: String,
    place: &Place,
    groups: &[(&Part, &Group)],
    known: &Known,
) -> Result<Option<Norm>, ConvertError> {
    let mut sums = [("w_norm", Vec::new()), ("b_norm", Vec::new())];
    let mut shape = Vec::new();
    for (part, group) in groups {
        let failed = failed(&part.spec.path);
        let parts = Parts {
            group,
            source: &*part.source,
        };
        let told = ["w_norm", "b_norm", "diff", "diff_b"];
        let told = told.into_iter().find_map(|role| parts.shape(role));
        let wanted = told.map_or_else(|| shape_of(&parts, place, known), |s| vec![product(s)]);
        let target = Target {
            shape: if shape.is_empty() { &wanted } else { &shape },
            has_bias: true,
        };
        let loaded = load(&parts, &target).map_err(&failed)?;
        shape = wanted;
        let strength = strength(&part.spec, place, known).map_err(&failed)?;
        for ((_, sum), change) in sums.iter_mut().zip([loaded.weight, loaded.bias]) {
            match change {
                Some(Change::Added(delta)) if strength != 0.0 && !delta.is_zero() => {
                    sum.resize(shape[0], 0.0);
                    delta.add(0, strength, sum);
                }
                Some(Change::Computed(_)) => {
                    return Err(failed(LoraError::DependsOnModel {
                        module: parts.group.module.clone(),
                    }));
                }
                _ => {}
            }
        }
    }
    let parts: Vec<_> = sums
        .into_iter()
        .filter(|(_, sum)| !sum.is_empty())
        .collect();
    Ok((!parts.is_empty()).then_some(Norm { name, parts }))
}

/// The products on one layer as one, with the energy of their change and what is kept of it.
fn merge_module(
    name: String,
    place: &Place,
    groups: &[(&Part, &Group)],
    known: &Known,
    rank: Option<usize>,
) -> Result<(Option<Factors>, [f64; 2]), ConvertError> {
    let mut deltas: Vec<(f64, Box<dyn Delta + '_>)> = Vec::new();
    let mut shape = Vec::new();
    for (part, group) in groups {
        let failed = failed(&part.spec.path);
        let parts = Parts {
            group,
            source: &*part.source,
        };
        let wanted = shape_of(&parts, place, known);
        if !shape.is_empty() && shape != wanted {
            return Err(failed(parts.misfit(&Target {
                shape: &shape,
                has_bias: false,
            })));
        }
        shape = wanted;
        let target = Target {
            shape: &shape,
            has_bias: true,
        };
        let loaded = load(&parts, &target).map_err(&failed)?;
        if loaded.bias.is_some_and(|bias| !bias.is_nothing()) {
            return Err(failed(
                parts.problem("it changes a bias, which factors cannot hold"),
            ));
        }
        let strength = strength(&part.spec, place, known).map_err(&failed)?;
        match loaded.weight {
            Some(Change::Added(delta)) if strength != 0.0 && !delta.is_zero() => {
                if delta.low_rank().is_none() && rank.is_none() {
                    return Err(failed(LoraError::NoFactors {
                        module: parts.group.module.clone(),
                    }));
                }
                deltas.push((strength, delta));
            }
            Some(Change::Computed(_)) => {
                return Err(failed(LoraError::DependsOnModel {
                    module: parts.group.module.clone(),
                }));
            }
            _ => {}
        }
    }
    if deltas.is_empty() {
        return Ok((None, [0.0; 2]));
    }
    let columns = product(&shape[1..]);
    let factors = side_by_side(&deltas, shape[0], columns);
    let (up, down, energies) = match (factors, rank) {
        (Some((up, down)), None) => (up, down, [0.0; 2]),
        (Some((up, down)), Some(rank)) if up.ncols() <= rank => {
            let energy = energy(&up, &down);
            (up, down, [energy; 2])
        }
        (factors, rank) => {
            let rank = rank.expect("what is no product was refused without a rank");
            let svd = match factors {
                Some((up, down)) => svd_of_product(&up, &down),
                None => svd(dense(&deltas, shape[0], columns).as_ref(), None),
            };
            let svd = svd.ok_or_else(|| {
                let (part, group) = groups[0];
                let parts = Parts {
                    group,
                    source: &*part.source,
                };
                failed(&part.spec.path)(parts.problem("its change is not finite"))
            })?;
            truncated(&svd, rank)
        }
    };
    let single = |matrix: Mat<f64>| {
        let columns = matrix.ncols();
        let at = |n: usize| matrix[(n / columns, n % columns)] as f32;
        (0..matrix.nrows() * columns).map(at).collect()
    };
    let rank = up.ncols();
    let module = Factors {
        name,
        rank,
        up: single(up),
        down: single(down),
        shape,
    };
    Ok((Some(module), energies))
}

/// Shape of the weight that a module is for: the published one, or that of its factors in narrower models.
fn shape_of(parts: &Parts<'_>, place: &Place, known: &Known) -> Vec<usize> {
    let Place::Layer(component, path) = place else {
        return Vec::new();
    };
    let published = known.shapes[&(*component, format!("{path}.weight"))].clone();
    let (Some(up), Some(down)) = (parts.shape("up"), parts.shape("down")) else {
        return published;
    };
    let kernel = product(&published[2..]);
    let inputs = match parts.has("mid") {
        true => product(&down[1..]),
        false => product(&down[1..]) / kernel,
    };
    [&[up[0], inputs], &published[2..]].concat()
}

fn strength(spec: &LoraSpec, place: &Place, known: &Known) -> Result<f64, LoraError> {
    let Place::Layer(component, path) = place else {
        return Ok(0.0);
    };
    let of_block = match &spec.block_weights {
        None => 1.0,
        Some(weights) => {
            let resolved = weights.resolve(Blocks::of(&known.unet));
            let resolved = resolved.map_err(LoraError::BlockWeights)?;
            resolved.value(*component, path)
        }
    };
    Ok(spec.strength(*component) * of_block)
}

/// The factors of all, if all have factors.
fn side_by_side(
    deltas: &[(f64, Box<dyn Delta + '_>)],
    rows: usize,
    columns: usize,
) -> Option<(Mat<f64>, Mat<f64>)> {
    let factors = deltas.iter().map(|(strength, delta)| {
        let low_rank = delta.low_rank()?;
        Some((strength * low_rank.scale, low_rank.matrices()))
    });
    let factors: Vec<_> = factors.collect::<Option<_>>()?;
    let rank = factors.iter().map(|(_, (up, _))| up.columns).sum();
    let (mut up, mut down) = (Mat::zeros(rows, rank), Mat::zeros(rank, columns));
    let mut first = 0;
    for (scale, (left, right)) in factors {
        for (n, x) in left.values.iter().enumerate() {
            up[(n / left.columns, first + n % left.columns)] = scale * f64::from(*x);
        }
        for (n, x) in right.values.iter().enumerate() {
            down[(first + n / columns, n % columns)] = f64::from(*x);
        }
        first += left.columns;
    }
    Some((up, down))
}

/// The sum of changes.
fn dense(deltas: &[(f64, Box<dyn Delta + '_>)], rows: usize, columns: usize) -> Mat<f64> {
    let mut sum = vec![0.0; rows * columns];
    for (strength, delta) in deltas {
        delta.add(0, *strength, &mut sum);
    }
    Mat::from_fn(rows, columns, |i, j| f64::from(sum[i * columns + j]))
}

/// Of a product, by the factors' QR decompositions: the rest is as small as the rank.
fn svd_of_product(up: &Mat<f64>, down: &Mat<f64>) -> Option<Svd> {
    let (up, right) = (up.qr(), down.transpose().qr());
    let small = svd((up.thin_R() * right.thin_R().transpose()).as_ref(), None)?;
    Some(Svd {
        u: up.compute_thin_Q() * small.u,
        s: small.s,
        v: right.compute_thin_Q() * small.v,
    })
}

/// Sum of squares of a product.
fn energy(up: &Mat<f64>, down: &Mat<f64>) -> f64 {
    let (up, down) = (up.transpose() * up, down * down.transpose());
    let place = |n: usize| (n / up.ncols(), n % up.ncols());
    (0..up.nrows() * up.ncols())
        .map(|n| up[place(n)] * down[place(n)])
        .sum()
}

/// The first singular values, in `up`, with all and kept energy.
fn truncated(svd: &Svd, rank: usize) -> (Mat<f64>, Mat<f64>, [f64; 2]) {
    let energy = |values: &[f64]| values.iter().map(|s| s * s).sum::<f64>();
    let rank = rank.min(svd.s.len());
    let up = Mat::from_fn(svd.u.nrows(), rank, |i, j| svd.u[(i, j)] * svd.s[j]);
    let down = svd.v.transpose().subrows(0, rank).to_owned();
    (up, down, [energy(&svd.s), energy(&svd.s[..rank])])
}
