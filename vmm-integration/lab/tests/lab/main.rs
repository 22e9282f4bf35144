// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The lab as a process: what is wrong is said, what is interrupted goes on, what is kept repeats.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod bench;
mod race;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use balloon_lab::store::{CaseRecord, Store};
use guest_driver::reporting::{Holding, TrackerKind};
use rustix::process::{Pid, Signal, kill_process};
use vmm_integration::measure::host::wait_until;

fn lab(args: &[&str], out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balloon-lab"));
    command.args(args).stdin(Stdio::null());
    if matches!(args.first(), Some(&"bench" | &"race")) {
        command.arg("--out").arg(out);
    }
    command
}

fn run(args: &[&str], out: &Path) -> Output {
    lab(args, out).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Quick even without optimisation.
const SMALL: [&str; 4] = ["--set", "memory=512M", "--set", "seconds=20"];

fn small<'a>(args: &[&'a str]) -> Vec<&'a str> {
    args.iter().copied().chain(SMALL).collect()
}

#[test]
fn bad_argument_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for (args, expected) in [
        (
            vec!["bench", "trakcers"],
            "unknown experiment \"trakcers\": expected one of trackers, scale",
        ),
        (vec!["bench", "--set", "memory=1X"], "memory (got \"1X\", expected a size from"),
        (
            vec!["bench", "trackers", "--set", "tracker=f"],
            "expected one or several of zone-bitmap, zone-bitmap-rcu",
        ),
        (
            vec!["bench", "scale", "--set", "rate=1G"],
            "unknown parameter \"rate\" of scale: expected one of",
        ),
        (vec!["bench", "--set", "memory"], "--set \"memory\": expected NAME=VALUE"),
        (
            vec!["bench", "reclaim-path", "--set", "calls-4k=3M"],
            "calls-4k (got \"3M\", expected powers of two from 4K to 256M",
        ),
        (vec!["bench", "scale", "--case", "z-isolate"], "unknown case \"z-isolate\" of scale"),
        (vec!["bench", "--seed", "x"], "invalid value 'x' for '--seed"),
        (vec!["bench", "--seed", "-1"], "invalid value '-1' for '--seed"),
        (
            vec!["list", "trakcers"],
            "unknown experiment \"trakcers\": expected one of trackers, scale",
        ),
        (vec!["bnech"], "unrecognized subcommand 'bnech'"),
    ] {
        let output = run(&args, &out);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
        assert!(!out.exists(), "{args:?} has run");
    }
}

#[test]
fn list_shows_each_experiment_with_parameters() {
    let output = run(&["list"], Path::new("."));
    let text = String::from_utf8(output.stdout).unwrap();
    for name in [
        "trackers",
        "scale",
        "    memory: memory of the guest; a size from 256M",
        &format!("{} cases: zone-bitmap-isolate-uniform, ", 5 * schemes()),
        "with --full also: zone-bitmap-pull",
        "stalled-control",
    ] {
        assert!(text.contains(name), "{name}: {text}");
    }
    let raced = "placement (cargo xtask lab race placement)";
    let stable = "with --full also: cpuset-flip-unreported-stable, ";
    assert!(text.contains(raced) && text.contains(stable), "{text}");
    let output = run(&["list", "scale", "hypotheses", "--json"], Path::new("."));
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(listed[0]["parameters"][2]["takes"], "sizes from 1G to 16T, such as 512M,4G");
    let isolating = TrackerKind::ALL.len();
    assert_eq!(listed[0]["cases"]["quick"][isolating - 1], "reported-flag-isolate");
    assert_eq!(listed[1]["subcommand"], "race");
}

/// Trackers with either way to hold pages.
fn schemes() -> usize {
    TrackerKind::ALL.len() * Holding::ALL.len()
}

/// One case that is done at once.
const ONE: [&str; 8] = [
    "bench",
    "trackers",
    "--case",
    "section-bit-isolate-uniform",
    "--set",
    "memory=512M",
    "--set",
    "seconds=2",
];

#[test]
fn unusable_record_folder_is_refused_before_any_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for out in [file.as_path(), Path::new("/proc/lab")] {
        let output = run(&ONE, out);
        let (said, named) = (stderr(&output), format!("cannot keep records in {}", out.display()));
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&named) && !said.contains("1/1"), "{said}");
    }
    let out = folder.path().join("out");
    let claim = Store::new(&out).claim().unwrap();
    let output = run(&ONE, &out);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("another run uses it"), "{}", stderr(&output));
    drop(claim);
    assert!(run(&ONE, &out).status.success());
}

