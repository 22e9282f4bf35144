// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tells the driver of changes of the configuration space that wait for something, and the operator
//! of a driver that does not come.
//!
//! A change waits while no queue runs. QEMU 11.1 ends with SIGSEGV of a
//! `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG` that comes while no driver runs: before the driver is
//! loaded, after it was unloaded, in a reset, in S3, while the guest is stopped. A driver that
//! begins reads the space by itself; one that goes on is told when its queues start.
//!
//! The end of a round of hinting waits for [`DONE_AFTER`] as well: it comes with the driver's last
//! chain, and a driver that is unbound at that moment is in its reset when the message arrives.
//! (What remains is the time between the message and QEMU's reading of it, which no backend can
//! close: a reply would have to be waited for by the thread that answers QEMU.)

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use log::{info, warn};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use crate::logging::rate_limit::Latch;
use crate::state::State;
use crate::wake::Wake;

/// How long after a round of hinting the driver is told of its end.
const DONE_AFTER: Duration = Duration::from_millis(100);
/// How long a channel that takes nothing is left in peace.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a VMM may be connected without a driver that reports before the log says so. Guests
/// take a while to boot.
const BOOTS_WITHIN: Duration = Duration::from_secs(60);

const STARTED: u32 = 0;
const LATER: u32 = 1;
const TIMER: u32 = 2;
const SESSION: u32 = 3;
const PATIENCE: u32 = 4;

/// A subscriber of the main loop.
pub(crate) struct Announcer {
    state: Arc<State>,
    /// A queue has started.
    started: Arc<Wake>,
    /// The worker owes a change.
    later: Arc<Wake>,
    timer: TimerFd,
    /// A frontend has connected, or has gone.
    session: Arc<Wake>,
    patience: TimerFd,
    failed: Latch,
}

impl Announcer {
    pub(crate) fn new(state: &Arc<State>) -> io::Result<Self> {
        let (started, later) = (Arc::new(Wake::new()?), Arc::new(Wake::new()?));
        state.rings.on_start(Arc::clone(&started));
        state.on_change_owed(Arc::clone(&later));
        let session = Arc::new(Wake::new()?);
        state.on_session(Arc::clone(&session));
        let (timer, patience) = (TimerFd::new()?, TimerFd::new()?);
        let (state, failed) = (Arc::clone(state), Latch::default());
        Ok(Self { state, started, later, timer, session, patience, failed })
    }

    fn tell(&mut self) {
        let result = self.state.tell_driver();
        let text = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.failed.set(
            result.is_err(),
            || warn!("cannot tell the driver that its configuration changed: {text}"),
            || info!("the driver can be told of changes of its configuration again"),
        );
        // Without a channel there is none before the next session.
        if result.is_err_and(|error| error.kind() != io::ErrorKind::NotConnected) {
            self.tell_after(RETRY_AFTER);
        }
    }

    fn tell_after(&mut self, time: Duration) {
        if let Err(error) = self.timer.reset(time, None) {
            warn!("cannot set the timer for changes of the configuration: {error}");
        }
    }
}

impl MutEventSubscriber for Announcer {
    fn init(&mut self, ops: &mut EventOps) {
        for events in [
            Events::with_data(&self.started.as_fd(), STARTED, EventSet::IN),
            Events::with_data(&self.later.as_fd(), LATER, EventSet::IN),
            Events::with_data(&self.timer, TIMER, EventSet::IN),
            Events::with_data(&self.session.as_fd(), SESSION, EventSet::IN),
            Events::with_data(&self.patience, PATIENCE, EventSet::IN),
        ] {
            if let Err(error) = ops.add(events) {
                warn!("cannot watch for changes of the configuration: {error:?}");
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        match events.data() {
            STARTED => {
                self.started.clear();
                self.state.driver_starts();
                self.tell();
            }
            LATER => {
                self.later.clear();
                self.tell_after(DONE_AFTER);
            }
            SESSION => {
                self.session.clear();
                let set = match self.state.frontend() {
                    Some(_) => self.patience.reset(BOOTS_WITHIN, None),
                    None => self.patience.clear(),
                };
                if let Err(error) = set {
                    warn!("cannot set the timer for drivers: {error}");
                }
            }
            PATIENCE => {
                if let Err(error) = self.patience.wait() {
                    warn!("cannot read a timer: {error}");
                }
                self.state.session_lasts();
            }
            _ => {
                if let Err(error) = self.timer.wait() {
                    warn!("cannot read a timer: {error}");
                }
                self.tell();
            }
        }
    }
}
