//! Buffers that end where the address space becomes inaccessible.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// Element types that may be read from any bytes.
pub(crate) trait Plain: Copy {}

impl Plain for u8 {}
impl Plain for i8 {}
impl Plain for u32 {}
impl Plain for i32 {}
impl Plain for f32 {}

/// A slice whose last element touches an inaccessible page, so that reading or writing past it
/// kills the test.
///
/// It is an exact allocation under Miri, which checks bounds itself, and where there is no
/// `mprotect`.
pub(crate) struct Guarded<T> {
    memory: memory::Memory,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Plain> Guarded<T> {
    pub(crate) fn new(values: &[T]) -> Self {
        let bytes = size_of_val(values);
        let mut new = Self { memory: memory::Memory::new(bytes), len: values.len(), element: PhantomData };
        new.copy_from_slice(values);
        new
    }
}

impl<T: Plain> Deref for Guarded<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` points to `len` elements of initialised memory that `self` owns, aligned
        // because the block ends on a page and its size is a multiple of the element's; `Plain`
        // types have no invalid values.
        unsafe { std::slice::from_raw_parts(self.memory.start().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start().cast(), self.len) }
    }
}

#[cfg(all(unix, not(miri)))]
mod memory {
    use memmap2::MmapMut;

    pub(super) struct Memory {
        map: MmapMut,
        offset: usize,
    }

    impl Memory {
        pub(super) fn new(bytes: usize) -> Self {
            // SAFETY: reads a constant of the system.
            let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
            let usable = bytes.next_multiple_of(page);
            let mut map = MmapMut::map_anon(usable + page).unwrap();
            let guard = map.as_mut_ptr().wrapping_add(usable);
            // SAFETY: the last page of the mapping, which nothing refers to.
            let result = unsafe { libc::mprotect(guard.cast(), page, libc::PROT_NONE) };
            assert_eq!(result, 0, "mprotect: {}", std::io::Error::last_os_error());
            Self { map, offset: usable - bytes }
        }

        pub(super) fn start(&self) -> *mut u8 {
            self.map.as_ptr().wrapping_add(self.offset).cast_mut()
        }
    }
}

#[cfg(not(all(unix, not(miri))))]
mod memory {
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    pub(super) struct Memory {
        start: *mut u8,
        layout: Layout,
    }

    impl Memory {
        pub(super) fn new(bytes: usize) -> Self {
            let layout = Layout::from_size_align(bytes.max(1), 4).unwrap();
            // SAFETY: the layout is not empty.
            let start = unsafe { alloc_zeroed(layout) };
            assert!(!start.is_null());
            Self { start, layout }
        }

        pub(super) fn start(&self) -> *mut u8 {
            self.start
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with the same layout.
            unsafe { dealloc(self.start, self.layout) };
        }
    }
}

#[test]
fn guarded_slices_hold_their_values() {
    for n in [0, 1, 5, 64, 1023, 1024, 1025] {
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        assert_eq!(*Guarded::new(&values), values[..]);
    }
}
