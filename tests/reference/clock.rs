// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The clock of a daemon in this process: it goes as that of the machine, and a step puts it forward. Its
//! timers go off by that alone, so that nothing happens to a sequence because the machine was slow.
//!
//! As in `calls`, these are functions of the C library that this program has itself.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use libc::c_int;

use crate::calls::is_daemon;
use crate::guest::TIMEOUT;

/// What the clock was put forward by, in nanoseconds.
static FORWARD: AtomicU64 = AtomicU64::new(0);
/// The timers that are set, by descriptor.
static TIMERS: Mutex<BTreeMap<c_int, Timer>> = Mutex::new(BTreeMap::new());

/// A timer, in nanoseconds of [`FORWARD`].
#[derive(Clone, Copy)]
struct Timer {
    /// What it was set to.
    after: u64,
    due: u64,
    every: u64,
}

/// Puts the clock forward; the timers that are due go off.
pub(crate) fn advance(time: Duration) {
    let mut timers = TIMERS.lock().unwrap_or_else(PoisonError::into_inner);
    let by = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let now = FORWARD.fetch_add(by, Ordering::SeqCst) + by;
    timers.retain(|fd, timer| {
        if timer.due > now {
            return true;
        }
        set(*fd, 1);
        // How often it has gone off since; none if it goes off once.
        let Some(times) = (now - timer.due).checked_div(timer.every) else { return false };
        timer.due += (times + 1) * timer.every;
        true
    });
}

/// Whether a timer is set that goes off within `time`.
pub(crate) fn is_due(time: Duration) -> bool {
    let within = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let due = FORWARD.load(Ordering::SeqCst).saturating_add(within);
    let timers = TIMERS.lock().unwrap_or_else(PoisonError::into_inner);
    timers.values().any(|timer| timer.due <= due)
}

/// Waits until a timer is set that goes off after such a time.
pub(crate) fn wait_for_timer(times: RangeInclusive<Duration>) {
    let until = Instant::now() + TIMEOUT;
    let is_set = || {
        let timers = TIMERS.lock().unwrap_or_else(PoisonError::into_inner);
        timers.values().any(|timer| times.contains(&Duration::from_nanos(timer.after)))
    };
    while !is_set() {
        assert!(Instant::now() < until, "no timer is set that goes off after {times:?}");
        std::thread::yield_now();
    }
}

/// Waits until a timer goes off every `seconds`, or none goes off more than once if that is 0. The daemon sets it
/// after it has answered.
pub(crate) fn wait_for_interval(seconds: u32) {
    let every = u64::from(seconds) * 1_000_000_000;
    let until = Instant::now() + TIMEOUT;
    let present = || {
        let timers = TIMERS.lock().unwrap_or_else(PoisonError::into_inner);
        timers.values().map(|timer| timer.every).max().unwrap_or(0)
    };
    while present() != every {
        assert!(Instant::now() < until, "no timer goes off every {seconds} s");
        std::thread::yield_now();
    }
}

/// Forgets the timers of a daemon that has ended.
pub(crate) fn forget_timers() {
    TIMERS.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Seconds that it was put forward by so far.
pub(crate) fn forward() -> Duration {
    Duration::from_nanos(FORWARD.load(Ordering::SeqCst))
}

fn nanoseconds(time: libc::timespec) -> u64 {
    let [seconds, rest] = [time.tv_sec, time.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds * 1_000_000_000 + rest
}

/// Sets a timer of the machine; 0 for never.
fn set(fd: c_int, nanoseconds: i64) -> c_int {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let value = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds };
    let new = libc::itimerspec { it_interval: zero, it_value: value };
    let none = std::ptr::null_mut::<libc::itimerspec>();
    // SAFETY: reads the structure.
    let result = unsafe { libc::syscall(libc::SYS_timerfd_settime, fd, 0, &raw const new, none) };
    c_int::try_from(result).unwrap_or(-1)
}

/// # Safety
/// As timerfd_settime(2), of a relative time, without the old one.
#[unsafe(no_mangle)]
unsafe extern "C" fn timerfd_settime(
    fd: c_int,
    flags: c_int,
    new: *const libc::itimerspec,
    old: *mut libc::itimerspec,
) -> c_int {
    if !is_daemon() {
        // SAFETY: the arguments are those that the caller gave the C library.
        let result = unsafe { libc::syscall(libc::SYS_timerfd_settime, fd, flags, new, old) };
        return c_int::try_from(result).unwrap_or(-1);
    }
    // SAFETY: the caller's structure.
    let new = unsafe { *new };
    let (value, every) = (nanoseconds(new.it_value), nanoseconds(new.it_interval));
    let mut timers = TIMERS.lock().unwrap_or_else(PoisonError::into_inner);
    timers.remove(&fd);
    if value > 0 {
        let due = FORWARD.load(Ordering::SeqCst) + value;
        timers.insert(fd, Timer { after: value, due, every });
    }
    // One that went off before is set again, too.
    set(fd, 0)
}

/// # Safety
/// As clock_gettime(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, into: *mut libc::timespec) -> c_int {
    // SAFETY: the arguments are those that the caller gave the C library.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, into) };
    if result == 0 && clock == libc::CLOCK_MONOTONIC && is_daemon() {
        // SAFETY: the call has written it.
        let time = unsafe { &mut *into };
        let all = nanoseconds(*time) + FORWARD.load(Ordering::SeqCst);
        let part = |part: u64| i64::try_from(part).unwrap_or(i64::MAX);
        (time.tv_sec, time.tv_nsec) = (part(all / 1_000_000_000), part(all % 1_000_000_000));
    }
    c_int::try_from(result).unwrap_or(-1)
}
