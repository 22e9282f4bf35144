// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A terminal for the guest's serial port: the VMM takes input from nothing else on its standard input.

use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

use crate::bare_guest::Console;

/// The guest's console, and the VMM's end of the terminal.
///
/// # Errors
/// When the host has no terminal left.
pub(super) fn terminal() -> Result<(Console, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let open = || -> rustix::io::Result<(OwnedFd, OwnedFd)> {
        let ours = openpt(flags)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let theirs = ioctl_tiocgptpeer(&ours, flags)?;
        Ok((ours, theirs))
    };
    let (ours, theirs) = open().context("opening a terminal")?;
    let ours = File::from(ours);
    let console = Console::over(ours.try_clone().context("copying the terminal")?, ours);
    Ok((console, theirs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    #[test]
    fn what_is_printed_there_is_read_here() {
        let (mut console, theirs) = terminal().unwrap();
        let mut port = File::from(theirs);
        port.write_all(b"bare: up sections=2\nbare: done\n").unwrap();
        let line = console.wait_for("up", Duration::from_secs(10)).unwrap();
        assert_eq!(line.number("sections").unwrap(), 2);
        drop(port);
        assert_eq!(console.wait_done(Duration::from_secs(10)).unwrap().len(), 2);
    }
}
