// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One chain on any queue, with anything in guest memory: walked, collected, discarded, finished.
//!
//! The oracle reads the same memory by itself. A page is discarded if and only if the chain names all of
//! it, no pin touches it and nothing forbids it; what is written lies in the chain's writable buffers.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use arbitrary::Arbitrary;
use vm_memory::GuestAddress;

use super::guest::{Guest, Image, PAGE, PAGES, Recorder, addresses, place};
use super::model::{self, Buffer, Descriptor, OTHER_TABLE, Place, TABLE, numbers, write_table};
use crate::device::chain::ChainHead;
use crate::device::features::Features;
use crate::device::{Action, Balloon, DeviceOptions, Outcome, QueueRole};
use crate::discard::{Cause, GuestRange, Inhibit, MemoryOptions, Reclaimer, Zeroed};
use crate::metrics::Counters;

/// What happens around one chain.
#[derive(Arbitrary, Debug)]
pub(crate) struct Input {
    features: u8,
    /// What the driver has written as its poison value.
    poison: Option<u8>,
    queue: u8,
    size: u8,
    head: u8,
    table: Vec<Descriptor>,
    other_table: Vec<Descriptor>,
    bytes: Vec<(Place, Vec<u8>)>,
    pins: Vec<(Place, u16)>,
    paused: bool,
    /// Calls that the kernel refuses, and with what.
    refuses: u8,
    cannot_punch: bool,
}

const COMPLETE: DeviceOptions = DeviceOptions {
    statistics: true,
    statistics_interval: std::time::Duration::ZERO,
    free_page_hints: true,
    deflate_on_oom: true,
    must_tell_host: true,
    reporting: true,
    init_reported: true,
    init_on_inflate: true,
    target_bytes: 0,
    force_target: true,
    target_from_vmm: true,
};

thread_local! {
    static GUEST: Arc<Guest> = Arc::new(Guest::new());
}

pub(crate) fn run(input: Input) {
    let guest = GUEST.with(Arc::clone);
    guest.clear();
    for (at, bytes) in &input.bytes {
        guest.write(at.gpa(), bytes);
    }
    write_table(&guest, TABLE, &input.table);
    write_table(&guest, OTHER_TABLE, &input.other_table);
    Execution::new(guest, &input).run(&input);
}

struct Execution {
    guest: Arc<Guest>,
    balloon: Balloon,
    inhibit: Arc<Inhibit>,
    counters: Arc<Counters>,
    before: Image,
    /// The buffers of the chain; none if it breaks.
    chain: Option<Vec<Buffer>>,
    head: ChainHead,
}

impl Execution {
    fn new(guest: Arc<Guest>, input: &Input) -> Self {
        let counters = Arc::<Counters>::default();
        let balloon = Balloon::new(COMPLETE, Arc::clone(&counters));
        balloon.set_acked_features(u64::from(input.features));
        if let Some(poison) = input.poison {
            balloon.write_config(12, &[poison, 0, 0, 0], false);
        }
        let inhibit = Arc::<Inhibit>::default();
        if input.paused {
            let _ = inhibit.forbid(Cause::Operator);
        }
        for (at, len) in &input.pins {
            if let Ok(range) = GuestRange::new(at.gpa(), u64::from(*len)) {
                let _ = inhibit.pin(range);
            }
        }
        let queue_size = 1 << (input.size % 7);
        let index = u16::from(input.head);
        let head = ChainHead { table: GuestAddress(TABLE), queue_size, index };
        let before = guest.image();
        let chain = model::walk(&before, TABLE, queue_size, index);
        Self { guest, balloon, inhibit, counters, before, chain, head }
    }

