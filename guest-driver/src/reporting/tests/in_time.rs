// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When passes are due, and acknowledgements that are late.

use super::*;

/// A guest in virtual time that has reported everything.
fn quiet_guest(config: Config) -> (Arc<Mm>, Reporter, Arc<VirtualClock>, Host) {
    let mm = Arc::new(Mm::new(&Layout::flat(G, 2, 4)));
    let clock = Arc::new(VirtualClock::new());
    let reporter = Reporter::with_clock(Arc::clone(&mm), config, Arc::clone(&clock) as _);
    let (mut reporter, mut host) = (reporter.unwrap(), Host::default());
    reporter.run_until(&clock, Duration::from_secs(600), &mut host);
    assert_eq!(reporter.schedule().due(), None, "{config:?}: no pass on a quiet guest");
    host.reports.clear();
    (mm, reporter, clock, host)
}

#[test]
fn what_is_freed_is_back_exactly_one_delay_later() {
    for config in every_config() {
        let (mm, mut reporter, clock, mut host) = quiet_guest(config);
        let pfns: Vec<Pfn> =
            (0..2).map(|_| mm.alloc(0, AllocRequest::movable(10)).unwrap()).collect();
        assert_eq!(reporter.schedule().due(), None, "to allocate asks for nothing");
        clock.advance(Duration::from_millis(700));
        let freed = clock.now();
        mm.free(0, pfns[0]);
        assert_eq!(reporter.schedule().due(), Some(freed + config.delay));
        // A second free is part of the same pass.
        clock.advance(Duration::from_secs(1));
        mm.free(0, pfns[1]);
        let due = freed + config.delay;
        assert_eq!(reporter.schedule().due(), Some(due));
        let before = due.saturating_sub(Duration::from_nanos(1));
        assert_eq!(reporter.run_until(&clock, before, &mut host), PassStats::default());
        assert!(host.reports.is_empty() && !reporter.schedule().is_due());
        reporter.run_until(&clock, due, &mut host);
        assert_eq!(clock.now(), due);
        for pfn in pfns {
            assert!(host.reports.iter().flatten().any(|range| range.contains(pfn)), "{config:?}");
        }
    }
}

/// 16 passes, 2 seconds apart.
#[test]
fn mainline_is_through_with_32_gib_after_32_seconds() {
    let config =
        Config { tracker: TrackerKind::ReportedFlag, holding: Holding::Pull, ..Config::DEFAULT };
    let mm = Arc::new(Mm::new(&Layout::flat(G, 2, 256)));
    let clock = Arc::new(VirtualClock::new());
    let mut reporter = Reporter::with_clock(mm, config, Arc::clone(&clock) as _).unwrap();
    let mut host = Host::default();
    reporter.run_until(&clock, Duration::from_millis(31_999), &mut host);
    assert_eq!(host.pages(), 15 * (2176 << 8));
    reporter.run_until(&clock, Duration::from_secs(32), &mut host);
    assert_eq!(host.pages(), 32 << 18);
    assert_eq!(reporter.schedule().due(), None);
}

