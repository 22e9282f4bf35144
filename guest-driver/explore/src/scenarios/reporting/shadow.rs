// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the world knows of each page beside the model: who uses it, what it holds, whether the host
//! has it, and whether it was reported since it was last freed.
//!
//! Nothing here is a scheduling point: looking must not change what can happen.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::{Invariant, Violation};
use guest_driver::page_alloc::{MigrateType, Mm, Pfn, PfnRange};

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// Whoever allocated it.
    used_by: Option<u32>,
    /// Zero after the host has discarded it.
    content: u64,
    /// A report of it is submitted and not acknowledged.
    with_host: bool,
    /// Acknowledged since it was last in use.
    reported: bool,
    /// What its pageblock was when it was submitted.
    migratetype: Option<MigrateType>,
}

/// The pages of a guest, and the first thing that went wrong.
#[derive(Debug)]
pub struct Shadow {
    pages: Mutex<Vec<Page>>,
    isolated: Mutex<Vec<PfnRange>>,
    violation: OnceLock<Violation>,
}

impl Shadow {
    /// For so many pages, none of them in use or reported.
    pub fn new(pages: u32) -> Self {
        Self {
            pages: Mutex::new(vec![Page::default(); pages as usize]),
            isolated: Mutex::default(),
            violation: OnceLock::new(),
        }
    }

    /// Takes down that an invariant did not hold; the first one counts.
    pub fn violate(&self, invariant: Invariant, what: String) {
        let _ = self.violation.set(Violation { invariant, what });
    }

