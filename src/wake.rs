// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An eventfd that one thread signals and another polls.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use crate::lock::lock;

use log::warn;
use rustix::event::{EventfdFlags, eventfd};

/// Stays signalled until it is cleared. Neither ever blocks.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn signal(&self) -> io::Result<()> {
        match rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
            // The counter is full: the poller is woken.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn clear(&self) {
        // It fails only where nothing was signalled.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Wake {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The events of every listener that wants to hear of the same thing.
#[derive(Debug, Default)]
pub(crate) struct Wakes(Mutex<Vec<Arc<Wake>>>);

impl Wakes {
    /// Signals `wake`, too, from now on.
    pub(crate) fn add(&self, wake: Arc<Wake>) {
        lock(&self.0).push(wake);
    }

    pub(crate) fn signal(&self) {
        for wake in lock(&self.0).iter() {
            if let Err(error) = wake.signal() {
                warn!("cannot signal an event: {error}");
            }
        }
    }
}
