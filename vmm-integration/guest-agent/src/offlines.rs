// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long blocks took to go offline, laid beside the driver's reports.

use guest_agent::race::{Offlines, OneOffline};

/// Number of the longest that are listed one by one.
const LONGEST: usize = 10;

/// From when to when, in microseconds since the race began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start_us: u64,
    pub(crate) end_us: u64,
}

/// Lays offlines beside reports, of which the driver has one at a time.
pub(crate) fn summary(offlines: &[Span], reports: &[Span]) -> Offlines {
    let mut all: Vec<OneOffline> =
        offlines.iter().map(|offline| beside(offline, reports)).collect();
    let mut times: Vec<u64> = all.iter().map(|offline| offline.us).collect();
    times.sort_unstable();
    let quantile = |thousandths: usize| {
        let place = (times.len() * thousandths).div_ceil(1000).saturating_sub(1);
        times.get(place).copied().unwrap_or(0)
    };
    let behind = all.iter().filter(|offline| offline.behind_report_us > 0);
    let outlasted = behind.clone().filter(|offline| offline.us > offline.behind_report_us).count();
    let behind = behind.count();
    let own = |offline: &OneOffline| offline.us - offline.behind_report_us;
    let longest_own_us = all.iter().map(own).max().unwrap_or(0);
    all.sort_by_key(|offline| std::cmp::Reverse(offline.us));
    let longest = all.iter().take(LONGEST).cloned().collect();
    all.retain(|offline| offline.behind_report_us > 0);
    all.sort_by_key(|offline| std::cmp::Reverse(offline.behind_report_us));
    all.truncate(LONGEST);
    Offlines {
        count: times.len() as u64,
        p50_us: quantile(500),
        p99_us: quantile(990),
        p999_us: quantile(999),
        longest,
        behind_reports: all,
        behind_reports_count: behind as u64,
        outlasted: outlasted as u64,
        longest_own_us,
    }
}

fn beside(offline: &Span, reports: &[Span]) -> OneOffline {
    let first = reports.partition_point(|report| report.end_us <= offline.start_us);
    let during = reports[first..].iter().take_while(|report| report.start_us < offline.end_us);
    let overlap =
        |report: &Span| report.end_us.min(offline.end_us) - report.start_us.max(offline.start_us);
    let behind = reports.get(first).filter(|report| report.start_us <= offline.start_us);
    OneOffline {
        us: offline.end_us - offline.start_us,
        behind_report_us: behind.map_or(0, overlap),
        beside_reports_us: during.map(overlap).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans<const N: usize>(spans: [(u64, u64); N]) -> [Span; N] {
        spans.map(|(start_us, end_us)| Span { start_us, end_us })
    }

    #[test]
    fn offline_waits_only_for_a_report_begun_before_it() {
        let reports = spans([(10, 20), (30, 100), (110, 120), (200, 300)]);
        let offlines = spans([(0, 5), (40, 160), (210, 230), (400, 407)]);
        let summary = summary(&offlines, &reports);
        assert_eq!((summary.count, summary.p50_us, summary.p999_us), (4, 7, 120));
        assert_eq!(
            summary.longest[0],
            OneOffline { us: 120, behind_report_us: 60, beside_reports_us: 70 }
        );
        // The third ended before its report did.
        assert_eq!((summary.behind_reports_count, summary.outlasted), (2, 1));
        assert_eq!(summary.behind_reports.len(), 2);
        assert_eq!(summary.longest_own_us, 60);
        assert_eq!(super::summary(&[], &reports), Offlines::default());
    }
}
