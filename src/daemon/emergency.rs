// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The way out when nothing else can be relied on: from a signal handler, or past a thread that is
//! stuck.
//!
//! Only async-signal-safe calls are made: no lock, no allocation, no logger.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::c_int;
use log::Level;

use crate::cli::exit::DaemonExit;
use crate::daemon::made::RawFile;
use crate::logging::journal::mark;

/// The most socket files at a time; the daemon has two.
const MOST_FILES: usize = 16;

/// The socket files to remove, each leaked: a handler may be reading it at any time.
static FILES: [AtomicPtr<RawFile>; MOST_FILES] =
    [const { AtomicPtr::new(ptr::null_mut()) }; MOST_FILES];

/// Keeps a socket file on the list of those that [`exit`] removes, until it is dropped.
#[derive(Debug)]
pub(crate) struct Registration(Option<usize>);

/// Has [`exit`] remove the file, if it is then still the same one.
///
/// Costs some bytes that are never freed. With too many files the last ones stay behind.
pub(crate) fn remove_on_exit(file: RawFile) -> Registration {
    let file = Box::into_raw(Box::new(file));
    let free = FILES.iter().position(|slot| {
        slot.compare_exchange(ptr::null_mut(), file, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    });
    Registration(free)
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(slot) = self.0.and_then(|slot| FILES.get(slot)) {
            slot.store(ptr::null_mut(), Ordering::Release);
        }
    }
}

/// Ends the process at once with `status`, from any thread or signal handler: writes `line`, which
/// ends with a line feed, to standard error if that takes it, and removes the registered sockets.
pub(crate) fn exit(line: &'static str, status: DaemonExit) -> ! {
    let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut stderr, 1, 0) } == 1;
    if ready && stderr.revents & libc::POLLOUT != 0 {
        // The journal parts its stream by lines, not by calls.
        for text in [mark(Level::Error), line].into_iter().filter(|text| !text.is_empty()) {
            // SAFETY: a static string of that length. A pipe that is ready takes it without blocking.
            unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
        }
    }
    for slot in &FILES {
        // SAFETY: null, or a pointer from `Box::into_raw` that is never freed.
        if let Some(file) = unsafe { slot.load(Ordering::Acquire).as_ref() } {
            file.remove();
        }
    }
    // SAFETY: ends the process; no destructor or exit handler runs.
    unsafe { libc::_exit(status as c_int) }
}
