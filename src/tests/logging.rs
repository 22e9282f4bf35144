// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The last lines of a process that panics.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, thread};

use log::{LevelFilter, info};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use vmm_integration::measure::host::wait_until;

use crate::logging::Logger;

const SOON: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A pipe that has room for a few lines and not for a long one.
fn small_pipe() -> (OwnedFd, OwnedFd) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    assert_eq!(fcntl_setpipe_size(&write, 16384).unwrap(), 16384);
    (read, write)
}

/// Set in the child process, which logs, panics and ends with status 7.
const CHILD: &str = "BALLOON_TEST_LOGGING_CHILD";

fn log_and_panic() -> ! {
    let logger = Logger::new(LevelFilter::Info).unwrap();
    logger.start().unwrap();
    (0..50).for_each(|n| info!("line {n}"));
    assert!(thread::spawn(|| panic!("on\npurpose")).join().is_err());
    drop(logger);
    std::process::exit(7);
}

fn child(stderr: Stdio) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    let test = "tests::logging::panic_follows_what_was_logged_before";
    command.args(["--exact", test, "--nocapture"]).env(CHILD, "1");
    command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap()
}

#[test]
fn panic_follows_what_was_logged_before() {
    if env::var_os(CHILD).is_some() {
        log_and_panic();
    }
    let output = child(Stdio::piped()).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let log = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert!(lines.len() > 50, "{log}");
    for (n, line) in lines[..50].iter().enumerate() {
        assert!(
            line.ends_with(&format!(" vhost_device_balloon::tests::logging] line {n}")),
            "{line}"
        );
    }
    assert!(lines[50].starts_with("thread '<unnamed>' panicked at src/tests/logging.rs:"), "{log}");
    assert!(lines[50].ends_with(": on\\npurpose"), "{log}");
}

#[test]
fn a_panic_ends_though_standard_error_is_not_read() {
    let (_unread, stderr) = small_pipe();
    let mut child = child(stderr.into());
    let status = wait_until(SOON, LOOK_EVERY, || {
        child.try_wait().map_err(|error| error.to_string())?.ok_or("there".to_owned())
    });
    let _ = child.kill();
    assert_eq!(status.unwrap().code(), Some(7));
}
