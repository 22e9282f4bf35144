// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! System calls that fail on purpose, in a daemon in this process.
//!
//! A function of the C library that this program has itself is the one that everything in the program calls.
//! These make the system call, or do what the step says in place of it. They concern the threads of a daemon,
//! whose first one [marks](become_daemon) itself: its timer slack, which all others inherit. Only a VMM that
//! sends in pieces is another thread.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use libc::{c_int, c_void, off64_t, size_t, ssize_t};

/// Nanoseconds that no thread has by chance.
const MARK: libc::c_ulong = 50_321;
/// Bytes that a call moves at the most where calls are short.
const SHORT: usize = 7;
/// Reads and writes up to this size are of events, which are whole or not at all.
const EVENT: usize = 8;

/// Which of the discarding calls of a chain are refused.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Calls {
    All,
    /// The one with this number.
    One(usize),
}

impl Calls {
    pub(crate) fn hit(self, call: usize) -> bool {
        match self {
            Self::All => true,
            Self::One(number) => number == call,
        }
    }
}

/// What the kernel says to discarding calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal {
    /// `EINTR` is said once for each call.
    pub(crate) errno: i32,
    pub(crate) calls: Calls,
}

/// How other calls end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Weather {
    Fair,
    /// Reads and writes of the daemon move some bytes at a time.
    Short,
    /// Waits of the daemon are interrupted, and sockets say `EINTR` and `EAGAIN` now and then.
    Interrupted,
    /// The VMM's messages come in pieces.
    Pieces,
}

impl Weather {
    pub(crate) const ALL: [Self; 4] = [Self::Fair, Self::Short, Self::Interrupted, Self::Pieces];

    fn holds(self) -> bool {
        WEATHER.load(Ordering::Relaxed) == self as u8
    }
}

/// The faults, in the order of [`COUNTS`].
#[derive(Clone, Copy)]
enum Fault {
    Refused,
    PunchInterrupted,
    NoDescriptor,
    Short,
    Interrupted,
    TryAgain,
    Piece,
}

static COUNTS: [(&str, AtomicU64); 7] = [
    ("punch_refused", AtomicU64::new(0)),
    ("punch_interrupted", AtomicU64::new(0)),
    ("no_descriptor", AtomicU64::new(0)),
    ("short_read_or_write", AtomicU64::new(0)),
    ("interrupted", AtomicU64::new(0)),
    ("try_again", AtomicU64::new(0)),
    ("message_in_pieces", AtomicU64::new(0)),
];
static WEATHER: AtomicU8 = AtomicU8::new(0);
/// 0 for none.
static ERRNO: AtomicI32 = AtomicI32::new(0);
/// The number of the call, or more than there are for all.
static REFUSED: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static NO_DESCRIPTOR: AtomicBool = AtomicBool::new(false);
/// Counts what may be interrupted.
static TURN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static OF_DAEMON: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Makes this thread the first one of a daemon.
pub(crate) fn become_daemon() {
    // SAFETY: sets a number of this thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, MARK) };
    OF_DAEMON.set(Some(true));
}

/// Whether this is a thread of a daemon.
pub(crate) fn is_daemon() -> bool {
    OF_DAEMON.get().unwrap_or_else(|| {
        // SAFETY: reads a number of this thread.
        let slack = unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) };
        let marked = libc::c_ulong::try_from(slack).is_ok_and(|slack| slack == MARK);
        OF_DAEMON.set(Some(marked));
        marked
    })
}

/// The faults so far, by name.
pub(crate) fn counts() -> impl Iterator<Item = (&'static str, u64)> {
    COUNTS.iter().map(|(name, count)| (*name, count.load(Ordering::Relaxed)))
}

/// Lets calls end so from now on.
pub(crate) fn set_weather(weather: Weather) {
    WEATHER.store(weather as u8, Ordering::Relaxed);
}

/// Has discarding calls refused as long as it lives.
pub(crate) struct Refused;

impl Refused {
    pub(crate) fn new(refusal: Refusal) -> Self {
        let number = match refusal.calls {
            Calls::All => usize::MAX,
            Calls::One(number) => number,
        };
        REFUSED.store(number, Ordering::SeqCst);
        CALLS.store(0, Ordering::SeqCst);
        INTERRUPTED.store(false, Ordering::SeqCst);
        ERRNO.store(refusal.errno, Ordering::SeqCst);
        Self
    }
}

impl Drop for Refused {
    fn drop(&mut self) {
        ERRNO.store(0, Ordering::SeqCst);
    }
}

/// The next client of the daemon comes when it has no descriptor left.
pub(crate) fn refuse_descriptor() {
    NO_DESCRIPTOR.store(true, Ordering::SeqCst);
}

/// Waits until one has.
pub(crate) fn wait_for_no_descriptor() {
    while NO_DESCRIPTOR.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
}

fn count(fault: Fault) {
    COUNTS[fault as usize].1.fetch_add(1, Ordering::Relaxed);
}

fn fails(fault: Fault, errno: c_int) -> bool {
    count(fault);
    // SAFETY: the place of this thread's error number.
    unsafe { *libc::__errno_location() = errno };
    true
}