    fn run(&self, input: &Input) {
        let queue = usize::from(input.queue % 5);
        let Some(role) = self.balloon.role(queue) else { return };
        let errno = if input.cannot_punch { libc::EOPNOTSUPP } else { libc::EPERM };
        let recorder = Recorder::new(Arc::clone(&self.guest), input.refuses, errno);
        let (inhibit, counters) = (Arc::clone(&self.inhibit), Arc::clone(&self.counters));
        let reclaimer = Reclaimer::new(&recorder, MemoryOptions::default(), inhibit, counters);
        reclaimer.set_memory(Arc::clone(&self.guest.memory)).expect("the memory table");
        let snapshot = reclaimer.snapshot();

        let mut request = self.balloon.collect(role, self.head, snapshot.as_ref());
        let named = self.named(role, request.action, &request.contents.ranges);
        let action = request.action;
        let mut zeroed = Zeroed::default();
        std::mem::swap(&mut zeroed, &mut request.contents.zeroed);
        let ranges = &mut request.contents.ranges;
        match action {
            Action::Discard => drop(snapshot.discard_while(ranges, &mut zeroed, || true)),
            Action::Hold => drop(snapshot.inflate_while(ranges, &mut zeroed, || true)),
            Action::Release => snapshot.deflate(Some(ranges)),
            Action::ReleaseAll => snapshot.deflate(None),
            Action::Nothing => {}
        }
        snapshot.will_write(request.contents.claim.buffers(), &mut zeroed);
        request.contents.zeroed = zeroed;
        let outcome = self.balloon.finish(request, snapshot.as_ref());

        let punched = recorder.punched();
        let discards = matches!(action, Action::Discard | Action::Hold);
        let allowed = if discards { self.allowed(&named) } else { BTreeMap::new() };
        for (page, times) in &punched {
            let most = allowed.get(page).copied().unwrap_or(0);
            assert!(*times <= most, "{page:?} punched {times} times, {most} allowed");
        }
        if input.refuses == 0 {
            assert_eq!(punched, allowed, "what may be discarded is not");
        }
        self.check_outcome(role, outcome, &punched);
        self.check_writes();
    }

    /// Checks what the device has collected, and returns the guest bytes that the chain names.
    fn named(&self, role: QueueRole, action: Action, ranges: &[GuestRange]) -> Rc<[(u64, u64)]> {
        let chain = self.chain.as_deref().unwrap_or_default();
        let features = Features(self.balloon.acked_features().unwrap_or(0));
        let has = |bit: u32| features.0 >> bit & 1 == 1;
        let got: Vec<(u64, u64)> =
            ranges.iter().map(|range| (range.start(), range.len())).collect();
        match role {
            QueueRole::Reporting => {
                let reports: Vec<(u64, u64)> = chain
                    .iter()
                    .filter(|buffer| buffer.writable && buffer.len > 0)
                    .map(|buffer| (buffer.gpa, u64::from(buffer.len)))
                    .filter(|(gpa, len)| gpa.checked_add(*len).is_some())
                    .collect();
                assert_eq!(got, reports, "other reports than the chain has");
                let config = self.balloon.config();
                let harmless = config.poison_is_known() && config.poison_val() == 0;
                let may = has(5) && (!has(4) || harmless);
                assert_eq!(action == Action::Discard, may, "{action:?} with {features:?}");
                reports.into()
            }
            QueueRole::Inflate => {
                let pages = self.pages(chain);
                assert_eq!(
                    pages_of(&got),
                    sorted(pages.clone()),
                    "other pages than the chain lists"
                );
                assert_eq!(action == Action::Hold, has(0));
                pages.iter().map(|page| (*page, PAGE)).collect()
            }
            QueueRole::Deflate => {
                assert!(!matches!(action, Action::Discard | Action::Hold));
                if action == Action::Release {
                    assert!(self.chain.is_some(), "pages of a chain that breaks");
                    assert_eq!(pages_of(&got), sorted(self.pages(chain)));
                }
                Rc::default()
            }
            // No round was begun, and no other queue names memory.
            _ => {
                assert_eq!((action, got.len()), (Action::Nothing, 0));
                Rc::default()
            }
        }
    }

    /// The pages in the lists of the chain, as far as the device reads them.
    fn pages(&self, chain: &[Buffer]) -> Vec<u64> {
        let mut room = 4096;
        let mut pages = Vec::new();
        for buffer in chain.iter().filter(|buffer| !buffer.writable) {
            let count = (buffer.len / 4).min(room);
            room -= count;
            let list = Buffer { len: 4 * count, ..*buffer };
            pages.extend(numbers(&self.before, list).map(|pfn| u64::from(pfn) * PAGE));
        }
        pages
    }

    /// The pages of files that may be discarded when the guest gives these bytes away, and at how many
    /// of their addresses.
    fn allowed(&self, named: &[(u64, u64)]) -> BTreeMap<(usize, u64), u64> {
        let mut allowed = BTreeMap::new();
        if self.inhibit.reason().is_some() {
            return allowed;
        }
        let pinned: BTreeSet<(usize, u64)> = (0..PAGES * PAGE)
            .step_by(4096)
            .filter(|gpa| {
                let touches = |pin: &GuestRange| pin.start() < gpa + PAGE && *gpa < pin.end();
                self.inhibit.pins().iter().any(|pin| touches(&pin.range))
            })
            .filter_map(place)
            .map(|(file, offset)| (file, offset / PAGE))
            .collect();
        for gpa in (0..PAGES * PAGE).step_by(4096) {
            let Some((file, offset)) = place(gpa) else { continue };
            let page = (file, offset / PAGE);
            if !pinned.contains(&page) && covers(named, gpa, gpa + PAGE) {
                *allowed.entry(page).or_default() += 1;
            }
        }
        allowed
    }

