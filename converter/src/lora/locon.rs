//! LoRA (Hu et al. 2021, arXiv:2106.09685) and its convolutions, LoCon (`LyCORIS`).
//! `dW = alpha / rank * up down`, with `up` [out, rank] and `down` [rank, in * kh * kw]. With a Tucker core `mid`
//! [r1, r2, kh, kw] between `up` [out, r1] and `down` [r2, in]:
//! `dW[o, i, x, y] = alpha / r2 * sum_m sum_n up[o, m] mid[m, n, x, y] down[n, i]`.
//!
//! Extractions of early `LyCORIS` versions also hold what the low rank leaves, sparse or whole, as part of the product.

use super::group::Parts;
use super::matrix::{LowRank, Matrix, tucker};
use super::vector;
use super::whole::Whole;
use super::{Change, Delta, Format, Loaded, LoraError, Target, product};

pub(super) const FORMAT: Format = Format {
    name: "LoRA",
    parts: &[
        (".lora_up.weight", "up"),
        (".lora_down.weight", "down"),
        (".lora_mid.weight", "mid"),
        (".lora_B.weight", "up"),
        (".lora_A.weight", "down"),
        (".lora_B", "up"),
        (".lora_A", "down"),
        (".lora_up", "up"),
        (".lora_down", "down"),
        (".lora.up.weight", "up"),
        (".lora.down.weight", "down"),
        ("_lora.up.weight", "up"),
        ("_lora.down.weight", "down"),
        (".lora_linear_layer.up.weight", "up"),
        (".lora_linear_layer.down.weight", "down"),
        (".lora_B.bias", "up bias"),
        (".scale", "scale"),
        (".bias", "residual"),
        (".bias_indices", "residual indices"),
        (".bias_values", "residual values"),
        (".bias_size", "residual size"),
    ],
    load,
};

fn load<'a>(parts: &Parts<'a>, target: &Target<'_>) -> Result<Loaded<'a>, LoraError> {
    let (up, down) = (parts.need("up")?, parts.need("down")?);
    let (&[rows, up_rank, ref up_rest @ ..], &[rank, ref columns @ ..]) = (up, down) else {
        return Err(parts.misfit(target));
    };
    let (columns, mid) = (product(columns), parts.shape("mid"));
    let factors_fit = match mid {
        None => up_rank == rank,
        Some(mid) => mid.len() == 4 && mid[..2] == [up_rank, rank],
    };
    if !factors_fit || rank * up_rank == 0 || product(up_rest) != 1 {
        return Err(parts.mismatch());
    }
    let fits = match mid {
        // A flat `down` on a convolution is no broadcast: its columns are counted.
        None => columns == target.columns(),
        Some(mid) => target.shape.get(2..) == Some(&mid[2..]) && columns == target.inputs(),
    };
    if !fits || rows != target.rows() {
        return Err(parts.misfit(target));
    }
    let scale = parts.scale(rank)?;
    let mut up = Matrix::of_rows(rows, parts.singles("up")?);
    let mut down = Matrix::of_rows(rank, parts.singles("down")?);
    // DyLoRA's components are trained to be of use without the later ones; the scale is that of all.
    if let Some(wanted) = parts.group.rank.filter(|wanted| *wanted < rank) {
        up = up.first_columns(wanted);
        down = down.first_rows(wanted);
    }
    let down = match mid {
        None => down,
        Some(_) => tucker(&parts.singles("mid")?, up_rank, &down),
    };
    let low_rank = LowRank::new(up, &down, scale);
    let weight: Box<dyn Delta> = match residual(parts, target)? {
        None => Box::new(low_rank),
        Some(values) => Box::new(WithResidual {
            residual: Whole::new(values, scale),
            low_rank,
        }),
    };
    let bias = match parts.shape("up bias") {
        None => None,
        Some(shape) if product(shape) != rows => return Err(parts.misfit(target)),
        Some(_) => {
            let values = parts.singles("up bias")?;
            Some(Change::Added(Box::new(Whole::new(values, scale))))
        }
    };
    Ok(Loaded {
        weight: Some(Change::Added(weight)),
        bias,
        rank: Some(rank),
    })
}

