// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Messages with their descriptors, in the order in which they came, in the queue of a socket.
//!
//! A descriptor store keeps no two descriptors of the same open file, and no order; the regions of a
//! guest's memory are often one file. In a socket's queue any number may wait, each with its
//! message, and a message is there as a whole or not at all. It is looked at and never taken out:
//! who is killed while it reads loses nothing.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use vhost::vhost_user::message::MAX_ATTACHED_FD_ENTRIES;

/// Room for many regions. The kernel gives as much as it lets anyone have.
const ROOM: usize = 8 << 20;
/// More than a message has.
const MOST_BYTES: usize = 16 << 10;

/// A message of the frontend, as it came.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Journal {
    write: OwnedFd,
    read: OwnedFd,
}

impl Journal {
    /// An empty one.
    pub(super) fn new() -> io::Result<Self> {
        let (write, read) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_send_buffer_size(&write, ROOM)?;
        Ok(Self { write, read })
    }

    /// The one that these are the ends of.
    pub(super) fn of(write: OwnedFd, read: OwnedFd) -> Self {
        Self { write, read }
    }

    /// Its ends, for the store: where it is written and where it is read.
    pub(super) fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.write.as_fd(), self.read.as_fd()]
    }

    /// Adds a message.
    ///
    /// # Errors
    /// What the kernel says: `EAGAIN` when there is no room.
    pub(super) fn append(&self, bytes: &[u8], fds: &[impl AsFd]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(&self.write, &[IoSlice::new(bytes)], &mut control, flags) {
                Err(Errno::INTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }

    /// Has the next look begin with the first message, and each one with the message behind the last.
    fn look_from_the_start(&self) -> io::Result<()> {
        const LEN: libc::socklen_t = 4;
        let start = 0_i32.to_ne_bytes();
        // SAFETY: an open socket, and an integer of four bytes.
        let set = unsafe {
            libc::setsockopt(
                self.read.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEEK_OFF,
                start.as_ptr().cast(),
                LEN,
            )
        };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// All messages. They stay.
    pub(super) fn read(&self) -> io::Result<Vec<Entry>> {
        self.look_from_the_start()?;
        let mut entries = Vec::new();
        let mut bytes = vec![0; MOST_BYTES];
        loop {
            let mut space =
                [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let got = match recvmsg(
                &self.read,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                flags,
            ) {
                Ok(got) => got,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(entries),
                Err(error) => return Err(error.into()),
            };
            let mut fds = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    fds.extend(received);
                }
            }
            if got.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) || got.bytes == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            entries.push(Entry { bytes: bytes[..got.bytes].to_vec(), fds });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fstat, memfd_create};

    fn inode(fd: impl AsFd) -> u64 {
        fstat(fd).unwrap().st_ino
    }

    #[test]
    fn messages_stay_in_order_with_their_descriptors() {
        let journal = Journal::new().unwrap();
        assert!(journal.read().unwrap().is_empty());
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        let twice = [file.try_clone().unwrap(), file.try_clone().unwrap()];
        journal.append(b"table", &twice).unwrap();
        let none: [OwnedFd; 0] = [];
        journal.append(b"features", &none).unwrap();
        for _ in 0..2 {
            let entries = journal.read().unwrap();
            let texts: Vec<&[u8]> = entries.iter().map(|entry| &*entry.bytes).collect();
            assert_eq!(texts, [&b"table"[..], b"features"]);
            let inodes: Vec<u64> = entries[0].fds.iter().map(inode).collect();
            assert_eq!(inodes, [inode(&file); 2]);
        }
        journal.append(b"more", &none).unwrap();
        assert_eq!(journal.read().unwrap().len(), 3);
    }

    #[test]
    fn there_is_room_for_every_setting_of_a_guest() {
        let journal = Journal::new().unwrap();
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        for _ in 0..150 {
            journal.append(&[0; 52], &[&file]).unwrap();
        }
        assert_eq!(journal.read().unwrap().len(), 150);
    }
}
