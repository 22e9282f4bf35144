// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Messages of a frontend, and the answers.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::message::FrontendReq as R;

/// The daemon has closed the connection.
#[derive(Debug)]
pub(super) struct Ended;

pub(super) struct Frontend(pub(super) UnixStream);

const NEED_REPLY: u32 = 8;

/// Numbers of 32 bits, as most payloads are.
pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(super) fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

impl Frontend {
    /// Sends a message and waits for nothing.
    pub(super) fn send(
        &self,
        request: u32,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Ended> {
        let size = u32::try_from(payload.len()).expect("a length");
        let mut bytes = words(&[request, 1 | flags, size]);
        bytes.extend_from_slice(payload);
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "too many descriptors");
        }
        let sent = sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
        if sent == Ok(bytes.len()) { Ok(()) } else { Err(Ended) }
    }

    /// The payload of the next answer to `request`.
    fn answer(&self, request: u32) -> Result<Vec<u8>, Ended> {
        let mut stream = &self.0;
        loop {
            let mut header = [0; 12];
            stream.read_exact(&mut header).map_err(|_| Ended)?;
            let word = |at: usize| {
                let bytes = header[at..].first_chunk().expect("a word of the header");
                u32::from_ne_bytes(*bytes)
            };
            let mut payload = vec![0; word(8) as usize];
            stream.read_exact(&mut payload).map_err(|_| Ended)?;
            if word(0) == request {
                return Ok(payload);
            }
        }
    }

    /// Sends what is always answered.
    pub(super) fn ask(
        &self,
        request: R,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, Ended> {
        self.send(request as u32, 0, payload, fds)?;
        self.answer(request as u32)
    }

    /// Sends what is answered by a number.
    pub(super) fn number(
        &self,
        request: R,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<u64, Ended> {
        let answer = self.ask(request, payload, fds)?;
        Ok(answer.first_chunk().map_or(u64::MAX, |bytes| u64::from_ne_bytes(*bytes)))
    }

    /// Sends what changes something, and says whether it was taken.
    pub(super) fn set(
        &self,
        request: R,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<bool, Ended> {
        self.send(request as u32, NEED_REPLY, payload, fds)?;
        let answer = self.answer(request as u32)?;
        let taken = answer.iter().all(|byte| *byte == 0);
        if !taken {
            // The connection may be about to end.
            self.is_there()?;
        }
        Ok(taken)
    }

    /// The framework has done all that came before.
    pub(super) fn is_there(&self) -> Result<(), Ended> {
        self.ask(R::GET_FEATURES, &[], &[]).map(drop)
    }
}
