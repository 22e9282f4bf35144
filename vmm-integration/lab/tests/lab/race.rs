// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Short runs of races in a real guest.

use std::collections::BTreeMap;

use balloon_lab::store::{Figure, Store};

use crate::{build_daemon, run, stderr};

/// A memory block goes offline while its report is out, beside mainline and beside isolation.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn offline_beside_late_report_waits_or_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cases = ["offline-mainline", "offline-section-bitmap-isolate"];
    let mut args = vec!["race", "late-acks", "--set", "late=never", "--set", "limit=3000"];
    args.extend(cases.iter().flat_map(|case| ["--case", case]));
    let output = run(&args, folder.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let store = Store::new(folder.path());
    let [mainline, isolate] = cases.map(|case| store.get("late-acks", case).unwrap().figures);
    let value = |figures: &BTreeMap<String, Figure>, name: &str| figures[name].value;
    assert!(value(&mainline, "never-operation") >= 2900.0, "{mainline:?}");
    assert!(value(&mainline, "never-done") > 0.5, "{mainline:?}");
    assert!(value(&isolate, "never-operation") < 2900.0, "{isolate:?}");
    assert!(value(&isolate, "never-refused") > 0.5, "{isolate:?}");
}

/// A guest that does not see that its daemons are killed, ended and upgraded.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn guest_outlives_its_daemons() {
    let folder = tempfile::tempdir().unwrap();
    build_daemon();
    let output = run(&["race", "hand-over", "--set", "times=2"], folder.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let store = Store::new(folder.path());
    for way in ["killed", "ended", "upgraded", "bare-killed", "bare-ended", "bare-upgraded"] {
        let figures = store.get("hand-over", way).unwrap().figures;
        assert!(figures["gap-median"].value > 0.0, "{way}: {figures:?}");
        assert!((figures["times"].value - 2.0).abs() < 0.5, "{way}: {figures:?}");
    }
}

/// The daemon in the place of a kernel that has no memory.
#[test]
#[ignore = "needs a Linux guest and a full run: cargo xtask test --full"]
fn daemon_stands_calls_that_fail() {
    let folder = tempfile::tempdir().unwrap();
    build_daemon();
    let args = ["race", "failing-calls", "--case", "ENOMEM", "--set", "most=1"];
    let output = run(&args, folder.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let figures = Store::new(folder.path()).get("failing-calls", "ENOMEM").unwrap().figures;
    let value = |name: &str| figures[name].value;
    assert!(value("calls") >= 30.0, "not those of a session: {figures:?}");
    assert!(value("served") > 10.0 && value("refused") > 0.0, "{figures:?}");
}
