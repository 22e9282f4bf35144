// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The effect of each signal.
//!
//! A signal that no code handles ends a process silently, and its sockets stay behind.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::c_int;
use vmm_sys_util::signal::create_sigset;

/// Interrupts a system call of the thread it is sent to, and does nothing else.
pub(crate) const NUDGE: c_int = libc::SIGURG;

/// The meaning of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Shut down; the signal's name.
    End(&'static str),
    /// Nothing: the terminal that the daemon was started from is gone.
    TerminalGone,
    /// Log the counters.
    Report,
}

const HANDLED: [(c_int, Meaning); 5] = [
    (libc::SIGTERM, Meaning::End("SIGTERM")),
    (libc::SIGINT, Meaning::End("SIGINT")),
    (libc::SIGQUIT, Meaning::End("SIGQUIT")),
    (libc::SIGHUP, Meaning::TerminalGone),
    (libc::SIGUSR1, Meaning::Report),
];

/// Signals that would end the process, and that nothing here asks for. `SIGXFSZ` comes with an error
/// of the call that caused it. Not among them: those that tell of a fault, and those that stop it.
const IGNORED: [c_int; 10] = [
    libc::SIGPIPE,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGPOLL,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];

/// Sets what each signal does, and returns a descriptor to [`receive`] from. Must be called before
/// any thread is started: the signals that are received are blocked in the threads that come.
///
/// A shell starts its background jobs with SIGINT ignored. An ignored signal is never delivered, not
/// even to a descriptor, so those that are received are set back to their defaults.
///
/// # Errors
/// What the kernel says.
pub(crate) fn set_up() -> io::Result<OwnedFd> {
    let handled = HANDLED.map(|(signal, _)| signal);
    for signal in handled {
        set(signal, libc::SIG_DFL)?;
    }
    for signal in IGNORED.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        set(signal, libc::SIG_IGN)?;
    }
    handle_nudges()?;
    let set = create_sigset(&handled).map_err(io::Error::from)?;
    // SAFETY: `set` is an initialised signal set, and the old mask is not asked for.
    let failed =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    // SAFETY: -1 asks for a new descriptor, `set` is an initialised signal set.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set(signal: c_int, disposition: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: sets the default or ignores the signal; no handler is involved.
    match unsafe { libc::signal(signal, disposition) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Gives [`NUDGE`] its effect: the calls that it interrupts are not restarted.
///
/// # Errors
/// What `sigaction` says.
pub(crate) fn handle_nudges() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid value of that plain C structure, without SA_RESTART.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int) = nothing;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_ONSTACK;
    // SAFETY: the handler does nothing.
    if unsafe { libc::sigaction(NUDGE, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn nothing(_signal: c_int) {}

/// Sends [`NUDGE`] to a thread of this process. One that is gone is no error.
pub(crate) fn nudge(thread: libc::pid_t) {
    // SAFETY: tgkill has no preconditions, and reaches threads of this process only.
    unsafe {
        libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, NUDGE);
    }
}

/// Takes one signal off the descriptor that [`set_up`] has returned, if there is one.
///
/// # Errors
/// What the kernel says.
pub(crate) fn receive(signals: &OwnedFd) -> io::Result<Option<Meaning>> {
    // SAFETY: an all-zero signalfd_siginfo is a valid value of that plain C structure.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: `info` is writable memory of `size` bytes.
    if unsafe { libc::read(signals.as_raw_fd(), (&raw mut info).cast(), size) } < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        };
    }
    let of_meaning =
        HANDLED.iter().find(|(signal, _)| u32::try_from(*signal) == Ok(info.ssi_signo));
    Ok(of_meaning.map(|(_, meaning)| *meaning))
}
