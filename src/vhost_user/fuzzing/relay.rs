// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Messages between a frontend and the framework, in pieces of any size with descriptors at any place.
//!
//! The framework gets each whole message that is let in, in order, byte for byte and with the descriptors that
//! came with its bytes; the frontend gets each answer. Nothing of a message that is turned down passes.

use std::cell::Cell;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use arbitrary::Arbitrary;
use rustix::cmsg_space;
use rustix::fs::{MemfdFlags, fstat, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::super::admission::{Ahead, Denied};
use super::super::error::MessageError;
use super::super::message::Message;
use super::super::relay::Relay;
use crate::wake::Wake;

/// What the two sides send.
#[derive(Arbitrary, Debug)]
pub(crate) struct Input {
    messages: Vec<Sent>,
    /// The lengths of the pieces in which the frontend sends them, and how many descriptors each has.
    pieces: Vec<(u16, u8)>,
    answers: Vec<(u8, u8)>,
    /// The frontend goes in the middle of its last message.
    cut: u8,
}

#[derive(Arbitrary, Debug)]
struct Sent {
    request: u8,
    payload: Vec<u8>,
    /// What the header says instead.
    size: Option<u32>,
    fate: Fate,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Passes,
    /// Another message goes to the framework first.
    Behind(u8),
    /// It is turned down, and the connection goes on.
    Dropped,
    /// The connection ends.
    Ends,
}

const HEADER: usize = 12;
const MOST_PAYLOAD: u32 = 4096;
const MOST_FDS: usize = 32;

thread_local! {
    /// Files that can be told apart.
    static FILES: Vec<OwnedFd> = (0..4)
        .map(|_| memfd_create("message", MemfdFlags::CLOEXEC).expect("a memfd"))
        .collect();
}

fn message(request: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [request, 1, size].map(u32::to_ne_bytes).concat();
    bytes.extend_from_slice(payload);
    bytes
}

pub(crate) fn run(input: Input) {
    let mut stream = Vec::new();
    for sent in input.messages.iter().take(8) {
        let payload = &sent.payload[..sent.payload.len().min(300)];
        let size = sent.size.unwrap_or(u32::try_from(payload.len()).unwrap_or(0));
        stream.extend(message(u32::from(sent.request), size, payload));
    }
    stream.truncate(stream.len().saturating_sub(usize::from(input.cut % 16)));
    let (frontend, left) = UnixStream::pair().expect("a socket pair");
    let (right, framework) = UnixStream::pair().expect("a socket pair");
    for stream in [&left, &right] {
        stream.set_nonblocking(true).expect("a socket");
    }
    // Where descriptors come, in bytes from the start, and the file of each.
    let fds = send_pieces(&frontend, &stream, &input.pieces);
    let _ = frontend.shutdown(Shutdown::Write);
    let fates: Vec<Fate> = input.messages.iter().map(|sent| sent.fate).collect();
    let expected = expected(&stream, &fds, &fates);

    let answers: Vec<u8> = input
        .answers
        .iter()
        .take(8)
        .flat_map(|(request, len)| {
            message(u32::from(*request), u32::from(*len), &vec![*request; usize::from(*len)])
        })
        .collect();
    let stop = Arc::new(Wake::new().expect("a wake"));
    let relay = Relay { frontend: left, framework: right, stop };
    let (seen, (got, got_fds)) = std::thread::scope(|scope| {
        let framework = scope.spawn(|| {
            // It may have ended by then.
            let _ = send(&framework, &answers, &[]);
            let got = receive(&framework);
            drop(framework);
            got
        });
        let next = Cell::new(0);
        let result = relay.run(None, |message| look(message, &fates, &next), || {});
        (result, framework.join().expect("the framework's side"))
    });
    assert_eq!(seen.is_err(), expected.fails, "{seen:?}");
    assert_eq!(got, expected.bytes, "other bytes than were let in");
    assert_eq!(got_fds, expected.files, "other descriptors than were let in");
    if !expected.fails {
        assert_eq!(receive(&frontend).0, answers, "other answers than were given");
    }
}

fn look(message: &mut Message, fates: &[Fate], next: &Cell<usize>) -> Result<Ahead, Denied> {
    let fate = fates.get(next.replace(next.get() + 1)).copied().unwrap_or(Fate::Passes);
    message.admit();
    match fate {
        Fate::Passes => Ok(Ahead::new()),
        Fate::Behind(request) => Ok([self::message(u32::from(request), 0, &[])].into()),
        Fate::Dropped => Err(Denied { end: None, is_answered: false }),
        Fate::Ends => Err(Denied { end: Some(MessageError::Ended), is_answered: false }),
    }
}

/// What the framework must get.
struct Expected {
    bytes: Vec<u8>,
    files: Vec<u64>,
    fails: bool,
}

fn expected(stream: &[u8], fds: &[(usize, u64)], fates: &[Fate]) -> Expected {
    let mut expected = Expected { bytes: Vec::new(), files: Vec::new(), fails: false };
    let (mut at, mut number) = (0, 0);
    loop {
        let rest = &stream[at..];
        let size = rest.get(8..12).and_then(|size| size.first_chunk());
        let size = size.map(|size| u32::from_ne_bytes(*size));
        let end = size.map(|size| at + HEADER + usize::try_from(size).unwrap_or(usize::MAX / 2));
        let until = end.unwrap_or(stream.len());
        let files = fds.iter().filter(|(place, _)| (at..until).contains(place));
        let files: Vec<u64> = files.map(|(_, file)| *file).collect();
        if size.is_some_and(|size| size > MOST_PAYLOAD) || files.len() > MOST_FDS {
            expected.fails = true;
            return expected;
        }
        let Some(end) = end.filter(|end| *end <= stream.len()) else { return expected };
        match fates.get(number).copied().unwrap_or(Fate::Passes) {
            Fate::Ends => {
                expected.fails = true;
                return expected;
            }
            Fate::Dropped => {}
            fate => {
                if let Fate::Behind(request) = fate {
                    expected.bytes.extend(message(u32::from(request), 0, &[]));
                }
                expected.bytes.extend_from_slice(&stream[at..end]);
                expected.files.extend(files);
            }
        }
        (at, number) = (end, number + 1);
    }
}

/// Sends the stream in pieces. Returns where each descriptor comes, and its file.
fn send_pieces(to: &UnixStream, stream: &[u8], pieces: &[(u16, u8)]) -> Vec<(usize, u64)> {
    FILES.with(|files| {
        let (mut at, mut places) = (0, Vec::new());
        let mut pieces = pieces.iter().take(24);
        while at < stream.len() {
            let (len, fds) = pieces.next().copied().unwrap_or((u16::MAX, 0));
            let end = stream.len().min(at + 1 + usize::from(len % 200));
            let end = if len == u16::MAX { stream.len() } else { end };
            let fds: Vec<&OwnedFd> = files.iter().cycle().take(usize::from(fds % 12)).collect();
            send(to, &stream[at..end], &fds).expect("room in the socket");
            places.extend(fds.iter().map(|fd| (at, fstat(fd).expect("a file").st_ino)));
            at = end;
        }
        places
    })
}

fn send(to: &UnixStream, bytes: &[u8], fds: &[&OwnedFd]) -> rustix::io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let sent = sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    assert_eq!(sent, bytes.len());
    Ok(())
}

/// All that comes until the other end is closed.
fn receive(from: &UnixStream) -> (Vec<u8>, Vec<u64>) {
    let (mut all, mut files) = (Vec::new(), Vec::new());
    let mut bytes = vec![0; 8192];
    loop {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(64))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut bytes)];
        let Ok(got) = recvmsg(from, into, &mut control, RecvFlags::CMSG_CLOEXEC) else {
            return (all, files);
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                files.extend(fds.map(|fd| fstat(fd).expect("a file").st_ino));
            }
        }
        if got.bytes == 0 {
            return (all, files);
        }
        all.extend_from_slice(&bytes[..got.bytes]);
    }
}
