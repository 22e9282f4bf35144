// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM of the library [alioth](https://github.com/google/alioth): boots a PVH image whose balloon is a vhost-user
//! backend.
//!
//! ```text
//! alioth-vmm SOCKET MEMORY_BYTES IMAGE COMMAND_LINE
//! ```
//!
//! Its standard input is a socket, the guest's serial port. Its standard output is a socket as well: each line
//! `pause` or `resume` that comes is answered by a line `done` or the reason. It ends when the guest does. With an
//! empty SOCKET there is no balloon.
//!
//! | module | |
//! |---|---|
//! | `balloon` | alioth's vhost-user frontend, behind a lock and with a channel from the backend |
//! | `console` | the serial port's socket |
//! | `machine` | the parts of a virtual machine, put together |
//! | `log` | alioth's warnings |

mod balloon;
mod console;
mod log;
mod machine;

use std::env;
use std::ffi::CString;
use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};
use machine::{Machine, Spec};

fn main() -> Result<()> {
    log::start();
    let [socket, memory, image, command_line] = arguments()?;
    let spec = Spec {
        memory_bytes: memory.parse().context("the size of the memory: expected bytes")?,
        image: PathBuf::from(image),
        command_line: CString::new(command_line)?,
        socket: (!socket.is_empty()).then(|| PathBuf::from(socket)),
    };
    let machine = Arc::new(Machine::new(spec, socket_of(stdin().as_fd())?)?);
    let control = socket_of(stdout().as_fd())?;
    let commanded = machine.clone();
    // Ends with the process.
    thread::spawn(move || command(&commanded, control));
    machine.run()
}

fn arguments() -> Result<[String; 4]> {
    let given: Vec<_> = env::args().skip(1).collect();
    let Ok(arguments) = given.try_into() else {
        bail!("expected SOCKET MEMORY_BYTES IMAGE COMMAND_LINE");
    };
    Ok(arguments)
}

fn socket_of(fd: BorrowedFd<'_>) -> Result<UnixStream> {
    Ok(UnixStream::from(fd.try_clone_to_owned().context("copying a descriptor")?))
}

fn command(machine: &Machine, control: UnixStream) -> Result<()> {
    let mut answers = control.try_clone()?;
    for line in BufReader::new(control).lines() {
        let result = match line?.as_str() {
            "pause" => machine.pause(),
            "resume" => machine.resume(),
            other => Err(anyhow::anyhow!("unknown command {other:?}: expected pause or resume")),
        };
        match result {
            Ok(()) => writeln!(answers, "done")?,
            Err(error) => writeln!(answers, "{error:#}")?,
        }
    }
    Ok(())
}
