//! The lab as a process: what is wrong is said, what is interrupted goes on, what is kept repeats.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use vmm_integration::host::wait_until;
use vmm_integration::lab::store::{CaseRecord, Store};

fn lab(args: &[&str], out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balloon-lab"));
    command.args(args).stdin(Stdio::null());
    if args.first() == Some(&"bench") {
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
fn what_is_wrong_is_named_with_what_was_expected_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for (args, expected) in [
        (vec!["bench", "trakcers"], "no experiment \"trakcers\": expected one of trackers, scale"),
        (vec!["bench", "--set", "memory=1X"], "parameter memory is \"1X\": expected a size from"),
        (
            vec!["bench", "trackers", "--set", "tracker=f"],
            "expected one or several of a, b, c, d, e",
        ),
        (
            vec!["bench", "scale", "--set", "rate=1G"],
            "no parameter \"rate\" in scale: expected one of",
        ),
        (vec!["bench", "--set", "memory"], "--set \"memory\": expected NAME=VALUE"),
        (vec!["bench", "scale", "--case", "z-isolate"], "no case \"z-isolate\""),
        (vec!["bench", "--seed", "x"], "invalid value 'x' for '--seed"),
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
fn every_experiment_is_listed_with_its_parameters() {
    let output = run(&["list"], Path::new("."));
    let text = String::from_utf8(output.stdout).unwrap();
    for name in ["trackers", "scale", "    memory: of the guest; a size from 256M"] {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn a_run_that_was_interrupted_keeps_what_it_has_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    // Longer than anybody waits, so that it cannot end before it is interrupted.
    let args = ["bench", "trackers", "--set", "memory=512M", "--set", "seconds=20"];
    let endless = ["--set", "churn=uniform,threads", "--set", "thread-seconds=600"];
    let args: Vec<&str> = args.into_iter().chain(endless).collect();
    let mut child = lab(&args, &out).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let store = Store::new(&out);
    wait_until(Duration::from_secs(120), Duration::from_millis(10), || {
        let kept = store.records().map_err(|error| format!("{error:#}"))?;
        if kept.len() >= 10 { Ok(()) } else { Err(format!("{} records", kept.len())) }
    })
    .unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("interrupted: 10 of 20 cases are kept; to go on: "), "{said}");
    assert!(said.contains("--resume"), "{said}");
    let before = by_case(store.records().unwrap());
    assert_eq!(before.len(), 10);

    // It goes on, with a shorter second half: those that are kept are of the same parameters only if
    // these are what was set.
    let again: Vec<&str> =
        args.iter().copied().chain(["--resume", "--case", "a-isolate-uniform"]).collect();
    let output = run(&again, &out);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("1 cases were kept from before"), "{}", stderr(&output));
    std::fs::remove_file(out.join("trackers/e-pull-uniform.json")).unwrap();
    let uniform: Vec<&str> = before.keys().flat_map(|case| ["--case", case]).collect();
    let again: Vec<&str> = args.iter().copied().chain(["--resume"]).chain(uniform).collect();
    let output = run(&again, &out);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("9 cases were kept from before"), "{}", stderr(&output));
    let after = by_case(store.records().unwrap());
    assert_eq!(after.len(), 10);
    for (case, record) in &before {
        if case == "e-pull-uniform" {
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
fn the_same_seed_gives_the_same_figures_and_another_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let bench = |name: &str, seed: &str| {
        let out = folder.path().join(name);
        let churn = "churn=uniform,local,bursty,sweep";
        let args = ["bench", "trackers", "--seed", seed, "--set", churn, "--set", "tracker=b,d,e"];
        let output = run(&small(&args), &out);
        assert!(output.status.success(), "{}", stderr(&output));
        by_case(Store::new(&out).records().unwrap())
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
    let closed = &first["d-isolate-sweep"];
    assert!(closed.series.contains_key("closed-form") && closed.series.contains_key("measured"));
    assert!(first["d-isolate-bursty"].map.is_some());
}

#[test]
fn the_command_of_a_record_repeats_it_and_the_report_has_them_all() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let args = ["bench", "trackers", "--json", "--case", "d-pull-local", "--case", "e-pull-bursty"];
    let output = run(&small(&args), &out);
    assert!(output.status.success(), "{}", stderr(&output));
    let printed: Vec<CaseRecord> = serde_json::from_slice(&output.stdout).unwrap();
    let kept = Store::new(&out).records().unwrap();
    assert_eq!(printed, kept);
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
        assert!(page.contains(&record.command), "{}", record.command);
        assert!(record.figures.keys().all(|name| page.contains(name.as_str())));
    }

    let nowhere = run(&["report", "--from", "/nowhere"], &out);
    assert!(!nowhere.status.success() && stderr(&nowhere).contains("listing /nowhere"));
}
