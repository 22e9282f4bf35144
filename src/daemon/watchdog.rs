// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that waits for nothing but time and signals, so that neither a stuck main thread nor
//! a stuck session keeps the process alive.
//!
//! It receives the signals, since a main thread that is stuck would not. From SIGTERM on it gives
//! the process [`END_WITHIN`]. From the moment a frontend has hung up it keeps the session's deadlines
//! ([`crate::vhost_user::WindUp`]); meanwhile it interrupts the system calls of the session's threads,
//! since one that waits for a frontend's file may wait without end. A session that is not down by then
//! cannot be mended, and while it lives no other VMM is served: the process ends with a status of its
//! own, and a supervisor can start another.

use std::io;
use std::iter;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::gettid;

use crate::cli::exit::DaemonExit;
use crate::daemon::emergency;
use crate::daemon::signals::{self, Meaning};
use crate::hand_over::Held;
use crate::own_proc::own_proc;
use crate::state::State;
use crate::vhost_user::Due;
use crate::wake::Wake;

/// How long the process may take to end in order after SIGTERM. A supervisor sends SIGKILL some
/// seconds later, which would leave the sockets behind.
const END_WITHIN: Duration = Duration::from_millis(700);

/// How much longer it may take where a reclaim has to let go of the guest first.
pub(super) const LET_GO_WITHIN: Duration = Duration::from_secs(3);

/// How long to rest after a failed wait.
const REST: Duration = Duration::from_millis(100);

/// The signal after which the next daemon goes on, where something starts it. The others end for good.
const HANDS_OVER: &str = "SIGTERM";

const LATE: &str = "vhost-device-balloon: shutdown takes too long, exiting without waiting\n";
const LEFT: &str = "vhost-device-balloon: handed over, exiting\n";
const STUCK: &str = "vhost-device-balloon: the threads of a session did not end after its VMM \
    disconnected, so no other VMM can be served; exiting with status 4\n";

/// Starts the thread, which signals `end` for each signal that asks to end.
///
/// Without `signals` the process is another program's: it is not ended, and its threads are not
/// interrupted. A session that is not down in time is noted, and `end` signalled. The thread lives as
/// long as what this returns.
///
/// # Errors
/// If a descriptor or a thread cannot be had.
pub(super) fn start(
    state: &Arc<State>,
    signals: Option<OwnedFd>,
    end: Arc<Wake>,
) -> io::Result<Watched> {
    let changed = Arc::new(Wake::new()?);
    state.wind_up.on_change(Arc::clone(&changed));
    let is_over = Arc::new(AtomicBool::new(false));
    let watched = Watched {
        is_over: signals.is_none().then(|| Arc::clone(&is_over)),
        changed: Arc::clone(&changed),
    };
    let watchdog = Watchdog { state: Arc::clone(state), signals, end, changed, is_over };
    thread::Builder::new().name("watchdog".to_owned()).spawn(move || watchdog.run())?;
    Ok(watched)
}

/// Ends the thread when dropped, in a process that goes on.
pub(super) struct Watched {
    is_over: Option<Arc<AtomicBool>>,
    changed: Arc<Wake>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(is_over) = &self.is_over {
            is_over.store(true, Ordering::Release);
            // It fails only where the process has no such descriptor any more.
            let _ = self.changed.signal();
        }
    }
}

struct Watchdog {
    state: Arc<State>,
    signals: Option<OwnedFd>,
    end: Arc<Wake>,
    /// Signalled when a session winds up or is down, and when this is over.
    changed: Arc<Wake>,
    is_over: Arc<AtomicBool>,
}

impl Watchdog {
    fn run(&self) {
        let Self { state, signals, end, changed, is_over } = self;
        let mut end_until = None;
        while !is_over.load(Ordering::Acquire) {
            let now = Instant::now();
            if end_until.is_some_and(|until| until <= now) {
                let leaving = state.held().is_some_and(Held::is_leaving);
                let status = if leaving { DaemonExit::HandedOver } else { DaemonExit::Done };
                emergency::exit(LATE, status);
            }
            if state.held().is_some_and(Held::is_leaving) && state.wind_up.is_under_way() {
                // The next daemon waits for nothing that this one could still do.
                emergency::exit(LEFT, DaemonExit::HandedOver);
            }
            let session = self.look(now);
            let next = session.into_iter().chain(end_until).min();
            let left = next.map(|next| next.saturating_duration_since(now));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds: Vec<_> = iter::once(changed.as_fd())
                .chain(signals.as_ref().map(OwnedFd::as_fd))
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    // Without it the process could not be ended in order.
                    warn!("cannot wait for signals: {error}");
                    thread::sleep(REST);
                }
            }
            changed.clear();
            let Some(signals) = signals else { continue };
            match signals::receive(signals) {
                Ok(None) => {}
                Ok(Some(Meaning::End(signal))) => {
                    let held = state.held();
                    if end_until.is_none() {
                        if signal == HANDS_OVER && held.is_some_and(Held::leave) {
                            info!("received {signal}, handing over to the next daemon");
                        } else {
                            info!("received {signal}, shutting down");
                        }
                    } else if signal != HANDS_OVER {
                        held.inspect(|held| held.stay());
                    }
                    let lets_go = match state.balloon.is_squeeze_claimed() {
                        true => LET_GO_WITHIN,
                        false => Duration::ZERO,
                    };
                    end_until.get_or_insert(Instant::now() + lets_go + END_WITHIN);
                    if end.signal().is_err() {
                        emergency::exit(LATE, DaemonExit::Done);
                    }
                }
                Ok(Some(Meaning::TerminalGone)) => {
                    info!("ignored SIGHUP; SIGTERM ends the daemon");
                }
                Ok(Some(Meaning::Report)) => info!("SIGUSR1: {}", state.counters.snapshot()),
                Err(error) => warn!("cannot read a signal: {error}"),
            }
        }
    }

    /// Does what a session that winds up needs; returns when to look again.
    fn look(&self, now: Instant) -> Option<Instant> {
        match self.state.wind_up.due(now) {
            Due::Nothing => None,
            Due::NotBefore(next) => Some(next),
            Due::Nudge { again, worker } => {
                if self.signals.is_some() {
                    interrupt_others(worker);
                }
                Some(again)
            }
            Due::Overdue if self.signals.is_some() => emergency::exit(STUCK, DaemonExit::Stuck),
            Due::Overdue => {
                // The main thread sees for itself that it is overdue.
                if let Err(error) = self.end.signal() {
                    warn!("cannot end the daemon: {error}");
                }
                None
            }
        }
    }
}

/// Interrupts the system calls of all other threads: each of them takes that for nothing, unless
/// its session has ended. Without `/proc` only `worker` is known.
fn interrupt_others(worker: Pid) {
    let own = gettid().as_raw_nonzero().get();
    let worker = worker.as_raw_nonzero().get();
    let listed = own_proc().threads().into_iter();
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
