//! Convolution as a product of matrices: a row for each pixel of the output, the channels under all taps of the kernel side by
//! side (Chellapilla et al. 2006), gathered for some pixels at a time.

use super::{Conv, Pictures, spread};
use crate::factors::Single;
use crate::isa::Task;
use crate::pool::for_each_task;
use crate::product::{Product, panel_columns};
use crate::rows::{CHUNK, Rows};
use crate::simd::Simd;
use crate::{OutOfMemory, Run};

/// Pixels whose channels are gathered at a time.
const PIXELS: usize = 48;

/// Terms of a sum between two visits of its result.
const DEPTH: usize = 320;

/// The convolution of all pictures.
pub(super) struct Direct<'a, 'r> {
    pub run: &'a mut Run<'r>,
    pub pictures: Pictures<'a>,
}

impl Task for Direct<'_, '_> {
    type Output = Result<(), OutOfMemory>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let Self { run, pictures } = self;
        let layer = pictures.layer;
        let workers = run.pool.workers();
        let columns = panel_columns::<S>();
        let panels = layer.outputs.div_ceil(columns);
        let terms = layer.inputs * layer.kernel * layer.kernel;
        let pixels = pictures.many * pictures.pixels();
        // Where there are fewer blocks of pixels than workers, panels are split as well.
        let pixel_blocks = pixels.div_ceil(PIXELS).next_multiple_of(workers);
        let most = pixels.div_ceil(pixel_blocks).max(PIXELS / 4);
        let pixel_blocks = pixels.div_ceil(most);
        let panel_blocks = (2 * workers).div_ceil(pixel_blocks).min(panels);
        let panel_blocks = if pixel_blocks < workers {
            panel_blocks
        } else {
            1
        };
        let most_panels = panels.div_ceil(panel_blocks);

        let gathered = most * spread(terms);
        let zeros = layer.inputs.next_multiple_of(16);
        let (shared, own) = run.scratch.take(
            zeros + panels * terms * columns,
            gathered + most * most_panels * columns,
            workers,
        )?;
        // SAFETY: it is the start of the memory, and nobody else uses it yet.
        unsafe { shared.at(0).write_bytes(0, zeros) };
        for_each_task(run.pool, panels, &|panel, _| {
            let task = Panel {
                layer,
                number: panel,
                to: shared.at(zeros + panel * terms * columns),
            };
            // SAFETY: tasks are different panels; the level was chosen by `dispatch`.
            unsafe { S::vectorize(task) };
        });
        for_each_task(run.pool, pixel_blocks * panel_blocks, &|task, worker| {
            let first = task / panel_blocks * most;
            let first_panel = task % panel_blocks * most_panels;
            let block = Block {
                pictures: &pictures,
                first,
                last: pixels.min(first + most),
                first_panel,
                last_panel: panels.min(first_panel + most_panels),
                zeros: shared.at(0),
                panels: shared.at(zeros),
                rows: own[worker].at(0),
                sums: own[worker].at(gathered),
            };
            // SAFETY: tasks are different blocks of the output; scratch is the worker's own.
            unsafe { S::vectorize(block) };
        });
        Ok(())
    }
}

/// Widens the weights of a panel: `[tap][input][2 LANES]`.
struct Panel<'a> {
    layer: &'a Conv<'a>,
    number: usize,
    to: *mut f32,
}

impl Task for Panel<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { layer, number, to } = self;
        let &Conv {
            inputs, outputs, ..
        } = layer;
        let taps = layer.kernel * layer.kernel;
        let columns = panel_columns::<S>();
        let mut turned = [0.0f32; CHUNK * 16];
        for half in 0..2 {
            let first = number * columns + half * S::LANES;
            let rows = Rows::new(layer.weight, inputs * taps, outputs, first, 0);
            for start in (0..inputs * taps).step_by(CHUNK) {
                let n = CHUNK.min(inputs * taps - start);
                unsafe {
                    rows.turn::<S>(start, n, turned.as_mut_ptr(), S::LANES);
                    for i in 0..n {
                        let (input, tap) = ((start + i) / taps, (start + i) % taps);
                        let to = to.add((tap * inputs + input) * columns + half * S::LANES);
                        S::store(to, S::load(turned.as_ptr().add(i * S::LANES)));
                    }
                }
            }
        }
    }
}

/// Some pixels of the output, and some panels of their channels.
struct Block<'a> {
    pictures: &'a Pictures<'a>,
    first: usize,
    last: usize,
    first_panel: usize,
    last_panel: usize,
    zeros: *const f32,
    panels: *const f32,
    rows: *mut f32,
    sums: *mut f32,
}

impl Task for Block<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self {
            pictures,
            first,
            last,
            first_panel,
            last_panel,
            panels,
            rows,
            sums,
            ..
        } = self;
        if first >= last || first_panel >= last_panel {
            return;
        }
        let layer = pictures.layer;
        let terms = layer.inputs * layer.kernel * layer.kernel;
        let depth = terms.div_ceil(terms.div_ceil(DEPTH));
        let columns = panel_columns::<S>();
        let width = (last_panel - first_panel) * columns;
        unsafe {
            for pixel in first..last {
                self.gather(pixel, rows.add((pixel - first) * spread(terms)));
            }
            for start in (0..terms).step_by(depth) {
                let k = depth.min(terms - start);
                for panel in first_panel..last_panel {
                    let b = panels.add((panel * terms + start) * columns);
                    Product {
                        rows: last - first,
                        k,
                        a: rows.add(start),
                        a_stride: spread(terms),
                        b,
                        c: sums.add((panel - first_panel) * columns),
                        c_stride: width,
                        accumulate: start > 0,
                        next: b.wrapping_add(terms * columns),
                    }
                    .run::<S, Single>(2);
                }
            }
            let channels = first_panel * columns..layer.outputs.min(last_panel * columns);
            for pixel in first..last {
                let (picture, place) = (pixel / pictures.pixels(), pixel % pictures.pixels());
                let sums = sums.add((pixel - first) * width);
                for channel in channels.clone().step_by(S::LANES) {
                    let n = S::LANES.min(channels.end - channel);
                    let sum = S::load(sums.add(channel - channels.start));
                    let sum = S::add(sum, pictures.offset::<S>(picture, channel, n));
                    pictures.finish::<S>(picture, place, channel, n, sum);
                }
            }
        }
    }
}

impl Block<'_> {
    /// The channels under the kernel at a pixel of the output: `[tap][input]`.
    #[inline(always)]
    unsafe fn gather(&self, pixel: usize, mut to: *mut f32) {
        let pictures = self.pictures;
        let layer = pictures.layer;
        let (line, x) = (pixel / pictures.size.1, pixel % pictures.size.1);
        let (picture, y) = (line / pictures.size.0, line % pictures.size.0);
        for i in 0..layer.kernel {
            let row = pictures.row(y * layer.stride + i);
            for j in 0..layer.kernel {
                let column = pictures.column(x * layer.stride + j);
                let from = pictures.pixel(picture, row, column, self.zeros);
                unsafe {
                    from.copy_to_nonoverlapping(to, layer.inputs);
                    to = to.add(layer.inputs);
                }
            }
        }
    }
}
