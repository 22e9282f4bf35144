// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A process that maps the guest's memory file and touches it when it is asked to, as the thread of a
//! virtual CPU does.
//!
//! It is forked from a program with several threads, so it allocates nothing, takes no lock and never
//! returns: it makes system calls, and writes into memory that it shares with its parent.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use rustix::pipe::{PipeFlags, pipe_with};

use super::samples::{Sample, Timer};

/// The most faults that are kept of one command.
const ROOM: usize = 1 << 18;

/// A place for the file in the address space, at a multiple of 1 GiB and then some.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Distance from a multiple of 1 GiB, in bytes.
    pub(super) shift: usize,
    /// Length of the file.
    pub(super) bytes: usize,
    /// A mapping of the parent's that the process has to drop: its address and length.
    pub(super) dropped: (usize, usize),
}

/// What a process does. Offsets and lengths are of the file, in bytes.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
enum Verb {
    /// Writes to each page, once, and times nothing.
    Populate,
    /// Writes to each page, once, until the end or [`Shared::stop`].
    Once,
    /// Reads each page, again and again until [`Shared::stop`]; drops them from the page table after
    /// each pass.
    Remap,
    /// Reads each page, again and again until [`Shared::stop`].
    Again,
}

/// What both have mapped.
#[repr(C)]
struct Shared {
    /// Whether a report is in flight.
    in_flight: AtomicBool,
    stop: AtomicBool,
    /// Touches of this command.
    touches: AtomicU64,
    /// Faults among them, as far as there is room for them.
    faults: AtomicU64,
    samples: [Sample; ROOM],
}

/// A running process; dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    pid: libc::pid_t,
    commands: File,
    replies: File,
    shared: *mut Shared,
}

impl Process {
    /// Forks a process that maps `file`, readable and writable, at `place`.
    pub(super) fn fork(file: BorrowedFd<'_>, place: Place) -> Result<Self> {
        let (their_commands, commands) = pipe_with(PipeFlags::CLOEXEC)?;
        let (replies, their_replies) = pipe_with(PipeFlags::CLOEXEC)?;
        let shared: *mut Shared = map(size_of::<Shared>(), libc::MAP_SHARED)?.cast();
        let reserved = map(place.bytes + (2 << 30), libc::MAP_PRIVATE | libc::MAP_NORESERVE)?;
        let fd = file.as_raw_fd();
        // SAFETY: the child allocates nothing and takes no lock, see `serve`.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let parts = (their_commands.as_raw_fd(), their_replies.as_raw_fd());
            serve(parts, [commands.as_raw_fd(), replies.as_raw_fd()], fd, place, reserved, shared);
        }
        // SAFETY: the child has its own copy of the reservation.
        unsafe { libc::munmap(reserved, place.bytes + (2 << 30)) };
        ensure!(pid > 0, "fork: {}", std::io::Error::last_os_error());
        drop::<[OwnedFd; 2]>([their_commands, their_replies]);
        let mut process = Self { pid, commands: commands.into(), replies: replies.into(), shared };
        // It says that it has mapped the file.
        process.wait()?;
        Ok(process)
    }

    /// Its process ID.
    pub(super) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Writes to every page of the range. Returns the number of its faults.
    pub(super) fn populate(&mut self, from: u64, len: u64, page: u64) -> Result<u64> {
        self.ask(Verb::Populate, from, len, page)?;
        self.wait()
    }

    /// Starts to touch pages of the range.
    pub(super) fn start(&mut self, way: Way, from: u64, len: u64, page: u64) -> Result<()> {
        let verb = match way {
            Way::Once => Verb::Once,
            Way::Remap => Verb::Remap,
            Way::Again => Verb::Again,
        };
        self.ask(verb, from, len, page)
    }

    /// Pages that it has touched since [`Process::start`].
    pub(super) fn touches(&self) -> u64 {
        self.shared().touches.load(Ordering::Relaxed)
    }

    /// Says whether a report is in flight.
    pub(super) fn set_in_flight(&self, in_flight: bool) {
        self.shared().in_flight.store(in_flight, Ordering::SeqCst);
    }

    /// Ends what [`Process::start`] began. Returns the faults.
    pub(super) fn stop(&mut self) -> Result<Vec<Sample>> {
        self.shared().stop.store(true, Ordering::Relaxed);
        self.wait()?;
        let faults = usize::try_from(self.shared().faults.load(Ordering::Acquire))?;
        let samples = &self.shared().samples;
        let samples = samples.get(..faults).context("more faults than there is room for")?;
        Ok(samples.to_vec())
    }

    fn ask(&mut self, verb: Verb, from: u64, len: u64, page: u64) -> Result<()> {
        self.shared().stop.store(false, Ordering::Relaxed);
        self.shared().touches.store(0, Ordering::Relaxed);
        self.shared().faults.store(0, Ordering::Release);
        let words = [verb as u64, from, len, page];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.commands.write_all(&bytes).context("a process that faults has ended")
    }

    fn wait(&mut self) -> Result<u64> {
        let mut reply = [0; 8];
        self.replies.read_exact(&mut reply).context("a process that faults has ended")?;
        Ok(u64::from_ne_bytes(reply))
    }

    fn shared(&self) -> &Shared {
        // SAFETY: mapped until this is dropped. All that the other process changes while this one
        // looks is atomic; it has ended a command before its samples are read.
        unsafe { &*self.shared }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: a child of this process that was not waited for, and a mapping that ends with it.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, ptr::null_mut(), 0);
            libc::munmap(self.shared.cast(), size_of::<Shared>());
        }
    }
}

