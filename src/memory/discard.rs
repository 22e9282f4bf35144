//! Gives ranges of guest memory back to the host.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use log::warn;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::ranges::{GuestRange, Piece, merge, round_inward, split};
use super::regions::{Region, RegionError, RegionTable};
use super::{GuestMemory, Inhibit, MemoryOptions};
use crate::log_limit::LogLimit;
use crate::metrics::{Counters, SkipReason};

/// The most bytes that one call gives back, unless a single page is larger.
///
/// A punch cannot be interrupted. With 4 KiB pages the kernel frees some 5 GiB a second, so a piece
/// of this size keeps a hang-up or a signal waiting for about 0.2 s; with huge pages an extra call
/// a GiB is lost in the noise.
const MOST_BYTES_A_CALL: u64 = 1 << 30;

/// The one system call that gives memory back, behind a trait so that a test can watch it or let
/// it fail.
pub trait PunchHole: Send + Sync {
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
pub struct Fallocate;

impl PunchHole for Fallocate {
    fn punch_hole(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        loop {
            match fallocate(file, FallocateMode::PunchHole, true, offset, len) {
                Ok(()) => return Ok(()),
                Err(error) => match io::Error::from(error) {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
    }
}

/// What became of the ranges of one chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Bytes given back to the host.
    pub bytes: u64,
    /// Discarding calls made.
    pub calls: u64,
}

/// Discards ranges of the memory of one guest.
pub struct Reclaimer<P = Fallocate> {
    /// Held for reading while a chain is served: once a change of the memory table is answered,
    /// nothing touches the regions that it took away.
    map: RwLock<Map>,
    punch: P,
    options: MemoryOptions,
    inhibit: Arc<Inhibit>,
    stopping: AtomicBool,
    counters: Arc<Counters>,
    limit: LogLimit,
}

/// The guest's memory, mapped and as files.
#[derive(Default)]
struct Map {
    memory: Arc<GuestMemory>,
    table: RegionTable,
}

impl<P: PunchHole> Reclaimer<P> {
    /// A reclaimer that has no memory yet, and counts into `counters`.
    pub fn new(
        punch: P,
        options: MemoryOptions,
        inhibit: Arc<Inhibit>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            options,
            inhibit,
            map: RwLock::default(),
            punch,
            stopping: AtomicBool::new(false),
            counters,
            limit: LogLimit::default(),
        }
    }

    /// Takes over a new memory table, after the chain that is being served.
    ///
    /// # Errors
    /// [`RegionError`]; the old table stays.
    pub fn set_memory(&self, memory: Arc<GuestMemory>) -> Result<(), RegionError> {
        let table = RegionTable::new(&memory)?;
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Map { memory, table };
        Ok(())
    }

    /// Waits for the chain that is being served: what was set before counts for all that follow.
    pub fn settle(&self) {
        drop(self.map.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// From now on nothing more is discarded; a discard under way ends after its present call.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether [`Reclaimer::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The guest's memory as it is seen for one chain; a change of the memory table waits until it
    /// is dropped.
    pub fn snapshot(&self) -> Snapshot<'_, P> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        Snapshot { map, reclaimer: self }
    }
}

/// See [`Reclaimer::snapshot`].
pub struct Snapshot<'a, P> {
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
    pub fn discard(&self, ranges: &mut Vec<GuestRange>) -> Discarded {
        let mut done = Discarded::default();
        let Reclaimer { counters, limit, .. } = self.reclaimer;
        let overlap = merge(ranges);
        if overlap > 0 {
            counters.skip(SkipReason::Overlap, overlap);
        }
        if let Some(reason) = self.reclaimer.inhibit.reason() {
            counters.skip(reason, ranges.iter().map(GuestRange::len).sum());
            return done;
        }
        let regions = self.map.table.regions();
        for &range in ranges.iter() {
            for piece in split(range, regions) {
                match piece {
                    Piece::Inside { region, range } => {
                        self.reclaimer.discard_in(&regions[region], range, &mut done);
                    }
                    Piece::Outside(range) => {
                        counters.skip(SkipReason::OutOfMemory, range.len());
                        limit.run(|| {
                            let (start, end) = (range.start(), range.end());
                            warn!("the guest reported {start:#x}..{end:#x}, which is not memory");
                        });
                    }
                }
            }
        }
        counters.discarded(done);
        done
    }
}

impl<P: PunchHole> Reclaimer<P> {
    /// Discards the whole pages of `range`, which lies within `region`.
    fn discard_in(&self, region: &Region, range: GuestRange, done: &mut Discarded) {
        let whole = region
            .offset_of(range.start())
            .and_then(|offset| round_inward(offset, range.len(), region.page_size()));
        if region.is_hugetlb() && !self.options.hugetlb {
            self.counters.skip(SkipReason::Hugetlb, range.len());
            return;
        }
        let Some((mut offset, mut left)) = whole else {
            self.counters.skip(SkipReason::Unaligned, range.len());
            return;
        };
        if range.len() > left {
            self.counters.skip(SkipReason::Unaligned, range.len() - left);
        }
        // Both are powers of two, so the larger is a multiple of the page size.
        let most = MOST_BYTES_A_CALL.max(region.page_size());
        while left > 0 {
            if self.is_stopping() {
                self.counters.skip(SkipReason::Stopping, left);
                return;
            }
            let len = left.min(most);
            done.calls += 1;
            match self.punch.punch_hole(region.file(), offset, len) {
                Ok(()) => done.bytes += len,
                Err(error) => {
                    self.counters.skip(SkipReason::Failed, len);
                    self.limit.run(|| {
                        warn!("cannot discard {len} bytes at offset {offset:#x} of the memory file: {error}");
                    });
                }
            }
            offset += len;
            left -= len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;
    use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

    const PAGE: u64 = 4096;

    /// Writes down each call, and fails those that begin at an offset of its choice.
    #[derive(Default)]
    struct Recorder {
        calls: Mutex<Vec<(u64, u64)>>,
        failing: Option<u64>,
    }

    impl PunchHole for Recorder {
        fn punch_hole(&self, _file: &File, offset: u64, len: u64) -> io::Result<()> {
            self.calls.lock().unwrap().push((offset, len));
            if self.failing == Some(offset) {
                return Err(io::Error::from_raw_os_error(libc::EPERM));
            }
            Ok(())
        }
    }

    impl<P: PunchHole> PunchHole for Arc<P> {
        fn punch_hole(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
            (**self).punch_hole(file, offset, len)
        }
    }

    /// Guest memory of (guest page, pages) regions that lie one behind the other in one file,
    /// `offset` pages from its start.
    fn memory(regions: &[(u64, u64)], offset: u64) -> Arc<GuestMemory> {
        let file = tempfile::tempfile().unwrap();
        let pages: u64 = offset + regions.iter().map(|r| r.1).sum::<u64>();
        file.set_len(pages * PAGE).unwrap();
        let mut at = offset * PAGE;
        let mapped = regions.iter().map(|&(page, pages)| {
            let backing = FileOffset::new(file.try_clone().unwrap(), at);
            at += pages * PAGE;
            let len = usize::try_from(pages * PAGE).unwrap();
            let region = MmapRegion::from_file(backing, len).unwrap();
            GuestRegionMmap::new(region, GuestAddress(page * PAGE)).unwrap()
        });
        Arc::new(GuestMemory::from_regions(mapped.collect()).unwrap())
    }

    fn reclaimer(
        recorder: Recorder,
        memory: &Arc<GuestMemory>,
    ) -> (Reclaimer<Arc<Recorder>>, Arc<Recorder>, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        let recorder = Arc::new(recorder);
        let reclaimer = Reclaimer::new(
            Arc::clone(&recorder),
            MemoryOptions::default(),
            Arc::default(),
            Arc::clone(&counters),
        );
        reclaimer.set_memory(Arc::clone(memory)).unwrap();
        (reclaimer, recorder, counters)
    }

    fn ranges(list: &[(u64, u64)]) -> Vec<GuestRange> {
        list.iter().map(|&(start, len)| GuestRange::new(start, len).unwrap()).collect()
    }

    #[test]
    fn adjacent_ranges_cost_one_call() {
        let (reclaimer, recorder, _) = reclaimer(Recorder::default(), &memory(&[(0, 64)], 3));
        let mut chain = ranges(&[(8 * PAGE, PAGE), (6 * PAGE, PAGE), (7 * PAGE, PAGE)]);
        assert_eq!(
            reclaimer.snapshot().discard(&mut chain),
            Discarded { bytes: 3 * PAGE, calls: 1 }
        );
        assert_eq!(*recorder.calls.lock().unwrap(), [(9 * PAGE, 3 * PAGE)]);
    }

    #[test]
    fn a_failing_call_loses_only_itself() {
        let failing = Recorder { failing: Some(4 * PAGE), ..Recorder::default() };
        let (reclaimer, _, counters) = reclaimer(failing, &memory(&[(0, 64)], 0));
        let mut chain = ranges(&[(4 * PAGE, PAGE), (8 * PAGE, PAGE)]);
        assert_eq!(reclaimer.snapshot().discard(&mut chain), Discarded { bytes: PAGE, calls: 2 });
        assert_eq!(counters.snapshot().skipped_bytes(SkipReason::Failed), PAGE);
    }

    #[test]
    fn after_stop_nothing_is_discarded() {
        let (reclaimer, recorder, counters) = reclaimer(Recorder::default(), &memory(&[(0, 8)], 0));
        reclaimer.stop();
        assert_eq!(reclaimer.snapshot().discard(&mut ranges(&[(0, PAGE)])), Discarded::default());
        assert!(recorder.calls.lock().unwrap().is_empty());
        assert_eq!(counters.snapshot().skipped_bytes(SkipReason::Stopping), PAGE);
    }

    #[test]
    fn a_long_range_is_cut_so_that_a_stop_is_heard() {
        let pages = 3 * MOST_BYTES_A_CALL / PAGE + 1;
        let (reclaimer, recorder, _) = reclaimer(Recorder::default(), &memory(&[(0, pages)], 0));
        let done = reclaimer.snapshot().discard(&mut ranges(&[(0, pages * PAGE)]));
        assert_eq!(done, Discarded { bytes: pages * PAGE, calls: 4 });
        assert_eq!(recorder.calls.lock().unwrap()[3], (3 * MOST_BYTES_A_CALL, PAGE));
    }

    proptest! {
        /// Against a reference that goes page by page: a page is discarded, once, exactly if every
        /// byte of it was reported and it is guest memory; every reported byte is accounted for.
        #[test]
        fn discards_what_a_page_by_page_reference_would(
            chain in prop::collection::vec((0u64..60 * PAGE, 1u64..20 * PAGE), 0..12),
            offset in 0u64..4,
        ) {
            // Two regions that touch, a hole, and a third.
            let layout = [(2, 10), (12, 5), (30, 20)];
            let (reclaimer, recorder, counters) =
                reclaimer(Recorder::default(), &memory(&layout, offset));
            let mut chain = ranges(&chain);
            let reported = |byte: u64| chain.iter().any(|r| r.start() <= byte && byte < r.end());
            let mut expected = Vec::new();
            let mut file_page = offset;
            for (page, pages) in layout {
                for page in page..page + pages {
                    if (page * PAGE..(page + 1) * PAGE).all(reported) {
                        expected.push(file_page);
                    }
                    file_page += 1;
                }
            }
            let named: u64 = chain.iter().map(GuestRange::len).sum();
            let done = reclaimer.snapshot().discard(&mut chain);
            let mut got: Vec<u64> = recorder.calls.lock().unwrap().iter()
                .flat_map(|(at, len)| at / PAGE..(at + len) / PAGE).collect();
            got.sort_unstable();
            prop_assert_eq!(got, expected);
            let snapshot = counters.snapshot();
            prop_assert_eq!(snapshot.bytes_discarded, done.bytes);
            prop_assert_eq!(named, done.bytes + snapshot.all_skipped_bytes());
        }
    }
}
