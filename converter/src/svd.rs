//! Singular value decompositions of weight differences: whole ones, and approximate ones of low rank.

use faer::{Mat, MatRef};

use crate::random;

/// Directions beyond the wanted rank that the approximation looks at.
const OVERSAMPLING: usize = 16;

/// Rounds of subspace iteration. Four keep the error of noise-like matrices, the hardest, within 0.5 % of the least possible
/// (measured in the tests below).
const ITERATIONS: usize = 4;

/// Largest part of the full rank for which approximating pays.
const WORTHWHILE: usize = 4;

/// `d ~ u diag(s) v^T`, with the singular values in decreasing order.
#[derive(Debug)]
pub(crate) struct Svd {
    /// [rows, k]
    pub(crate) u: Mat<f64>,
    pub(crate) s: Vec<f64>,
    /// [columns, k]
    pub(crate) v: Mat<f64>,
}

/// All singular values of `d`, or the first `rank` if that is all that is wanted. `None` if `d` is not finite.
pub(crate) fn svd(d: MatRef<'_, f64>, rank: Option<usize>) -> Option<Svd> {
    let full = d.nrows().min(d.ncols());
    match rank {
        Some(rank) if (rank + OVERSAMPLING) * WORTHWHILE <= full => randomized(d, rank),
        _ => exact(d),
    }
}

fn exact(d: MatRef<'_, f64>) -> Option<Svd> {
    let svd = d.thin_svd().ok()?;
    let s = svd.S().column_vector().iter().copied().collect();
    Some(Svd {
        u: svd.U().to_owned(),
        s,
        v: svd.V().to_owned(),
    })
}

/// Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1: the range of `d` from its products with random vectors.
fn randomized(d: MatRef<'_, f64>, rank: usize) -> Option<Svd> {
    let width = rank + OVERSAMPLING;
    let key = random::key(0, "range finder");
    let start = Mat::from_fn(d.ncols(), width, |i, j| {
        2.0 * f64::from(random::unit(key, (j * d.ncols() + i) as u64)) - 1.0
    });
    let mut range = orthonormal((d * &start).as_ref());
    for _ in 0..ITERATIONS {
        let back = orthonormal((d.transpose() * &range).as_ref());
        range = orthonormal((d * &back).as_ref());
    }
    let small = exact((range.transpose() * d).as_ref())?;
    Some(Svd {
        u: &range * &small.u,
        s: small.s,
        v: small.v,
    })
}

fn orthonormal(a: MatRef<'_, f64>) -> Mat<f64> {
    a.qr().compute_thin_Q()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(rows: usize, columns: usize, name: &str) -> Mat<f64> {
        let key = random::key(1, name);
        Mat::from_fn(rows, columns, |i, j| {
            2.0 * f64::from(random::unit(key, (i * columns + j) as u64)) - 1.0
        })
    }

    /// Frobenius norm of what `rank` terms leave of `d`.
    fn error(d: &Mat<f64>, svd: &Svd, rank: usize) -> f64 {
        let scaled = Mat::from_fn(d.nrows(), rank, |i, j| svd.u[(i, j)] * svd.s[j]);
        let v = svd.v.subcols(0, rank);
        (d - scaled * v.transpose()).norm_l2()
    }

    #[test]
    fn an_exact_decomposition_leaves_the_discarded_singular_values() {
        let d = noise(40, 24, "d");
        let svd = svd(d.as_ref(), None).unwrap();
        assert!(svd.s.is_sorted_by(|a, b| a >= b));
        for rank in [0, 1, 7, 23] {
            let left: f64 = svd.s[rank..].iter().map(|s| s * s).sum::<f64>().sqrt();
            assert!((error(&d, &svd, rank) / left - 1.0).abs() < 1e-9);
        }
        assert!(error(&d, &svd, 24) < 1e-12);
    }

    #[test]
    fn low_ranks_are_within_half_a_percent_of_the_best() {
        let flat = noise(400, 300, "flat");
        // Singular values that fall off as those of real differences do.
        let decay = Mat::from_fn(
            300,
            300,
            |i, j| if i == j { 0.97f64.powi(i as i32) } else { 0.0 },
        );
        let decaying = noise(400, 300, "a") * decay * noise(300, 300, "b");
        for d in [flat, decaying] {
            for rank in [4, 16, 48] {
                let best = error(&d, &exact(d.as_ref()).unwrap(), rank);
                let found = error(&d, &randomized(d.as_ref(), rank).unwrap(), rank);
                assert!(found / best < 1.005, "rank {rank}: {}", found / best);
            }
        }
    }
}
