//! Running out of memory ends with an exit code that PostgreSQL reads rightly, not with the signal of an abort.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI32, Ordering};

/// The system's allocator, except that a failed allocation ends the process with a chosen code.
#[derive(Debug)]
pub struct ExitWhenExhausted {
    code: AtomicI32,
}

impl ExitWhenExhausted {
    /// Until told otherwise, ends with `code`.
    pub const fn new(code: i32) -> Self {
        Self { code: AtomicI32::new(code) }
    }

    /// From now on ends with `code`.
    pub fn set_code(&self, code: i32) {
        self.code.store(code, Ordering::Relaxed);
    }

    fn check(&self, pointer: *mut u8, layout: Layout) -> *mut u8 {
        // Only what could not possibly be met is left to the caller.
        if pointer.is_null() && layout.size() < isize::MAX as usize / 2 {
            let _ = rustix::io::write(rustix::stdio::stderr(), b"ERROR: out of memory\n");
            std::process::exit(self.code.load(Ordering::Relaxed));
        }
        pointer
    }
}

#[expect(unsafe_code, reason = "the allocator's trait is unsafe; every call is handed on to the system's unchanged")]
// SAFETY: the contract of `GlobalAlloc` is `System`'s, which does all the work; a null pointer is the only result that
// is looked at, and then the process ends.
unsafe impl GlobalAlloc for ExitWhenExhausted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps `System`'s contract, see above.
        self.check(unsafe { System.alloc(layout) }, layout)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        self.check(unsafe { System.alloc_zeroed(layout) }, layout)
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        self.check(unsafe { System.realloc(pointer, layout, size) }, layout)
    }
}
