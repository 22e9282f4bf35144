// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One chain after the other: how all of the balloon's queues are used.

use core::time::Duration;

use super::Notify;
use crate::ram::GuestRam;
use crate::time;
use crate::virtio::ring::{DriverRing, RingError};

/// Why a request was not carried out, or may not have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The device has not seen it.
    #[error("the ring did not take the chain")]
    NotTaken(#[source] RingError),
    /// The device has not seen it: it still has the one before, which was not returned in time.
    #[error("the device still has the chain before")]
    Busy,
    /// The device has it, or may have it, and may act on it at any time.
    #[error("the device has not returned the chain in time")]
    Timeout,
    /// As [`RequestError::Timeout`], since whether it came back cannot be read.
    #[error("the ring cannot be read any more")]
    Lost(#[source] RingError),
}

/// A ring with its notifications that has one chain with the device at most.
#[derive(Debug)]
pub struct Requests<M, N> {
    ring: DriverRing<M>,
    notify: N,
    /// The head of the chain that the device has.
    out: Option<u16>,
    /// The length that the last one was used with.
    used_len: u32,
}

impl<M: GuestRam, N: Notify> Requests<M, N> {
    /// Over an empty ring.
    pub fn new(ring: DriverRing<M>, notify: N) -> Self {
        Self { ring, notify, out: None, used_len: 0 }
    }

    /// How many descriptors the ring has.
    pub fn size(&self) -> u16 {
        self.ring.layout().size()
    }

    /// Takes what the device has returned; says whether it has nothing any more.
    ///
    /// # Errors
    /// [`RequestError::Lost`].
    pub fn is_idle(&mut self) -> Result<bool, RequestError> {
        while let Some(head) = self.out {
            match self.ring.pop_used() {
                Ok(Some(used)) if used.id == head => {
                    self.out = None;
                    self.used_len = used.len;
                }
                Ok(None) => return Ok(false),
                // A device that returns what it was not given has not returned what it was given.
                Ok(Some(_)) | Err(RingError::UnknownId { .. }) => {}
                Err(error) => return Err(RequestError::Lost(error)),
            }
        }
        Ok(true)
    }

    /// Gives the device the chain that `add` puts into the ring, and does not wait for it.
    ///
    /// # Errors
    /// [`RequestError`], of which [`RequestError::Lost`] says that the device may have it.
    pub(super) fn submit(
        &mut self,
        add: impl FnOnce(&mut DriverRing<M>) -> Result<u16, RingError>,
    ) -> Result<(), RequestError> {
        if !self.is_idle()? {
            return Err(RequestError::Busy);
        }
        let head = add(&mut self.ring).map_err(RequestError::NotTaken)?;
        self.out = Some(head);
        self.ring.publish().map_err(RequestError::Lost)?;
        if self.ring.kick_needed().map_err(RequestError::Lost)? {
            self.notify.kick();
        }
        Ok(())
    }

    /// Waits until the device has nothing any more.
    ///
    /// # Errors
    /// [`RequestError::Timeout`], [`RequestError::Lost`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<(), RequestError> {
        let deadline = timeout.and_then(|timeout| time::now().checked_add(timeout));
        while !self.is_idle()? {
            let left = deadline.map(|end| end.saturating_sub(time::now()));
            if !self.notify.wait(left) {
                // It may have come while the time ran out.
                return if self.is_idle()? { Ok(()) } else { Err(RequestError::Timeout) };
            }
        }
        Ok(())
    }

    /// Gives the device the chain that `add` puts into the ring, and waits until it comes back
    /// (`tell_host`); without a `timeout` for as long as it takes, as Linux does. Returns the length that
    /// it was used with, which means something only where a feature says so.
    ///
    /// # Errors
    /// [`RequestError`].
    pub(super) fn send(
        &mut self,
        timeout: Option<Duration>,
        add: impl FnOnce(&mut DriverRing<M>) -> Result<u16, RingError>,
    ) -> Result<u32, RequestError> {
        self.submit(add)?;
        self.wait(timeout)?;
        Ok(self.used_len)
    }
}
