// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What may come of a step: which chains come back, which pages are discarded, who is notified.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use super::memory::{FilePage, Files, PAGE, Table};
use super::ring::Ring;
use crate::discard::recorded;

/// A queue as the frontend and the driver know it.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) size: u16,
    /// Where its ring lies, once it was told.
    pub(super) place: Option<u64>,
    pub(super) ready: bool,
    pub(super) enabled: bool,
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<OwnedFd>,
    /// The device keeps a chain.
    pub(super) kept: bool,
    /// It was kicked, or has begun to run.
    pub(super) woken: bool,
    /// The page on which it has begun.
    pub(super) begun_on: Option<FilePage>,
}

impl Queue {
    pub(super) fn runs(&self) -> bool {
        self.ready && self.enabled
    }
}

/// What is in force.
#[derive(Default)]
pub(super) struct Oracle {
    pub(super) table: Table,
    pub(super) queues: [Queue; 5],
    pub(super) rings: BTreeMap<FilePage, Ring>,
    /// The device's bits that are acked.
    pub(super) features: u64,
    pub(super) event_idx: bool,
    pub(super) migrating: bool,
    pub(super) paused: bool,
    /// Guest pages.
    pub(super) pins: Vec<u64>,
    /// Reports may be discarded, as far as the poison value goes.
    pub(super) harmless: bool,
    pub(super) log: Option<std::fs::File>,
}

const STATISTICS: u64 = 1;
const HINTING: u64 = 3;
const POISON: u64 = 4;
const REPORTING: u64 = 5;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Statistics,
    Reporting,
    Nothing,
}

impl Oracle {
    /// What the chains of a queue mean, in the numbering of the specification and in Linux's.
    fn role(&self, queue: usize) -> Role {
        let has = |bit: &u64| self.features >> bit & 1 == 1;
        let Some(optional) = queue.checked_sub(2) else {
            return if queue == 0 { Role::Inflate } else { Role::Nothing };
        };
        let all = [STATISTICS, HINTING, REPORTING];
        let linux = all.iter().filter(|bit| has(bit)).nth(optional);
        let specification = Some(&all[optional]).filter(|bit| has(bit));
        match (linux, specification) {
            (Some(one), Some(other)) if one != other => Role::Nothing,
            (Some(&STATISTICS), _) | (None, Some(&STATISTICS)) => Role::Statistics,
            (Some(&HINTING), _) | (None, Some(&HINTING)) => Role::Nothing,
            _ if has(&REPORTING) => Role::Reporting,
            _ => Role::Nothing,
        }
    }

    /// The page in which the ring of a queue lies now.
    pub(super) fn ring_page(&self, queue: usize) -> Option<FilePage> {
        self.queues[queue].place.and_then(|gpa| self.table.page(gpa))
    }

    /// Looks what has come of a step. `exact` says that nothing kept the worker from doing all of it; without
    /// it `before` are features that may still have been in force.
    pub(super) fn settle(&mut self, files: &Files, exact: bool, before: u64) {
        let mut punched = BTreeSet::new();
        for call in recorded::take() {
            assert_eq!((call.offset % PAGE, call.len % PAGE), (0, 0), "{call:?}");
            let file = files.by_inode(call.inode);
            punched.extend(
                (call.offset / PAGE..(call.offset + call.len) / PAGE).map(|page| (file, page)),
            );
        }
        let mut allowed = BTreeSet::new();
        for queue in 0..self.queues.len() {
            allowed.extend(self.served(files, queue, exact));
            if !exact {
                let now = std::mem::replace(&mut self.features, before);
                allowed.extend(self.served(files, queue, exact));
                self.features = now;
            }
            self.take_back(files, queue, exact);
        }
        for queue in (0..self.queues.len()).filter(|queue| self.queues[*queue].runs()) {
            if let Some(page) = self.ring_page(queue) {
                allowed.remove(&page);
            }
        }
        for page in self.pins.iter().flat_map(|gpa| self.table.touched(*gpa)) {
            allowed.remove(&page);
        }
        if self.paused || self.migrating {
            allowed.clear();
        }
        for page in punched.difference(&allowed) {
            panic!("{page:?} was discarded, and only {allowed:?} may be");
        }
        if exact {
            assert_eq!(punched, allowed, "what may be discarded is not");
        }
        for page in punched {
            assert!(!files.is_marked(page), "{page:?} was discarded and holds what it did");
            // The driver uses it again. What was a ring is none any more.
            files.clear_page(page);
            self.rings.remove(&page);
        }
    }

