// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Gives ranges of guest memory back to the host.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLockReadGuard};

use log::warn;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::collected::Collected;
use super::kept::{InUse, Kept};
use super::ranges::{GuestRange, Leading, Piece, leading, merge, split};
use super::regions::{Region, RegionError, RegionTable};
use super::writers_first::WritersFirst;
use super::zeroed::Zeroed;
use super::{GuestMemory, Inhibit, MemoryOptions};
use crate::lock::lock;
use crate::logging::rate_limit::LogLimit;
use crate::metrics::{Counters, Discarded, SkipReason};

/// The most bytes that one call discards, unless a single page is larger or the operator wants it.
///
/// A punch cannot be interrupted. A fault of a page that it frees waits until it ends, and so do a
/// pause, a hang-up, a signal and a message of the frontend: with 4 KiB pages, of which the kernel
/// frees some 3 GiB a second, less than 1 ms for a piece of this size (`docs/research/reclaim.md`).
const MOST_BYTES_A_CALL: u64 = 2 << 20;

/// The same for huge pages of hugetlbfs. No fault waits for the end of such a call, but the call waits
/// for faults: some 0.2 ms for each page while the guest fills pages, which is 8 ms in all.
const MOST_HUGE_BYTES_A_CALL: u64 = 64 << 20;

/// The one system call that gives memory back, behind a trait so that a test can watch it or let
/// it fail.
pub(crate) trait PunchHole: Send + Sync {
    /// Frees the pages of `file` from `offset` on, `len` bytes, both multiples of its page size.
    ///
    /// # Errors
    /// Whatever the kernel says; the pages then keep their contents.
    fn punch_hole(&self, file: &File, offset: u64, len: u64) -> io::Result<()>;
}

/// `fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)`: frees the pages of the file itself and
/// unmaps them from every process.
///
/// `MADV_DONTNEED` would only drop this daemon's own mapping of the shared file and free nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fallocate;

impl PunchHole for Fallocate {
    fn punch_hole(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        loop {
            match fallocate(file, FallocateMode::PunchHole, true, offset, len) {
                Ok(()) => {
                    #[cfg(fuzzing)]
                    super::recorded::note(file, offset, len);
                    return Ok(());
                }
                Err(error) => match io::Error::from(error) {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
    }
}

/// Discards ranges of the memory of one guest.
pub(crate) struct Reclaimer<P = Fallocate> {
    /// Held for reading while a chain is served: once a change of the memory table is answered,
    /// nothing touches the regions that it took away.
    map: WritersFirst<Map>,
    punch: P,
    options: MemoryOptions,
    inhibit: Arc<Inhibit>,
    in_use: Option<Arc<dyn InUse>>,
    stopping: Arc<AtomicBool>,
    counters: Arc<Counters>,
    limit: LogLimit,
    /// Of what is not memory: a guest that names it often must not hide calls that fail.
    outside: LogLimit,
}

/// The guest's memory, mapped and as files.
#[derive(Default)]
struct Map {
    memory: Arc<GuestMemory>,
    table: Arc<RegionTable>,
    /// Only the worker locks it.
    kept: Mutex<Kept>,
    /// Likewise.
    collected: Mutex<Collected>,
}

impl<P: PunchHole> Reclaimer<P> {
    /// A reclaimer that has no memory yet, and counts into `counters`.
    pub(crate) fn new(
        punch: P,
        options: MemoryOptions,
        inhibit: Arc<Inhibit>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            options,
            inhibit,
            in_use: None,
            map: WritersFirst::default(),
            punch,
            stopping: Arc::default(),
            counters,
            limit: LogLimit::default(),
            outside: LogLimit::default(),
        }
    }

    /// Never discards a page of memory that `in_use` names.
    #[must_use]
    pub(crate) fn keeping(self, in_use: Arc<dyn InUse>) -> Self {
        Self { in_use: Some(in_use), ..self }
    }

    /// Takes over a new memory table, after the chain that is being served, and returns it.
    ///
    /// # Errors
    /// [`RegionError`]; the old table stays.
    pub(crate) fn set_memory(
        &self,
        memory: Arc<GuestMemory>,
    ) -> Result<Arc<RegionTable>, RegionError> {
        let table = Arc::new(RegionTable::new(&memory, self.options)?);
        let before = self.map.read();
        let news =
            |region: &&Region| before.table.regions().iter().all(|r| r.kept() != region.kept());
        if let Some(region) = table.regions().iter().filter(|r| r.kept().is_some()).find(news) {
            warn_of_kept(region);
        }
        drop(before);
        *self.map.write() = Map {
            memory,
            table: Arc::clone(&table),
            kept: Mutex::default(),
            collected: Mutex::default(),
        };
        Ok(table)
    }

    /// From now on nothing more is discarded; a discard under way ends after its present call.
    #[cfg(test)]
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// The flag of the end, for a thread that must not own the memory.
    pub(crate) fn stopping(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stopping)
    }

    /// Whether the flag of the end is set.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The guest's memory as it is seen for one chain; a change of the memory table waits until it
    /// is dropped.
    pub(crate) fn snapshot(&self) -> Snapshot<'_, P> {
        let map = self.map.read();
        Snapshot { map, reclaimer: self }
    }
}

