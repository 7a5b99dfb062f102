//! Whether the demo model drew what it was asked for: the pixel rules of `models/demo/train.py`, and the shapes of
//! `models/demo/shapes.py`.
//!
//! The rules read prompts with one thing on a plain background, and pictures of 128 x 128 pixels.

use std::sync::LazyLock;

use sd_runtime::pipeline::Picture;

/// Side of the pictures in pixels.
pub(crate) const SIZE: usize = 128;

/// Names and colours of the model's pictures.
const COLOURS: [(&str, [f32; 3]); 12] = [
    ("red", [220.0, 30.0, 35.0]),
    ("green", [35.0, 160.0, 60.0]),
    ("blue", [35.0, 75.0, 215.0]),
    ("yellow", [245.0, 215.0, 45.0]),
    ("purple", [130.0, 45.0, 170.0]),
    ("orange", [245.0, 135.0, 30.0]),
    ("pink", [250.0, 150.0, 190.0]),
    ("cyan", [60.0, 205.0, 225.0]),
    ("white", [250.0, 250.0, 250.0]),
    ("black", [15.0, 15.0, 18.0]),
    ("gray", [128.0, 128.0, 128.0]),
    ("brown", [120.0, 72.0, 38.0]),
];

/// Signed distance of a place (x, y) to a shape's outline in units of its radius; y points down, and inside is below 0.
type Distance = fn(f64, f64) -> f64;

const SHAPES: [(&str, Distance); 9] = [
    ("circle", |x, y| x.hypot(y) - 1.0),
    ("square", |x, y| x.abs().max(y.abs()) - 0.86),
    ("triangle", triangle),
    ("star", star),
    ("heart", heart),
    ("ring", |x, y| (x.hypot(y) - 0.76).abs() - 0.24),
    ("cross", cross),
    ("diamond", |x, y| (x.abs() / 0.72 + y.abs() - 1.08) * 0.584),
    ("moon", moon),
];

/// Words for sizes.
const SIZES: [(&str, Size); 6] = [
    ("small", Size::Small),
    ("little", Size::Small),
    ("tiny", Size::Small),
    ("large", Size::Large),
    ("big", Size::Large),
    ("huge", Size::Large),
];

/// Words for positions, longer ones first, and their directions.
const PLACES: [(&str, [f64; 2]); 13] = [
    ("on the left side", [-1.0, 0.0]),
    ("on the left", [-1.0, 0.0]),
    ("at the left", [-1.0, 0.0]),
    ("on the right side", [1.0, 0.0]),
    ("on the right", [1.0, 0.0]),
    ("at the right", [1.0, 0.0]),
    ("at the top", [0.0, -1.0]),
    ("on top", [0.0, -1.0]),
    ("at the bottom", [0.0, 1.0]),
    ("in the center", [0.0, 0.0]),
    ("in the middle", [0.0, 0.0]),
    ("in the centre", [0.0, 0.0]),
    ("centered", [0.0, 0.0]),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Small,
    Large,
}

/// What a prompt asks for: one thing on a plain background. Colours and shapes are numbers in the tables.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scene {
    size: Option<Size>,
    colour: usize,
    shape: usize,
    /// Where to; the middle if nothing is said.
    direction: [f64; 2],
    background: usize,
}

/// Which wishes a picture fulfils.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) background: bool,
    pub(crate) colour: bool,
    pub(crate) shape: bool,
    pub(crate) position: bool,
    pub(crate) size: bool,
}

impl Scene {
    /// Reads a prompt: `[a picture of] [a] [small|large] COLOUR SHAPE [on the left|..][,] [on a|with a] COLOUR [background]`.
    /// None if it says anything else, or less.
    pub(crate) fn read(prompt: &str) -> Option<Self> {
        let words = prompt.to_lowercase().replace(',', " ");
        let words: Vec<&str> = words.split_whitespace().collect();
        let mut words = Words(&words);
        for kind in ["picture", "drawing", "image", "photo"] {
            for article in ["a", "an"] {
                words.skip(&format!("{article} {kind} of"));
            }
        }
        words.skip_article();
        let size = words.one_of(&SIZES);
        let colour = words.colour()?;
        let shape = words.number_of(&SHAPES)?;
        let place = words.one_of(&PLACES);
        let _ = words.skip("on") || words.skip("with");
        words.skip_article();
        let background = words.colour()?;
        words.skip("background");
        words.0.is_empty().then_some(Self {
            size,
            colour,
            shape,
            direction: place.unwrap_or_default(),
            background,
        })
    }

