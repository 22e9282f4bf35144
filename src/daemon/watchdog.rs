// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that waits for nothing but time and signals, so that neither a stuck main thread nor
//! a stuck session keeps the process alive.
//!
//! It receives the signals, since a main thread that is stuck would not. From SIGTERM on it gives
//! the process [`END_WITHIN`]. From the moment a frontend has hung up it gives the session
//! [`DOWN_WITHIN`], and more for the memory that is unmapped then; meanwhile it interrupts the system
//! calls of the session's threads, since one that waits for a frontend's file may wait forever. A
//! session that is not down by then cannot be mended, and while it lives no other VMM is served: the
//! process ends with a status of its own, and a supervisor can start another.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::gettid;

use crate::daemon::emergency;
use crate::daemon::signals::{self, Meaning};
use crate::state::State;
use crate::wake::Wake;

/// How long the process may take to end in order after SIGTERM. A supervisor sends SIGKILL some
/// seconds later, which would leave the sockets behind.
const END_WITHIN: Duration = Duration::from_millis(700);

/// How long the threads of a session may take to end after its frontend has hung up. Each waits for
/// one discarding call at most, which waits itself while the VMM allocates the same file.
const DOWN_WITHIN: Duration = Duration::from_secs(15);
/// How much longer a session may take to unmap a GiB: some ten times what it takes.
const FREED_WITHIN: Duration = Duration::from_secs(2);

/// When threads that have not ended by themselves are interrupted, and how often.
const NUDGE_AFTER: Duration = Duration::from_millis(300);
const NUDGE_EVERY: Duration = Duration::from_millis(100);

const LATE: &str = "vhost-device-balloon: takes too long to shut down, ending without waiting\n";
const STUCK: &str = "vhost-device-balloon: the threads of a session do not end after its frontend \
    has hung up, so no other can be served. The daemon ends with status 4\n";

/// What the thread is told by others.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    session: Mutex<Option<WindUp>>,
    changed: OnceLock<Wake>,
}

/// A session whose frontend has hung up.
#[derive(Clone, Copy, Debug)]
struct WindUp {
    /// When its threads are interrupted next; none if they have ended.
    nudge: Option<Instant>,
    until: Instant,
    worker: Pid,
}

impl Watchdog {
    /// Starts the thread, which signals `end` for each signal that asks to end.
    ///
    /// # Errors
    /// If a descriptor or a thread cannot be had.
    pub(crate) fn start(state: &Arc<State>, signals: OwnedFd, end: Arc<Wake>) -> io::Result<()> {
        // There is one such thread.
        let _ = state.watchdog.changed.set(Wake::new()?);
        let state = Arc::clone(state);
        thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || state.watchdog.run(&state, &signals, &end))?;
        Ok(())
    }

    /// A frontend has hung up, and the session's threads are told to end.
    pub(crate) fn hung_up(&self, worker: Pid) {
        let now = Instant::now();
        let (nudge, until) = (Some(now + NUDGE_AFTER), now + DOWN_WITHIN);
        self.set(Some(WindUp { nudge, until, worker }));
    }

    /// Its threads have ended, and this much guest memory is unmapped.
    pub(crate) fn threads_ended(&self, bytes: u64) {
        let gib = u32::try_from(bytes >> 30).unwrap_or(u32::MAX).saturating_add(1);
        let until = Instant::now() + DOWN_WITHIN + FREED_WITHIN.saturating_mul(gib);
        let down = self.lock().map(|session| WindUp { nudge: None, until, ..session });
        self.set(down);
    }

    /// The session is down.
    pub(crate) fn down(&self) {
        self.set(None);
    }

    fn set(&self, session: Option<WindUp>) {
        *self.lock() = session;
        if let Some(Err(error)) = self.changed.get().map(Wake::signal) {
            warn!("cannot wake the watchdog: {error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<WindUp>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, state: &State, signals: &OwnedFd, end: &Wake) {
        let Some(changed) = self.changed.get() else { return };
        let mut end_until = None;
        loop {
            let now = Instant::now();
            if end_until.is_some_and(|until| until <= now) {
                emergency::exit(LATE, 0);
            }
            let session = self.look(now);
            let next = session.into_iter().chain(end_until).min();
            let left = next.map(|next| next.saturating_duration_since(now));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds =
                [PollFd::new(signals, PollFlags::IN), PollFd::new(changed, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    // Without it the process could not be ended in order.
                    warn!("cannot wait for signals: {error}");
                    thread::sleep(NUDGE_EVERY);
                }
            }
            changed.clear();
            match signals::receive(signals) {
                Ok(None) => {}
                Ok(Some(Meaning::End)) => {
                    end_until.get_or_insert(Instant::now() + END_WITHIN);
                    if end.signal().is_err() {
                        emergency::exit(LATE, 0);
                    }
                }
                Ok(Some(Meaning::TerminalGone)) => {
                    info!("SIGHUP: the daemon goes on; SIGTERM ends it");
                }
                Ok(Some(Meaning::Report)) => info!("SIGUSR1: {}", state.counters.snapshot()),
                Err(error) => warn!("cannot read a signal: {error}"),
            }
        }
    }

    /// Does what is due of a session that winds up; returns when to look again.
    fn look(&self, now: Instant) -> Option<Instant> {
        let mut session = self.lock();
        let winding = session.as_mut()?;
        if winding.until <= now {
            emergency::exit(STUCK, emergency::STUCK);
        }
        let Some(nudge) = winding.nudge else { return Some(winding.until) };
        if nudge > now {
            return Some(nudge.min(winding.until));
        }
        let next = now + NUDGE_EVERY;
        winding.nudge = Some(next);
        let worker = winding.worker;
        drop(session);
        interrupt_others(worker);
        Some(next)
    }
}

/// Interrupts the system calls of all other threads: each of them takes that for nothing, unless
/// its session has ended. Without `/proc` only `worker` is known.
fn interrupt_others(worker: Pid) {
    let own = gettid().as_raw_nonzero().get();
    let worker = worker.as_raw_nonzero().get();
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let listed = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    for thread in listed.chain([worker]).filter(|thread| *thread != own) {
        signals::nudge(thread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::sync::mpsc;

    #[test]
    fn read_that_would_never_end_is_interrupted() {
        signals::handle_nudges().unwrap();
        let empty = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let (say, said) = mpsc::channel();
        let stuck = thread::spawn(move || {
            say.send(gettid()).unwrap();
            rustix::io::read(&*empty, &mut [0; 8])
        });
        let thread = said.recv().unwrap().as_raw_nonzero().get();
        // One that comes ahead of the call has no effect, so there is always another.
        while !stuck.is_finished() {
            signals::nudge(thread);
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(stuck.join().unwrap(), Err(Errno::INTR));
    }
}
