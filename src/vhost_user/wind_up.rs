// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The deadlines of a session whose frontend has hung up. The session keeps this up to date, and the
//! daemon's watchdog acts on it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use log::warn;
use rustix::process::Pid;

use crate::lock::lock;
use crate::wake::Wake;

/// How long the threads of a session may take to end after its frontend has hung up. Each waits for
/// one discarding call at most, which waits itself while the VMM allocates the same file.
const DOWN_WITHIN: Duration = Duration::from_secs(15);
/// How much longer a session may take to unmap a GiB: some ten times what it takes.
const FREED_WITHIN: Duration = Duration::from_secs(2);

/// When threads that have not ended by themselves are interrupted, and how often.
const NUDGE_AFTER: Duration = Duration::from_millis(300);
const NUDGE_EVERY: Duration = Duration::from_millis(100);

/// The session that winds up, if one does.
#[derive(Debug, Default)]
pub(crate) struct WindUp {
    session: Mutex<Option<Deadlines>>,
    changed: OnceLock<Arc<Wake>>,
}

#[derive(Clone, Copy, Debug)]
struct Deadlines {
    /// When its threads are interrupted next; `None` if they have ended.
    nudge: Option<Instant>,
    until: Instant,
    worker: Pid,
}

/// What a session that winds up needs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// No session winds up.
    Nothing,
    /// Nothing before this time.
    NotBefore(Instant),
    /// The system calls of its threads must be interrupted. `worker` is one of them.
    Nudge {
        /// When to ask again.
        again: Instant,
        /// The framework's worker.
        worker: Pid,
    },
    /// It is not down in time.
    Overdue,
}

impl WindUp {
    /// Signals `wake` at every change from now on.
    pub(crate) fn on_change(&self, wake: Arc<Wake>) {
        // There is one watchdog.
        let _ = self.changed.set(wake);
    }

    /// Notes that the frontend has hung up and that the session's threads are ending.
    pub(crate) fn hung_up(&self, worker: Pid) {
        let now = Instant::now();
        let (nudge, until) = (Some(now + NUDGE_AFTER), now + DOWN_WITHIN);
        self.set(Some(Deadlines { nudge, until, worker }));
    }

    /// Notes that the threads have ended and that this many bytes of guest memory are being
    /// unmapped.
    pub(crate) fn threads_ended(&self, bytes: u64) {
        let gib = u32::try_from(bytes >> 30).unwrap_or(u32::MAX).saturating_add(1);
        let until = Instant::now() + DOWN_WITHIN + FREED_WITHIN.saturating_mul(gib);
        let down = self.lock().map(|session| Deadlines { nudge: None, until, ..session });
        self.set(down);
    }

    /// Notes that the session is down.
    pub(crate) fn down(&self) {
        self.set(None);
    }

    fn set(&self, session: Option<Deadlines>) {
        *self.lock() = session;
        if let Some(Err(error)) = self.changed.get().map(|changed| changed.signal()) {
            warn!("cannot wake the watchdog: {error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Deadlines>> {
        lock(&self.session)
    }

    /// Whether a frontend has hung up, or was, whose session is not down.
    pub(crate) fn is_under_way(&self) -> bool {
        self.lock().is_some()
    }

    /// A session is not down in time.
    #[cfg(test)]
    pub(crate) fn expire(&self) {
        let worker = rustix::process::getpid();
        self.set(Some(Deadlines { nudge: None, until: Instant::now(), worker }));
    }

    /// Whether a session is not down in time.
    pub(crate) fn is_overdue(&self) -> bool {
        self.lock().is_some_and(|session| session.until <= Instant::now())
    }

    /// Returns what is due at `now`. A nudge that is returned counts as done.
    pub(crate) fn due(&self, now: Instant) -> Due {
        let mut session = self.lock();
        let Some(winding) = session.as_mut() else { return Due::Nothing };
        match winding.nudge {
            _ if winding.until <= now => Due::Overdue,
            None => Due::NotBefore(winding.until),
            Some(nudge) if nudge > now => Due::NotBefore(nudge.min(winding.until)),
            Some(_) => {
                let again = now + NUDGE_EVERY;
                winding.nudge = Some(again);
                Due::Nudge { again, worker: winding.worker }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::gettid;

    #[test]
    fn wind_up_nudges_until_threads_end_then_expires() {
        let wind_up = WindUp::default();
        let (start, worker) = (Instant::now(), gettid());
        assert_eq!(wind_up.due(start), Due::Nothing);
        assert!(!wind_up.is_under_way());
        wind_up.hung_up(worker);
        assert!(wind_up.is_under_way());
        assert!(matches!(wind_up.due(start), Due::NotBefore(_)));
        let (late, again) = (start + DOWN_WITHIN / 2, start + DOWN_WITHIN / 2 + NUDGE_EVERY);
        assert_eq!(wind_up.due(late), Due::Nudge { again, worker });
        assert_eq!(wind_up.due(late), Due::NotBefore(again));
        wind_up.threads_ended(0);
        assert!(matches!(wind_up.due(again), Due::NotBefore(_)), "no thread is left to nudge");
        let end = Instant::now() + 2 * (DOWN_WITHIN + FREED_WITHIN);
        assert_eq!(wind_up.due(end), Due::Overdue);
        wind_up.down();
        assert_eq!(wind_up.due(end), Due::Nothing);
    }
}
