// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hypotheses in the model, step by step on one thread: what happens is the same in every run.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use guest_driver::page_alloc::{
    AllocRequest, FrameState, Geometry, IsolateMode, KernelSemantics, Layout, Mm, Pfn, PfnRange,
    ZoneId,
};
use guest_driver::reporting::{
    Config, Holding, PassStats, ReportError, ReportSink, Reporter, TrackerKind, VirtualClock,
};

use super::seen::{Seen, assertion, seen};

const CPU: usize = 0;
const PAGEBLOCK: u8 = Geometry::LINUX.pageblock_order;
const LARGEST: u8 = Geometry::LINUX.max_order;
/// More passes than a quiet guest needs.
const PASSES: usize = 200;

type Step = Box<dyn FnOnce(&Mm, &[PfnRange])>;

/// Acknowledges and remembers every report, and runs a step during the first one.
#[derive(Default)]
struct Host {
    mm: Option<Arc<Mm>>,
    meanwhile: Option<Step>,
    reported: Vec<PfnRange>,
}

impl ReportSink for Host {
    fn report(&mut self, ranges: &[PfnRange], _: Option<Duration>) -> Result<(), ReportError> {
        self.reported.extend_from_slice(ranges);
        if let (Some(mm), Some(step)) = (&self.mm, self.meanwhile.take()) {
            step(mm, ranges);
        }
        Ok(())
    }

    fn settle(&mut self) -> bool {
        true
    }

    fn capacity(&self) -> usize {
        32
    }
}

/// A guest that reports as mainline does: tracker `reported-flag`, pulling.
struct Guest {
    mm: Arc<Mm>,
    reporter: Reporter,
    host: Host,
}

impl Guest {
    fn new(layout: &Layout, granule_order: u8) -> Result<Self> {
        let mm = Arc::new(Mm::new(layout));
        let config = Config {
            tracker: TrackerKind::ReportedFlag,
            holding: Holding::Pull,
            granule_order,
            ..Config::default()
        };
        let clock = Arc::new(VirtualClock::new());
        let reporter = Reporter::with_clock(Arc::clone(&mm), config, clock)?;
        let host = Host { mm: Some(Arc::clone(&mm)), ..Host::default() };
        Ok(Self { mm, reporter, host })
    }

    /// 512 MiB as Linux has them, all reported.
    fn reported(semantics: KernelSemantics) -> Result<Self> {
        let layout = Layout { semantics, ..Layout::flat(Geometry::LINUX, 1, 4) };
        let mut guest = Self::new(&layout, PAGEBLOCK)?;
        guest.rest()?;
        Ok(guest)
    }

    /// Runs passes until none is requested, and returns the number of reported pages.
    fn rest(&mut self) -> Result<u64> {
        self.host.reported.clear();
        for _ in 0..PASSES {
            if !self.reporter.has_work() {
                let pages = self.host.reported.iter().map(|range| u64::from(range.pages()));
                return Ok(pages.sum());
            }
            self.reporter.pass(&mut self.host);
        }
        bail!("the guest still reports after {PASSES} passes")
    }

    /// Two pageblocks in use that would be one free block.
    fn buddies(&self) -> Result<(Pfn, Pfn)> {
        let pair = [(); 2].map(|()| self.mm.alloc(CPU, AllocRequest::movable(PAGEBLOCK)));
        let [one, other] = pair;
        let (one, other) = (one?, other?);
        ensure!(one.buddy(PAGEBLOCK) == other, "{one:?} and {other:?} are no buddies");
        Ok((one, other))
    }

    fn free(&self, pfn: Pfn) {
        self.mm.free(CPU, pfn);
        self.mm.drain_all(ZoneId(0));
    }

    fn is_unreported(&self, pfn: Pfn) -> bool {
        matches!(self.mm.state(pfn), FrameState::Buddy { reported: false, .. })
    }

    /// A free block of the largest order whose second half is a pageblock of its own.
    fn largest(&self) -> Result<(Pfn, PfnRange)> {
        let range = self.mm.geometry().section_range(0);
        let whole = FrameState::Buddy { order: LARGEST, reported: true };
        let head = range.step(LARGEST).find(|&head| self.mm.state(head) == whole);
        let head = head.context("no free block of the largest order was reported")?;
        Ok((head, PfnRange::block(head.plus(1 << PAGEBLOCK), PAGEBLOCK)))
    }
}

/// Frees a block while it is isolated.
pub(super) fn freed_while_isolated() -> Result<Seen> {
    let mut guest = Guest::reported(KernelSemantics::V6_19)?;
    let (one, other) = guest.buddies()?;
    guest.rest()?;
    let block = PfnRange::block(one, PAGEBLOCK);
    guest.mm.start_isolate_page_range(block, IsolateMode::Other)?;
    guest.free(one);
    let while_isolated = guest.rest()?;
    guest.mm.undo_isolate_page_range(block, None);
    let after = guest.rest()?;
    let lost = guest.is_unreported(one);
    guest.free(other);
    let at_last = guest.rest()?;
    let text = format!(
        "2 MiB freed while isolated: {while_isolated} pages reported before the undo, {after} after \
         it, {at_last} after the next free of a block"
    );
    Ok(seen(lost && while_isolated + after == 0 && at_last > 0, text))
}