    /// The pages that the chains of a queue name that were served.
    fn served(&self, files: &Files, number: usize, exact: bool) -> BTreeSet<FilePage> {
        let mut pages = BTreeSet::new();
        let queue = &self.queues[number];
        let Some(page) = self.ring_page(number).filter(|page| queue.begun_on == Some(*page)) else {
            return pages;
        };
        let Some(ring) = self.rings.get(&page) else { return pages };
        let back = ring.came_back(files, page);
        assert!(back == ring.used || queue.runs(), "a queue that does not run returns chains");
        let role = self.role(number);
        let first = ring.used + usize::from(queue.kept);
        let mut end = back;
        if queue.woken && queue.runs() {
            let keeps = role == Role::Statistics && ring.added.len() > first;
            let kept = usize::from(keeps || queue.kept && ring.added.len() == first);
            assert!(
                !exact || back + kept == ring.added.len(),
                "queue {number}: {ring:?}, {back} came back"
            );
            end = ring.added.len();
        }
        for chain in ring.added.get(first..end).unwrap_or_default() {
            match role {
                Role::Inflate => {
                    let page = |pfn: &u32| (u64::from(*pfn) * PAGE, PAGE);
                    let list: Vec<_> = chain.pfns.iter().take(16).map(page).collect();
                    pages.extend(self.table.whole_pages(&list));
                }
                Role::Reporting if self.harmless || self.features >> POISON & 1 == 0 => {
                    pages
                        .extend(self.table.whole_pages(&chain.ranges[..chain.ranges.len().min(3)]));
                }
                _ => {}
            }
        }
        pages
    }

    /// The driver takes its chains back.
    fn take_back(&mut self, files: &Files, number: usize, exact: bool) {
        let page = self.ring_page(number);
        let role = self.role(number);
        let queue = &mut self.queues[number];
        let woken = std::mem::take(&mut queue.woken) && queue.runs();
        let signalled =
            queue.call.as_ref().is_some_and(|call| rustix::io::read(call, &mut [0; 8]).is_ok());
        let Some(page) = page.filter(|page| queue.begun_on == Some(*page)) else { return };
        let Some(ring) = self.rings.get_mut(&page) else { return };
        let back = ring.came_back(files, page);
        let returned = back - ring.used;
        if woken {
            let first = ring.used + usize::from(queue.kept);
            queue.kept = match ring.added.len() > first {
                // All were served, and one is kept.
                true if !exact => back < ring.added.len(),
                true => role == Role::Statistics,
                false => queue.kept && returned == 0,
            };
        } else if returned > 0 {
            queue.kept = false;
        }
        ring.used = back;
        if returned == 0 {
            return;
        }
        assert!(
            signalled || queue.call.is_none() || self.event_idx,
            "queue {number}: nobody was told"
        );
        if let (Some(log), Some(gpa), true) = (&self.log, queue.place, self.migrating) {
            let mut byte = [0];
            let at = gpa / PAGE / 8;
            std::os::unix::fs::FileExt::read_exact_at(log, &mut byte, at).expect("a log");
            assert!(
                byte[0] >> (gpa / PAGE % 8) & 1 == 1,
                "the used ring at {gpa:#x} is not in the log"
            );
        }
    }

    /// A queue is about to begin on the ring that lies at its place.
    pub(super) fn prepare(&mut self, files: &Files, queue: usize) {
        let Some(page) = self.ring_page(queue) else { return };
        let size = self.queues[queue].size;
        if self.rings.get(&page).is_none_or(|ring| ring.size != size) {
            files.clear_page(page);
            self.rings.insert(page, Ring::new(size));
        }
    }

    /// A queue has begun.
    pub(super) fn began(&mut self, queue: usize) {
        let page = self.ring_page(queue);
        let queue = &mut self.queues[queue];
        (queue.begun_on, queue.kept, queue.woken) = (page, false, queue.runs());
    }

    /// All queues are enabled, or none.
    pub(super) fn enable_all(&mut self, on: bool) {
        for queue in 0..self.queues.len() {
            self.enable(queue, on);
        }
    }

    pub(super) fn enable(&mut self, queue: usize, on: bool) {
        let was = std::mem::replace(&mut self.queues[queue].enabled, on);
        if !on {
            self.queues[queue].kept = false;
        } else if !was && self.queues[queue].ready {
            self.began(queue);
        }
    }
}
