// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![expect(clippy::single_range_in_vec_init, reason = "a notifier has ranges, and may have one")]

use alloc::sync::Arc;
use alloc::vec;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::random::Random;
use crate::waits::{Party, Waits};

fn pages() -> (Arc<Waits>, Arc<Pages>) {
    let waits = Arc::new(Waits::new());
    let reclaim = Arc::new(Reclaim::new(&waits, 0));
    (waits, Arc::new(Pages::new(reclaim)))
}

/// Fails its `busy`-th start.
#[derive(Debug)]
struct Sometimes {
    busy: usize,
    seen: AtomicUsize,
}

impl Notifier for Sometimes {
    fn start(&self, _: &Invalidation<'_>) -> Result<(), Again> {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed);
        if seen == self.busy { Err(Again) } else { Ok(()) }
    }

    fn end(&self, _: &Invalidation<'_>) {}
}

fn subscribed(busy: [usize; 3]) -> Notifiers {
    let mut notifiers = Notifiers::default();
    for (at, busy) in busy.into_iter().enumerate() {
        let notifier = Arc::new(Sometimes { busy, seen: AtomicUsize::new(0) });
        let at = at as u64;
        notifiers.subscribe(notifier, &[at * 10..at * 10 + 15]);
    }
    notifiers
}

fn start(notifiers: &Notifiers, range: Range<u64>, asks: Asks) -> bool {
    let (waits, pages) = pages();
    let grace = Grace::new(&pages);
    let (party, step) = (waits.party("the task"), Step::Bail);
    let invalidation = Invalidation { party, range, step, tests_range: false, grace: &grace };
    let started = notifiers.start(&invalidation, asks, None);
    started.map(|started| started.end(&invalidation)).is_ok()
}

#[test]
fn failed_start_ends_those_that_succeeded() {
    let notifiers = subscribed([usize::MAX, 0, usize::MAX]);
    assert!(!start(&notifiers, 0..30, Asks::All));
    let counts =
        |notifiers: &Notifiers| notifiers.all().iter().map(Subscribed::counts).collect::<Vec<_>>();
    assert_eq!(counts(&notifiers), [(1, 1), (0, 0), (0, 0)]);
    assert!(start(&notifiers, 0..30, Asks::All));
    assert_eq!(counts(&notifiers), [(2, 2), (1, 1), (1, 1)]);
}

#[test]
fn tree_asks_those_with_an_interest_once() {
    let notifiers = subscribed([usize::MAX; 3]);
    assert!(start(&notifiers, 12..20, Asks::Tree));
    let starts: Vec<u64> = notifiers.all().iter().map(|one| one.counts().0).collect();
    assert_eq!(starts, [1, 1, 0]);
}

#[test]
fn interval_tree_finds_what_a_walk_finds() {
    let mut random = Random(3);
    for _ in 0..200 {
        let mut tree = IntervalTree::new();
        let mut list = Vec::new();
        for number in 0..random.below(20) {
            let start = random.below(60);
            let range = start..start + random.below(12);
            list.push((range.clone(), number));
            tree.insert(range, number);
        }
        assert_eq!((tree.len(), tree.is_empty()), (list.len(), list.is_empty()));
        let start = random.below(60);
        let asked = start..start + random.below(12);
        let mut found: Vec<u64> = tree.overlapping(&asked).into_iter().copied().collect();
        found.sort_unstable();
        let overlaps = |range: &Range<u64>| (range.start..range.end).any(|at| asked.contains(&at));
        let expected: Vec<u64> =
            list.iter().filter(|(range, _)| overlaps(range)).map(|&(_, number)| number).collect();
        assert_eq!(found, expected, "{asked:?} in {list:?}");
    }
}

#[test]
fn page_is_freed_by_its_last_reference() {
    let (_, pages) = pages();
    let page = pages.add();
    assert!(pages.get(page));
    assert!(!pages.put(page));
    assert!(pages.put(page));
    assert!(!pages.get(page));
    assert_eq!((pages.freed(), pages.faults()), (1, vec![]));
    assert!(!pages.put(page));
    assert_eq!(pages.faults(), [Fault::FreedTwice(page)]);
}

#[test]
fn free_of_a_mirrored_page_is_a_fault() {
    let (_, pages) = pages();
    let [early, late] = [pages.add(), pages.add()];
    pages.map_secondary(early, 7);
    pages.put(early);
    pages.put(late);
    pages.map_secondary(late, 8);
    let of = |page, subscription| Fault::FreedWhileMapped { page, subscription };
    assert_eq!(pages.faults(), [of(early, 7), of(late, 8)]);
}

#[test]
fn grace_frees_when_the_last_has_passed() {
    let (_, pages) = pages();
    let grace = Grace::new(&pages);
    grace.defer();
    grace.keep(pages.add());
    assert_eq!((grace.pass(), pages.freed()), (0, 0));
    assert_eq!((grace.pass(), pages.freed()), (1, 1));
}

#[test]
fn allocation_fails_when_reclaim_has_given_up() {
    let waits = Arc::new(Waits::new());
    let reclaim = Reclaim::new(&waits, 1);
    let [reaper, task] = ["the reaper", "the task"].map(|name| waits.party(name));
    assert_eq!(reclaim.alloc(task), Ok(()));
    assert_eq!(reclaim.alloc(task), Err(NoMemory));
    reclaim.begin(reaper);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| reclaim.alloc(task));
        reclaim.freed();
        assert_eq!(waiting.join().expect("it ends"), Ok(()));
        let waiting = scope.spawn(|| reclaim.alloc(task));
        reclaim.end(reaper);
        assert_eq!(waiting.join().expect("it ends"), Err(NoMemory));
    });
}

#[test]
fn freed_page_table_is_not_walked() {
    let (waits, pages) = pages();
    let mm = AddressSpace::new(&waits, pages, vec![VmaSetup::private(4..6)]);
    mm.exit(waits.party("the process"));
    assert!(mm.is_skipped() && mm.get_page(Party::UNWATCHED, 4).is_none());
    let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| mm.vmas()[0].zap(4)));
    assert!(walked.is_err());
}
