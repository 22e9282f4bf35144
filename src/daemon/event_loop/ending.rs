// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the daemon shuts down: it lets a guest go that a reclaim squeezes, and hangs up.

use std::time::{Duration, Instant};

use super::Daemon;
use crate::daemon::watchdog::LET_GO_WITHIN;

/// How often to look whether a reclaim has let go.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Daemon {
    /// A signal asks to end. The watchdog ends the process if that takes too long.
    pub(super) fn end(&mut self) {
        self.end.clear();
        if self.ending {
            return;
        }
        self.ending = true;
        let is_leaving = self.state.held().is_some_and(|held| held.is_leaving());
        // The next daemon lets go of what a reclaim has squeezed.
        if !is_leaving && self.state.balloon.is_squeeze_claimed() {
            self.state.balloon.stop_squeeze();
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
