// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which reports leave their pages known to be zero.

use super::*;

/// Calls every report zero, or none.
struct Claims(Host, bool);

impl ReportSink for Claims {
    fn report(&mut self, ranges: &[PfnRange], wait: Option<Duration>) -> Result<(), ReportError> {
        self.0.report(ranges, wait)
    }

    fn settle(&mut self) -> bool {
        self.0.settle()
    }

    fn is_zero(&self) -> bool {
        self.1
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

/// Pages that are known to be zero after all of a section was reported, or refused.
fn known(zero_reports: ZeroReports, is_zero: bool, failing: Option<ReportError>) -> usize {
    let (mm, mut reporter) = guest(1, Config { zero_reports, ..Config::DEFAULT });
    let mut sink = Claims(Host { failing, ..Host::default() }, is_zero);
    while reporter.has_work() && !reporter.pass(&mut sink).failed {}
    G.section_range(0).step(0).filter(|&pfn| mm.is_known_zero(pfn)).count()
}

#[test]
fn report_is_known_zero_if_the_device_says_so() {
    let all = 1 << 15;
    assert_eq!(known(ZeroReports::AsTold, true, None), all);
    assert_eq!(known(ZeroReports::AsTold, false, None), 0);
    assert_eq!(known(ZeroReports::None, true, None), 0);
    assert_eq!(known(ZeroReports::All, false, None), all);
    for error in [ReportError::Refused, ReportError::Timeout] {
        assert_eq!(known(ZeroReports::AsTold, true, Some(error)), 0);
    }
}