    /// Looks at a picture of [`SIZE`] x [`SIZE`] pixels.
    pub(crate) fn judge(&self, picture: &Picture) -> Verdict {
        let pixels = picture.rgb.chunks_exact(3);
        let colours: Vec<usize> = pixels.map(nearest_colour).collect();
        let place = |i: usize| (i % SIZE, i / SIZE);
        // The background is what most of the border is, the thing what most of the rest is. Corners count twice.
        let (mut border, mut inside) = ([0; COLOURS.len()], [0; COLOURS.len()]);
        let near = |x: usize| usize::from(!(6..SIZE - 6).contains(&x));
        for (i, &colour) in colours.iter().enumerate() {
            let (x, y) = place(i);
            border[colour] += near(x) + near(y);
            inside[colour] += 1;
        }
        inside[self.background] = 0;
        let mask: Vec<bool> = colours.iter().map(|&c| c == self.colour).collect();
        let mut verdict = Verdict {
            background: first_most(&border) == self.background,
            colour: first_most(&inside) == self.colour,
            shape: false,
            position: false,
            size: false,
        };
        let found = (0..mask.len()).filter(|&i| mask[i]).map(place);
        let found = found.map(|(x, y)| (x as f64, y as f64));
        let (mut xs, mut ys): (Vec<_>, Vec<_>) = found.unzip();
        if xs.len() < 60 {
            return verdict;
        }
        let (left, right) = ends(&mut xs);
        let (top, bottom) = ends(&mut ys);
        verdict.shape = best_shape(&mask, [left, right], [top, bottom]) == Some(self.shape);
        let half = SIZE as f64 / 2.0;
        let (x, y) = (left.midpoint(right) - half, top.midpoint(bottom) - half);
        let [dx, dy] = self.direction;
        verdict.position = match self.direction {
            [0.0, 0.0] => x.abs() < 18.0 && y.abs() < 18.0,
            _ if self.size == Some(Size::Large) => x * dx + y * dy > 8.0,
            _ => x * dx + y * dy > 14.0,
        };
        let extent = (right - left).max(bottom - top);
        verdict.size = match self.size {
            Some(Size::Small) => extent < 50.0,
            Some(Size::Large) => extent > 66.0,
            None => 36.0 < extent && extent < 90.0,
        };
        verdict
    }
}

/// What is left of a prompt.
struct Words<'a>(&'a [&'a str]);

impl Words<'_> {
    /// Goes behind a phrase, if it comes next.
    fn skip(&mut self, phrase: &str) -> bool {
        let phrase = phrase.split(' ');
        let length = phrase.clone().count();
        let is_next = self.0.iter().copied().take(length).eq(phrase);
        if is_next {
            self.0 = &self.0[length..];
        }
        is_next
    }

    fn skip_article(&mut self) {
        let _ = self.skip("a") || self.skip("an");
    }

    /// The number of the phrase that comes next.
    fn number_of<T>(&mut self, table: &[(&str, T)]) -> Option<usize> {
        table.iter().position(|(phrase, _)| self.skip(phrase))
    }

    /// What the phrase that comes next stands for.
    fn one_of<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        Some(table[self.number_of(table)?].1)
    }

    fn colour(&mut self) -> Option<usize> {
        let gray = || COLOURS.iter().position(|(name, _)| *name == "gray");
        match self.skip("grey") {
            true => gray(),
            false => self.number_of(&COLOURS),
        }
    }
}