#[test]
fn unwritable_record_is_printed_and_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    // Where the experiment's folder should be, so that root cannot write there either.
    std::fs::write(out.join("trackers"), "").unwrap();
    let output =
        run(&[&ONE[..], &["--case", "reported-flag-pull-uniform", "--json"]].concat(), &out);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot keep the last record") && said.contains("trackers"), "{said}");
    assert!(said.contains("to go on after the remedy: cargo xtask lab bench"), "{said}");
    let printed: Vec<CaseRecord> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed.len(), 1, "the one after it is not run");
    assert!(!printed[0].figures.is_empty());
}

#[test]
fn run_with_closed_output_keeps_its_records() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    let status = lab(&ONE, &out).stdout(closed()).stderr(closed()).status().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(Store::new(&out).kept().unwrap().records.len(), 1);
    let output = lab(&["list"], &out).stdout(closed()).output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn resume_with_other_parameters_names_differences() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    assert!(run(&ONE, &out).status.success());
    let other = [&ONE[..], &["--set", "seconds=3", "--seed", "2", "--resume"]].concat();
    let output = run(&other, &out);
    assert!(output.status.success(), "{}", stderr(&output));
    let expected = "section-bit-isolate-uniform: running again, the kept record differs: seed 1, not 2; seconds=2, not 3";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    assert_eq!(Store::new(&out).get("trackers", "section-bit-isolate-uniform").unwrap().seed, 2);
}

#[test]
fn what_cannot_be_reported_is_named_and_hides_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let report = || run(&["report", "--from", out.to_str().unwrap()], &out);
    assert!(stderr(&report()).contains("no record in"), "{}", stderr(&report()));
    assert!(run(&ONE, &out).status.success());
    std::fs::write(out.join("trackers/half.json"), "{").unwrap();
    let output = report();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("half.json is not a record of this lab: EOF"), "{output:?}");
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("half.json") && page.contains("section-bit-isolate"), "{page}");
}

#[test]
fn the_fault_of_a_plan_is_repeated_by_its_command() {
    let folder = tempfile::tempdir().unwrap();
    let faults = ["race", "--fault", "used-length", "--fault", "spurious-interrupt:after=1"];
    let out = folder.path().join("out");
    let output = run(&faults, &out);
    assert!(output.status.success(), "{}", stderr(&output));
    let second = Store::new(&out).get("faults", "2-spurious-interrupt").unwrap();
    let expected = "race --fault spurious-interrupt:after=1,times=1 --seed 1";
    assert_eq!(second.command, format!("cargo xtask lab {expected}"));
    let again = folder.path().join("again");
    let words: Vec<&str> = expected.split(' ').collect();
    let output = run(&words, &again);
    assert!(output.status.success(), "{}", stderr(&output));
    let repeated = Store::new(&again).get("faults", "1-spurious-interrupt").unwrap();
    assert_eq!(repeated.verdict.map(|v| v.kind), second.verdict.map(|v| v.kind));
}

#[test]
fn interrupted_run_keeps_its_records_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    // Longer than anybody waits, so that it cannot end before it is interrupted.
    let args = ["bench", "trackers", "--set", "memory=512M", "--set", "seconds=20"];
    let endless = ["--set", "churn=uniform,threads", "--set", "thread-seconds=600"];
    let args: Vec<&str> = args.into_iter().chain(endless).collect();
    let mut child = lab(&args, &out).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let store = Store::new(&out);
    wait_until(Duration::from_secs(120), Duration::from_millis(10), || {
        let kept = store.kept().map_err(|error| format!("{error:#}"))?.records;
        if kept.len() >= schemes() { Ok(()) } else { Err(format!("{} records", kept.len())) }
    })
    .unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    let kept =
        format!("interrupted: {} of {} cases are kept; to go on: ", schemes(), 2 * schemes());
    assert!(said.contains(&kept), "{said}");
    assert!(said.contains("--resume"), "{said}");
    let before = by_case(store.kept().unwrap().records);
    assert_eq!(before.len(), schemes());

    // It goes on, with a shorter second half: those that are kept are of the same parameters only if
    // these are what was set.
    let again: Vec<&str> =
        args.iter().copied().chain(["--resume", "--case", "zone-bitmap-isolate-uniform"]).collect();
    let output = run(&again, &out);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("skipped, already recorded: 1 of 1 cases"),
        "{}",
        stderr(&output)
    );
    std::fs::remove_file(out.join("trackers/reported-flag-pull-uniform.json")).unwrap();
    let uniform: Vec<&str> = before.keys().flat_map(|case| ["--case", case]).collect();
    let again: Vec<&str> = args.iter().copied().chain(["--resume"]).chain(uniform).collect();
    let output = run(&again, &out);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains(&format!(
            "skipped, already recorded: {} of {} cases",
            schemes() - 1,
            schemes()
        )),
        "{}",
        stderr(&output)
    );
    let after = by_case(store.kept().unwrap().records);
    assert_eq!(after.len(), schemes());
    for (case, record) in &before {
        if case == "reported-flag-pull-uniform" {
            assert_eq!(after[case].figures, record.figures, "the seed repeats it");
        } else {
            assert_eq!(&after[case], record, "it was run again");
        }
    }
}

