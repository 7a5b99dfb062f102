//! Transposes matrices of stored elements, whatever their type, on all cores.

use rayon::prelude::*;

/// Columns and rows of the blocks that are moved at once. What is read of a row are whole lines of the cache; few rows, since
/// those of wide matrices fall on the same places of the first-level cache.
const BLOCK: [usize; 2] = [128, 16];

/// `bytes` of `rows` x `cols` elements of `size` bytes -> the bytes of the `cols` x `rows` transpose.
///
/// # Panics
/// If the length of `bytes` is not `rows * cols * size`.
pub(crate) fn transpose(bytes: &[u8], rows: usize, cols: usize, size: usize) -> Vec<u8> {
    assert_eq!(
        bytes.len(),
        rows * cols * size,
        "the caller checked the tensor's length"
    );
    let mut result = vec![0; bytes.len()];
    let (row, [width, _]) = ((rows * size).max(1), BLOCK);
    let strips = result.par_chunks_mut(width * row).enumerate();
    strips.for_each(|(n, strip)| {
        let mut columns: Vec<&mut [u8]> = strip.chunks_exact_mut(row).collect();
        scatter(&bytes[n * width * size..], cols, size, &mut columns);
    });
    result
}

/// Writes the first columns of a matrix whose rows have `cols` elements of `size` bytes to a place each.
pub(crate) fn scatter(bytes: &[u8], cols: usize, size: usize, columns: &mut [&mut [u8]]) {
    match size {
        1 => scatter_elements::<1>(bytes, cols, columns),
        2 => scatter_elements::<2>(bytes, cols, columns),
        4 => scatter_elements::<4>(bytes, cols, columns),
        8 => scatter_elements::<8>(bytes, cols, columns),
        _ => unreachable!("elements have 1, 2, 4 or 8 bytes"),
    }
}

fn scatter_elements<const SIZE: usize>(bytes: &[u8], cols: usize, columns: &mut [&mut [u8]]) {
    let [width, height] = BLOCK;
    let (input, _) = bytes.as_chunks::<SIZE>();
    for (n, columns) in columns.chunks_mut(width).enumerate() {
        let rows = columns[0].len() / SIZE;
        for row in (0..rows).step_by(height) {
            for (c, column) in columns.iter_mut().enumerate() {
                let (column, _) = column.as_chunks_mut::<SIZE>();
                for r in row..(row + height).min(rows) {
                    column[r] = input[r * cols + n * width + c];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_are_no_multiple_of_the_block() {
        let (rows, cols) = (37, 165);
        for size in [2, 4] {
            let bytes: Vec<u8> = (0..rows * cols * size)
                .map(|i| (i * 7 % 251) as u8)
                .collect();
            let result = transpose(&bytes, rows, cols, size);
            for r in 0..rows {
                for c in 0..cols {
                    let (from, to) = ((r * cols + c) * size, (c * rows + r) * size);
                    assert_eq!(bytes[from..from + size], result[to..to + size]);
                }
            }
            assert_eq!(transpose(&result, cols, rows, size), bytes);
        }
    }
}
