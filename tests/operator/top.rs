// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ctl top` becomes the program of the host.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use tempfile::TempDir;

/// This program in a folder of its own, without the host's.
fn alone() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("vhost-device-balloon");
    fs::copy(env!("CARGO_BIN_EXE_vhost-device-balloon"), copy).unwrap();
    folder
}

fn run(folder: &TempDir, args: &[&str]) -> Output {
    let mut command = Command::new(folder.path().join("vhost-device-balloon"));
    let path = format!("{}/in-path:/usr/bin:/bin", folder.path().display());
    command.args(args).env("PATH", path).env("BALLOON_CONTROL", "of-another.ctl").output().unwrap()
}

#[test]
fn top_without_its_program_says_what_is_missing() {
    let folder = alone();
    for args in
        [&["ctl", "top"][..], &["hostd"], &["ctl", "--control-socket", "a.ctl", "top", "--once"]]
    {
        let output = run(&folder, args);
        let errors = String::from_utf8(output.stderr).unwrap();
        let expected =
            "vhost-device-balloon-host is not installed: expected it beside this program";
        assert!(output.status.code() == Some(1) && errors.contains(expected), "{errors}");
    }
}

#[test]
fn top_has_the_arguments_of_the_command_line() {
    let folder = alone();
    let in_path = folder.path().join("in-path");
    fs::create_dir(&in_path).unwrap();
    let beside = folder.path().join("vhost-device-balloon-host");
    // In the PATH first, and then beside this program as well.
    for (place, name) in [(in_path.join("vhost-device-balloon-host"), "path"), (beside, "beside")] {
        let script = format!("#!/bin/sh\necho {name} \"$@\"\n");
        fs::write(&place, script).unwrap();
        fs::set_permissions(&place, Permissions::from_mode(0o755)).unwrap();
        for (args, passed) in [
            (&["ctl", "top"][..], "top"),
            (&["hostd"], "hostd"),
            (&["hostd", "--policy", "a b", "--help"], "hostd --policy a b --help"),
            (&["ctl", "top", "--once", "--help"], "top --once --help"),
            (
                &["ctl", "--control-socket", "a.ctl", "--json", "top", "--passive"],
                "top --control-socket a.ctl --json --passive",
            ),
        ] {
            let output = run(&folder, args);
            let said = String::from_utf8(output.stdout).unwrap();
            assert_eq!(said, format!("{name} {passed}\n"), "{args:?}");
        }
    }
}
