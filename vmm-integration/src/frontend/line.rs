// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue's notifications, usable on any thread.

use anyhow::{Context, Result};
use guest_driver::virtio::balloon_driver::Notify;
use libc::EFD_CLOEXEC;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io::ErrorKind,
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A queue's kick and call eventfds.
#[derive(Clone, Debug)]
pub struct Line {
    pub(super) kick: Arc<EventFd>,
    pub(super) call: Arc<EventFd>,
    /// Readable once the device is gone for good.
    gone: Arc<EventFd>,
}

impl Line {
    pub(super) fn send_kick(&self) -> Result<()> {
        match self.kick.write(1) {
            // So many kicks that the counter is full are a kick.
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                Err(error).context("cannot kick")
            }
            _ => Ok(()),
        }
    }

    /// Whether a notification has come that was not taken. Takes it.
    pub fn is_called(&self) -> bool {
        self.call.read().is_ok()
    }

    /// Waits for a notification and takes it; says whether one came. Without a timeout it waits
    /// until the device is gone for good.
    pub(super) fn wait_call(&self, timeout: Option<Duration>) -> Result<bool> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        // SAFETY: `self` keeps the descriptors open.
        let [call, gone] = [&self.call, &self.gone]
            .map(|event| unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) });
        loop {
            match self.call.read() {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("cannot take a notification"),
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            let left = left.map(Timespec::try_from).transpose()?;
            let mut fds = [PollFd::new(&call, PollFlags::IN), PollFd::new(&gone, PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for a notification"),
            }
            if fds[0].revents().is_empty() && !fds[1].revents().is_empty() {
                return Ok(false);
            }
        }
    }
}

impl Notify for Line {
    fn kick(&mut self) {
        // An eventfd of our own takes it, or was kicked before.
        let _ = self.send_kick();
    }

    fn wait(&mut self, timeout: Option<Duration>) -> bool {
        // Where it cannot be waited for, none will come.
        self.wait_call(timeout).unwrap_or(false)
    }
}

/// The VMM's end of a line. Dropping it wakes every waiter: no notification will follow.
pub(super) struct LineEnd(Line);

impl LineEnd {
    pub(super) fn new() -> Result<Self> {
        // As QEMU makes them. Close-on-exec, so that no daemon started meanwhile holds them.
        let event = || {
            let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
            event.map(Arc::new).context("cannot create an eventfd")
        };
        Ok(Self(Line { kick: event()?, call: event()?, gone: event()? }))
    }

    pub(super) fn line(&self) -> Line {
        self.0.clone()
    }
}

impl Drop for LineEnd {
    fn drop(&mut self) {
        // The first write to an eventfd is always taken.
        let _ = self.0.gone.write(1);
    }
}
