//! Memory that kernels use while they run.

use std::error::Error;
use std::fmt;
use std::marker::PhantomData;
use std::slice;

use memmap2::MmapMut;

/// Buffers that grow to what the largest layer needs and are used again by the next one: one that all workers share and one
/// of each worker's own.
#[derive(Debug, Default)]
pub struct Scratch {
    shared: Buffer,
    workers: Vec<Buffer>,
}

impl Scratch {
    /// No memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that are held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let own: usize = self.workers.iter().map(Buffer::len).sum();
        self.shared.len() + own
    }

    /// `shared` numbers for all workers and `own` numbers for each of `workers`; what they are is left from before.
    pub(crate) fn take(
        &mut self,
        shared: usize,
        own: usize,
        workers: usize,
    ) -> Result<(Shared<'_, f32>, Vec<Shared<'_, f32>>), OutOfMemory> {
        if self.workers.len() < workers {
            self.workers.resize_with(workers, Buffer::default);
        }
        let all = self.shared.floats(shared)?;
        let each = self.workers[..workers].iter_mut();
        let each = each.map(|buffer| buffer.floats(own));
        Ok((all, each.collect::<Result<_, _>>()?))
    }
}

/// There is no memory for what a layer computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// How many bytes it needs.
    pub bytes: usize,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "out of memory: a layer needs {} bytes to compute with",
            self.bytes
        )
    }
}

impl Error for OutOfMemory {}

/// Pages of memory, large ones where the system has them.
#[derive(Debug, Default)]
struct Buffer(Option<MmapMut>);

/// Large pages of x86-64.
const LARGE_PAGE: usize = 2 << 20;

impl Buffer {
    fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |map| map.len())
    }

    fn floats(&mut self, count: usize) -> Result<Shared<'_, f32>, OutOfMemory> {
        let bytes = size_of::<f32>() * count;
        if bytes > self.len() {
            // The old pages go first.
            self.0 = None;
            let length = bytes.next_multiple_of(LARGE_PAGE);
            let map = MmapMut::map_anon(length).map_err(|_| OutOfMemory { bytes: length })?;
            #[cfg(all(target_os = "linux", not(miri)))]
            drop(map.advise(memmap2::Advice::HugePage));
            self.0 = Some(map);
        }
        Ok(match &mut self.0 {
            #[allow(clippy::cast_ptr_alignment)]
            // SAFETY: pages are aligned for f32, and any bits are numbers.
            Some(map) => Shared::new(unsafe {
                slice::from_raw_parts_mut(map.as_mut_ptr().cast::<f32>(), count)
            }),
            None => Shared::new(&mut []),
        })
    }
}

/// A slice that several threads write at the same time, each its own part.
///
/// It hands out raw pointers only; whoever writes through them promises that no two threads touch the same element.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a pointer to data that may be sent and is borrowed for 'a; uses are unsafe and promise to be disjoint.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            of: PhantomData,
        }
    }

    /// Pointer to element `i`, which may be the end.
    #[inline(always)]
    pub(crate) fn at(&self, i: usize) -> *mut T {
        debug_assert!(i <= self.len, "{i} of {}", self.len);
        // SAFETY: within the slice, or its end.
        unsafe { self.start.add(i) }
    }
}