/// The named colour next to a pixel's.
fn nearest_colour(rgb: &[u8]) -> usize {
    let distance = |(_, colour): &(&str, [f32; 3])| -> f32 {
        let channels = rgb.iter().zip(colour);
        channels.map(|(&a, b)| (f32::from(a) - b).powi(2)).sum()
    };
    let mut best = (0, f32::INFINITY);
    for (i, colour) in COLOURS.iter().enumerate() {
        let distance = distance(colour);
        if distance < best.1 {
            best = (i, distance);
        }
    }
    best.0
}

/// The first of the largest counts.
fn first_most(counts: &[usize]) -> usize {
    let most = counts.iter().max();
    let place = counts.iter().position(|count| Some(count) == most);
    place.unwrap_or_default()
}

/// The percentiles 1 and 99, as numpy interpolates them.
fn ends(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let percentile = |percent: f64| {
        let at = percent / 100.0 * (values.len() - 1) as f64;
        let (i, part) = (at as usize, at.fract());
        let (a, b) = (values[i], values[(i + 1).min(values.len() - 1)]);
        match part < 0.5 {
            true => a + (b - a) * part,
            false => b - (b - a) * (1.0 - part),
        }
    };
    (percentile(1.0), percentile(99.0))
}

/// The shape that covers a mask best when it is stretched over its box: the largest ratio of intersection and union.
fn best_shape(mask: &[bool], [left, right]: [f64; 2], [top, bottom]: [f64; 2]) -> Option<usize> {
    let (mut best, mut best_iou) = (None, 0.0);
    for (number, ((_, distance), area)) in SHAPES.iter().zip(&*BOXES).enumerate() {
        let stretched = |i: usize, from: f64, to: f64, [low, high]: [f64; 2]| {
            (i as f64 - from) / (to - from).max(1.0) * (high - low) + low
        };
        let xs: Vec<f64> = (0..SIZE)
            .map(|i| stretched(i, left, right, area[0]))
            .collect();
        let (mut both, mut any) = (0u32, 0u32);
        for y in 0..SIZE {
            let row = &mask[y * SIZE..][..SIZE];
            let y = stretched(y, top, bottom, area[1]);
            for (&x, &masked) in xs.iter().zip(row) {
                let inside = distance(x, y) < 0.0;
                both += u32::from(inside && masked);
                any += u32::from(inside || masked);
            }
        }
        let iou = f64::from(both) / f64::from(any.max(1));
        if iou > best_iou {
            (best, best_iou) = (Some(number), iou);
        }
    }
    best
}

/// From where to where each shape reaches, in x and y, on a grid.
static BOXES: LazyLock<[[[f64; 2]; 2]; SHAPES.len()]> = LazyLock::new(|| {
    const STEPS: usize = 260;
    let grid: Vec<f64> = (0..=STEPS).map(|i| -1.3 + i as f64 * 0.01).collect();
    SHAPES.map(|(_, distance)| {
        let mut area = [[f64::INFINITY, f64::NEG_INFINITY]; 2];
        for &y in &grid {
            for &x in grid.iter().filter(|&&x| distance(x, y) < 0.0) {
                for ([low, high], value) in area.iter_mut().zip([x, y]) {
                    (*low, *high) = (low.min(value), high.max(value));
                }
            }
        }
        area
    })
});

fn triangle(x: f64, y: f64) -> f64 {
    let (x, y) = (x / 1.2, y / 1.2 - 0.15);
    1.2 * (y - 0.5).max(0.866_025_4 * x.abs() - 0.5 * y - 0.5)
}

fn star(x: f64, y: f64) -> f64 {
    const INNER: f64 = 0.45;
    const K1: [f64; 2] = [0.809_016_994_375, -0.587_785_252_292];
    let (x, y) = ((x / 1.12).abs(), -y / 1.12);
    let d = 2.0 * (K1[0] * x + K1[1] * y).max(0.0);
    let (x, y) = (x - d * K1[0], y - d * K1[1]);
    let d = 2.0 * (-K1[0] * x + K1[1] * y).max(0.0);
    let (x, y) = (x + d * K1[0], y - d * K1[1]);
    let (x, y) = (x.abs(), y - 1.0);
    let (bx, by) = (INNER * -K1[1], INNER * K1[0] - 1.0);
    let h = ((x * bx + y * by) / (bx * bx + by * by)).clamp(0.0, 1.0);
    1.12 * (x - bx * h).hypot(y - by * h) * sign(y * bx - x * by)
}

