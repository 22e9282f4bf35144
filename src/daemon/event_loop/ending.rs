// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the daemon shuts down: it lets a guest go that a reclaim squeezes, and hangs up.

use std::time::{Duration, Instant};

use super::Daemon;
use crate::daemon::error::Failure;
use crate::daemon::watchdog::LET_GO_WITHIN;
use crate::device::Stop;

/// How often to look whether a reclaim has let go.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Daemon {
    /// A signal or the embedder asks to end, or in the process of one a session is not down in time.
    /// The watchdog ends a process of the daemon's own if that takes too long.
    pub(super) fn end(&mut self) {
        self.end.clear();
        if self.state.wind_up.is_overdue() {
            self.ended = Some(Err(Failure::Stuck));
            return;
        }
        if self.ending {
            return;
        }
        self.ending = true;
        let is_leaving = self.state.held().is_some_and(|held| held.is_leaving());
        // The next daemon lets go of what a reclaim has squeezed.
        if !is_leaving && self.state.balloon.is_squeeze_claimed() {
            self.state.balloon.stop_squeeze(Stop::Shutdown);
            if self.retry.reset(LOOK_EVERY, Some(LOOK_EVERY)).is_ok() {
                return self.lets_go_until = Some(Instant::now() + LET_GO_WITHIN);
            }
        }
        self.hang_up();
    }

    /// Hangs up once no reclaim is in progress: the guest deflates by queues that are served.
    pub(super) fn let_go(&mut self) {
        let is_over = self.lets_go_until.is_none_or(|until| until <= Instant::now());
        if is_over || !self.state.balloon.is_squeeze_claimed() {
            self.hang_up();
        }
    }

    fn hang_up(&mut self) {
        match &self.session {
            Some(session) => session.hang_up(),
            None => self.ended = Some(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::daemon::process::Owner;
    use crate::daemon::socket::Frontends;
    use crate::daemon::watchdog;
    use crate::device::DeviceOptions;
    use crate::discard::MemoryOptions;
    use crate::state::State;
    use crate::wake::Wake;

    #[test]
    fn stuck_session_ends_an_embedded_daemon_only() {
        let state = Arc::new(State::new(DeviceOptions::default(), MemoryOptions::default()));
        let end = Arc::new(Wake::new().unwrap());
        let watched = watchdog::start(&state, None, Arc::clone(&end)).unwrap();
        let frontends = Frontends::Connected(None);
        let (of_daemon, owner) = (Arc::clone(&state), Owner::Embedder);
        let mut daemon = Daemon::new(of_daemon, owner, frontends, None, Arc::clone(&end)).unwrap();
        state.wind_up.expire();
        poll(&mut [PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN)], None).unwrap();
        daemon.end();
        assert!(matches!(daemon.ended, Some(Err(Failure::Stuck))));
        drop(watched);
        drop(daemon);
        // Its watchdog has gone.
        while Arc::strong_count(&state) > 1 {
            std::thread::yield_now();
        }
    }
}
