//! How far a variant's numbers are from a reference's, and what made its picture another one.

use anyhow::{Context, ensure};
use ndarray::{Array3, Array4, ArrayView, Axis, Dimension};
use sd_runtime::pipeline::Picture;
use sd_runtime::pipeline::image_io::psnr;
use serde::{Deserialize, Serialize};

use super::phash::phash;
use super::recording::{Followed, Recording, Told};
use super::report::{Cause, Loop, Pair, Pictures, Rounding, Share, Side, UnetCall, Verdict};
use crate::quality::Difference;

/// PSNR in dB and SSIM from which on nobody sees a difference: 40 dB are 2.5 levels of 255 in the mean.
pub(crate) const VISUALLY_EQUAL: [f64; 2] = [40.0, 0.99];

/// How far numbers are from others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Distance {
    /// Whether every bit is the same.
    pub(crate) equal: bool,
    pub(crate) max_abs: f64,
    /// Norm of the difference by the reference's; none if that is 0.
    pub(crate) relative_l2: Option<f64>,
    /// Cosine of the angle between them; none if one of them is 0.
    pub(crate) cosine: Option<f64>,
}

impl Distance {
    /// Compares a variant with a reference.
    fn of<'a>(pairs: impl Iterator<Item = (&'a f32, &'a f32)>) -> Self {
        let (mut equal, mut max_abs) = (true, 0.0f64);
        let (mut aa, mut bb, mut ab, mut dd) = (0.0, 0.0, 0.0, 0.0);
        for (a, b) in pairs {
            equal &= a.to_bits() == b.to_bits();
            let (a, b) = (f64::from(*a), f64::from(*b));
            max_abs = max_abs.max((a - b).abs());
            aa += a * a;
            bb += b * b;
            ab += a * b;
            dd += (a - b) * (a - b);
        }
        Self {
            equal,
            max_abs,
            relative_l2: (bb > 0.0).then(|| (dd / bb).sqrt()),
            cosine: (aa > 0.0 && bb > 0.0).then(|| ab / (aa * bb).sqrt()),
        }
    }

    fn arrays<D: Dimension>(
        variant: &ArrayView<'_, f32, D>,
        reference: &ArrayView<'_, f32, D>,
    ) -> Self {
        Self::of(variant.iter().zip(reference))
    }

    fn told(variant: &[Told], reference: &[Told]) -> Self {
        fn numbers(told: &[Told]) -> impl Iterator<Item = &f32> {
            told.iter()
                .flat_map(|told| told.context.iter().chain(told.pooled.iter().flatten()))
        }
        Self::of(numbers(variant).zip(numbers(reference)))
    }
}

impl Loop {
    /// Compares along the first dimension, as far as both go.
    fn of(variant: &Array4<f32>, reference: &Array4<f32>, threshold: f64) -> Self {
        let pairs = variant.axis_iter(Axis(0)).zip(reference.axis_iter(Axis(0)));
        let distances: Vec<_> = pairs.map(|(a, b)| Distance::arrays(&a, &b)).collect();
        let past = |distance: &Distance| distance.relative_l2.is_some_and(|x| x > threshold);
        Self {
            first_past: distances.iter().position(past),
            distances,
        }
    }
}

