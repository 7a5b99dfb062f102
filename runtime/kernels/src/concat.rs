//! Channels of two pictures side by side.

use crate::Run;
use crate::pool::for_each_task;
use crate::scratch::Shared;

/// Numbers of a task.
const BLOCK: usize = 32 << 10;

/// `a` [.., widths.0] and `b` [.., widths.1] -> `y` [.., widths.0 + widths.1]; the shorter of both is used again from its start:
/// one picture with each of several.
///
/// # Panics
/// Lengths that do not fit together.
pub fn concat(run: &mut Run<'_>, widths: (usize, usize), a: &[f32], b: &[f32], y: &mut [f32]) {
    let width = widths.0 + widths.1;
    assert!(widths.0 > 0 && widths.1 > 0, "widths of {widths:?}");
    let rows = y.len() / width;
    assert_eq!(y.len(), rows * width, "result");
    let rows_of = |x: &[f32], width: usize| {
        let own = x.len() / width;
        assert_eq!(x.len(), own * width, "rows of {width} numbers");
        assert!(own > 0 && rows.is_multiple_of(own), "{own} rows for {rows}");
        own
    };
    if rows == 0 {
        return;
    }
    let (rows_a, rows_b) = (rows_of(a, widths.0), rows_of(b, widths.1));
    let block = (BLOCK / width).max(1);
    let y = Shared::new(y);
    for_each_task(run.pool, rows.div_ceil(block), &|task, _| {
        for row in task * block..((task + 1) * block).min(rows) {
            let (a, b) = (&a[row % rows_a * widths.0..], &b[row % rows_b * widths.1..]);
            let to = y.at(row * width);
            // SAFETY: tasks are different rows of y, and a row has room for both.
            unsafe {
                to.copy_from_nonoverlapping(a[..widths.0].as_ptr(), widths.0);
                to.add(widths.0)
                    .copy_from_nonoverlapping(b[..widths.1].as_ptr(), widths.1);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, every_level};

    #[test]
    fn rows_lie_side_by_side() {
        let mut random = Random::new(9);
        for case in 0..30 {
            let (pixels, widths) = (random.size(400), (random.size(300), random.size(300)));
            let batch = 1 + case % 4;
            let rows_a = [batch, 1, batch][case % 3] * pixels;
            let rows_b = [batch, batch, 1][case % 3] * pixels;
            let (a, b) = (
                random.normals(rows_a * widths.0),
                random.normals(rows_b * widths.1),
            );
            let row = |row: usize| {
                let a = &a[row % rows_a * widths.0..][..widths.0];
                let b = &b[row % rows_b * widths.1..][..widths.1];
                [a, b].concat()
            };
            let expected: Vec<f32> = (0..batch * pixels).flat_map(row).collect();
            every_level(|run| {
                let mut y = vec![f32::NAN; expected.len()];
                concat(run, widths, &a, &b, &mut y);
                assert_eq!(y, expected);
                y
            });
        }
    }
}
