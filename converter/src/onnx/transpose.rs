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
    match size {
        1 => transpose_elements::<1>(bytes, rows, cols),
        2 => transpose_elements::<2>(bytes, rows, cols),
        4 => transpose_elements::<4>(bytes, rows, cols),
        8 => transpose_elements::<8>(bytes, rows, cols),
        _ => unreachable!("elements have 1, 2, 4 or 8 bytes"),
    }
}

fn transpose_elements<const SIZE: usize>(bytes: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let mut result = vec![0; bytes.len()];
    let (input, _) = bytes.as_chunks::<SIZE>();
    let (output, _) = result.as_chunks_mut::<SIZE>();
    let [width, height] = BLOCK;
    let strips = output.par_chunks_mut((width * rows).max(1)).enumerate();
    strips.for_each(|(n, output)| {
        for row in (0..rows).step_by(height) {
            for (c, output) in output.chunks_exact_mut(rows).enumerate() {
                for r in row..(row + height).min(rows) {
                    output[r] = input[r * cols + n * width + c];
                }
            }
        }
    });
    result
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
