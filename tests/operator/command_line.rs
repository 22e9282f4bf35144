// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line of the program, as a shell or management software uses it.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");

fn run(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).env_remove("BALLOON_CONTROL").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What it says when it refuses a command line, and its exit status.
fn refused(args: &[&str]) -> (i32, String) {
    let output = run(args);
    let errors = text(&output.stderr);
    assert!(!output.status.success(), "{args:?} was accepted: {errors}");
    assert!(output.stdout.is_empty(), "{args:?}");
    (output.status.code().unwrap(), errors)
}

/// Whatever else is asked for, and before anything is opened (vhost-user specification, "Backend
/// program conventions").
#[test]
fn print_capabilities_ignores_all_other_options() {
    for args in [
        &["--print-capabilities"][..],
        &["--socket-path", "/nonexistent/s", "--print-capabilities"],
        &["--print-capabilities", "--fd=0", "--no-such-option"],
        &["--no-such-option", "--print-capabilities", "--socket-path"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json, serde_json::json!({"type": "balloon"}));
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn the_version_is_the_packages() {
    let output = run(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    let expected = concat!("vhost-device-balloon ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(text(&output.stdout), expected);
}

/// Words that a reader must find; the help is wrapped, so spaces may be line ends.
#[test]
fn the_help_says_what_options_mean_and_what_they_risk() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    for words in [
        "--socket-path <PATH>",
        "--socket-mode <MODE>",
        "--socket-group <GROUP>",
        "--fd <FDNUM>",
        "--control-socket <PATH>",
        "--metrics-address <ADDRESS:PORT>",
        "--statistics-interval <SECONDS>",
        "0 polls only when a control client asks",
        "may lose what was just written to it",
        "Free page reporting has no such race",
        "the kernel ends the VMM with SIGBUS",
        "K, M, G or T for powers of 1024",
        "--max-discard-call <SIZE>",
        "- debug: Every report [default: info]",
        "curl --unix-socket PATH",
        "Only the daemon's user may connect",
        "ctl Control and monitor a daemon",
        "SIGTERM, SIGINT and SIGQUIT end the daemon",
        "SIGUSR1 logs the counters",
    ] {
        assert!(help.contains(words), "{words:?} is not in the help:\n{help}");
    }
    // The short one fits a screen and points to the long one.
    let short = text(&run(&["-h"]).stdout);
    assert!(short.lines().count() < 60, "{short}");
    assert!(short.contains("read --help first"), "{short}");
}

#[test]
fn every_command_of_the_client_has_help() {
    let help = text(&run(&["ctl", "--help"]).stdout);
    let commands = [
        "status",
        "statistics",
        "statistics-interval",
        "target",
        "doctor",
        "reclaim",
        "park",
        "unpark",
        "pause",
        "resume",
        "pin",
        "unpin",
        "pins",
        "hinting",
        "counters",
        "reset-counters",
        "log-level",
        "metrics",
    ];
    for command in commands {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command}");
        let output = run(&["ctl", command, "--help"]);
        assert_eq!(output.status.code(), Some(0), "{command}");
    }
    assert!(help.contains("[env: BALLOON_CONTROL]"), "{help}");
    assert!(help.contains("3  no daemon answers"), "{help}");
    assert!(help.contains("5  a reclaim ended early"), "{help}");
    let reclaim = text(&run(&["ctl", "reclaim", "--help"]).stdout);
    assert!(reclaim.contains("the daemon lets go at once"), "{reclaim}");
}

/// Bad values of each option, the exit status and what is said.
const BAD: &[(&[&str], i32, &str)] = &[
    (&["--socket-path"], 2, "a value is required"),
    (&["--socket-path", "s", "--fd", "3"], 2, "cannot be used with"),
    (&["--socket-mode", "0888"], 2, "expected an octal mode such as 0600 or 0660, got \"0888\""),
    (&["--socket-mode", "1777"], 2, "expected an octal mode"),
    (&["--fd", "3", "--socket-mode", "0660"], 2, "cannot be used with"),
    (&["--fd", "3", "--socket-group", "0"], 2, "cannot be used with"),
    (&["--socket-group", "no-such-group"], 1, "this machine has no such group"),
    (&["--max-discard-call", "3M"], 2, "expected a power of two from 4K to 1G, got \"3M\""),
    (&["--max-discard-call", "2K"], 2, "expected a power of two from 4K to 1G"),
    (&["--max-discard-call", "2G"], 2, "expected a power of two from 4K to 1G"),
    (&["--fd", "x"], 2, "expected the number of an open socket, got \"x\""),
    (&["--fd", "-1"], 2, "'-1'"),
    (&["--fd=-1"], 1, "expected the number of an open socket, 3 or higher, got -1"),
    (&["--fd", "2"], 1, "3 or higher, got 2"),
    (&["--fd", "99999999999"], 2, "expected the number of an open socket"),
    (&["--fd", "900"], 1, "--fd 900: this descriptor is not open"),
    (&["--metrics-address", "localhost"], 2, "such as 127.0.0.1:9090"),
    (&["--metrics-address", "127.0.0.1"], 2, "expected an IP address of this machine with a"),
    (&["--metrics-address", "127.0.0.1:65536"], 2, "such as 127.0.0.1:9090"),
    (&["--metrics-address", "0.0.0.0:9090"], 1, "expected an address of this machine only"),
    (&["--metrics-address", "[::]:9090"], 1, "such as 127.0.0.1:9090 or [::1]:9090"),
    (&["--metrics-address", "192.0.2.1:9090"], 1, "got 192.0.2.1:9090"),
    (&["--statistics", "--statistics-interval", "x"], 2, "expected whole seconds"),
    (
        &["--statistics", "--statistics-interval=-1"],
        2,
        "from 1 to 86400, or 0 for never, got \"-1\"",
    ),
    (&["--statistics", "--statistics-interval", "0.5"], 2, "got \"0.5\""),
    (&["--statistics", "--statistics-interval", "86401"], 1, "not 86401s"),
    (&["--statistics-interval", "1"], 2, "--statistics"),
    (&["--free-page-hints"], 1, "Add statistics, or leave hints or reporting out"),
    (&["--experimental-init-reported", "--no-reporting"], 1, "leave out that option or --no-rep"),
    (&["--target", "lots"], 2, "expected bytes such as 4096, 512M or 2G"),
    (&["--target", "1.5G"], 2, "expected bytes"),
    (&["--target=-4096"], 2, "expected bytes"),
    (&["--target", "1MB"], 2, "expected bytes"),
    (&["--target", "4097"], 1, "multiple of 4096 bytes, 4097 is none"),
    (&["--target", "16T"], 1, "at most 17592186040320 bytes"),
    (&["--target", "16777216T"], 2, "expected bytes"),
    (&["--log-level", "loud"], 2, "[possible values: off, error, warn, info, debug]"),
    (&["--log-level", "trace"], 2, "[possible values: off, error, warn, info, debug]"),
    (&["--name", ""], 2, "expected 1 to 255 bytes without control characters"),
    (&["--name", "a\nb"], 2, "expected 1 to 255 bytes without control characters"),
    (&["--paused=yes"], 2, "unexpected value 'yes'"),
    (&["--hugetlb=2M"], 2, "unexpected value '2M'"),
    (&["--statistics", "--statistics"], 2, "cannot be used multiple times"),
    (&["--no-such-option"], 2, "unexpected argument"),
    (&["extra"], 2, "unrecognized subcommand 'extra'"),
];

#[test]
fn bad_value_is_refused_with_the_expected_values() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    for (bad, status, expected) in BAD {
        let mut args = bad.to_vec();
        if !bad.iter().any(|arg| arg.starts_with("--fd") || *arg == "--socket-path") {
            args.extend(["--socket-path", socket.to_str().unwrap()]);
        }
        let (code, errors) = refused(&args);
        assert!(errors.contains(expected), "{args:?}: {errors}");
        assert_eq!(code, *status, "{args:?}: {errors}");
        assert!(!socket.exists(), "{args:?}");
    }
}

#[test]
fn a_daemon_needs_one_socket_and_a_client_none() {
    let (code, errors) = refused(&[]);
    assert_eq!(code, 2);
    assert!(errors.contains("<--socket-path <PATH>|--fd <FDNUM>>"), "{errors}");
    let (code, errors) = refused(&["--socket-path", "s", "ctl", "--control-socket", "c", "status"]);
    assert_eq!(code, 2, "{errors}");
    let (code, errors) = refused(&["ctl", "status"]);
    assert_eq!(code, 2);
    assert!(errors.contains("--control-socket <PATH>"), "{errors}");
}

#[test]
fn paths_of_sockets_fit_and_differ() {
    let long = "x".repeat(108);
    for option in ["--socket-path", "--control-socket"] {
        let mut args = vec![option, &long];
        if option != "--socket-path" {
            args.extend(["--socket-path", "s"]);
        }
        let (_, errors) = refused(&args);
        assert!(
            errors.contains(&format!("{option}: the path is too long (got 108 bytes")),
            "{errors}"
        );
    }
    let (_, errors) = refused(&["--socket-path", "s", "--control-socket", "s"]);
    assert!(errors.contains("must be different paths"), "{errors}");
    assert!(!Path::new("s").exists());
}

#[test]
fn a_taken_metrics_port_ends_it_before_it_listens() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (socket, control) = (path("s"), path("c"));
    let args =
        ["--socket-path", &socket, "--control-socket", &control, "--metrics-address", &address];
    let (code, errors) = refused(&args);
    assert_eq!(code, 1);
    assert!(errors.contains(&format!("cannot listen on --metrics-address {address}")), "{errors}");
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing is left behind");
}

