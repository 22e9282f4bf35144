// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The frontend's pipe or socket, which no call here blocks on.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use super::error::{MOST_BYTES, StateError};
use crate::vhost_user::descriptor::Kind;
use crate::wake::Wake;

/// The frontend's descriptor, which blocks no call: the flags of its file are the frontend's, too,
/// and may change at any time.
pub(super) struct Pipe {
    file: File,
    /// What goes through a pipe goes through this one of our own, since `splice` takes a flag for
    /// one call. `None` for a socket.
    own: Option<(OwnedFd, OwnedFd)>,
    /// What is in the one of our own.
    waiting: usize,
    /// Each ends the transfer.
    ends: [Arc<Wake>; 2],
}

impl Pipe {
    pub(super) fn new(file: File, ends: [Arc<Wake>; 2]) -> Result<Self, StateError> {
        let own = match Kind::of(file.as_fd()) {
            Kind::Pipe | Kind::PipeToRead => {
                let own = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK);
                Some(own.map_err(|error| StateError::Transfer(error.into()))?)
            }
            Kind::UnixStream => None,
            other => return Err(StateError::NotAPipe(other.to_string())),
        };
        Ok(Self { file, own, waiting: 0, ends })
    }

    fn wait(&self, what: PollFlags) -> Result<(), StateError> {
        let mut fds = [
            PollFd::from_borrowed_fd(self.file.as_fd(), what),
            PollFd::from_borrowed_fd(self.ends[0].as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.ends[1].as_fd(), PollFlags::IN),
        ];
        while let Err(error) = poll(&mut fds, None) {
            if error != Errno::INTR {
                return Err(StateError::Transfer(error.into()));
            }
        }
        let ended = fds[1..].iter().any(|fd| !fd.revents().is_empty());
        if ended { Err(StateError::BrokenOff) } else { Ok(()) }
    }

    pub(super) fn read(&mut self) -> Result<Vec<u8>, StateError> {
        let mut state = Vec::new();
        let mut part = [0; 4096];
        loop {
            self.wait(PollFlags::IN)?;
            match self.read_some(&mut part) {
                Ok(0) => return Ok(state),
                Ok(bytes) if state.len() + bytes > MOST_BYTES => return Err(StateError::TooLong),
                Ok(bytes) => state.extend_from_slice(&part[..bytes]),
                Err(error) => again(error)?,
            }
        }
    }

    fn read_some(&self, part: &mut [u8]) -> Result<usize, Errno> {
        let Some((reader, writer)) = &self.own else {
            return recv(&self.file, &mut *part, RecvFlags::DONTWAIT).map(|(bytes, _)| bytes);
        };
        match splice(&self.file, None, writer, None, part.len(), SpliceFlags::NONBLOCK)? {
            0 => Ok(0),
            bytes => rustix::io::read(reader, &mut part[..bytes]),
        }
    }

    pub(super) fn write(&mut self, mut state: &[u8]) -> Result<(), StateError> {
        while !state.is_empty() || self.waiting > 0 {
            self.wait(PollFlags::OUT)?;
            match self.write_some(state) {
                Ok(taken) => state = &state[taken..],
                Err(error) => again(error)?,
            }
        }
        Ok(())
    }

    /// How much of `state` is not to be given once more.
    fn write_some(&mut self, state: &[u8]) -> Result<usize, Errno> {
        let Some((reader, writer)) = &self.own else {
            return send(&self.file, state, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        };
        if self.waiting == 0 {
            self.waiting = rustix::io::write(writer, state)?;
            return Ok(self.waiting);
        }
        let gone = splice(reader, None, &self.file, None, self.waiting, SpliceFlags::NONBLOCK)?;
        self.waiting = self.waiting.saturating_sub(gone);
        Ok(0)
    }
}

fn again(error: Errno) -> Result<(), StateError> {
    match error {
        Errno::AGAIN | Errno::INTR => Ok(()),
        _ => Err(StateError::Transfer(error.into())),
    }
}