/// See [`Reclaimer::snapshot`].
pub(crate) struct Snapshot<'a, P> {
    map: RwLockReadGuard<'a, Map>,
    reclaimer: &'a Reclaimer<P>,
}

impl<P> AsRef<GuestMemory> for Snapshot<'_, P> {
    fn as_ref(&self) -> &GuestMemory {
        &self.map.memory
    }
}

impl<P: PunchHole> Snapshot<'_, P> {
    /// Sorts, merges, splits and rounds `ranges`, and discards what is left of them.
    ///
    /// Best effort, by its nature: what cannot be discarded is counted by its reason and keeps its
    /// contents. `ranges` is left merged.
    #[cfg(test)]
    pub(crate) fn discard(&self, ranges: &mut Vec<GuestRange>) -> Discarded {
        self.discard_while(ranges, &mut Zeroed::default(), || true)
    }

    /// Does the same for as long as `keep_going` says yes, which it is asked before each discarding
    /// call. A change of the memory table that waits for this chain ends it as well, so that no
    /// message of the frontend waits for more than one call. The rest is counted as
    /// [`SkipReason::Yielded`].
    ///
    /// Adds to `zeroed`, which is empty, what is zero by that.
    pub(crate) fn discard_while(
        &self,
        ranges: &mut Vec<GuestRange>,
        zeroed: &mut Zeroed,
        keep_going: impl Fn() -> bool,
    ) -> Discarded {
        let keep_going = || keep_going() && !self.reclaimer.map.writer_waits();
        let mut done = Done { discarded: Discarded::default(), zeroed };
        let Reclaimer { counters, outside, .. } = self.reclaimer;
        let overlap = merge(ranges);
        if overlap > 0 {
            counters.skip(SkipReason::Overlap, overlap);
        }
        if let Some(reason) = self.reclaimer.inhibit.reason() {
            counters.skip(reason, ranges.iter().map(GuestRange::len).sum());
            return done.discarded;
        }
        let regions = self.map.table.regions();
        for &range in ranges.iter() {
            for piece in split(range, regions) {
                match piece {
                    Piece::Inside { region, range } => {
                        self.discard_in(&regions[region], range, &keep_going, &mut done);
                    }
                    Piece::Outside(range) => {
                        counters.skip(SkipReason::OutsideMemory, range.len());
                        outside.run(|| {
                            let (start, end) = (range.start(), range.end());
                            warn!("the guest reported {start:#x}..{end:#x}, which is not memory");
                        });
                    }
                }
            }
        }
        counters.discarded(done.discarded);
        done.discarded
    }

    /// The device is about to write its answer to the ranges of `buffers`: they are zero no longer.
    pub(crate) fn will_write(&self, buffers: &[GuestRange], zeroed: &mut Zeroed) {
        buffers.iter().for_each(|buffer| zeroed.remove(*buffer, &self.map.table));
    }
}

/// What the calls of one chain have done so far.
struct Done<'a> {
    discarded: Discarded,
    zeroed: &'a mut Zeroed,
}

