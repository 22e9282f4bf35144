// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is known of each page beside the model: its user, its contents, whether the host has it, and
//! whether it was reported since it was last freed.

use std::sync::Arc;

use super::invariant::Holds;
use crate::Run;
use crate::shadow::Shadow;
use guest_driver::page_alloc::{MigrateType, Mm, Pfn, PfnRange};
use guest_driver::reporting::Memory;

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// The CPU that has allocated it.
    used_by: Option<u32>,
    /// Zero after the host has discarded it.
    content: u64,
    /// A report of it is submitted and not acknowledged.
    with_host: bool,
    /// Acknowledged since it was last in use.
    reported: bool,
    /// The migratetype of its pageblock when it was submitted.
    migratetype: Option<MigrateType>,
}

/// The pages of a guest.
#[derive(Debug)]
pub(super) struct Pages {
    run: Arc<Run<Holds>>,
    pages: Shadow<Page>,
    isolated: Shadow<PfnRange>,
}

impl Pages {
    /// For so many pages, none of them in use or reported.
    pub(super) fn new(pages: u32, run: Arc<Run<Holds>>) -> Self {
        let pages = Shadow::new(vec![Page::default(); pages as usize]);
        Self { run, pages, isolated: Shadow::new(Vec::new()) }
    }

    fn violate(&self, invariant: Holds, what: String) {
        self.run.violate(invariant, what);
    }

    fn each(&self, range: PfnRange, mut visit: impl FnMut(Pfn, &mut Page)) {
        let pfns = range.start.0 as usize..range.end.0 as usize;
        self.pages.each(pfns, |pfn, page| visit(Pfn(u32::try_from(pfn).unwrap_or(u32::MAX)), page));
    }

    /// `user` has allocated these pages and writes `content` to them.
    pub(super) fn allocated(&self, range: PfnRange, user: u32, content: u64) {
        self.each(range, |pfn, page| {
            if page.with_host {
                let what = format!("{pfn:?} is allocated by {user} while the host has it");
                self.violate(Holds::NoReportedPageInUse, what);
            }
            if let Some(other) = page.used_by {
                let what = format!("{pfn:?} is allocated by {user} and in use by {other}");
                self.violate(Holds::NoReportedPageInUse, what);
            }
            *page = Page { used_by: Some(user), content, ..Page::default() };
        });
    }

    /// Their new user clears these pages.
    pub(super) fn clear(&self, range: PfnRange) {
        self.each(range, |_, page| page.content = 0);
    }

    /// These pages are given out as zero.
    pub(super) fn expect_zero(&self, range: PfnRange) {
        self.each(range, |pfn, page| {
            if page.content != 0 {
                let what = format!("{pfn:?} is allocated as zero and holds {}", page.content);
                self.violate(Holds::ZeroedPageHoldsZero, what);
            }
        });
    }

    /// These pages must hold what was written to them.
    pub(super) fn verify(&self, range: PfnRange, content: u64) {
        self.each(range, |pfn, page| {
            if page.content != content {
                let what = format!("{pfn:?} holds {} instead of {content}", page.content);
                self.violate(Holds::NoReportedPageInUse, what);
            }
        });
    }

    /// Their user is about to free these pages.
    pub(super) fn freed(&self, range: PfnRange, content: u64) {
        self.verify(range, content);
        self.each(range, |_, page| page.used_by = None);
    }

    /// These pages have come online, or gone offline: they need reporting again.
    pub(super) fn forget(&self, range: PfnRange) {
        self.each(range, |pfn, page| {
            if page.with_host || page.used_by.is_some() {
                let what = format!("{pfn:?} goes off- or online and is {page:?}");
                self.violate(Holds::NoReportedPageInUse, what);
            }
            // What it holds when it comes back is not known.
            *page = Page { content: u64::MAX, ..Page::default() };
        });
    }

    /// The host gets these pages.
    pub(super) fn submit(&self, mm: &Mm, range: PfnRange, isolated: bool) {
        let migratetypes = Self::of_range(mm, range);
        self.each(range, |pfn, page| {
            if page.used_by.is_some() || page.with_host {
                self.violate(
                    Holds::NoReportedPageInUse,
                    format!("{pfn:?} is reported and is {page:?}"),
                );
            }
            page.with_host = true;
            page.migratetype = migratetypes.get(block_of(mm, range, pfn)).copied();
        });
        let section = range.start.0 >> mm.geometry().section_order;
        if !mm.is_online(section as usize) {
            self.violate(
                Holds::NoReportedPageInUse,
                format!("{range:?} is reported and is offline"),
            );
        }
        if isolated {
            self.isolated_twice(range);
        }
    }

