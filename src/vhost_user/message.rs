// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One vhost-user message on its way from one socket to another, descriptors included.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vhost::vhost_user::message::{
    FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE, VhostUserHeaderFlag,
};

use super::descriptor::close_elsewhere;
use super::error::MessageError;
use super::validate::{self, ShapeError};
use crate::hand_over::Entry;

/// Request, flags and size of the payload, each an `u32` in the machine's own byte order
/// (vhost-user protocol, "Header").
const HEADER: usize = 12;

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The message is whole, or gone.
    Done,
    /// It has to wait for the socket.
    Waits,
    /// The peer has hung up.
    Closed,
}

/// One message, as far as it has come. Neither direction ever blocks.
pub(super) struct Message {
    bytes: [u8; HEADER + MAX_MSG_SIZE],
    received: usize,
    sent: usize,
    fds: Vec<OwnedFd>,
    /// The descriptors are known, and to close them takes no time.
    admitted: bool,
}

impl Message {
    pub(super) fn new() -> Self {
        let bytes = [0; HEADER + MAX_MSG_SIZE];
        Self { bytes, received: 0, sent: 0, fds: Vec::new(), admitted: false }
    }

    fn word(&self, index: usize) -> u32 {
        let at = 4 * index;
        u32::from_ne_bytes([
            self.bytes[at],
            self.bytes[at + 1],
            self.bytes[at + 2],
            self.bytes[at + 3],
        ])
    }

    /// What kind of message it is.
    pub(super) fn request(&self) -> u32 {
        self.word(0)
    }

    /// Whether it, being whole, is what the protocol says.
    pub(super) fn check(&self) -> Result<(), ShapeError> {
        validate::check(self.request(), self.word(1), self.payload())
    }

    /// Whether the frontend asks for an answer that the message does not have by itself.
    pub(super) fn wants_reply(&self) -> bool {
        self.word(1) & VhostUserHeaderFlag::NEED_REPLY.bits() != 0
    }