fn by_case(records: Vec<CaseRecord>) -> BTreeMap<String, CaseRecord> {
    records.into_iter().map(|record| (record.case.clone(), record)).collect()
}

#[test]
fn same_seed_repeats_figures_and_another_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let bench = |name: &str, seed: &str| {
        let out = folder.path().join(name);
        let churn = "churn=uniform,local,bursty,sweep";
        let args = [
            "bench",
            "trackers",
            "--seed",
            seed,
            "--set",
            churn,
            "--set",
            "tracker=zone-bitmap-rcu,section-bit,reported-flag",
        ];
        let output = run(&small(&args), &out);
        assert!(output.status.success(), "{}", stderr(&output));
        by_case(Store::new(&out).kept().unwrap().records)
    };
    let (first, again, other) = (bench("first", "7"), bench("again", "7"), bench("other", "8"));
    assert_eq!(first.len(), 24);
    for (case, record) in &first {
        assert_eq!(record.figures, again[case].figures, "{case}");
        assert_eq!(record.series, again[case].series, "{case}");
        assert_eq!(record.map, again[case].map, "{case}");
    }
    assert!(first.iter().any(|(case, record)| record.figures != other[case].figures));
    for (case, record) in &first {
        if let Some(lost) = record.figures.get("lost-reports") {
            assert!(lost.value == 0.0, "{case} has lost {} reports", lost.value);
        }
    }
    let closed = &first["section-bit-isolate-sweep"];
    assert!(closed.series.contains_key("closed-form") && closed.series.contains_key("measured"));
    assert!(first["section-bit-isolate-bursty"].map.is_some());
}

/// Builds the daemon unless tests of the whole workspace have.
fn build_daemon() {
    let beside =
        Path::new(env!("CARGO_BIN_EXE_balloon-lab")).with_file_name("vhost-device-balloon");
    if !beside.exists() {
        let build = ["build", "--quiet", "--package", "vhost-device-balloon"];
        assert!(Command::new(env!("CARGO")).args(build).status().unwrap().success());
    }
}

#[test]
fn record_command_repeats_it_and_is_in_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let args = [
        "bench",
        "trackers",
        "--json",
        "--case",
        "section-bit-pull-local",
        "--case",
        "reported-flag-pull-bursty",
    ];
    let output = run(&small(&args), &out);
    assert!(output.status.success(), "{}", stderr(&output));
    let printed: Vec<CaseRecord> = serde_json::from_slice(&output.stdout).unwrap();
    let kept = Store::new(&out).kept().unwrap().records;
    assert_eq!(by_case(printed), by_case(kept.clone()));
    for record in &kept {
        let command = record.command.strip_prefix("cargo xtask lab ").unwrap();
        let words: Vec<&str> = command.split(' ').collect();
        let again = folder.path().join("again");
        assert!(run(&words, &again).status.success(), "{command}");
        let again = Store::new(again).get("trackers", &record.case).unwrap();
        assert_eq!((&again.figures, &again.command), (&record.figures, &record.command));
    }
    let output = run(&["report", "--from", out.to_str().unwrap()], &out);
    assert!(output.status.success(), "{}", stderr(&output));
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for record in &kept {
        let words: Vec<String> =
            record.command.split(' ').map(|word| format!("<span>{word}</span>")).collect();
        assert!(page.contains(&words.join(" ")), "{}", record.command);
        assert!(record.figures.keys().all(|name| page.contains(name.as_str())));
    }

    let nowhere = run(&["report", "--from", "/nowhere"], &out);
    assert!(!nowhere.status.success() && stderr(&nowhere).contains("listing /nowhere"));
}
