//! Spherical interpolation between two draws, as A1111's variations take it.

use ndarray::{Array2, Array3, Axis, Zip};

/// From `low` (`t` is 0) to `high` (`t` is 1), both [C, H, W], along the arc between them. Angles are those between columns,
/// as in A1111. Draws that are nearly the same are mixed in a straight line there, and from the wrong end: followed, too.
pub(super) fn slerp(t: f64, low: &Array3<f32>, high: &Array3<f32>) -> Array3<f32> {
    const COLUMNS: Axis = Axis(1);
    let squares = |x: &Array3<f32>| x.map(|x| x * x).sum_axis(COLUMNS);
    let lengths = (squares(low) * squares(high)).map(|x| x.sqrt());
    let cosines: Array2<f32> = (low * high).sum_axis(COLUMNS) / lengths;
    if cosines.mean().is_some_and(|mean| mean > 0.9995) {
        return low * t as f32 + high * (1.0 - t) as f32;
    }
    let angles = cosines.map(|x| x.acos());
    let share = |t: f64| angles.map(|angle| (t as f32 * angle).sin() / angle.sin());
    let (of_low, of_high) = (
        share(1.0 - t).insert_axis(COLUMNS),
        share(t).insert_axis(COLUMNS),
    );
    let mut mixed = low * &of_low;
    Zip::from(&mut mixed)
        .and(high)
        .and_broadcast(&of_high)
        .for_each(|x, high, share| *x += high * share);
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn draws_that_are_nearly_the_same_are_mixed_from_the_wrong_end() {
        let low = array![[[1.0], [2.0]]];
        let high = array![[[1.0], [2.001]]];
        let mixed = slerp(0.25, &low, &high);
        assert!((mixed[[0, 1, 0]] - 2.000_75).abs() < 1e-6, "{mixed}");
    }

    #[test]
    fn the_way_is_an_arc() {
        let (low, high) = (array![[[1.0], [0.0]]], array![[[0.0], [1.0]]]);
        let mixed = slerp(1.0 / 3.0, &low, &high);
        assert!((mixed[[0, 0, 0]] - 0.75f32.sqrt()).abs() < 1e-6);
        assert!((mixed[[0, 1, 0]] - 0.5).abs() < 1e-6);
    }
}