    /// What is behind the header.
    pub(super) fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER..self.received).unwrap_or_default()
    }

    /// The payload's `u64` at this index, 0 if it is not that long.
    pub(super) fn number(&self, index: usize) -> u64 {
        let bytes = self.payload().get(8 * index..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }

    /// The payload's first `u32`, 0 if it is not that long.
    pub(super) fn first_word(&self) -> u32 {
        self.payload().first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    /// The payload's first two `u32`.
    pub(super) fn pair(&self) -> [u32; 2] {
        let second = self.payload().get(4..).and_then(|rest| rest.first_chunk());
        [self.first_word(), second.map_or(0, |bytes| u32::from_ne_bytes(*bytes))]
    }

    /// Has another payload, not longer than the one it has, and its descriptors in another order.
    pub(super) fn rewrite(&mut self, payload: &[u8], order: &[usize]) {
        let end = HEADER + payload.len();
        let (Ok(size), true) = (u32::try_from(payload.len()), end <= self.received) else { return };
        self.bytes[8..HEADER].copy_from_slice(&size.to_ne_bytes());
        self.bytes[HEADER..end].copy_from_slice(payload);
        self.received = end;
        let mut fds: Vec<_> = self.fds.drain(..).map(Some).collect();
        self.fds = order.iter().filter_map(|index| fds.get_mut(*index)?.take()).collect();
    }

    /// Is a message of this daemon's own. There is none in it.
    pub(super) fn write(&mut self, message: &[u8]) {
        let len = message.len().min(self.bytes.len());
        self.bytes[..len].copy_from_slice(&message[..len]);
        self.received = len;
    }

    /// Is a message that was received before. There is none in it.
    pub(super) fn take(&mut self, entry: Entry) {
        self.write(&entry.bytes);
        self.fds = entry.fds;
    }

    /// All of it that has come: header and payload.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.received]
    }

    /// Whether the framework answers it although no reply is asked for.
    pub(super) fn is_answered(&self) -> bool {
        let answered = [
            FrontendReq::GET_FEATURES,
            FrontendReq::GET_PROTOCOL_FEATURES,
            FrontendReq::SET_LOG_BASE,
        ];
        FrontendReq::try_from(self.request()).is_ok_and(|request| answered.contains(&request))
    }

    /// Its descriptors are such as may be closed by any thread.
    pub(super) fn admit(&mut self) {
        self.admitted = true;
    }

    /// Goes on without its descriptors.
    pub(super) fn drop_fds(&mut self) {
        let fds = std::mem::take(&mut self.fds);
        if !std::mem::take(&mut self.admitted) {
            close_elsewhere(fds);
        }
    }

    /// Whether nothing of a message is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.received == 0
    }

    /// The descriptors that came with it.
    pub(super) fn fds(&self) -> &[OwnedFd] {
        &self.fds
    }

    /// How long it is, as far as that is known: the header tells.
    fn len(&self) -> Result<usize, MessageError> {
        if self.received < HEADER {
            return Ok(HEADER);
        }
        let (request, size) = (self.request(), self.word(2));
        let len = usize::try_from(size).ok().filter(|size| *size <= MAX_MSG_SIZE);
        len.map(|len| HEADER + len).ok_or(MessageError::TooLong { request, size })
    }

    /// Whether all of it has come.
    pub(super) fn is_whole(&self) -> bool {
        self.received >= HEADER && self.len().is_ok_and(|len| self.received == len)
    }

    /// Reads on, and never past the end of the message.
    pub(super) fn receive(&mut self, from: BorrowedFd<'_>) -> Result<Step, MessageError> {
        while !self.is_whole() {
            let end = self.len()?;
            let mut space =
                [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut self.bytes[self.received..end])];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let got = match recvmsg(from, &mut into, &mut control, flags) {
                Ok(got) => got,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(Step::Waits),
                Err(Errno::CONNRESET) => return Ok(Step::Closed),
                Err(error) => return Err(MessageError::Socket(error.into())),
            };
            let before = self.fds.len();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    self.fds.extend(fds);
                }
            }
            let cut = got.flags.contains(ReturnFlags::CTRUNC);
            // There was room for as many as a message may have.
            if cut && self.fds.len() - before < MAX_ATTACHED_FD_ENTRIES {
                return Err(MessageError::NoRoomForDescriptors);
            }
            if cut || self.fds.len() > MAX_ATTACHED_FD_ENTRIES {
                return Err(MessageError::TooManyDescriptors);
            }
            if got.bytes == 0 {
                return Ok(Step::Closed);
            }
            self.received += got.bytes;
        }
        Ok(Step::Done)
    }

    /// Writes on. When all of it is gone there is room for the next message.
    pub(super) fn send(&mut self, to: BorrowedFd<'_>) -> Result<Step, MessageError> {
        while self.sent < self.received {
            let mut space =
                [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
            // With the first byte, as a frontend sends them. The space is as large as any number
            // of descriptors that was received.
            if self.sent == 0 && !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&fds));
            }
            let rest = [IoSlice::new(&self.bytes[self.sent..self.received])];
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(to, &rest, &mut control, flags) {
                Ok(bytes) => self.sent += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Step::Waits),
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(Step::Closed),
                Err(error) => return Err(MessageError::Socket(error.into())),
            }
        }
        self.clear();
        Ok(Step::Done)
    }

    /// Forgets it.
    pub(super) fn clear(&mut self) {
        (self.received, self.sent) = (0, 0);
        self.drop_fds();
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.drop_fds();
    }
}

#[cfg(any(test, fuzzing))]
impl Message {
    #[cfg_attr(fuzzing, expect(dead_code, reason = "a test's"))]
    pub(super) fn into_parts(mut self) -> (Vec<u8>, Vec<OwnedFd>) {
        (self.bytes[..self.received].to_vec(), std::mem::take(&mut self.fds))
    }

    pub(super) fn set(&mut self, bytes: &[u8], fds: impl IntoIterator<Item = OwnedFd>) {
        self.clear();
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        self.received = bytes.len();
        self.fds = fds.into_iter().collect();
    }
}
