// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The process of a VMM, which never outlives its owner.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, set_parent_process_death_signal,
};

/// A child process, killed when this is dropped and, by the kernel, when this process dies.
pub(crate) struct Process {
    child: Mutex<Child>,
    pid: u32,
    /// Becomes readable when the process ends.
    pidfd: OwnedFd,
}

impl Process {
    /// Starts a process, which inherits `fds` under their numbers here.
    pub(crate) fn start(command: Command, fds: Vec<OwnedFd>) -> Result<Self> {
        Self::start_mortal(command, fds, Signal::KILL)
    }

    /// The same, where the process gets this signal when its parent dies.
    pub(crate) fn start_mortal(
        mut command: Command,
        fds: Vec<OwnedFd>,
        at_death: Signal,
    ) -> Result<Self> {
        let parent = getpid();
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let in_child = move || {
            set_parent_process_death_signal(Some(at_death))?;
            if getppid() != Some(parent) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            for &fd in &raw {
                // SAFETY: the parent owns the descriptor until `spawn` has returned.
                let fd = unsafe { BorrowedFd::borrow_raw(fd) };
                fcntl_setfd(fd, FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls only and allocates nothing on its good path.
        unsafe { command.pre_exec(in_child) };
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child =
            spawn_from_lasting_thread(command).with_context(|| format!("starting {program}"))?;
        // From here on they are the child's alone, so that its end closes the connections.
        drop(fds);
        let pid = child.id();
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child: Mutex::new(child), pid, pidfd }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error).context("opening a pidfd")
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.try_wait().ok().flatten()
    }

    /// Waits for its end, at most this long.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<ExitStatus> {
        // One that is too long for the kernel is as good as none.
        let timeout = Timespec::try_from(timeout).ok();
        // After a signal it is simply asked a little early.
        let _ = poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], timeout.as_ref());
        self.ended()
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // Fails only if it has been waited for, and then there is nothing to kill.
        let _ = child.kill();
        child.wait().ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Spawns from a thread that lives as long as this process.
///
/// "Parent" in `PR_SET_PDEATHSIG` is the thread that forked: a guest that a short-lived thread
/// booted, such as one of a test, would die with that thread wherever it was passed on to.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                // The asker waits for it, so it is there to take it.
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let (reply, child) = channel();
    let gone = |_| io::Error::other("the thread that starts processes is gone");
    spawner.send((command, reply)).map_err(|_| gone(()))?;
    child.recv().map_err(|_| gone(()))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_process_gets_its_fd_and_is_gone_after_drop() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let theirs = OwnedFd::from(theirs);
        // Not any shell: some know descriptors of one digit only.
        let mut command = Command::new("bash");
        command
            .arg("-c")
            .arg(format!("head -c 3 <&{0} >&{0}; exec sleep 1000", theirs.as_raw_fd()));
        let process = Process::start(command, vec![theirs]).unwrap();
        ours.write_all(b"abc").unwrap();
        let mut echo = [0; 3];
        ours.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"abc");
        assert_eq!(process.ended(), None);

        drop(process);
        // The other end is closed, and by nothing but the end of the process.
        assert_eq!(ours.read(&mut echo).unwrap(), 0);
    }

    #[test]
    fn it_outlives_the_thread_that_started_it() {
        let start = || {
            let mut command = Command::new("sleep");
            command.arg("1000");
            Process::start(command, Vec::new()).unwrap()
        };
        let process = thread::spawn(start).join().unwrap();
        assert_eq!(process.wait(Duration::from_millis(200)), None);
        assert!(process.kill().is_some());
        assert!(process.wait(Duration::ZERO).is_some());
    }

    #[test]
    fn its_end_wakes_the_waiter() {
        let process = Process::start(Command::new("true"), Vec::new()).unwrap();
        assert!(process.wait(Duration::from_secs(60)).unwrap().success());
    }
}
