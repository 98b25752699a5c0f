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
