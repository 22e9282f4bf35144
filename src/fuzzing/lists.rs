// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A balloon over many chains: lists of pages go in and come out, drivers come and go, the memory table is
//! replaced. One region has pages of 2 MiB, which no chain of Linux fills alone.
//!
//! The oracle is a set of pages. A page of the host goes if a chain names a part of it and all of it is then
//! in the balloon, where the driver tells before it uses a page again; else if one chain names all of it.
//! What waits for the rest of its page, what was named and what the driver calls `actual` is counted.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, MmapRegion};

use crate::device::chain::ChainHead;
use crate::device::{Action, Balloon, DeviceOptions, QueueRole};
use crate::discard::{
    GuestMemory, GuestRange, GuestRegion, InUse, MemoryOptions, PunchHole, Reclaimer, Zeroed,
};
use crate::lock::lock;
use crate::metrics::{Counters, Named};

#[derive(Arbitrary, Debug)]
pub(crate) struct Input {
    must_tell: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Inflate(Vec<Run>),
    Deflate(Vec<Run>),
    /// A chain of which it cannot be known which pages it names.
    DeflateUnknown,
    /// The driver says how many pages are in the balloon.
    Actual(u32),
    /// Another driver begins.
    Begin {
        untouched: bool,
    },
    /// The same memory in a new table.
    Table,
}

/// Pages that follow each other.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Run {
    Small(u8, u8),
    Huge {
        start: u16,
        pages: u16,
    },
    /// All of a huge page but some at its end.
    Most {
        huge: bool,
        less: u8,
    },
    Any(u32),
}

const PAGE: u64 = 4096;
/// Pages of the balloon in a page of the host.
const HUGE: u64 = 512;
const HUGE_PAGES: u64 = 2;
/// The table and the lists lie in the first 16 pages, behind them what is given away.
const SMALL_PAGES: u64 = 32;
const HUGE_AT: u64 = 1 << 18;
const LISTS: u64 = PAGE;
const MOST_PFNS: usize = 4096;
const MUST_TELL: u64 = 1 << 0;

/// Guest memory, with huge pages if the kernel has any kind of them: none is ever touched.
struct Guest {
    memory: Arc<GuestMemory>,
    small: Arc<File>,
    has_huge: bool,
}

impl Guest {
    fn new() -> Self {
        let region = |file: &Arc<File>, pages: u64, at: u64| {
            let backing = FileOffset::from_arc(Arc::clone(file), 0);
            let len = usize::try_from(pages * PAGE).expect("a length");
            let mapped = MmapRegion::from_file(backing, len).ok()?;
            GuestRegion::new(mapped, GuestAddress(at * PAGE))
        };
        let file = |flags, pages: u64| {
            let file = File::from(memfd_create("balloon", flags).ok()?);
            file.set_len(pages * PAGE).ok()?;
            Some(Arc::new(file))
        };
        let small = file(MemfdFlags::CLOEXEC, SMALL_PAGES).expect("a memfd");
        let mut regions = vec![region(&small, SMALL_PAGES, 0).expect("a region")];
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let huge = file(flags, HUGE_PAGES * HUGE);
        regions.extend(huge.and_then(|file| region(&file, HUGE_PAGES * HUGE, HUGE_AT)));
        let has_huge = regions.len() > 1;
        let memory = GuestMemory::from_regions(regions).expect("guest memory");
        Self { memory: Arc::new(memory), small, has_huge }
    }
}

thread_local! {
    static GUEST: std::rc::Rc<Guest> = std::rc::Rc::new(Guest::new());
}

/// Records guest pages of the balloon, as far as a call covers them.
struct Recorder {
    small: i32,
    punched: Mutex<Vec<u64>>,
}

impl PunchHole for &Recorder {
    fn punch_hole(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let is_small = file.as_raw_fd() == self.small;
        let (first, unit) = if is_small { (0, 1) } else { (HUGE_AT, HUGE) };
        assert_eq!((offset % (unit * PAGE), len % (unit * PAGE)), (0, 0), "a part of a page");
        let pages = offset / PAGE..(offset + len) / PAGE;
        lock(&self.punched).extend(pages.map(|page| first + page));
        Ok(())
    }
}