fn heart(x: f64, y: f64) -> f64 {
    let s = 1.75;
    let (x, y) = ((x / s).abs(), -y / s + 0.55);
    if y + x > 1.0 {
        return s * ((x - 0.25).hypot(y - 0.75) - 2.0f64.sqrt() / 4.0);
    }
    let m = 0.5 * (x + y).max(0.0);
    let squares = (x * x + (y - 1.0).powi(2)).min((x - m).powi(2) + (y - m).powi(2));
    s * squares.sqrt() * sign(x - y)
}

fn cross(x: f64, y: f64) -> f64 {
    let (x, y) = (x.abs(), y.abs());
    (x - 0.32).max(y - 1.0).min((x - 1.0).max(y - 0.32))
}

fn moon(x: f64, y: f64) -> f64 {
    let x = x - 0.2;
    (x.hypot(y) - 1.0).max(0.85 - (x - 0.55).hypot(y))
}

/// 0 for 0, as numpy has it.
fn sign(x: f64) -> f64 {
    match x == 0.0 {
        true => 0.0,
        false => x.signum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::golden;

    /// Against `judge` of `models/demo/train.py`, on 40 pictures of the model, read by their own prompts and by others, and on
    /// changed ones.
    #[test]
    fn verdicts_are_those_of_the_python() {
        /// Where a changed picture takes the pixel of a column and row from.
        type From = fn(usize, usize) -> (usize, usize);
        let json = golden::json();
        let samples = golden::samples();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let texts = |name: &str| -> Vec<String> {
            json[name].as_array().unwrap().iter().map(text).collect()
        };
        let read = |prompt: &String| Scene::read(prompt).unwrap_or_else(|| panic!("{prompt}"));
        let scenes: Vec<Scene> = texts("prompts").iter().map(read).collect();
        let pictures: Vec<Picture> = (0..40)
            .map(|i| golden::crop(&samples, [i % 8 * SIZE, i / 8 * SIZE], [SIZE, SIZE]))
            .collect();
        let moved = |picture: &Picture, from: From| {
            let places = (0..SIZE * SIZE).map(|i| from(i % SIZE, i / SIZE));
            let pixels = places.flat_map(|(x, y)| &picture.rgb[3 * (y * SIZE + x)..][..3]);
            Picture {
                rgb: pixels.copied().collect(),
                ..*picture
            }
        };
        let cases: [(&str, usize, From); 4] = [
            ("own", 0, |x, y| (x, y)),
            ("next", 1, |x, y| (x, y)),
            ("quarter", 0, |x, y| (x / 2, y / 2)),
            ("turned", 0, |x, y| (y, x)),
        ];
        for (name, behind, from) in cases {
            for (i, expected) in texts(name).iter().enumerate() {
                let hits = scenes[(i + behind) % 40].judge(&moved(&pictures[i], from));
                let found = [
                    hits.background,
                    hits.colour,
                    hits.shape,
                    hits.position,
                    hits.size,
                ];
                let found: String = found
                    .map(|hit| if hit { '1' } else { '0' })
                    .iter()
                    .collect();
                assert_eq!(&found, expected, "{name} {i}");
            }
        }
    }

    #[test]
    fn prompts_with_more_than_one_thing_on_a_plain_background_are_not_read() {
        for prompt in [
            "a lighthouse at dusk",
            "a red circle",
            "a striped red circle on a blue background",
            "a red circle on top of a blue square, white background",
            "a red circle on a blue to green gradient background",
            "a red circle, blue background, pixel style",
        ] {
            assert_eq!(Scene::read(prompt), None, "{prompt}");
        }
        let gray = Scene::read("A grey star on top on gray").unwrap();
        assert_eq!((gray.colour, gray.background), (10, 10));
        assert_eq!(gray.direction, [0.0, -1.0]);
    }
}
