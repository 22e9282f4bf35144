// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's program with an allocator of which one allocation fails: that with the number in the file which
//! the environment names ([`FILE`]). The first daemon takes the file, so that the next one has all its memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, fs};

/// Names the file.
const FILE: &str = "STARVED_BY";
/// What is logged when the allocation fails.
const SAID: &str = "this allocation fails\n";

/// Allocations until one fails; more than ever come if none does.
static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

struct Starved;

/// Says that an allocation fails, if it is its turn.
fn fails() -> bool {
    let fails = LEFT.fetch_sub(1, Ordering::Relaxed) == 1;
    if fails {
        // SAFETY: writes what is there, and allocates nothing.
        unsafe { libc::write(libc::STDERR_FILENO, SAID.as_ptr().cast(), SAID.len()) };
    }
    fails
}

// SAFETY: memory is that of the system's allocator, or none.
unsafe impl GlobalAlloc for Starved {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the contract, which is the same.
        if fails() { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        if fails() { std::ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        if fails() { std::ptr::null_mut() } else { unsafe { System.realloc(memory, layout, size) } }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Starved = Starved;

fn main() -> ExitCode {
    let is_daemon = env::args_os().all(|arg| arg != "--keeper");
    if let Some(file) = env::var_os(FILE).filter(|_| is_daemon)
        && let Ok(number) = fs::read_to_string(&file)
        && fs::remove_file(&file).is_ok()
    {
        LEFT.store(number.parse().unwrap_or(u64::MAX), Ordering::Relaxed);
    }
    vhost_device_balloon::program::main()
}
