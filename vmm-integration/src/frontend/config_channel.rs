// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The backend's channel to the frontend, as far as a balloon uses it: configuration changes.

use crate::daemon::wait_for;
use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags};
use std::{
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    sync::{Arc, Mutex},
    time::Duration,
};
use vhost::vhost_user::{FrontendReqHandler, HandlerResult, VhostUserFrontendReqHandlerMut};

/// Acknowledges configuration changes and nothing else.
struct ConfigChanges;

impl VhostUserFrontendReqHandlerMut for ConfigChanges {
    fn handle_config_change(&mut self) -> HandlerResult<u64> {
        Ok(0)
    }
}

/// The frontend's end, and the backend's until it is handed over.
pub(super) struct ConfigChannel(FrontendReqHandler<Mutex<ConfigChanges>>);

impl ConfigChannel {
    pub(super) fn new(reply_ack: bool) -> Result<Self> {
        let handler = Arc::new(Mutex::new(ConfigChanges));
        let mut channel = FrontendReqHandler::new(handler).context("backend channel")?;
        channel.set_reply_ack_flag(reply_ack);
        Ok(Self(channel))
    }

    /// Waits for VHOST_USER_BACKEND_CONFIG_CHANGE_MSG; says whether one came.
    pub(super) fn wait(&mut self, timeout: Duration) -> Result<bool> {
        // SAFETY: the handler keeps the descriptor open while it lives.
        let fd = unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) };
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        wait_for(&mut fds, timeout)?;
        if fds[0].revents().is_empty() {
            return Ok(false);
        }
        self.0.handle_request().context("the backend's request")?;
        Ok(true)
    }

    fn backend_end(&self) -> RawFd {
        self.0.get_tx_raw_fd()
    }
}

impl AsRawFd for ConfigChannel {
    /// The backend's end.
    fn as_raw_fd(&self) -> RawFd {
        self.backend_end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_change_is_seen_once() {
        let mut channel = ConfigChannel::new(false).unwrap();
        assert!(!channel.wait(Duration::ZERO).unwrap());
        // SAFETY: the channel keeps the descriptor open.
        let backend = unsafe { BorrowedFd::borrow_raw(channel.as_raw_fd()) };
        // Request 2, version 1, no payload.
        let message = [2_u32, 1, 0].map(u32::to_ne_bytes).concat();
        assert_eq!(rustix::io::write(backend, &message).unwrap(), message.len());
        assert!(channel.wait(Duration::from_secs(5)).unwrap());
        assert!(!channel.wait(Duration::ZERO).unwrap());
    }
}