#[test]
fn free_during_a_pass_is_reported_one_delay_later() {
    /// Takes its time, and something is freed meanwhile.
    struct Slow<'a>(&'a Mm, &'a VirtualClock, Option<Pfn>);
    impl ReportSink for Slow<'_> {
        fn report(&mut self, _: &[PfnRange], _: Option<Duration>) -> Result<(), ReportError> {
            self.1.advance(Duration::from_secs(5));
            if let Some(pfn) = self.2.take() {
                self.0.free(1, pfn);
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
    for config in every_config() {
        let (mm, mut reporter, clock, mut host) = quiet_guest(config);
        let take = || mm.alloc(0, AllocRequest::movable(10)).unwrap();
        let (first, second) = (take(), take());
        mm.free(0, first);
        let due = reporter.schedule().due().unwrap();
        clock.advance_to(due);
        reporter.pass(&mut Slow(&mm, &clock, Some(second)));
        let passed = clock.now();
        assert_eq!(reporter.schedule().due(), Some(passed + config.delay), "{config:?}");
        reporter.run_until(&clock, passed + config.delay, &mut host);
        assert!(host.reports.iter().flatten().any(|range| range.contains(second)), "{config:?}");
        reporter.run_until(&clock, passed + config.delay * 10, &mut host);
        assert_eq!(reporter.schedule().due(), None, "{config:?}");
    }
}

#[test]
fn waiting_thread_wakes_when_a_pass_is_due() {
    let delay = Duration::from_millis(30);
    let config = Config { delay, ..Config::DEFAULT };
    let (mm, mut reporter) = guest(2, config);
    let schedule = Arc::clone(reporter.schedule());
    let pfn = mm.alloc(0, AllocRequest::movable(10)).unwrap();
    settle(&mut reporter, &mut Host::default());
    assert_eq!(schedule.due(), None);
    std::thread::scope(|scope| {
        let reporting = scope.spawn(|| {
            let mut passes = Vec::new();
            while schedule.wait() {
                passes.push((std::time::Instant::now(), reporter.pass(&mut Host::default()).pages));
                schedule.close();
            }
            passes
        });
        let freed = std::time::Instant::now();
        mm.free(0, pfn);
        let passes = reporting.join().unwrap();
        let [(at, pages)] = passes.as_slice() else { panic!("{passes:?}") };
        assert!(*pages >= 1024 && at.duration_since(freed) >= delay, "{passes:?}");
    });
    assert!(!schedule.wait(), "it is closed");
}

/// Acknowledges the first report late, when the test says so.
#[derive(Default)]
struct Late {
    host: Host,
    timeouts: Vec<Option<Duration>>,
    out: Vec<PfnRange>,
    answered: bool,
}

impl ReportSink for Late {
    fn report(
        &mut self,
        ranges: &[PfnRange],
        timeout: Option<Duration>,
    ) -> Result<(), ReportError> {
        self.timeouts.push(timeout);
        if self.timeouts.len() == 1 {
            self.out = ranges.to_vec();
            return Err(ReportError::Timeout);
        }
        assert!(self.answered, "nothing is reported while the host has the report before");
        self.host.report(ranges, timeout)
    }

    fn settle(&mut self) -> bool {
        self.answered
    }

    fn capacity(&self) -> usize {
        32
    }
}

#[test]
fn late_acknowledgement_releases_pages_as_reported() {
    let timeout = Some(Duration::from_secs(1));
    for config in every_config() {
        let config = Config { acknowledge_timeout: timeout, ..config };
        let mm = Arc::new(Mm::new(&Layout::flat(G, 2, 2)));
        let clock = Arc::new(VirtualClock::new());
        let reporter = Reporter::with_clock(Arc::clone(&mm), config, Arc::clone(&clock) as _);
        let (mut reporter, mut sink) = (reporter.unwrap(), Late::default());
        let after = |passes: u32| config.delay * passes;
        let stats = reporter.run_until(&clock, after(4), &mut sink);
        assert!(stats.failed && stats.reports == 0, "{config:?}: {stats:?}");
        assert_eq!(sink.timeouts, [timeout]);

        // Held, whatever happens meanwhile.
        let held = reporter.withheld_pages();
        let range = if config.tracker.reports_whole_blocks() { 1024 } else { 512 };
        assert_eq!(held, 32 * range);
        mm.validate().unwrap();
        assert_eq!(mm.zone(ZoneId(0)).free_pages(), 2 * 32768 - held, "{config:?}");
        let mut taken = Vec::new();
        while let Ok(pfn) = mm.alloc(0, AllocRequest::movable(10)) {
            assert!(!sink.out.iter().any(|range| range.contains(pfn)), "{config:?}");
            taken.push(pfn);
        }
        taken.into_iter().for_each(|pfn| mm.free(0, pfn));

        sink.answered = true;
        let stats = reporter.run_until(&clock, after(30), &mut sink);
        assert_eq!((stats.late, reporter.withheld_pages()), (1, 0), "{config:?}");
        assert_eq!(mm.zone(ZoneId(0)).free_pages(), 2 * 32768, "{config:?}");
        mm.validate().unwrap();
        assert_eq!(reporter.schedule().due(), None);
        // All of the rest, and nothing twice.
        assert_eq!(stats.pages, 2 * 32768, "{config:?}");
        assert_eq!(sink.host.pages(), 2 * 32768 - held, "{config:?}");
        let mut reports = sink.host.reports.iter().flatten();
        assert!(!reports.any(|range| sink.out.contains(range)), "{config:?}");
    }
}
