//! The program's allocator, which counts inside of [`counted`]. Used by `operations.rs`.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use dlmalloc::GlobalDlmalloc;

/// What was counted so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    /// Calls that gave memory; one that made a block larger or smaller is one.
    pub(crate) allocations: usize,
    /// Bytes that these asked for; of a block that grew, what it grew by.
    pub(crate) bytes: usize,
    /// Most bytes in use at once beyond those that were at the beginning.
    pub(crate) peak: usize,
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
/// Bytes in use; wraps below zero when more is freed than was allocated meanwhile.
static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Does the work, and counts. `loden-counts` has callgrind collect inside of functions of this
/// name, so there is one call of it for each piece of work, which is not inlined.
#[inline(never)]
pub(crate) fn counted<T>(work: impl FnOnce() -> T) -> T {
    IN_USE.store(0, Relaxed);
    COUNTING.store(true, Relaxed);
    let result = work();
    COUNTING.store(false, Relaxed);
    result
}

/// Everything that was counted.
pub(crate) fn counts() -> Counts {
    Counts { allocations: ALLOCATIONS.load(Relaxed), bytes: BYTES.load(Relaxed), peak: PEAK.load(Relaxed) }
}

fn take(allocations: usize, bytes: usize) {
    ALLOCATIONS.fetch_add(allocations, Relaxed);
    BYTES.fetch_add(bytes, Relaxed);
    let in_use = IN_USE.fetch_add(bytes, Relaxed).wrapping_add(bytes);
    if in_use.cast_signed() > PEAK.load(Relaxed).cast_signed() {
        PEAK.store(in_use, Relaxed);
    }
}

// SAFETY: all calls are handed on as they are, and counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTING.load(Relaxed) {
            take(1, layout.size());
        }
        // SAFETY: the caller's promises are those that this call asks for.
        unsafe { GlobalDlmalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if COUNTING.load(Relaxed) {
            take(1, layout.size());
        }
        // SAFETY: as above.
        unsafe { GlobalDlmalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if COUNTING.load(Relaxed) {
            IN_USE.fetch_sub(layout.size(), Relaxed);
        }
        // SAFETY: as above.
        unsafe { GlobalDlmalloc.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if COUNTING.load(Relaxed) {
            IN_USE.fetch_sub(layout.size().saturating_sub(size), Relaxed);
            take(1, size.saturating_sub(layout.size()));
        }
        // SAFETY: as above.
        unsafe { GlobalDlmalloc.realloc(block, layout, size) }
    }
}