/// Whether a discarding call is refused.
fn refuses() -> bool {
    let errno = ERRNO.load(Ordering::SeqCst);
    if errno == 0 || !is_daemon() {
        return false;
    }
    let number = REFUSED.load(Ordering::SeqCst);
    let call = CALLS.load(Ordering::SeqCst);
    let hit = number == usize::MAX || number == call;
    if errno == libc::EINTR && hit && !INTERRUPTED.swap(true, Ordering::SeqCst) {
        return fails(Fault::PunchInterrupted, errno);
    }
    INTERRUPTED.store(false, Ordering::SeqCst);
    CALLS.store(call + 1, Ordering::SeqCst);
    hit && errno != libc::EINTR && fails(Fault::Refused, errno)
}

/// Whether it is this call's turn to be interrupted, one of so many.
fn turn(of: usize) -> bool {
    Weather::Interrupted.holds()
        && is_daemon()
        && TURN.fetch_add(1, Ordering::Relaxed).is_multiple_of(of)
}

fn is_socket(fd: c_int) -> bool {
    // SAFETY: an all-zero stat is a valid value of that plain C structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: writes the structure.
    unsafe { libc::fstat(fd, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFSOCK }
}

/// How many bytes a call for so many moves; none if it fails.
fn moved(fd: c_int, bytes: size_t) -> Option<size_t> {
    if bytes <= EVENT {
        return Some(bytes);
    }
    if Weather::Short.holds() && is_daemon() {
        count(Fault::Short);
        return Some(SHORT);
    }
    if turn(3) && is_socket(fd) {
        let again = TURN.load(Ordering::Relaxed).is_multiple_of(2);
        let (fault, errno) = match again {
            true => (Fault::TryAgain, libc::EAGAIN),
            false => (Fault::Interrupted, libc::EINTR),
        };
        fails(fault, errno);
        return None;
    }
    Some(bytes)
}

/// Makes a system call as the C library does.
macro_rules! system_call {
    ($number:ident, $($argument:expr),+) => {
        // SAFETY: the arguments are those that the caller gave the C library.
        unsafe { libc::syscall(libc::$number, $($argument),+) }
    };
}

/// # Safety
/// As fallocate(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn fallocate64(fd: c_int, mode: c_int, offset: off64_t, len: off64_t) -> c_int {
    if refuses() {
        return -1;
    }
    int(system_call!(SYS_fallocate, fd, mode, offset, len))
}

/// # Safety
/// As read(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn read(fd: c_int, into: *mut c_void, bytes: size_t) -> ssize_t {
    match moved(fd, bytes) {
        Some(bytes) => size(system_call!(SYS_read, fd, into, bytes)),
        None => -1,
    }
}

/// # Safety
/// As write(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, from: *const c_void, bytes: size_t) -> ssize_t {
    match moved(fd, bytes) {
        Some(bytes) => size(system_call!(SYS_write, fd, from, bytes)),
        None => -1,
    }
}

/// # Safety
/// As recv(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn recv(
    socket: c_int,
    into: *mut c_void,
    bytes: size_t,
    flags: c_int,
) -> ssize_t {
    let (from, len) = (std::ptr::null_mut::<c_void>(), std::ptr::null_mut::<libc::socklen_t>());
    match moved(socket, bytes) {
        Some(bytes) => size(system_call!(SYS_recvfrom, socket, into, bytes, flags, from, len)),
        None => -1,
    }
}

/// # Safety
/// As send(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn send(
    socket: c_int,
    from: *const c_void,
    bytes: size_t,
    flags: c_int,
) -> ssize_t {
    let to = std::ptr::null::<c_void>();
    match moved(socket, bytes) {
        Some(bytes) => size(system_call!(SYS_sendto, socket, from, bytes, flags, to, 0)),
        None => -1,
    }
}

/// # Safety
/// As epoll_wait(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut libc::epoll_event,
    most: c_int,
    timeout: c_int,
) -> c_int {
    if turn(2) && fails(Fault::Interrupted, libc::EINTR) {
        return -1;
    }
    let none = std::ptr::null::<libc::sigset_t>();
    int(system_call!(SYS_epoll_pwait, epoll, events, most, timeout, none, 0))
}

/// # Safety
/// As accept4(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn accept4(
    listener: c_int,
    address: *mut libc::sockaddr,
    len: *mut libc::socklen_t,
    flags: c_int,
) -> c_int {
    let refused = is_daemon() && NO_DESCRIPTOR.swap(false, Ordering::SeqCst);
    if refused && fails(Fault::NoDescriptor, libc::EMFILE)
        || turn(2) && fails(Fault::Interrupted, libc::EINTR)
    {
        return -1;
    }
    int(system_call!(SYS_accept4, listener, address, len, flags))
}

/// # Safety
/// As sendmsg(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sendmsg(socket: c_int, message: *const libc::msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's message.
    let mut sent = unsafe { *message };
    // SAFETY: it has as many parts as it says, and is not empty.
    let mut part = unsafe { sent.msg_iov.as_ref() }.copied();
    if let Some(part) = part.as_mut().filter(|part| part.iov_len > SHORT)
        && Weather::Pieces.holds()
        && !is_daemon()
    {
        count(Fault::Piece);
        part.iov_len = SHORT;
        sent.msg_iov = part;
        sent.msg_iovlen = 1;
    }
    size(system_call!(SYS_sendmsg, socket, &raw const sent, flags))
}

fn int(result: libc::c_long) -> c_int {
    c_int::try_from(result).unwrap_or(-1)
}

fn size(result: libc::c_long) -> ssize_t {
    ssize_t::try_from(result).unwrap_or(-1)
}
