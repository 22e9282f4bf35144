// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory blocks go offline and online in a real Linux guest while it reports.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use balloon_lab::race::linux::LinuxRace;
use guest_agent::race::{HUGE_PAGES, LOAD, REPORT, REPORTING_ORDER, RaceReport, UNLOAD, USE};
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::vmm::qemu;

/// At the most, and unless `RACE_CYCLES` says how many: the lab makes more.
const CYCLES: u64 = 5_000;
/// What has to happen beside them, however few they are.
const KINDS: [&str; 6] = [USE, HUGE_PAGES, REPORTING_ORDER, LOAD, UNLOAD, REPORT];
const TIMEOUT: Duration = Duration::from_secs(20);

fn daemon() -> DaemonProcess {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    DaemonProcess::spawn(binary, &DaemonOptions::default()).unwrap()
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn memory_hotplug_while_linux_reports_loses_nothing() {
    let toolbox = qemu::available().unwrap();
    let daemon = daemon();
    let cycles = std::env::var("RACE_CYCLES").map_or(CYCLES, |cycles| cycles.parse().unwrap());
    let all_happened = |report: &RaceReport| {
        let kinds = KINDS.iter().all(|kind| report.operation(kind).ok() > 0);
        kinds && report.migrated_pages > 0 && report.verified_bytes > 0
    };
    let race = LinuxRace::new(1, CYCLES.max(cycles));
    let mut shown = 0;
    let raced = race
        .run(&toolbox, &daemon.socket(), &mut |report| {
            if report.elapsed_ms / 10_000 > shown {
                shown = report.elapsed_ms / 10_000;
                println!("{} cycles after {} ms", report.cycles(), report.elapsed_ms);
            }
            report.cycles() < cycles || !all_happened(report)
        })
        .unwrap();
    println!("{raced}");
    let report = &raced.report;
    assert!(report.cycles() >= cycles, "{report:?}");
    assert!(all_happened(report), "pages in use, and all of {KINDS:?}: {report:?}");
    assert_eq!(report.mismatches, 0, "{report:?}");
    let summary = daemon.session_summary(TIMEOUT).unwrap();
    println!("{summary:?}");
    // The driver is unloaded in between: what is left of a report yields to that.
    let kept = summary.skipped_bytes.keys().filter(|reason| *reason != "yielded").count();
    assert!(summary.bytes_discarded > 0 && kept == 0, "{summary:?}");
}