/// Isolates half of a reported block.
pub(super) fn isolation_reports_again() -> Result<Seen> {
    let mut guest = Guest::reported(KernelSemantics::V6_19)?;
    let (_, half) = guest.largest()?;
    let quiet = guest.rest()?;
    guest.mm.start_isolate_page_range(half, IsolateMode::Other)?;
    guest.mm.undo_isolate_page_range(half, None);
    let again = guest.rest()?;
    let text = format!(
        "half of a free, reported 4 MiB isolated and let go: {again} pages reported again, {quiet} in \
         the quiet guest before"
    );
    Ok(seen(again > 0 && quiet == 0, text))
}

/// Merges two reported blocks.
pub(super) fn merging_loses_the_mark() -> Result<Seen> {
    let mut guest = Guest::reported(KernelSemantics::V6_19)?;
    let (one, other) = guest.buddies()?;
    guest.rest()?;
    guest.free(one);
    let first = guest.rest()?;
    // Isolated it does not merge with the other half, which can so be reported by itself.
    let block = PfnRange::block(one, PAGEBLOCK);
    guest.mm.start_isolate_page_range(block, IsolateMode::Other)?;
    guest.free(other);
    let second = guest.rest()?;
    guest.mm.undo_isolate_page_range(block, None);
    let head = one.align_down(LARGEST);
    let state = guest.mm.state(head);
    let quiet = guest.rest()?;
    let far = guest.mm.alloc(CPU, AllocRequest::movable(PAGEBLOCK))?;
    guest.free(far);
    guest.rest()?;
    let again = guest.host.reported.iter().any(|range| range.contains(one));
    let text = format!(
        "both halves of 4 MiB reported, {first} and {second} pages; merged by the end of an isolation \
         they are {state:?}, {quiet} pages reported; the pass after another free {} them again",
        if again { "reports" } else { "does not report" }
    );
    let lost = state == FrameState::Buddy { order: LARGEST, reported: false };
    Ok(seen(lost && quiet == 0 && again, text))
}

/// Isolates half of a pulled block, which is then put back whole.
pub(super) fn put_back_whole_on_an_isolated_half() -> Result<Seen> {
    let mut guest = Guest::new(&Layout::flat(Geometry::LINUX, 1, 2), PAGEBLOCK)?;
    let isolated = Arc::new(Mutex::new(None));
    let result = Arc::clone(&isolated);
    guest.host.meanwhile = Some(Box::new(move |mm, held| {
        let Some(held) = held.first() else { return };
        let half = PfnRange { start: held.start.plus(1 << PAGEBLOCK), ..*held };
        let busy = mm.start_isolate_page_range(half, IsolateMode::Other);
        *result.lock().unwrap_or_else(PoisonError::into_inner) = Some((half, busy));
    }));
    // As far as the report that holds it, and its putting back.
    let passed = assertion(|| guest.reporter.pass(&mut guest.host));
    let isolated = *isolated.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((half, Ok(()))) = isolated else {
        bail!("no half of what was held was isolated: {isolated:?}")
    };
    let allocated = || {
        std::iter::from_fn(|| guest.mm.alloc(CPU, AllocRequest::movable(PAGEBLOCK)).ok())
            .any(|page| half.contains(page))
    };
    let wrong = match passed.and_then(|_| assertion(allocated)) {
        Ok(true) => Some("pages of the isolated half can be allocated".to_owned()),
        Ok(false) => guest.mm.validate().err().map(|error| error.to_string()),
        Err(failed) => Some(failed),
    };
    let shown = wrong.is_some();
    let text = format!(
        "one half of 4 MiB isolated while they were with the host, and put back: {}",
        wrong.unwrap_or_else(|| "no allocation gets the isolated half".to_owned())
    );
    Ok(seen(shown, text))
}

/// Frees one huge page.
pub(super) fn huge_page_waits() -> Result<Seen> {
    let mut guest = Guest::reported(KernelSemantics::V6_19)?;
    let mm = Arc::clone(&guest.mm);
    let page = mm.alloc(CPU, AllocRequest::movable(PAGEBLOCK))?;
    guest.rest()?;
    mm.free(CPU, page);
    let state = guest.mm.state(page);
    let mut is_reported = || -> Result<bool> {
        guest.rest()?;
        Ok(guest.host.reported.iter().any(|range| range.contains(page)))
    };
    let waiting = is_reported()?;
    mm.drain_all(ZoneId(0));
    let drained = is_reported()?;
    let say = |reported| if reported { "reported" } else { "not reported" };
    let text = format!(
        "a freed huge page is {state:?} and {}; after the per-CPU list was drained {}",
        say(waiting),
        say(drained)
    );
    Ok(seen(!waiting && drained, text))
}

