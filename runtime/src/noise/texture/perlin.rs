//! Perlin 1985, "An image synthesizer", with the fade of Perlin 2002, "Improving noise".

use ndarray::Array2;

use super::super::NoiseSource;

/// Sides of the cells of each octave, in latent pixels. Amplitudes are in proportion, as for pink noise of two dimensions.
const CELLS: [usize; 4] = [16, 8, 4, 2];

/// The sum of the octaves.
pub(super) fn perlin(source: &mut dyn NoiseSource, height: usize, width: usize) -> Array2<f32> {
    let mut sum = Array2::zeros((height, width));
    for cell in CELLS {
        sum.scaled_add(cell as f32, &octave(source, cell, height, width));
    }
    sum
}

/// Gradients at the corners of cells are normal draws.
fn octave(source: &mut dyn NoiseSource, cell: usize, height: usize, width: usize) -> Array2<f32> {
    let columns = width.div_ceil(cell) + 1;
    let corners = (height.div_ceil(cell) + 1) * columns;
    let mut gradients = vec![0.0; 2 * corners];
    source.normal(&mut gradients);
    let place = |pixel: usize| (pixel / cell, ((pixel % cell) as f32 + 0.5) / cell as f32);
    Array2::from_shape_fn((height, width), |(y, x)| {
        let ((row, y), (column, x)) = (place(y), place(x));
        // What the gradient of a corner says of this place.
        let slope = |down: usize, right: usize| {
            let at = 2 * ((row + down) * columns + column + right);
            gradients[at] * (x - right as f32) + gradients[at + 1] * (y - down as f32)
        };
        let top = mix(slope(0, 0), slope(0, 1), fade(x));
        let bottom = mix(slope(1, 0), slope(1, 1), fade(x));
        mix(top, bottom, fade(y))
    })
}

fn fade(t: f32) -> f32 {
    t * t * t * (t * (t * 6.0 - 15.0) + 10.0)
}

fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}
