// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon can ask of the frontend that is connected, and what it learns of it on the way.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use log::warn;
use rustix::net::{SendFlags, send};
use vhost::vhost_user::message::{BackendReq, FrontendReq};

use super::message::Message;
use crate::discard::{Cause, Inhibit};
use crate::lock::lock;
use crate::state::Frontend;
use crate::wake::Wake;

/// Header of a message without payload: version 1, no reply asked for.
///
/// Whoever asks for a reply has to wait for it, and a frontend must not keep this daemon waiting.
const CONFIG_CHANGE: [u32; 3] = [BackendReq::CONFIG_CHANGE_MSG as u32, 1, 0];

/// The way to a connected frontend.
pub(crate) struct Link {
    /// The backend channel, open from `VHOST_USER_SET_BACKEND_REQ_FD` to the end of the session:
    /// QEMU takes a channel that is closed for an error.
    channel: Mutex<Option<OwnedFd>>,
    statistics: Wake,
    inhibit: Arc<Inhibit>,
}

impl Link {
    pub(crate) fn new(inhibit: Arc<Inhibit>) -> io::Result<Self> {
        Ok(Self { channel: Mutex::default(), statistics: Wake::new()?, inhibit })
    }

    /// What is readable once statistics are to be asked for. It is the worker's to poll, and to
    /// [clear].
    ///
    /// [clear]: Self::statistics_wanted
    pub(crate) fn statistics_fd(&self) -> RawFd {
        self.statistics.as_fd().as_raw_fd()
    }

    /// Takes note that statistics are asked for now.
    pub(crate) fn statistics_wanted(&self) {
        self.statistics.clear();
    }

    /// Looks at a message of the frontend that the framework keeps to itself.
    pub(super) fn look(&self, message: &Message) {
        match FrontendReq::try_from(message.request()) {
            Ok(FrontendReq::SET_BACKEND_REQ_FD) => self.keep_channel(message),
            // Never in order, since VHOST_USER_PROTOCOL_F_PAGEFAULT is not offered: pages that are
            // still to come look like holes, and a discard would lose them.
            Ok(FrontendReq::POSTCOPY_ADVISE) => {
                self.inhibit.wait(self.inhibit.forbid(Cause::Postcopy));
            }
            Ok(FrontendReq::POSTCOPY_END) => self.inhibit.lift(Cause::Postcopy),
            _ => {}
        }
    }

    /// Closes the channel.
    pub(super) fn close(&self) {
        // Closed after the lock is released: a close may take its time.
        let channel = self.lock_channel().take();
        drop(channel);
    }

    fn keep_channel(&self, message: &Message) {
        let [channel] = message.fds() else { return };
        match channel.try_clone() {
            Ok(channel) => *self.lock_channel() = Some(channel),
            Err(error) => warn!("cannot keep the backend channel: {error}"),
        }
    }

    fn lock_channel(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        lock(&self.channel)
    }
}

impl Frontend for Link {
    fn config_changed(&self) -> io::Result<()> {
        let channel = self.lock_channel();
        let channel: BorrowedFd<'_> = channel.as_ref().map(AsFd::as_fd).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotConnected,
                "the frontend has opened no channel for it (VHOST_USER_SET_BACKEND_REQ_FD)",
            )
        })?;
        let message = CONFIG_CHANGE.map(u32::to_ne_bytes).concat();
        let sent = send(channel, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        if sent != message.len() {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!("the backend channel took {sent} of {} bytes", message.len()),
            ));
        }
        Ok(())
    }

    fn poll_statistics(&self) -> io::Result<()> {
        self.statistics.signal()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn seen(link: &Link, request: FrontendReq, fds: impl IntoIterator<Item = OwnedFd>) {
        let mut message = Message::new();
        message.set(&[request as u32, 1, 0].map(u32::to_ne_bytes).concat(), fds);
        link.look(&message);
    }

    fn link() -> Link {
        Link::new(Arc::default()).unwrap()
    }

    #[test]
    fn nothing_is_discarded_under_postcopy() {
        let link = link();
        seen(&link, FrontendReq::POSTCOPY_ADVISE, []);
        seen(&link, FrontendReq::POSTCOPY_LISTEN, []);
        assert!(link.inhibit.holds(Cause::Postcopy));
        seen(&link, FrontendReq::POSTCOPY_END, []);
        assert!(!link.inhibit.holds(Cause::Postcopy));
    }

    #[test]
    fn config_change_is_one_message_without_a_reply() {
        let link = link();
        let (mut frontend, backend) = UnixStream::pair().unwrap();
        seen(&link, FrontendReq::SET_BACKEND_REQ_FD, [backend.into()]);
        link.config_changed().unwrap();
        let mut message = [0; 12];
        frontend.read_exact(&mut message).unwrap();
        assert_eq!(message.as_slice(), [2_u32, 1, 0].map(u32::to_ne_bytes).concat());
    }

    #[test]
    fn what_is_no_channel_is_an_error_and_no_more() {
        let link = link();
        let file = memfd_create("no channel", MemfdFlags::CLOEXEC).unwrap();
        seen(&link, FrontendReq::SET_BACKEND_REQ_FD, [file]);
        assert_eq!(link.config_changed().unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    }
}
