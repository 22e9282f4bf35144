// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A frontend that sends what it is told to, byte for byte.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]
#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::Read;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::vhost_user::message::{
    FrontendReq as R, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vmm_integration::daemon::DaemonProcess;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// The bit that says that no descriptor comes.
pub(crate) const NO_FD: u64 = 1 << 8;

/// Version 1, and an answer is wanted.
const NEED_REPLY: u32 = 1 | 1 << 3;

/// A region as it is announced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) gpa: u64,
    pub(crate) bytes: u64,
    pub(crate) user: u64,
    pub(crate) offset: u64,
}

impl Region {
    fn numbers(self) -> Vec<u8> {
        [self.gpa, self.bytes, self.user, self.offset].map(u64::to_ne_bytes).concat()
    }

    /// The payload of `VHOST_USER_ADD_MEM_REG`.
    pub(crate) fn single(self) -> Vec<u8> {
        [[0; 8].as_slice(), &self.numbers()].concat()
    }

    /// The payload of `VHOST_USER_SET_MEM_TABLE`.
    pub(crate) fn table(regions: &[Self]) -> Vec<u8> {
        let mut payload = [u32::try_from(regions.len()).unwrap(), 0].map(u32::to_ne_bytes).concat();
        regions.iter().for_each(|region| payload.extend(region.numbers()));
        payload
    }
}

/// Every protocol feature of the daemon's.
pub(crate) fn all_features() -> VhostUserProtocolFeatures {
    vmm_integration::frontend::AttachOptions::KNOWN_PROTOCOL_FEATURES
}

pub(crate) struct Raw(pub(crate) UnixStream);

impl Raw {
    /// Connects, becomes the owner and negotiates these features.
    pub(crate) fn connect(daemon: &DaemonProcess, features: VhostUserProtocolFeatures) -> Self {
        let mut raw = Self::bare(daemon);
        assert_eq!(raw.ask(R::GET_FEATURES, &[], &[]).unwrap() & (1 << 30), 1 << 30);
        raw.send_plain(R::SET_OWNER, &[]);
        raw.negotiate(features);
        raw
    }

    /// Connects and sends nothing.
    pub(crate) fn bare(daemon: &DaemonProcess) -> Self {
        let socket = UnixStream::connect(daemon.socket()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(socket)
    }

    pub(crate) fn negotiate(&mut self, features: VhostUserProtocolFeatures) {
        self.ask(R::GET_PROTOCOL_FEATURES, &[], &[]).unwrap();
        self.send_plain(R::SET_PROTOCOL_FEATURES, &features.bits().to_ne_bytes());
        let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | 1 << 32;
        self.send_plain(R::SET_FEATURES, &features.to_ne_bytes());
    }

    fn message(request: R, flags: u32, size: usize, payload: &[u8]) -> Vec<u8> {
        let header = [request as u32, flags, u32::try_from(size).unwrap()];
        [&header.map(u32::to_ne_bytes).concat(), payload].concat()
    }

    /// Sends a message that wants no answer.
    pub(crate) fn send_plain(&mut self, request: R, payload: &[u8]) {
        let message = Self::message(request, 1, payload.len(), payload);
        std::io::Write::write_all(&mut self.0, &message).unwrap();
    }

    /// Sends a message that wants one.
    pub(crate) fn send(&self, request: R, payload: &[u8], fds: &[RawFd]) {
        let message = Self::message(request, NEED_REPLY, payload.len(), payload);
        assert_eq!(self.0.send_with_fds(&[message.as_slice()], fds).unwrap(), message.len());
    }

    /// Sends a message that announces `size` bytes, with fewer.
    pub(crate) fn send_part(&self, request: R, size: usize, payload: &[u8], fds: &[RawFd]) {
        let message = Self::message(request, NEED_REPLY, size, payload);
        self.0.send_with_fds(&[message.as_slice()], fds).unwrap();
    }

    /// The first number of an answer; none if the daemon hangs up instead.
    pub(crate) fn reply(&mut self) -> Option<u64> {
        let mut header = [0; 12];
        self.0.read_exact(&mut header).ok()?;
        let size = u32::from_ne_bytes(header[8..].try_into().unwrap());
        let mut payload = vec![0; usize::try_from(size).unwrap()];
        self.0.read_exact(&mut payload).ok()?;
        Some(u64::from_ne_bytes(payload.get(..8)?.try_into().unwrap()))
    }

    /// Sends a message and takes its answer.
    pub(crate) fn ask(&mut self, request: R, payload: &[u8], fds: &[RawFd]) -> Option<u64> {
        self.send(request, payload, fds);
        self.reply()
    }

    /// Waits for the end of the connection.
    pub(crate) fn is_hung_up(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