/// What a low rank leaves of a difference, as a whole weight.
fn residual(parts: &Parts<'_>, target: &Target<'_>) -> Result<Option<Vec<f32>>, LoraError> {
    let length = product(target.shape);
    if let Some(shape) = parts.shape("residual") {
        if product(shape) != length {
            return Err(parts.misfit(target));
        }
        return parts.singles("residual").map(Some);
    }
    if !parts.has("residual indices") && !parts.has("residual values") {
        return Ok(None);
    }
    let (places, count) = (
        parts.need("residual indices")?,
        parts.need("residual values")?,
    );
    let size = parts.values("residual size")?;
    if places != [size.len(), product(count)] || size.iter().product::<f64>() != length as f64 {
        return Err(parts.misfit(target));
    }
    if size.iter().any(|n| n.fract() != 0.0) {
        return Err(parts.problem("the size of its residual is no whole number"));
    }
    let (places, values) = (
        parts.values("residual indices")?,
        parts.singles("residual values")?,
    );
    let mut whole = vec![0.0; length];
    for (n, value) in values.iter().enumerate() {
        let mut at = 0;
        for (axis, size) in size.iter().enumerate() {
            let place = places[axis * values.len() + n];
            if !(0.0..*size).contains(&place) {
                return Err(parts.problem("an index of its residual is out of range"));
            }
            at = at * (*size as usize) + place as usize;
        }
        whole[at] += value;
    }
    Ok(Some(whole))
}

/// A low-rank change, and what it leaves.
struct WithResidual {
    low_rank: LowRank,
    residual: Whole,
}

impl Delta for WithResidual {
    fn add(&self, start: usize, scale: f64, tile: &mut [f32]) -> f64 {
        let mut change = vec![0.0; tile.len()];
        self.low_rank.add(start, scale, &mut change);
        self.residual.add(start, scale, &mut change);
        vector::add(tile, &change)
    }

    fn is_zero(&self) -> bool {
        self.low_rank.is_zero() && self.residual.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use crate::lora::examples::{Example, baked, refused};

    #[test]
    fn a_product_is_scaled_by_alpha_over_rank() {
        let example = Example::new(&[2, 2], &[0.0; 4])
            .part("x.lora_up.weight", &[2, 1], &[1.0, 2.0])
            .part("x.lora_down.weight", &[1, 2], &[1.0, 0.0])
            .part("x.alpha", &[], &[0.5]);
        assert_eq!(baked(&example, 1.0), [0.5, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn a_tucker_core_pairs_its_first_axis_with_up() {
        let example = Example::new(&[2, 1, 1, 2], &[0.0; 4])
            .part("x.lora_up.weight", &[2, 1, 1, 1], &[1.0, 2.0])
            .part("x.lora_mid.weight", &[1, 1, 1, 2], &[2.0, 3.0])
            .part("x.lora_down.weight", &[1, 1, 1, 1], &[5.0]);
        assert_eq!(baked(&example, 1.0), [10.0, 15.0, 20.0, 30.0]);
    }

    #[test]
    fn factors_without_elements_are_refused() {
        let example = Example::new(&[2, 1, 1, 1], &[0.0; 2])
            .part("x.lora_up.weight", &[2, 0, 1, 1], &[])
            .part("x.lora_mid.weight", &[0, 1, 1, 1], &[])
            .part("x.lora_down.weight", &[1, 1, 1, 1], &[5.0]);
        assert!(refused(&example).contains("do not fit each other"));
    }

    #[test]
    fn a_residual_has_a_size_in_whole_numbers() {
        let example = Example::new(&[2, 5], &[0.0; 10])
            .part("x.lora_up.weight", &[2, 1], &[1.0, 2.0])
            .part("x.lora_down.weight", &[1, 5], &[1.0; 5])
            .part("x.bias_indices", &[2, 1], &[2.0, 3.0])
            .part("x.bias_values", &[1], &[8.0])
            .part("x.bias_size", &[2], &[2.5, 4.0]);
        assert!(refused(&example).contains("whole number"));
    }

    #[test]
    fn a_sparse_residual_is_part_of_the_product() {
        let example = Example::new(&[2, 2], &[0.0; 4])
            .part("x.lora_up.weight", &[2, 1], &[1.0, 2.0])
            .part("x.lora_down.weight", &[1, 2], &[1.0, 0.0])
            .part("x.alpha", &[1], &[0.5])
            .part("x.bias_indices", &[2, 1], &[0.0, 1.0])
            .part("x.bias_values", &[1], &[8.0])
            .part("x.bias_size", &[2], &[2.0, 2.0]);
        assert_eq!(baked(&example, 1.0), [0.5, 4.0, 1.0, 0.0]);
        let dense = Example::new(&[2, 2], &[0.0; 4])
            .part("x.lora_up.weight", &[2, 1], &[1.0, 2.0])
            .part("x.lora_down.weight", &[1, 2], &[1.0, 0.0])
            .part("x.bias", &[2, 2], &[0.0, 8.0, 0.0, 0.0]);
        assert_eq!(baked(&dense, 0.5), [0.5, 4.0, 1.0, 0.0]);
    }
}