    /// The first thing that went wrong.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.get()
    }

    fn pages(&self) -> MutexGuard<'_, Vec<Page>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn each(&self, range: PfnRange, mut visit: impl FnMut(Pfn, &mut Page)) {
        let mut pages = self.pages();
        for pfn in range.step(0) {
            if let Some(page) = pages.get_mut(pfn.0 as usize) {
                visit(pfn, page);
            }
        }
    }

    /// `user` has allocated these pages and writes `content` to them.
    pub fn allocated(&self, range: PfnRange, user: u32, content: u64) {
        self.each(range, |pfn, page| {
            if page.with_host {
                let what = format!("{pfn:?} is allocated by {user} while the host has it");
                self.violate(Invariant::NoReportedPageInUse, what);
            }
            if let Some(other) = page.used_by {
                let what = format!("{pfn:?} is allocated by {user} and in use by {other}");
                self.violate(Invariant::NoReportedPageInUse, what);
            }
            *page = Page { used_by: Some(user), content, ..Page::default() };
        });
    }

    /// These pages must hold what was written to them.
    pub fn verify(&self, range: PfnRange, content: u64) {
        self.each(range, |pfn, page| {
            if page.content != content {
                let what = format!("{pfn:?} holds {} instead of {content}", page.content);
                self.violate(Invariant::NoReportedPageInUse, what);
            }
        });
    }

    /// Their user is about to free these pages.
    pub fn freed(&self, range: PfnRange, content: u64) {
        self.verify(range, content);
        self.each(range, |_, page| page.used_by = None);
    }

    /// These pages have come online, or gone offline: they need reporting anew.
    pub fn forget(&self, range: PfnRange) {
        self.each(range, |pfn, page| {
            if page.with_host || page.used_by.is_some() {
                let what = format!("{pfn:?} goes off- or online and is {page:?}");
                self.violate(Invariant::NoReportedPageInUse, what);
            }
            *page = Page::default();
        });
    }

    /// The host gets these pages.
    pub fn submit(&self, mm: &Mm, range: PfnRange, isolated: bool) {
        let migratetypes = Self::of_range(mm, range);
        self.each(range, |pfn, page| {
            if page.used_by.is_some() || page.with_host {
                self.violate(
                    Invariant::NoReportedPageInUse,
                    format!("{pfn:?} is reported and is {page:?}"),
                );
            }
            page.with_host = true;
            page.migratetype = migratetypes.get(block_of(mm, range, pfn)).copied();
        });
        let section = range.start.0 >> mm.geometry().section_order;
        if !mm.is_online(section as usize) {
            self.violate(
                Invariant::NoReportedPageInUse,
                format!("{range:?} is reported and is offline"),
            );
        }
        if isolated {
            self.isolated_twice(range);
        }
    }

    /// The host takes the contents of these pages.
    pub fn discard(&self, range: PfnRange) {
        self.each(range, |pfn, page| {
            if let Some(user) = page.used_by {
                self.violate(
                    Invariant::NoReportedPageInUse,
                    format!("{pfn:?} is discarded and in use by {user}"),
                );
            }
            page.content = 0;
        });
    }

    /// The host gives these pages back.
    pub fn acknowledge(&self, mm: &Mm, range: PfnRange) {
        let migratetypes = Self::of_range(mm, range);
        self.each(range, |pfn, page| {
            page.with_host = false;
            page.reported = true;
            let now = migratetypes.get(block_of(mm, range, pfn)).copied();
            if page.migratetype != now {
                let before = page.migratetype;
                let what = format!("{pfn:?} was {before:?} and is {now:?} with the host");
                self.violate(Invariant::MigratetypeKept, what);
            }
        });
    }

    /// The migratetype of each pageblock. Asked before the pages are locked: to look at the model
    /// is a scheduling point.
    fn of_range(mm: &Mm, range: PfnRange) -> Vec<MigrateType> {
        let blocks = range.step(mm.geometry().pageblock_order);
        blocks.map(|block| mm.underlying_migratetype(block)).collect()
    }

    /// The migratetype of every pageblock, those beneath an isolation; none for what is not online.
    pub fn migratetypes(mm: &Mm) -> Vec<Option<MigrateType>> {
        let geometry = mm.geometry();
        let of = |section| {
            let blocks = geometry.section_range(section).step(geometry.pageblock_order);
            blocks.map(move |block| mm.is_online(section).then(|| mm.underlying_migratetype(block)))
        };
        (0..mm.section_count()).flat_map(of).collect()
    }

    /// No report has changed a pageblock's migratetype: one of a reserve, or any one if the reporter
    /// promises that.
    pub fn check_migratetypes(&self, mm: &Mm, before: &[Option<MigrateType>], any: bool) {
        for (block, (before, now)) in before.iter().zip(Self::migratetypes(mm)).enumerate() {
            let of_interest =
                |mt: &Option<MigrateType>| mt.is_some_and(|mt| any || !mt.is_mergeable());
            if *before != now && (of_interest(before) || of_interest(&now)) {
                let what = format!("pageblock {block} was {before:?} and is {now:?}");
                self.violate(Invariant::MigratetypeKept, what);
            }
        }
    }

    fn isolated(&self) -> MutexGuard<'_, Vec<PfnRange>> {
        self.isolated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn isolated_twice(&self, range: PfnRange) {
        let theirs = |other: &&PfnRange| other.start < range.end && range.start < other.end;
        if let Some(other) = self.isolated().iter().find(theirs) {
            let what = format!("{range:?} is isolated to be reported, and {other:?} by another");
            self.violate(Invariant::OneIsolatorPerPageblock, what);
        }
    }

    /// Somebody beside the reporter has isolated this range.
    pub fn isolate(&self, range: PfnRange) {
        self.isolated().push(range);
    }

    /// And is about to end that.
    pub fn unisolate(&self, range: PfnRange) {
        self.isolated().retain(|&other| other != range);
    }

    /// When all is quiet, every free block of `order` or larger has been reported.
    pub fn check_reported(&self, mm: &Mm, order: u8) {
        let geometry = mm.geometry();
        for section in (0..mm.section_count()).filter(|&section| mm.is_online(section)) {
            for head in geometry.section_range(section).step(order) {
                let found = mm.state(head).buddy_order();
                let Some(found) = found.filter(|&found| found >= order) else { continue };
                self.each(PfnRange::block(head, found), |pfn, page| {
                    if !page.reported {
                        let what = format!(
                            "{pfn:?}, in a free block of order {found}, was never reported since \
                             it was last in use"
                        );
                        self.violate(Invariant::EveryFreeBlockReported, what);
                    }
                });
            }
        }
    }
}

/// The place of a page's pageblock in `range`.
fn block_of(mm: &Mm, range: PfnRange, pfn: Pfn) -> usize {
    ((pfn.0 - range.start.0) >> mm.geometry().pageblock_order) as usize
}
