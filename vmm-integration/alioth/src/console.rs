// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A socket as the guest's serial port.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use alioth::device::console::Console;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::net::{RecvFlags, recv};

/// The socket. Writes wait for room, since alioth ignores that a byte was not taken.
#[derive(Debug)]
pub(crate) struct SocketConsole(pub(crate) UnixStream);

impl Read for &SocketConsole {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // alioth reads until nothing is left.
        Ok(recv(&self.0, buf, RecvFlags::DONTWAIT)?.0)
    }
}

impl Write for &SocketConsole {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&self.0).write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Console for SocketConsole {
    const TOKEN_INPUT: Token = Token(0);

    fn activate(&self, registry: &Registry) -> io::Result<()> {
        let fd = self.0.as_raw_fd();
        registry.register(&mut SourceFd(&fd), Self::TOKEN_INPUT, Interest::READABLE)
    }

    fn deactivate(&self, registry: &Registry) -> io::Result<()> {
        registry.deregister(&mut SourceFd(&self.0.as_raw_fd()))
    }
}
