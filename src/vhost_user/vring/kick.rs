// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the worker's epoll instance watches for kicks.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use log::warn;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use vhost_user_backend::VringState;

use super::{Memory, Vring};
use crate::vhost_user::descriptor::Kind;

/// The kick, if it is an eventfd, as the protocol says. Nothing reads it, so anything that has to be
/// read would fill up.
pub(super) fn eventfd_only(file: Option<File>) -> Option<File> {
    file.filter(|file| {
        let kind = Kind::of(file.as_fd());
        if kind != Kind::EventFd {
            warn!("a kick descriptor is {kind}, expected an eventfd; not used");
        }
        kind == Kind::EventFd
    })
}

impl Vring {
    /// Has the kick, with its first event, watched for edges: each write to an eventfd is one. The
    /// framework watches it for its level, and would have to read it down to 0; a semaphore takes
    /// up to 2⁶⁴ reads for that, and until then the worker would spin.
    ///
    /// No kick is lost: the kernel looks at the level once more when an edge is asked for, and the
    /// ring is looked at after that. For the worker; the queue is locked.
    pub(super) fn watch_edges(&self, vring: &VringState<Memory>) {
        let mut progress = self.progress();
        if progress.watches_edges {
            return;
        }
        let (Some(attached), Some(kick)) = (self.shared.attached.get(), vring.get_kick()) else {
            return;
        };
        // SAFETY: the queue keeps the descriptor open while it is locked.
        let kick = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
        // The framework's mark of the queue in its epoll instance.
        let mark = EventData::new_u64(attached.index as u64);
        match epoll::modify(&attached.epoll, kick, mark, EventFlags::IN | EventFlags::ET) {
            Ok(()) => progress.watches_edges = true,
            // It is not watched, or not yet.
            Err(Errno::NOENT) => {}
            Err(error) => warn!("cannot watch the kick of queue {}: {error}", attached.index),
        }
    }

    /// Takes the kick, which is about to be replaced, out of the epoll instance: there it would
    /// outlive its descriptor for as long as the frontend has the file open. The queue is locked.
    pub(super) fn unwatch(&self, vring: &VringState<Memory>) {
        self.progress().watches_edges = false;
        let (Some(attached), Some(kick)) = (self.shared.attached.get(), vring.get_kick()) else {
            return;
        };
        // SAFETY: the queue keeps the descriptor open while it is locked.
        let kick = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
        match epoll::delete(&attached.epoll, kick) {
            // A queue that does not run is not watched.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => warn!("cannot unwatch a kick of queue {}: {error}", attached.index),
        }
    }
}
