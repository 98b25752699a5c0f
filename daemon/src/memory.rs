//! How much memory the process keeps.

/// `DEFAULT_MMAP_THRESHOLD` of glibc's malloc/malloc.c, in bytes.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 128 * 1024;

/// Has glibc give what is large back to the kernel as soon as it is freed, for good. Left to itself it takes
/// each large vector for a reason to keep the next one (mallopt(3), `M_MMAP_THRESHOLD`), and the first look
/// at 10,000 peers needs megabytes for a moment.
pub(crate) fn keep_little() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number in the allocator, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Gives back to the kernel what is free between what is used. Costs milliseconds where there is much.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it returns free memory of the allocator's, under the allocator's own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}
