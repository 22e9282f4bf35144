// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Detects stale data: looks at each page that the device says is zero, before the page can be used.

use alloc::format;
use alloc::string::String;
use core::time::Duration;

use guest_driver::page_alloc::{Pfn, PfnRange};
use guest_driver::reporting::{ReportError, ReportSink};

use crate::contents::Contents;
use crate::device::Reporting;

/// What the device has said of its pages.
#[derive(Debug)]
pub(crate) struct Claims {
    contents: Contents,
    /// Takes all reports for zero, whatever the device says: a fault on purpose.
    trusts_all: bool,
    /// Pages of reports that it said are zero.
    pub(crate) reported_pages: u64,
    /// Inflated pages that it said are zero.
    pub(crate) inflated_pages: u64,
    /// Pages that were allocated as zero and not cleared.
    pub(crate) spared_pages: u64,
    /// The first of them that is not.
    wrong: Option<String>,
}

impl Claims {
    pub(crate) fn new(contents: Contents, trusts_all: bool) -> Self {
        Self {
            contents,
            trusts_all,
            reported_pages: 0,
            inflated_pages: 0,
            spared_pages: 0,
            wrong: None,
        }
    }

    /// Fails if the device has called a page zero that is not.
    ///
    /// # Errors
    /// Names the first word that is not zero.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        self.wrong.take().map_or(Ok(()), Err)
    }

    /// The device says that an inflated page is zero.
    pub(crate) fn inflated(&mut self, pfn: Pfn) {
        self.inflated_pages += 1;
        self.look_at(PfnRange::block(pfn, 0), "an inflated page");
    }

    /// A block is allocated as zero, of which so many pages were cleared.
    pub(crate) fn allocated(&mut self, block: PfnRange, cleared: u64) {
        self.spared_pages += u64::from(block.pages()) - cleared;
        self.look_at(block, "an allocated page");
    }

    fn look_at(&mut self, range: PfnRange, what: &str) {
        if let Some((at, word)) = self.contents.first_not_zero(range) {
            let found = || format!("the device calls {what} zero, and {at:#x} holds {word:#x}");
            self.wrong.get_or_insert_with(found);
        }
    }
}

/// The reporting queue with what the device says of its reports.
pub(crate) struct Watched<'a> {
    pub(crate) queue: &'a mut Reporting,
    pub(crate) claims: &'a mut Claims,
}

impl ReportSink for Watched<'_> {
    fn report(
        &mut self,
        ranges: &[PfnRange],
        timeout: Option<Duration>,
    ) -> Result<(), ReportError> {
        self.queue.report(ranges, timeout)?;
        if self.is_zero() {
            for &range in ranges {
                self.claims.reported_pages += u64::from(range.pages());
                self.claims.look_at(range, "a reported page");
            }
        }
        Ok(())
    }

    fn settle(&mut self) -> bool {
        self.queue.settle()
    }

    fn is_zero(&self) -> bool {
        self.claims.trusts_all || self.queue.is_zero()
    }

    fn capacity(&self) -> usize {
        self.queue.capacity()
    }
}