/// Bad values of the client's commands.
#[test]
fn bad_client_command_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c");
    // Nobody is asked: it would wait for an answer.
    let listener = UnixListener::bind(&path).unwrap();
    for (bad, expected) in [
        (&["target", "--force"][..], "--leave <SIZE>"),
        (&["target", "half"], "expected bytes"),
        (&["target=4096"], "unrecognized subcommand"),
        (&["pin", "0x1000"], "<SIZE>"),
        (&["pin", "4K", "4K"], "expected a guest physical address"),
        (&["pin", "0xg", "4K"], "expected a guest physical address"),
        (&["unpin", "0x1000", "-1"], "'-1'"),
        (&["hinting"], "<ACTION>"),
        (&["hinting", "pause"], "[possible values: start, stop]"),
        (&["log-level", "loud"], "[possible values: off"),
        (&["statistics-interval", "-1"], "'-1'"),
        (&["statistics-interval", "4294967296"], "expected whole seconds"),
        (&["--timeout", "0", "status"], "0 is not in 1..=3600"),
        (&["explode"], "unrecognized subcommand 'explode'"),
        (&[], "Usage"),
    ] {
        let args = [&["ctl", "--control-socket", path.to_str().unwrap()], bad].concat();
        let (code, errors) = refused(&args);
        assert_eq!(code, 2, "{bad:?}: {errors}");
        assert!(errors.contains(expected), "{bad:?}: {errors}");
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody was asked");
}