/// How pages are touched.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// Each is written to once.
    Once,
    /// Each is read, and all are dropped from the page table, again and again.
    Remap,
    /// Each is read, again and again.
    Again,
}

fn map(bytes: usize, flags: i32) -> Result<*mut libc::c_void> {
    let protection = if flags & libc::MAP_SHARED != 0 {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        libc::PROT_NONE
    };
    // SAFETY: a new anonymous mapping.
    let at = unsafe {
        libc::mmap(ptr::null_mut(), bytes, protection, flags | libc::MAP_ANONYMOUS, -1, 0)
    };
    ensure!(at != libc::MAP_FAILED, "no address space: {}", std::io::Error::last_os_error());
    Ok(at)
}

/// The child. `parents` are descriptors that only its parent uses.
fn serve(
    (commands, replies): (i32, i32),
    parents: [i32; 2],
    file: i32,
    place: Place,
    reserved: *mut libc::c_void,
    shared: *mut Shared,
) -> ! {
    const GIB: usize = 1 << 30;
    // SAFETY: plain system calls on what the child owns: its copies of descriptors and mappings. The
    // file replaces part of the reservation, which has 2 GiB more than the file.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        parents.iter().for_each(|fd| {
            libc::close(*fd);
        });
        libc::munmap(ptr::with_exposed_provenance_mut(place.dropped.0), place.dropped.1);
        let start = reserved.addr().next_multiple_of(GIB) - reserved.addr() + place.shift;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let at = libc::mmap(reserved.byte_add(start), place.bytes, protection, flags, file, 0);
        let schedstat = libc::open(c"/proc/thread-self/schedstat".as_ptr(), libc::O_RDONLY);
        if at == libc::MAP_FAILED || schedstat < 0 || !reply(replies, 0) {
            libc::_exit(1);
        }
        let mut words = [0_u64; 4];
        loop {
            let len = size_of_val(&words);
            if libc::read(commands, words.as_mut_ptr().cast(), len) != len.cast_signed() {
                libc::_exit(0);
            }
            let done = touch(at.cast(), words, schedstat, shared);
            if !reply(replies, done) {
                libc::_exit(0);
            }
        }
    }
}

fn reply(replies: i32, value: u64) -> bool {
    let value = value.to_ne_bytes();
    // SAFETY: as many bytes as there are.
    let written = unsafe { libc::write(replies, value.as_ptr().cast(), value.len()) };
    written == value.len().cast_signed()
}

