// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What takes reports.

use core::time::Duration;

use crate::page_alloc::PfnRange;

/// Takes reports: the balloon driver, or a recorder in a test.
pub trait ReportSink {
    /// Reports `ranges`, at most [`ReportSink::capacity`] of them, and returns when the host has
    /// acknowledged them. Until then the pages belong to the host. The wait ends
    /// after `timeout`, if there is one.
    ///
    /// # Errors
    /// If it was not acknowledged: the pages do not count as reported.
    fn report(&mut self, ranges: &[PfnRange], timeout: Option<Duration>)
    -> Result<(), ReportError>;

    /// Whether the report that failed with [`ReportError::Timeout`] is acknowledged by now. Called
    /// before every pass until it is, and nothing is reported meanwhile. It does not wait.
    fn settle(&mut self) -> bool;

    /// Whether the host says that every byte of the last report was zero when it acknowledged that. Of
    /// a report whose acknowledgement was late it is not known.
    fn is_zero(&self) -> bool {
        false
    }

    /// The most ranges in one report.
    fn capacity(&self) -> usize;
}

/// Why a report failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The device took it and did not return it in time. Its pages must stay held until it does:
    /// the host may still discard them.
    #[error("the host has not acknowledged the report in time")]
    Timeout,
    /// The device did not take it.
    #[error("the report was not taken")]
    Refused,
}