impl<P: PunchHole> Snapshot<'_, P> {
    /// Does what [`Snapshot::discard_while`] does for pages that go into the balloon, and that the
    /// driver must not use before it has had them [deflated](Snapshot::deflate): on pages larger
    /// than the balloon's, those of several chains are added up.
    pub(crate) fn inflate_while(
        &self,
        ranges: &mut Vec<GuestRange>,
        zeroed: &mut Zeroed,
        keep_going: impl Fn() -> bool,
    ) -> Discarded {
        merge(ranges);
        let (regions, mut waiting, mut full) = (self.map.table.regions(), 0, Vec::new());
        let mut collected = self.collected();
        for &range in ranges.iter() {
            for piece in split(range, regions) {
                match piece {
                    Piece::Inside { region, range } if Collected::concerns(&regions[region]) => {
                        waiting += collected.inflate(&regions[region], range, &mut full);
                    }
                    Piece::Inside { range, .. } | Piece::Outside(range) => full.push(range),
                }
            }
        }
        self.reclaimer.counters.set_collecting(collected.waiting_bytes());
        drop(collected);
        if waiting > 0 {
            self.reclaimer.counters.skip(SkipReason::Collecting, waiting);
        }
        self.discard_while(&mut full, zeroed, keep_going)
    }

    /// The driver takes the pages of `ranges` out of the balloon, and uses them once the chain is
    /// returned; `None` for pages that are not known.
    pub(crate) fn deflate(&self, ranges: Option<&[GuestRange]>) {
        let regions = self.map.table.regions();
        let mut collected = self.collected();
        match ranges {
            Some(ranges) => {
                for piece in ranges.iter().flat_map(|range| split(*range, regions)) {
                    if let Piece::Inside { region, range } = piece {
                        collected.deflate(&regions[region], range);
                    }
                }
            }
            None => collected.forget(),
        }
        self.reclaimer.counters.set_collecting(collected.waiting_bytes());
    }

    fn collected(&self) -> MutexGuard<'_, Collected> {
        let mut collected = lock(&self.map.collected);
        collected.follow(self.reclaimer.in_use.as_ref().map_or(0, |in_use| in_use.version()));
        collected
    }

    /// Discards the whole pages of `range`, which lies within `region`.
    fn discard_in(
        &self,
        region: &Region,
        range: GuestRange,
        keep_going: &impl Fn() -> bool,
        done: &mut Done<'_>,
    ) {
        let Reclaimer { counters, inhibit, .. } = self.reclaimer;
        if let Some(reason) = region.kept() {
            counters.skip(reason, range.len());
            return;
        }
        let whole = region.whole_pages(range);
        let whole_len = whole.as_ref().map_or(0, GuestRange::len);
        if range.len() > whole_len {
            counters.skip(SkipReason::Unaligned, range.len() - whole_len);
        }
        // Offsets in the file from here on.
        let mut rest = whole;
        while let Some(left) = rest {
            if self.reclaimer.is_stopping() {
                counters.skip(SkipReason::Stopping, left.len());
                return;
            }
            if !keep_going() {
                counters.skip(SkipReason::Yielded, left.len());
                return;
            }
            // Kept for this one call, so that who forbids something need not wait for the next.
            let permit = match region.kept().map_or_else(|| inhibit.permit(), Err) {
                Ok(permit) => permit,
                Err(reason) => {
                    counters.skip(reason, left.len());
                    return;
                }
            };
            let len = match self.next_part(region, left, permit.pinned()) {
                (None, len) => {
                    self.reclaimer.punch(region, left.start(), len, done);
                    len
                }
                (Some(reason), len) => {
                    counters.skip(reason, len);
                    len
                }
            };
            rest = left.after(len);
        }
    }

    /// How many bytes at the beginning of `left`, whole pages of the file of `region`, can go in one
    /// call, or have to stay and why.
    fn next_part(
        &self,
        region: &Region,
        left: GuestRange,
        pinned: &[GuestRange],
    ) -> (Option<SkipReason>, u64) {
        let mut kept = lock(&self.map.kept);
        kept.refresh(&self.map.table, pinned, self.reclaimer.in_use.as_deref());
        let (file, page_size) = (region.file_index(), region.page_size());
        let free = match leading(left, page_size, kept.pinned(file)) {
            Leading::Pinned(len) => return (Some(SkipReason::Pinned), len),
            Leading::Free(len) => len,
        };
        match leading(left, page_size, kept.in_use(file)) {
            Leading::Pinned(len) => (Some(SkipReason::Ring), len.min(free)),
            Leading::Free(len) => {
                let most = most_bytes_a_call(region, self.reclaimer.options);
                (None, len.min(free).min(most))
            }
        }
    }
}

/// Says why nothing of a region is discarded, and what the operator can do.
fn warn_of_kept(region: &Region) {
    let (start, reason) = (region.as_ref().start(), region.kept());
    let promised = match region.is_allocated_in_full() {
        true => ", all of which was allocated for this guest (prealloc)",
        false => "",
    };
    match reason {
        Some(SkipReason::Hugetlb) => warn!(
            "memory at {start:#x} is hugetlbfs{promised}: its pages stay, because others could take \
             them from the pool and the guest would not get them back (see --hugetlb)"
        ),
        Some(SkipReason::LimitedTmpfs) => warn!(
            "memory at {start:#x} lies on a tmpfs with a size limit{promised}: its pages stay, \
             because others could fill the space and the guest would die of SIGBUS; use a memfd, \
             or see --allow-limited-tmpfs"
        ),
        _ => warn!("memory at {start:#x} cannot be written through its file: its pages stay"),
    }
}

/// All of these are powers of two, so the answer is a multiple of the page size.
fn most_bytes_a_call(region: &Region, options: MemoryOptions) -> u64 {
    let of_backing = match region.is_hugetlb() {
        true => MOST_HUGE_BYTES_A_CALL,
        false => MOST_BYTES_A_CALL,
    };
    options.most_bytes_a_call.unwrap_or(of_backing).max(region.page_size())
}

impl<P: PunchHole> Reclaimer<P> {
    /// Makes the one call for `len` bytes, whole pages, at `offset` of the file of `region`.
    fn punch(&self, region: &Region, offset: u64, len: u64, done: &mut Done<'_>) {
        done.discarded.calls += 1;
        match self.punch.punch_hole(region.file(), offset, len) {
            Ok(()) => {
                done.discarded.bytes += len;
                if region.is_zero_when_discarded()
                    && let Ok(offsets) = GuestRange::new(offset, len)
                    && let Some(zero) = region.guest_range(offsets)
                {
                    done.zeroed.add(zero);
                }
            }
            Err(error) => {
                self.counters.failed(&error, len);
                let state = match region.learn(&error) {
                    Some(SkipReason::ReadOnly) => "; it is sealed, and its pages stay from now on",
                    Some(_) => {
                        "; its file system cannot punch holes, and its pages stay from now on"
                    }
                    None => "",
                };
                self.limit.run(|| {
                    warn!(
                        "cannot discard {len} bytes at offset {offset:#x} of the memory file: \
                         {error}{state}"
                    );
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
