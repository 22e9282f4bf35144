// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Short runs of experiments: what they count, and no time.

use balloon_lab::store::{CaseRecord, Store};

use crate::{build_daemon, by_case, run, stderr};

/// A run of one case that discards in two sizes, with real processes and the daemon.
#[test]
fn reclaim_path_counts_calls_and_faults() {
    build_daemon();
    let folder = tempfile::tempdir().unwrap();
    let sets = ["backing=4k", "processes=two", "touch=within", "calls-4k=256K,2M", "rounds=1"];
    let mut args = vec!["bench", "reclaim-path"];
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    let output = run(&args, folder.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let records = by_case(Store::new(folder.path()).kept().unwrap().records);
    let figures = &records["4k-two-within"].figures;
    for name in ["256-kib-rate", "2048-kib-rate", "256-kib-call", "2048-kib-call", "to-map"] {
        assert!(figures[name].value > 0.0, "{name}: {figures:?}");
    }
}

/// A pair of turns of the bare guest and the model, which report the same pages.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_is_recorded_beside_the_model() {
    build_daemon();
    let folder = tempfile::tempdir().unwrap();
    let shape = ["memory=384M", "rounds=1", "pairs=1"];
    let mut args = vec!["bench", "bare-guest", "--case", "qemu"];
    args.extend(shape.iter().flat_map(|set| ["--set", set]));
    let output = run(&args, folder.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let CaseRecord { figures, notes, .. } =
        Store::new(folder.path()).get("bare-guest", "qemu").unwrap();
    // One section, free and reported twice.
    assert!((figures["pages"].value - 65_536.0).abs() < 0.5, "{figures:?}");
    for name in ["image", "first-report-model", "untouched-ratio", "touched", "own-time"] {
        assert!(figures[name].value > 0.0, "{name}: {figures:?}");
    }
    assert!(notes.iter().any(|note| note.starts_with("QEMU emulator")), "{notes:?}");
}

/// One guest, which is parked before it has reported what it freed.
#[test]
#[ignore = "needs a Linux guest and a full run: cargo xtask test --full"]
fn parked_guest_holds_less_than_a_reporting_one() {
    build_daemon();
    let folder = tempfile::tempdir().unwrap();
    let args = ["bench", "park", "--set", "guests=1", "--set", "memory=768M"];
    let output = run(&args, folder.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let figures = Store::new(folder.path()).get("park", "qemu").unwrap().figures;
    let mib = |name: &str| figures[name].value;
    assert!(mib("parked") + 200.0 < mib("reporting"), "{figures:?}");
    assert!(mib("reporting-later") < mib("reporting"), "{figures:?}");
}

/// A pair of turns: what was cleared, and no time.
#[test]
fn init_claims_spare_what_was_reported() {
    build_daemon();
    let folder = tempfile::tempdir().unwrap();
    let mut args = vec!["bench", "init-claims", "--case", "4k"];
    args.extend(["memory=128M", "rounds=2", "pairs=1"].iter().flat_map(|set| ["--set", set]));
    let output = run(&args, folder.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let figures = Store::new(folder.path()).get("init-claims", "4k").unwrap().figures;
    let bytes = |name: &str| figures[name].value;
    assert!(bytes("allocated-on") >= f64::from(200 << 20), "{figures:?}");
    assert!((bytes("cleared-off") - bytes("allocated-off")).abs() < 0.5, "{figures:?}");
    assert!(bytes("cleared-on").abs() < 0.5 && bytes("ratio") > 0.0, "{figures:?}");
}

/// A pair of turns: pages and reports, and no time.
#[test]
#[ignore = "needs user-mode Linux: cargo xtask test"]
fn overhead_of_user_mode_linux_is_recorded() {
    build_daemon();
    let folder = tempfile::tempdir().unwrap();
    let shape = ["memory=512M", "turn=0.2", "pairs=1"];
    let mut args = vec!["bench", "overhead", "--case", "page_fault1-user-mode-linux"];
    args.extend(shape.iter().flat_map(|set| ["--set", set]));
    let output = run(&args, folder.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let record = Store::new(folder.path()).get("overhead", "page_fault1-user-mode-linux");
    let CaseRecord { place, figures, series, notes, .. } = record.unwrap();
    assert_eq!((&*place.table, &*place.column), ("user-mode-linux", "page_fault1"));
    for name in ["off", "on", "reported-first", "ratio", "ratio-low", "ratio-high", "cpu-ratio"] {
        assert!(figures[name].value > 0.0, "{name}: {figures:?}");
    }
    assert!(figures["reported-off"].value == 0.0 && figures["pairs"].value == 1.0);
    assert_eq!(series["ratio"].points.len(), 1);
    assert!(notes.iter().any(|note| note.starts_with("User-mode Linux ")), "{notes:?}");
}

/// A round of every scheme in one guest.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn schemes_of_a_real_kernel_are_compared() {
    build_daemon();
    let folder = tempfile::tempdir().unwrap();
    let shape = ["memory=512M", "freed=128M", "rounds=1", "delay=50", "faults=200"];
    let mut args = vec!["bench", "kernel"];
    args.extend(shape.iter().flat_map(|set| ["--set", set]));
    let output = run(&args, folder.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let figures = Store::new(folder.path()).get("kernel", "newest").unwrap().figures;
    for scheme in ["mainline", "section-bit-isolate", "zone-bitmap-pull"] {
        let reported = figures[&format!("{scheme}-reported")].value;
        // The list of a CPU keeps up to 32 MiB in this guest.
        assert!(reported > 60.0, "{scheme}: {reported} MiB of 128");
    }
    for step in ["start", "test", "undo"] {
        assert!(figures[&format!("section-bitmap-isolate-{step}-mean")].value > 0.0, "{figures:?}");
    }
    assert!(figures["section-bitmap-pull-pull-mean"].value > 0.0, "{figures:?}");
    assert!(figures["mainline-huge-pages"].value > 50.0, "{figures:?}");
    // A tracker alone may have had one pass or none beside the programs.
    let held = figures.iter().filter(|(name, _)| name.ends_with("-hostile-held"));
    assert!(held.map(|(_, held)| held.value).sum::<f64>() > 0.0, "{figures:?}");
}

/// Blocks go offline and online while the module isolates others.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn memory_stays_whole_beside_isolation() {
    build_daemon();
    let folder = tempfile::tempdir().unwrap();
    let args = ["race", "race-kernel", "--case", "section-bitmap-isolate", "--set", "cycles=30"];
    let output = run(&args, folder.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let record = Store::new(folder.path()).get("race-kernel", "section-bitmap-isolate").unwrap();
    let figures = record.figures;
    assert!(figures["cycles"].value >= 30.0 && figures["checked"].value > 0.0, "{figures:?}");
}