    /// The host takes the contents of these pages.
    pub(super) fn discard(&self, range: PfnRange) {
        self.each(range, |pfn, page| {
            if let Some(user) = page.used_by {
                self.violate(
                    Holds::NoReportedPageInUse,
                    format!("{pfn:?} is discarded and in use by {user}"),
                );
            }
            page.content = 0;
        });
    }

    /// The host acknowledges the report of these pages.
    pub(super) fn acknowledge(&self, mm: &Mm, range: PfnRange) {
        let migratetypes = Self::of_range(mm, range);
        self.each(range, |pfn, page| {
            page.with_host = false;
            page.reported = true;
            let now = migratetypes.get(block_of(mm, range, pfn)).copied();
            if page.migratetype != now {
                let before = page.migratetype;
                let what = format!("{pfn:?} was {before:?} and is {now:?} with the host");
                self.violate(Holds::MigratetypeKept, what);
            }
        });
    }

    /// The migratetype of each pageblock. Read before the pages are locked: a look at the model is
    /// a scheduling point.
    fn of_range(mm: &Mm, range: PfnRange) -> Vec<MigrateType> {
        let blocks = range.step(mm.geometry().pageblock_order);
        blocks.map(|block| mm.underlying_migratetype(block)).collect()
    }

    /// The migratetype of every pageblock, those beneath an isolation; none for what is not online.
    pub(super) fn migratetypes(mm: &Mm) -> Vec<Option<MigrateType>> {
        let geometry = mm.geometry();
        let of = |section| {
            let blocks = geometry.section_range(section).step(geometry.pageblock_order);
            blocks.map(move |block| mm.is_online(section).then(|| mm.underlying_migratetype(block)))
        };
        (0..mm.section_count()).flat_map(of).collect()
    }

    /// No report has changed a pageblock's migratetype: one of a reserve, or any one if the reporter
    /// promises that.
    pub(super) fn check_migratetypes(&self, mm: &Mm, before: &[Option<MigrateType>], any: bool) {
        for (block, (before, now)) in before.iter().zip(Self::migratetypes(mm)).enumerate() {
            let of_interest =
                |mt: &Option<MigrateType>| mt.is_some_and(|mt| any || !mt.is_mergeable());
            if *before != now && (of_interest(before) || of_interest(&now)) {
                let what = format!("pageblock {block} was {before:?} and is {now:?}");
                self.violate(Holds::MigratetypeKept, what);
            }
        }
    }

    fn isolated_twice(&self, range: PfnRange) {
        let theirs = |other: &&PfnRange| other.start < range.end && range.start < other.end;
        if let Some(other) = self.isolated.with(|isolated| isolated.iter().find(theirs).copied()) {
            let what = format!("{range:?} is isolated, and {other:?} by another");
            self.violate(Holds::OneIsolatorPerPageblock, what);
        }
    }

    /// Another isolator than the reporter has isolated this range.
    pub(super) fn isolate(&self, range: PfnRange) {
        self.isolated_twice(range);
        self.isolated.with(|isolated| isolated.push(range));
    }

    /// It is about to end that.
    pub(super) fn unisolate(&self, range: PfnRange) {
        self.isolated.with(|isolated| isolated.retain(|&other| other != range));
    }

    /// When all is quiet, every free block of `order` or larger has been reported, but for those that
    /// are remembered until their zone can spare them.
    pub(super) fn check_reported(&self, mm: &Mm, memory: &Memory, order: u8) {
        let geometry = mm.geometry();
        for section in (0..mm.section_count()).filter(|&section| mm.is_online(section)) {
            for head in geometry.section_range(section).step(order) {
                let found = mm.state(head).buddy_order();
                let Some(found) = found.filter(|&found| found >= order) else { continue };
                if memory.has_section(section) && !can_spare(mm, head) {
                    continue;
                }
                self.each(PfnRange::block(head, found), |pfn, page| {
                    if !page.reported {
                        let what = format!(
                            "{pfn:?}, in a free block of order {found}, was never reported since \
                             it was last in use"
                        );
                        self.violate(Holds::EveryFreeBlockReported, what);
                    }
                });
            }
        }
    }
}

/// Whether the zone of this page can spare any free block. A block may have been larger when the reporter
/// found it too large to spare, and only parts of it are free now: they wait for as many pages.
fn can_spare(mm: &Mm, pfn: Pfn) -> bool {
    mm.zone_of(pfn).is_some_and(|id| {
        let zone = mm.zone(id);
        let most = 1 << mm.geometry().max_order;
        zone.watermark_ok(0, zone.watermarks().low + most, true)
    })
}

/// The place of a page's pageblock in `range`.
fn block_of(mm: &Mm, range: PfnRange, pfn: Pfn) -> usize {
    ((pfn.0 - range.start.0) >> mm.geometry().pageblock_order) as usize
}
