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
    answer: File,
}

impl Check {
    /// Asks `program`. One that cannot be started has answered.
    pub(super) fn start(program: &Path, [record, answer]: [OwnedFd; 2]) -> Option<Self> {
        let mut answer = File::from(answer);
        // The daemon's pipe: one that it does not read must not keep the keeper.
        ioctl_fionbio(&answer, true).ok()?;
        let started = Command::new(program)
            .arg(CHECK)
            .stdin(record)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                let _ = write!(answer, "cannot be started: {error}");
                return None;
            }
        };
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(ended) => Some(Self { child, ended, until: Instant::now() + WITHIN, answer }),
            Err(_) => {
                end(&mut child);
                None
            }
        }
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
                let _ = self.answer.write_all(said.as_bytes());
            }
            _ => {
                end(&mut self.child);
                let _ = self.answer.write_all(b"does not answer");
            }
        }
        None
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
