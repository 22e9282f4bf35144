// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that is taken away while it is mapped.
//!
//! A frontend may truncate a memory file at any time, and a file system may run out of space for a
//! page that was a hole. The next access through the mapping then raises `SIGBUS`, in whichever
//! thread made it. There is no way on: the ring or the memory of the guest is gone.

use std::io;

use libc::{c_int, c_void, siginfo_t};

use crate::cli::exit::DaemonExit;
use crate::daemon::emergency;

const LINE: &str = "vhost-device-balloon: SIGBUS: guest memory is gone. Its file was truncated \
    after it was mapped, or its file system or the pool of huge pages is full; exiting with status \
    3\n";

/// Has `SIGBUS` end the process with a line on standard error, its sockets removed and
/// [`DaemonExit::MemoryLost`] as its status.
///
/// # Errors
/// What `sigaction` says.
pub(crate) fn install() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid value of that plain C structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = memory_lost;
    action.sa_sigaction = handler as libc::sighandler_t;
    // The standard library gives each of its threads a stack for signals.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler makes async-signal-safe calls only and does not return.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn memory_lost(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    emergency::exit(LINE, DaemonExit::MemoryLost)
}