impl Pair {
    /// Compares a variant that followed a reference with it.
    pub(crate) fn of(
        variant: &Recording,
        reference: &Recording,
        threshold: f64,
    ) -> anyhow::Result<Self> {
        let followed = variant.followed.as_ref();
        let followed =
            followed.context("a variant's recording lacks what it made of the reference")?;
        check_shapes(variant, followed, reference)?;
        let picture = Pictures::of(variant, reference);
        let shares = shares(variant, followed, reference);
        let largest = |but: Option<Cause>| {
            let changes = shares.iter().filter(|share| share.mean_square > 0.0);
            let others = changes.filter(|share| Some(share.cause) != but);
            let most = others.max_by(|a, b| a.mean_square.total_cmp(&b.mean_square));
            most.map(|share| share.cause)
        };
        Ok(Self {
            variant: Side::of(&variant.about, Some(&reference.about)),
            verdict: picture.verdict(),
            cause: largest(None),
            origin: largest(Some(Cause::Rounding)),
            shares,
            picture,
            noise: Distance::arrays(&variant.noise.view(), &reference.noise.view()),
            text: Distance::told(&variant.told, &reference.told),
            unet: UnetCall {
                call: reference.probe(),
                distance: Distance::arrays(&followed.unet.view(), &reference.unet.view()),
            },
            open_loop: Loop::of(&followed.denoised, &reference.denoised, threshold),
            closed_loop: Loop::of(&followed.states, &reference.states, threshold),
            whole_run: Loop::of(&variant.states, &reference.states, threshold),
            vae: Distance::arrays(&followed.decoded.view(), &reference.decoded.view()),
            rounding: Rounding::of(variant, reference),
        })
    }
}

/// Files may say anything; numbers are compared only where there are as many.
fn check_shapes(
    variant: &Recording,
    followed: &Followed,
    reference: &Recording,
) -> anyhow::Result<()> {
    let told = |recording: &Recording| -> Vec<_> {
        let told = recording.told.iter();
        told.map(|told| {
            (
                told.context.dim(),
                told.pooled.as_ref().map(ndarray::ArrayBase::dim),
            )
        })
        .collect()
    };
    ensure!(
        variant.noise.dim() == reference.noise.dim()
            && variant.decoded.dim() == reference.decoded.dim()
            && followed.denoised.dim() == reference.denoised.dim()
            && followed.unet.dim() == reference.unet.dim()
            && told(variant) == told(reference),
        "the recordings of reference and variant have tensors of different shapes"
    );
    Ok(())
}

/// What each part changes when the variant's takes the place of the reference's: first the decoder, then the UNet, the text encoder
/// and the noise; then what rounding to 8 bits changes in all that. Steps of such a way are not independent, so the sum of their
/// squares is not the square of the sum; their shares tell what matters.
fn shares(variant: &Recording, followed: &Followed, reference: &Recording) -> Vec<Share> {
    let between = |a: &Array3<f32>, b: &Array3<f32>| {
        let squares = a
            .iter()
            .zip(b)
            .map(|(a, b)| (level(*a) - level(*b)).powi(2));
        squares.sum::<f64>() / a.len() as f64
    };
    let changes = [
        (
            Cause::Noise,
            between(&variant.decoded, &followed.decoded_told),
        ),
        (
            Cause::TextEncoder,
            between(&followed.decoded_told, &followed.decoded_closed),
        ),
        (
            Cause::Unet,
            between(&followed.decoded_closed, &followed.decoded),
        ),
        (Cause::Vae, between(&followed.decoded, &reference.decoded)),
        (Cause::Rounding, rounding(variant, reference)),
    ];
    let total: f64 = changes.iter().map(|(_, mean_square)| mean_square).sum();
    let share = |(cause, mean_square): (Cause, f64)| Share {
        cause,
        mean_square,
        percent: match total > 0.0 {
            true => 100.0 * mean_square / total,
            false => 0.0,
        },
    };
    changes.into_iter().map(share).collect()
}

/// A decoded colour in levels of 255, before it is rounded.
fn level(decoded: f32) -> f64 {
    f64::midpoint(f64::from(decoded), 1.0).clamp(0.0, 1.0) * 255.0
}

/// Colours of two recordings, [height, width, 3], before and after rounding: variant and reference.
fn colours<'a>(
    variant: &'a Recording,
    reference: &'a Recording,
) -> impl Iterator<Item = ([f64; 2], [u8; 2])> {
    let numbers = |recording: &'a Recording| {
        let pixels = recording.decoded.view().permuted_axes([1, 2, 0]);
        pixels.into_iter().map(|&x| level(x)).collect::<Vec<f64>>()
    };
    let before = numbers(variant).into_iter().zip(numbers(reference));
    let after = variant.picture.iter().zip(&reference.picture);
    let pairs = before.zip(after);
    pairs.map(|((a, b), (c, d))| ([a, b], [*c, *d]))
}

