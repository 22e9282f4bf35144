// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The logger thread, and the way of records there.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::fmt::Write as _;
use std::io;
use std::panic::{self, PanicHookInfo};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use log::{Level, LevelFilter, Log, Metadata};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::stderr;

use super::journal::{self, mark};
use super::sites::Sites;
use super::{Queue, Record};

/// How long the end of the process waits for the log to be written.
const FLUSH: Duration = Duration::from_millis(200);

/// Logs at a rate that the guest chooses; what matters of it is logged by this crate as well.
const NOT_LOGGED: &str = "virtio_queue";

/// The logger thread writes and waits, and formats nothing.
const STACK_BYTES: usize = 128 << 10;

/// The log of this process. Waits a moment for its last lines when it is dropped.
#[derive(Debug)]
pub(crate) struct Logger {
    queue: Arc<Queue>,
    sites: Arc<Sites>,
    started: Cell<bool>,
}

impl Logger {
    /// Takes all records of at least this level from now on, and panics, too. They wait for
    /// [`Logger::start`].
    ///
    /// # Errors
    /// Where there is a logger.
    pub(crate) fn new(level: LevelFilter) -> io::Result<Self> {
        journal::detect();
        let queue = Arc::new(Queue::default());
        let sites = Arc::new(Sites::default());
        let limited = Limited { queue: Arc::clone(&queue), sites: Arc::clone(&sites) };
        log::set_boxed_logger(Box::new(limited)).map_err(io::Error::other)?;
        log::set_max_level(level);
        let hooked = Arc::clone(&queue);
        panic::set_hook(Box::new(move |panic| report(panic, &hooked)));
        Ok(Self { queue, sites, started: Cell::new(false) })
    }

    /// Has them written to standard error, by a thread that takes no signals.
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub(crate) fn start(&self) -> io::Result<()> {
        if self.started.replace(true) {
            return Ok(());
        }
        let served = Arc::clone(&self.queue);
        without_signals(|| {
            thread::Builder::new()
                .name("logger".to_owned())
                .stack_size(STACK_BYTES)
                .spawn(move || served.serve(write))
        })??;
        Ok(())
    }

    /// Writes the line of a failure as it is, whatever the level in force.
    pub(crate) fn say(&self, text: &str) {
        say(&self.queue, Level::Error, text);
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        // The daemon may have failed before that.
        let _ = self.start();
        for ((file, line), count) in self.sites.take_left_out() {
            let text = format!("{count} lines of {file}:{line} were left out");
            say(&self.queue, Level::Warn, &text);
        }
        self.queue.flush(FLUSH);
    }
}

fn say(queue: &Queue, level: Level, text: &str) {
    let mut line = Record::default();
    // Never fails.
    let _ = write!(line, "{}{text}", mark(level));
    queue.push(&line.into_line());
}

/// The standard library's hook writes to standard error itself: a thread that panics would hang
/// there instead of ending the process.
fn report(panic: &PanicHookInfo<'_>, queue: &Queue) {
    let thread = thread::current();
    let thread = thread.name().unwrap_or("<unnamed>");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let what = panic.payload();
    let what = what.downcast_ref().copied().or(what.downcast_ref().map(String::as_str));
    let what = what.unwrap_or("no message");
    say(queue, Level::Error, &format!("thread '{thread}' panicked at {place}: {what}"));
    // Whatever becomes of the backtrace.
    queue.flush(FLUSH);
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        backtrace.to_string().lines().for_each(|line| say(queue, Level::Error, line));
    }
    queue.flush(FLUSH);
}

/// Passes on what each place that logs may say, with a `flush` that waits a moment for the log, before a
/// thread ends the process.
struct Limited {
    queue: Arc<Queue>,
    sites: Arc<Sites>,
}

impl Log for Limited {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What passes of the rest is for `log::set_max_level` to say, which can change at any time.
        metadata.level() <= Level::Debug && !metadata.target().starts_with(NOT_LOGGED)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (file, line) = (record.file_static().unwrap_or("?"), record.line().unwrap_or(0));
        let (passes, left_out) = self.sites.admit((file, line), record.level(), Instant::now());
        if left_out > 0 {
            let text = format!("{left_out} lines of {file}:{line} were left out");
            say(&self.queue, Level::Warn, &text);
        }
        if passes {
            self.queue.push(&formatted(record));
        }
    }

    fn flush(&self) {
        self.queue.flush(FLUSH);
    }
}

/// The line of a record. The journal has the time itself.
fn formatted(record: &log::Record<'_>) -> String {
    let mut line = Record::default();
    let (level, target, args) = (record.level(), record.target(), record.args());
    // Never fails.
    let _ = if journal::is_journal() {
        write!(line, "{}[{level:<5} {target}] {args}", mark(level))
    } else {
        let time = humantime::format_rfc3339_millis(SystemTime::now().max(SystemTime::UNIX_EPOCH));
        write!(line, "[{time} {level:<5} {target}] {args}")
    };
    line.into_line()
}

/// Writes a line to standard error, for as long as that takes.
///
/// Past the standard library, whose lock on it would be held meanwhile. It stays blocking, or not,
/// as it was: it is shared with other processes.
fn write(line: &str) -> io::Result<()> {
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(stderr(), rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => rest = rest.get(bytes..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let room = &mut [PollFd::from_borrowed_fd(stderr(), PollFlags::OUT)];
                match poll(room, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Calls `start` with all signals blocked, which a thread that it starts inherits.
fn without_signals<T>(start: impl FnOnce() -> T) -> io::Result<T> {
    // SAFETY: an all-zero sigset_t is a valid value of that plain C structure.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: fills in a signal set that is ours.
    unsafe { libc::sigfillset(&raw mut all) };
    let set = |to: *const libc::sigset_t, old: *mut libc::sigset_t| {
        // SAFETY: `to` is an initialised signal set, `old` null or a signal set of ours.
        match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, to, old) } {
            0 => Ok(()),
            failed => Err(io::Error::from_raw_os_error(failed)),
        }
    };
    set(&raw const all, &raw mut before)?;
    let started = start();
    set(&raw const before, std::ptr::null_mut())?;
    Ok(started)
}
