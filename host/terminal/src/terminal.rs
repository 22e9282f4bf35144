// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A terminal with a program in it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, ioctl_tiocsctty, kill_process, setsid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use super::recording::{Event, Recording, at_least_one, parser};

/// A program in a terminal of its own. It is killed when this is dropped.
pub struct Terminal {
    child: Child,
    ours: File,
    theirs: OwnedFd,
    shown: Arc<Shown>,
}

/// What the program has written so far.
struct Shown {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    parser: vt100::Parser,
    recording: Recording,
    ended: bool,
}

impl Shown {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Terminal {
    /// Starts `command` in a terminal of this size. Its standard streams are the terminal.
    ///
    /// # Errors
    /// If there are no more terminals, or the program cannot be started.
    pub fn start(command: &mut Command, width: u16, height: u16) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags).context("cannot open a terminal")?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let theirs = ioctl_tiocgptpeer(&ours, flags)?;
        tcsetwinsize(&theirs, window(width, height))?;
        let stdio = theirs.try_clone()?;
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        // SAFETY: the closure makes system calls and nothing else, which neither allocate nor lock.
        unsafe {
            command.pre_exec(move || {
                setsid()?;
                ioctl_tiocsctty(&stdio)?;
                dup2_stdin(&stdio)?;
                dup2_stdout(&stdio)?;
                Ok(dup2_stderr(&stdio)?)
            });
        }
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let state = State {
            parser: parser(width, height),
            recording: Recording { width, height, events: Vec::new() },
            ended: false,
        };
        let shown = Arc::new(Shown { state: Mutex::new(state), changed: Condvar::new() });
        let (ours, reads) = (File::from(ours), Arc::clone(&shown));
        let reader = ours.try_clone()?;
        let since = Instant::now();
        thread::spawn(move || read(reader, &reads, since));
        Ok(Self { child, ours, theirs, shown })
    }

    /// The text of the screen now.
    pub fn text(&self) -> String {
        self.shown.state().parser.screen().contents()
    }

    /// The screen now.
    pub fn screen(&self) -> vt100::Screen {
        self.shown.state().parser.screen().clone()
    }

    /// All that was written so far.
    pub fn recording(&self) -> Recording {
        self.shown.state().recording.clone()
    }

    /// Waits until the text of the screen is as `wanted` says, and returns it.
    ///
    /// # Errors
    /// If it is not so in time; the error has the screen.
    pub fn wait_for(&self, timeout: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.wait_for_screen(timeout, |screen| wanted(&screen.contents()))
    }

    /// Waits until the screen is as `wanted` says, and returns its text. `wanted` must not use this terminal.
    ///
    /// # Errors
    /// As [`Terminal::wait_for`].
    pub fn wait_for_screen(
        &self,
        timeout: Duration,
        wanted: impl Fn(&vt100::Screen) -> bool,
    ) -> Result<String> {
        let deadline = Instant::now() + timeout;
        let mut state = self.shown.state();
        loop {
            let text = state.parser.screen().contents();
            if wanted(state.parser.screen()) {
                return Ok(text);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                bail!("the screen does not show what was waited for:\n{text}");
            }
            let waited = self.shown.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Types this text.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn press(&self, keys: &str) -> Result<()> {
        (&self.ours).write_all(keys.as_bytes()).context("cannot type")
    }

    /// Changes the size of the terminal; the program is told.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        self.shown.state().parser.screen_mut().set_size(at_least_one(height), at_least_one(width));
        Ok(tcsetwinsize(&self.ours, window(width, height))?)
    }

    /// The modes of the terminal, which a program that draws changes and must restore.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn modes(&self) -> Result<Termios> {
        Ok(tcgetattr(&self.theirs)?)
    }

    /// Sends the program a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the program has ended.
    ///
    /// # Errors
    /// If it has not in time.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        // The end of a process wakes no condition variable; its terminal lives on in this one.
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("the program has not ended:\n{}", self.text());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only when the process has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn window(width: u16, height: u16) -> Winsize {
    Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Reads until all ends of the terminal's other side are closed.
fn read(mut from: File, shown: &Shown, since: Instant) {
    let mut bytes = [0; 16 << 10];
    loop {
        let len = from.read(&mut bytes).unwrap_or(0);
        let mut state = shown.state();
        if len == 0 {
            state.ended = true;
        } else {
            state.parser.process(&bytes[..len]);
            let event = Event { at: since.elapsed(), bytes: bytes[..len].to_vec() };
            state.recording.events.push(event);
        }
        drop(state);
        shown.changed.notify_all();
        if len == 0 {
            return;
        }
    }
}