/// Mean square of what rounding adds to the change of a picture.
fn rounding(variant: &Recording, reference: &Recording) -> f64 {
    let added = colours(variant, reference).map(|([a, b], [c, d])| {
        let (before, after) = (a - b, f64::from(c) - f64::from(d));
        (after - before).powi(2)
    });
    added.sum::<f64>() / variant.picture.len() as f64
}

impl Rounding {
    fn of(variant: &Recording, reference: &Recording) -> Self {
        let (mut squares, mut hidden, mut shown) = (0.0, 0, 0);
        for ([a, b], [c, d]) in colours(variant, reference) {
            squares += (a - b).powi(2);
            hidden += usize::from(a != b && c == d);
            shown += usize::from(c != d);
        }
        let psnr = psnr(squares / variant.picture.len() as f64);
        Self {
            before: Distance::arrays(&variant.decoded.view(), &reference.decoded.view()),
            psnr_db: (squares > 0.0).then_some(psnr),
            hidden_bytes: hidden,
            shown_bytes: shown,
        }
    }
}

impl Pictures {
    fn of(variant: &Recording, reference: &Recording) -> Self {
        let levels = variant.picture.iter().zip(&reference.picture);
        let levels: Vec<u8> = levels.map(|(a, b)| a.abs_diff(*b)).collect();
        let [a, b] = [variant, reference].map(|recording| phash(&recording.picture.view()));
        Self {
            difference: Difference::of(&picture(variant), &picture(reference)),
            hash_bits: (a ^ b).count_ones(),
            bytes: levels.iter().filter(|&&level| level > 0).count(),
            most_levels: levels.into_iter().max().unwrap_or_default(),
        }
    }

    fn verdict(&self) -> Verdict {
        let [psnr, ssim] = VISUALLY_EQUAL;
        match self.difference.psnr_db {
            None => Verdict::BitEqual,
            Some(found) if found >= psnr && self.difference.ssim >= ssim => Verdict::VisuallyEqual,
            Some(_) => Verdict::Different,
        }
    }
}

/// The picture of a recording.
pub(crate) fn picture(recording: &Recording) -> Picture {
    let (height, width, _) = recording.picture.dim();
    Picture {
        width,
        height,
        rgb: recording.picture.iter().copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr1;

    #[test]
    fn distances_are_relative_to_the_reference() {
        let distance = |a: &[f32], b: &[f32]| Distance::of(a.iter().zip(b));
        let found = distance(&[3.0, 0.0], &[3.0, 4.0]);
        assert!(!found.equal && found.max_abs == 4.0);
        assert_eq!([found.relative_l2, found.cosine], [Some(0.8), Some(0.6)]);
        let same = arr1(&[1.5f32, -2.0]);
        let found = Distance::arrays(&same.view(), &same.view());
        assert!(found.equal && found.relative_l2 == Some(0.0));
        let found = distance(&[1.0], &[0.0]);
        assert_eq!([found.relative_l2, found.cosine], [None, None]);
        // Zeros of both signs are two numbers.
        assert!(!distance(&[0.0], &[-0.0]).equal);
    }

    #[test]
    fn a_loop_tells_where_it_is_past_the_threshold() {
        let reference = Array4::ones((3, 1, 1, 1));
        let variant = Array4::from_shape_vec((3, 1, 1, 1), vec![1.0, 1.02, 1.0]).unwrap();
        let found = Loop::of(&variant, &reference, 0.01);
        assert_eq!((found.first_past, found.distances.len()), (Some(1), 3));
        assert_eq!(Loop::of(&variant, &reference, 0.1).first_past, None);
    }
}