/// The rings of a driver: others with each one that begins.
#[derive(Default)]
struct Drivers(AtomicU64);

impl InUse for Drivers {
    fn version(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn ranges(&self) -> Vec<GuestRange> {
        Vec::new()
    }
}

impl Run {
    fn pages(self) -> std::ops::Range<u64> {
        let (start, pages) = match self {
            Self::Small(start, pages) => (16 + u64::from(start) % 18, u64::from(pages % 8)),
            Self::Huge { start, pages } => {
                (HUGE_AT + u64::from(start) % (HUGE_PAGES * HUGE + 2), u64::from(pages) % 700)
            }
            Self::Most { huge, less } => {
                (HUGE_AT + u64::from(huge) * HUGE, HUGE - u64::from(less % 4))
            }
            Self::Any(page) => (page.into(), 1),
        };
        start..(start + pages).min(1 << 32)
    }
}

fn pages(runs: &[Run]) -> Vec<u64> {
    runs.iter().take(6).flat_map(|run| run.pages()).take(MOST_PFNS).collect()
}

struct Execution {
    guest: std::rc::Rc<Guest>,
    balloon: Balloon,
    must_tell: bool,
    inside: BTreeSet<u64>,
    /// Bytes that were named on the two queues, and chains.
    named: [(u64, u64); 2],
    actual: Option<u64>,
}

pub(crate) fn run(input: Input) {
    let guest = GUEST.with(std::rc::Rc::clone);
    let recorder = Recorder { small: guest.small.as_raw_fd(), punched: Mutex::default() };
    let counters = Arc::<Counters>::default();
    let drivers = Arc::<Drivers>::default();
    let options = MemoryOptions { hugetlb: true, ..MemoryOptions::default() };
    let reclaimer = Reclaimer::new(&recorder, options, Arc::default(), Arc::clone(&counters))
        .keeping(Arc::clone(&drivers) as _);
    reclaimer.set_memory(Arc::clone(&guest.memory)).expect("the memory table");
    let device = DeviceOptions { must_tell_host: true, ..DeviceOptions::default() };
    let balloon = Balloon::new(device, Arc::clone(&counters));
    balloon.set_acked_features(if input.must_tell { MUST_TELL } else { 0 });
    let (inside, named, must_tell) = (BTreeSet::new(), [(0, 0); 2], input.must_tell);
    let mut execution = Execution { guest, balloon, must_tell, inside, named, actual: None };
    for step in input.steps.iter().take(24) {
        let expected = execution.step(step, &reclaimer, &drivers);
        let mut punched = std::mem::take(&mut *lock(&recorder.punched));
        punched.sort_unstable();
        assert_eq!(punched, expected, "other pages go than are in the balloon");
        let waiting = if execution.must_tell { execution.waiting() } else { 0 };
        assert_eq!(counters.collecting(), waiting * PAGE, "another number of pages waits");
        assert_eq!(execution.balloon.actual_bytes(), execution.actual.map(|pages| pages * PAGE));
        let snapshot = counters.snapshot();
        for (queue, (chains, bytes)) in [Named::Inflate, Named::Deflate].iter().zip(execution.named)
        {
            let counted = snapshot.queue(*queue);
            assert_eq!((counted.chains, counted.bytes), (chains, bytes), "{queue:?}");
        }
    }
}

impl Execution {
    /// Does a step, and says which pages must go.
    fn step(
        &mut self,
        step: &Step,
        reclaimer: &Reclaimer<&Recorder>,
        drivers: &Drivers,
    ) -> Vec<u64> {
        match step {
            Step::Inflate(runs) => {
                let list = pages(runs);
                self.count(0, list.len());
                self.serve(QueueRole::Inflate, &list, false, reclaimer);
                self.inside.extend(&list);
                return self.going(&list);
            }
            Step::Deflate(runs) => {
                let list = pages(runs);
                self.count(1, list.len());
                self.serve(QueueRole::Deflate, &list, false, reclaimer);
                match list.is_empty() {
                    // It says nothing of what is taken out.
                    true => self.inside.clear(),
                    false => self.inside.retain(|page| !list.contains(page)),
                }
            }
            Step::DeflateUnknown => {
                self.count(1, 0);
                self.serve(QueueRole::Deflate, &[], true, reclaimer);
                self.inside.clear();
            }
            Step::Actual(pages) => {
                self.balloon.write_config(4, &pages.to_le_bytes(), true);
                self.actual = Some(u64::from(*pages));
            }
            Step::Begin { untouched } => {
                self.balloon.queue_is_fresh(0, *untouched);
                self.actual = untouched.then_some(0);
                drivers.0.fetch_add(1, Ordering::Relaxed);
                self.inside.clear();
                // It is noticed with the next chain.
                reclaimer.snapshot().deflate(Some(&[]));
            }
            Step::Table => {
                reclaimer.set_memory(Arc::clone(&self.guest.memory)).expect("the memory table");
                self.inside.clear();
                reclaimer.snapshot().deflate(Some(&[]));
            }
        }
        Vec::new()
    }

