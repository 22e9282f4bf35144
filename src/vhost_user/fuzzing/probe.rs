// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asks the worker whether it has done all that it was woken for.

use std::os::fd::{AsFd, AsRawFd};

use rustix::event::{PollFd, PollFlags, poll};
use vhost_user_backend::{VhostUserBackend, VringEpollHandler};
use vmm_sys_util::epoll::EventSet;

use crate::wake::Wake;

/// A question that waits its turn in the worker's epoll instance, behind all kicks before it.
pub(crate) struct Probe {
    asked: Wake,
    answered: Wake,
}

impl Default for Probe {
    fn default() -> Self {
        let wake = || Wake::new().expect("an eventfd");
        Self { asked: wake(), answered: wake() }
    }
}

impl Probe {
    /// What the worker is told when this is asked.
    pub(crate) const EVENT: u16 = 100;

    /// Has the worker answer from now on.
    pub(crate) fn watch<B: VhostUserBackend>(&self, worker: &VringEpollHandler<B>) {
        let (fd, event) = (self.asked.as_raw_fd(), u64::from(Self::EVENT));
        // A level would stay in the kernel's list, ahead of kicks that come later.
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        worker.register_listener(fd, edges, event).expect("an event of the worker's");
    }

    /// Waits until the worker has done what it was woken for. One that hangs is found by the fuzzer's own
    /// limit of time.
    pub(crate) fn ask(&self) {
        self.asked.signal().expect("an eventfd");
        let mut fds = [PollFd::from_borrowed_fd(self.answered.as_fd(), PollFlags::IN)];
        while poll(&mut fds, None).is_err() {}
        self.answered.clear();
    }

    /// The worker has come to the question.
    pub(crate) fn answer(&self) {
        self.asked.clear();
        self.answered.signal().expect("an eventfd");
    }
}