/// Compares the budget of a pass beside isolated blocks with that of one alone.
pub(super) fn isolated_blocks_enlarge_the_budget() -> Result<Seen> {
    // 512 blocks are one call more.
    const SECTIONS: usize = 24;
    const ISOLATED: usize = 16;
    let first_pass = |isolated: usize| -> Result<PassStats> {
        let sections = SECTIONS + isolated;
        let mut guest = Guest::new(&Layout::flat(Geometry::LINUX, 1, sections), PAGEBLOCK)?;
        let geometry = guest.mm.geometry();
        if isolated > 0 {
            let start = geometry.section_range(SECTIONS).start;
            let range = PfnRange { start, end: geometry.section_range(sections - 1).end };
            guest.mm.start_isolate_page_range(range, IsolateMode::Other)?;
        }
        // Isolated blocks are of a pageblock each, and so is what is free: every other.
        let mut used = Vec::new();
        while let Ok(pfn) = guest.mm.alloc(CPU, AllocRequest::movable(PAGEBLOCK)) {
            used.push(pfn);
        }
        for pfn in used.into_iter().filter(|pfn| pfn.is_aligned(LARGEST)) {
            guest.mm.free(CPU, pfn);
        }
        guest.mm.drain_all(ZoneId(0));
        Ok(guest.reporter.pass(&mut guest.host))
    };
    let (alone, beside) = (first_pass(0)?, first_pass(ISOLATED)?);
    let text = format!(
        "1.5 GiB free in blocks of 2 MiB: {} reports in a pass, {} beside 2 GiB isolated",
        alone.reports, beside.reports
    );
    Ok(seen(beside.reports > alone.reports, text))
}

/// Reports with large pageblocks: of 4 MiB, in place of the 512 MiB of arm64 with pages of 64 KiB.
pub(super) fn large_pageblocks() -> Result<Seen> {
    let geometry = Geometry { pageblock_order: LARGEST, ..Geometry::LINUX };
    let reported = |granule: u8| -> Result<(u64, u64)> {
        let layout = Layout::flat(geometry, 1, 4);
        let mut guest = Guest::new(&layout, granule)?;
        // A page in use in each pageblock.
        let mut pages = Vec::new();
        while let Ok(page) = guest.mm.alloc(CPU, AllocRequest::movable(0)) {
            pages.push(page);
        }
        for page in pages {
            if !page.is_aligned(LARGEST) {
                guest.mm.free(CPU, page);
            }
        }
        guest.mm.drain_all(ZoneId(0));
        let free = guest.mm.zone(ZoneId(0)).free_pages();
        Ok((guest.rest()?, free))
    };
    let ((whole, free), (parts, _)) = (reported(LARGEST)?, reported(5)?);
    let text = format!(
        "{free} pages free beside one page in use in each pageblock: {whole} reported where the order is a \
         pageblock's, {parts} where it is 5"
    );
    Ok(seen(whole < free / 10 && parts > free / 2, text))
}

/// Isolates half of a block larger than a pageblock, by old and new rules.
pub(super) fn isolated_half_of_a_large_block() -> Result<Seen> {
    let stays = |semantics: KernelSemantics| -> Result<u64> {
        let guest = Guest::reported(semantics)?;
        let (_, half) = guest.largest()?;
        let before = guest.mm.zone(ZoneId(0)).free_pages();
        guest.mm.start_isolate_page_range(half, IsolateMode::Other)?;
        Ok(before - guest.mm.zone(ZoneId(0)).free_pages())
    };
    let (old, new) = (stays(KernelSemantics::V5_8)?, stays(KernelSemantics::V6_19)?);
    let text = format!(
        "the second half of a free 4 MiB isolated: {old} pages withheld by the rules of Linux 5.8, {new} \
         by those of 6.19"
    );
    Ok(seen(old == 0 && new == 1 << PAGEBLOCK, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::VerdictKind;

    #[test]
    fn model_shows_every_hypothesis_step_by_step() {
        for (name, run) in [
            ("free-into-isolated-block", freed_while_isolated as fn() -> Result<Seen>),
            ("isolation-reports-again", isolation_reports_again),
            ("merging-loses-mark", merging_loses_the_mark),
            ("put-back-on-isolated-half", put_back_whole_on_an_isolated_half),
            ("huge-page-waits", huge_page_waits),
            ("isolated-blocks-enlarge-budget", isolated_blocks_enlarge_the_budget),
            ("large-pageblocks", large_pageblocks),
            ("isolated-half-of-large-block", isolated_half_of_a_large_block),
        ] {
            let (kind, text) = run().unwrap();
            assert_eq!(kind, VerdictKind::Shown, "{name}: {text}");
        }
    }
}