    fn count(&mut self, queue: usize, pages: usize) {
        self.named[queue].0 += 1;
        self.named[queue].1 += pages as u64 * PAGE;
    }

    fn serve(
        &self,
        role: QueueRole,
        list: &[u64],
        unknown: bool,
        reclaimer: &Reclaimer<&Recorder>,
    ) {
        let bytes: Vec<u8> =
            list.iter().flat_map(|page| u32::try_from(*page).unwrap_or(0).to_le_bytes()).collect();
        self.guest.memory.write_slice(&bytes, GuestAddress(LISTS)).expect("guest memory");
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&LISTS.to_le_bytes());
        descriptor[8..12].copy_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
        // A buffer that the device may write is no list.
        descriptor[12] = if unknown { 2 } else { 0 };
        self.guest.memory.write_slice(&descriptor, GuestAddress(0)).expect("guest memory");
        let head = ChainHead { table: GuestAddress(0), queue_size: 4, index: 0 };
        let snapshot = reclaimer.snapshot();
        let mut request = self.balloon.collect(role, head, snapshot.as_ref());
        let (action, mut zeroed) = (request.action, Zeroed::default());
        let ranges = &mut request.contents.ranges;
        match action {
            Action::Discard => drop(snapshot.discard_while(ranges, &mut zeroed, || true)),
            Action::Hold => drop(snapshot.inflate_while(ranges, &mut zeroed, || true)),
            Action::Release => snapshot.deflate(Some(ranges)),
            Action::ReleaseAll => snapshot.deflate(None),
            Action::Nothing => {}
        }
        self.balloon.finish(request, snapshot.as_ref());
    }

    /// The pages of the balloon that go by a list, all pages of the host with them.
    fn going(&self, list: &[u64]) -> Vec<u64> {
        let named: BTreeSet<u64> = list.iter().copied().collect();
        let small = named.iter().copied().filter(|page| *page < SMALL_PAGES);
        let mut going: Vec<u64> = small.collect();
        if !self.guest.has_huge {
            return going;
        }
        let full = if self.must_tell { &self.inside } else { &named };
        for huge in 0..HUGE_PAGES {
            let all = HUGE_AT + huge * HUGE..HUGE_AT + (huge + 1) * HUGE;
            if named.range(all.clone()).next().is_some()
                && all.clone().all(|page| full.contains(&page))
            {
                going.extend(all);
            }
        }
        going
    }

    /// How many pages of the balloon wait for the rest of their page of the host.
    fn waiting(&self) -> u64 {
        let inside = |huge: u64| {
            let all = HUGE_AT + huge * HUGE..HUGE_AT + (huge + 1) * HUGE;
            self.inside.range(all).count() as u64
        };
        let pages = if self.guest.has_huge { HUGE_PAGES } else { 0 };
        (0..pages).map(inside).filter(|count| *count < HUGE).sum()
    }
}
