// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Short runs of races in a real guest.

use std::collections::BTreeMap;

use balloon_lab::store::{Figure, Store};

use crate::{run, stderr};

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