    fn check_outcome(
        &self,
        role: QueueRole,
        outcome: Outcome,
        punched: &BTreeMap<(usize, u64), u64>,
    ) {
        match (role, outcome) {
            (QueueRole::Statistics, outcome) => assert_eq!(outcome, Outcome::Keep),
            (_, Outcome::Return) => {}
            (QueueRole::Reporting, Outcome::Written(len)) => {
                let chain = self.chain.as_deref().expect("a claim for a chain that breaks");
                let sum: u64 = chain.iter().map(|buffer| u64::from(buffer.len)).sum();
                assert_eq!(u64::from(len), sum, "a claim for a part of a chain");
                for buffer in chain {
                    assert_ne!(buffer.len, 0, "a claim for a buffer of no bytes");
                    assert!(is_punched(punched, buffer.gpa, u64::from(buffer.len)));
                }
            }
            (QueueRole::Inflate, Outcome::Written(len)) => self.check_bitmap(len, punched),
            other => panic!("{other:?}"),
        }
    }

    /// A bit says that a page is zero: it was discarded, and no answer was written to it.
    fn check_bitmap(&self, len: u32, punched: &BTreeMap<(usize, u64), u64>) {
        let chain = self.chain.as_deref().expect("a bitmap for a chain that breaks");
        let lists = chain.iter().take_while(|buffer| !buffer.writable);
        let pages: Vec<u32> = lists.flat_map(|list| numbers(&self.before, *list)).collect();
        let after = self.guest.image();
        let bytes = chain.iter().filter(|buffer| buffer.writable).flat_map(|buffer| {
            (0..u64::from(buffer.len)).map(|i| buffer.gpa.checked_add(i)).map_while(|gpa| gpa)
        });
        let written: Vec<u64> = bytes.take(len as usize).collect();
        assert!(written.len() == len as usize && written.len() <= pages.len().div_ceil(8));
        // Of overlapping buffers the last byte written counts.
        let unique = written.iter().collect::<BTreeSet<_>>().len() == written.len();
        for (at, gpa) in written.iter().enumerate().filter(|_| unique) {
            let byte = after.byte(*gpa).expect("an answer outside guest memory");
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                let page = pages.get(8 * at + bit).expect("a bit for no page");
                let page = u64::from(*page) * PAGE;
                assert!(is_punched(punched, page, PAGE), "{page:#x} is said to be zero");
                let (file, offset) = place(page).expect("a page outside guest memory");
                let mut shown = addresses(file, offset / PAGE);
                let answered = |gpa: u64| written.iter().any(|at| at / PAGE * PAGE == gpa);
                assert!(!shown.any(answered), "{page:#x} is said to be zero and holds an answer");
            }
        }
    }

    /// Whatever the device wrote lies in a writable buffer of the chain.
    fn check_writes(&self) {
        let chain = self.chain.as_deref().unwrap_or_default();
        for gpa in self.guest.image().differences(&self.before) {
            let Some((file, offset)) = place(gpa) else { continue };
            let mut shown = addresses(file, offset / PAGE).map(|page| page + gpa % PAGE);
            let named = |gpa: u64| {
                chain.iter().any(|buffer| {
                    buffer.writable && gpa.wrapping_sub(buffer.gpa) < u64::from(buffer.len)
                })
            };
            assert!(shown.any(named), "{gpa:#x} was written and is in no writable buffer");
        }
    }
}

fn sorted(mut pages: Vec<u64>) -> Vec<u64> {
    pages.sort_unstable();
    pages
}

fn pages_of(ranges: &[(u64, u64)]) -> Vec<u64> {
    sorted(ranges.iter().flat_map(|(at, len)| (*at..at + len).step_by(4096)).collect())
}

/// Whether the ranges together hold every byte from `at` to `end`.
fn covers(ranges: &[(u64, u64)], at: u64, end: u64) -> bool {
    let mut at = at;
    while at < end {
        let holding = ranges.iter().filter(|(start, len)| *start <= at && at - start < *len);
        match holding.map(|(start, len)| start + len).max() {
            Some(until) => at = until,
            None => return false,
        }
    }
    true
}

fn is_punched(punched: &BTreeMap<(usize, u64), u64>, gpa: u64, len: u64) -> bool {
    let first = gpa / PAGE * PAGE;
    let mut pages = (first..gpa.saturating_add(len)).step_by(4096);
    pages.all(|gpa| {
        place(gpa).is_some_and(|(file, offset)| punched.contains_key(&(file, offset / PAGE)))
    })
}
