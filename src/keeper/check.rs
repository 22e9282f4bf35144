// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A program that is asked whether it could go on from a record.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::hand_over::CHECK;

/// How long it may take.
const WITHIN: Duration = Duration::from_secs(2);
/// As much of what it says is repeated.
const MOST_SAID: usize = 500;

/// A program that has been asked.
pub(super) struct Check {
    child: Child,
    ended: OwnedFd,
    until: Instant,
    /// None once it was given: silence would be taken for a service manager, which asks nothing.
    answer: Option<File>,
}

impl Drop for Check {
    fn drop(&mut self) {
        if self.answer.is_some() {
            end(&mut self.child);
            self.say("does not answer");
        }
    }
}

/// Answers without asking.
pub(super) fn refuse([_, answer]: [OwnedFd; 2], why: &str) {
    write(&mut File::from(answer), why);
}

/// The daemon's pipe: one that it does not read must not keep the keeper.
fn write(answer: &mut File, text: &str) {
    if ioctl_fionbio(&*answer, true).is_ok() {
        let _ = answer.write_all(text.as_bytes());
    }
}

impl Check {
    /// Asks `program`. One that cannot be started has answered.
    pub(super) fn start(program: &Path, [record, answer]: [OwnedFd; 2]) -> Option<Self> {
        let started = Command::new(program)
            .arg(CHECK)
            .stdin(record)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut answer = File::from(answer);
        let why = match started {
            Ok(mut child) => match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
                Ok(ended) => {
                    let until = Instant::now() + WITHIN;
                    return Some(Self { child, ended, until, answer: Some(answer) });
                }
                Err(error) => {
                    end(&mut child);
                    error.to_string()
                }
            },
            Err(error) => error.to_string(),
        };
        write(&mut answer, &format!("cannot be started: {why}"));
        None
    }

    /// Readable once it has ended.
    pub(super) fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// When it must have.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Passes the answer on, once it is there or overdue; else goes on waiting.
    pub(super) fn look(mut self) -> Option<Self> {
        match self.child.try_wait() {
            Ok(None) if Instant::now() < self.until => return Some(self),
            Ok(Some(status)) => {
                let said = self.said(status);
                self.say(&said);
            }
            // Ended and answered when it is dropped.
            _ => {}
        }
        None
    }

    fn say(&mut self, text: &str) {
        if let Some(mut answer) = self.answer.take() {
            write(&mut answer, text);
        }
    }

    fn said(&mut self, status: ExitStatus) -> String {
        if status.success() {
            return "yes".to_owned();
        }
        let mut text = [0; MOST_SAID];
        // It has written all that it will; what it has started may hold the pipe open.
        let mut count = 0;
        if let Some(mut from) =
            self.child.stderr.take().filter(|from| ioctl_fionbio(from, true).is_ok())
        {
            count = from.read(&mut text).unwrap_or(0);
        }
        let text = String::from_utf8_lossy(&text[..count]);
        format!("cannot go on with this VM ({status}) {}", text.trim()).trim().to_owned()
    }
}

fn end(child: &mut Child) {
    let done: io::Result<()> = child.kill();
    // Not waited for where it cannot be ended.
    if done.is_ok() {
        let _ = child.wait();
    }
}