/// Serves one command. Returns the minor faults of the process meanwhile.
///
/// # Safety
/// `memory` is the mapping of a file that has every byte which the command names, and `shared` is valid.
unsafe fn touch(memory: *mut u8, words: [u64; 4], schedstat: i32, shared: *mut Shared) -> u64 {
    let [verb, from, len, page] = words;
    let faults = minor_faults();
    let Ok([from, len, page]) = to_usize([from, len, page]) else { return 0 };
    // SAFETY: valid as the caller says, and the parent reads no sample before the reply.
    let (state, samples) = unsafe { (&*shared, ptr::addr_of_mut!((*shared).samples)) };
    let samples: *mut Sample = samples.cast();
    let Ok(mut timer) = Timer::new(schedstat) else { return 0 };
    let writes = verb == Verb::Populate as u64 || verb == Verb::Once as u64;
    let (mut touches, mut kept) = (0, 0);
    loop {
        let mut at = from;
        while at < from.saturating_add(len) {
            if verb != Verb::Populate as u64 && (state.stop.load(Ordering::Relaxed) || kept == ROOM)
            {
                return minor_faults().wrapping_sub(faults);
            }
            // SAFETY: within the mapping. Nothing else is at these bytes.
            let byte = unsafe { memory.byte_add(at) };
            let access = || {
                // SAFETY: as above; volatile, since other processes write as well.
                unsafe { if writes { byte.write_volatile(1) } else { _ = byte.read_volatile() } }
            };
            at = at.saturating_add(page);
            if verb == Verb::Populate as u64 {
                access();
                continue;
            }
            touches += 1;
            state.touches.store(touches, Ordering::Relaxed);
            let in_flight = || state.in_flight.load(Ordering::SeqCst);
            if let Ok(Some(sample)) = timer.time(in_flight, access) {
                // SAFETY: fewer than there is room for.
                unsafe { samples.add(kept).write(sample) };
                kept += 1;
                state.faults.store(kept as u64, Ordering::Release);
            }
        }
        if writes {
            return minor_faults().wrapping_sub(faults);
        }
        if verb == Verb::Remap as u64 {
            // SAFETY: shared memory of a file: its contents stay.
            unsafe { libc::madvise(memory.byte_add(from).cast(), len, libc::MADV_DONTNEED) };
        }
    }
}

fn to_usize(values: [u64; 3]) -> Result<[usize; 3], std::num::TryFromIntError> {
    let [a, b, c] = values;
    Ok([a.try_into()?, b.try_into()?, c.try_into()?])
}

fn minor_faults() -> u64 {
    // SAFETY: all bytes zero are a valid value, and the kernel fills it in.
    let usage = unsafe {
        let mut usage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    usage.ru_minflt.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::fd::AsFd;

    const PAGE: u64 = 4096;

    fn process(file: &OwnedFd, pages: u64) -> Process {
        ftruncate(file, pages * PAGE).unwrap();
        let bytes = usize::try_from(pages * PAGE).unwrap();
        Process::fork(file.as_fd(), Place { shift: 0, bytes, dropped: (0, 0) }).unwrap()
    }

    #[test]
    fn process_that_populates_fills_the_file() {
        let file = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
        let mut process = process(&file, 64);
        assert!(process.populate(16 * PAGE, 32 * PAGE, PAGE).unwrap() > 0);
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_blocks, 32 * 8);
    }

    #[test]
    fn faults_beside_a_report_are_marked() {
        let file = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
        let mut process = process(&file, 64);
        for in_flight in [false, true] {
            process.set_in_flight(in_flight);
            // Pages are only there to be mapped, so every pass faults.
            process.start(Way::Remap, 0, 64 * PAGE, PAGE).unwrap();
            while process.touches() < 64 {
                std::thread::yield_now();
            }
            let samples = process.stop().unwrap();
            assert!(samples.iter().all(|sample| sample.beside == u32::from(in_flight)));
            assert!(samples.iter().all(|sample| sample.latency <= sample.elapsed));
            assert!(!samples.is_empty());
        }
    }
}
