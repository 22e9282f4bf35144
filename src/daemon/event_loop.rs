// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The main thread: an event loop over the listener, the signals and the end of a session.
//!
//! One frontend is served at a time, since a socket stands for one device. Others wait until it has
//! gone (see `Waiting`).

mod ending;
mod lease;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use log::warn;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::error::{Failure, resources};
use super::process::Owner;
use super::service;
use super::socket::Frontends;
use super::waiting::Waiting;
use crate::hand_over::History;
use crate::logging::rate_limit::LogLimit;
use crate::logging::report;
use crate::state::State;
use crate::vhost_user::{Session, SessionError};
use crate::wake::Wake;

/// How long a frontend waits that could not be served for lack of descriptors or threads.
const RETRY_AFTER: Duration = Duration::from_secs(1);

const END: u32 = 0;
const SESSION_ENDED: u32 = 1;
const RETRY: u32 = 2;
const STATISTICS: u32 = 3;
const INTERVAL_CHANGED: u32 = 4;
const LEASE: u32 = 5;
/// Greater ones are those of connections.
const CONNECTION: u32 = 6;

/// Where the next session comes from.
enum Source {
    /// Every VMM that connects.
    Listener(Waiting),
    /// The only frontend there will be; none once it is served.
    Connected(Option<UnixStream>),
}

pub(super) struct Daemon {
    state: Arc<State>,
    owner: Owner,
    /// The frontend of the daemon before this one, until it is served.
    resumed: Option<(UnixStream, History)>,
    frontends: Source,
    /// Signalled when a signal asks to end.
    end: Arc<Wake>,
    /// Asks for statistics while a frontend is connected.
    statistics: TimerFd,
    /// What that timer is set to; zero if it stands.
    statistics_every: Duration,
    /// Goes off when the lease of the target is over.
    lease: TimerFd,
    /// When that is; none if the timer stands.
    lease_until: Option<Instant>,
    /// Another thread has set the interval: a device migrated here.
    interval_changed: EventFd,
    session: Option<Session>,
    session_ended: EventFd,
    retry: TimerFd,
    limit: LogLimit,
    statistics_limit: LogLimit,
    /// Was told to end, and waits for the session to be down.
    ending: bool,
    /// Until when a reclaim may let go of the guest meanwhile.
    lets_go_until: Option<Instant>,
    /// How the event loop ends.
    pub(super) ended: Option<Result<(), Failure>>,
}

impl Daemon {
    /// Serves `before`, the frontend of the daemon before this one, and then `frontends`, until `end`
    /// is signalled.
    pub(super) fn new(
        state: Arc<State>,
        owner: Owner,
        frontends: Frontends,
        before: Option<(UnixStream, History)>,
        end: Arc<Wake>,
    ) -> Result<Self, Failure> {
        let event = || {
            let flags = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK;
            EventFd::new(flags).map_err(resources("create an eventfd"))
        };
        let timer = || TimerFd::new().map_err(resources("create a timer"));
        let interval_changed = event()?;
        state.on_interval_changed(
            interval_changed.try_clone().map_err(resources("keep an eventfd"))?,
        );
        let frontends = match frontends {
            Frontends::Listener(listener) => {
                Source::Listener(Waiting::new(listener, CONNECTION, Arc::clone(&state)))
            }
            Frontends::Connected(stream) => Source::Connected(stream),
        };
        Ok(Self {
            state,
            owner,
            resumed: before,
            frontends,
            end,
            statistics: timer()?,
            statistics_every: Duration::ZERO,
            lease: timer()?,
            lease_until: None,
            interval_changed,
            session: None,
            session_ended: event()?,
            retry: timer()?,
            limit: LogLimit::default(),
            statistics_limit: LogLimit::default(),
            ending: false,
            lets_go_until: None,
            ended: None,
        })
    }

    /// Whether there is a session.
    pub(super) fn is_serving(&self) -> bool {
        self.session.is_some()
    }

    /// Whether a frontend of the daemon before this one is still to be served.
    pub(super) fn goes_on(&self) -> bool {
        self.resumed.is_some()
    }

    /// Serves the next frontend if none is served and one waits.
    fn serve(&mut self, ops: &mut EventOps) -> Result<(), Failure> {
        let waits = match &self.frontends {
            _ if self.resumed.is_some() => true,
            Source::Listener(waiting) => waiting.has_next(),
            Source::Connected(stream) => stream.is_some(),
        };
        if self.session.is_none() && !self.ending && waits {
            let (frontends, resumed) = (&mut self.frontends, &mut self.resumed);
            let resumes = resumed.is_some();
            let accept = || {
                if let Some((stream, history)) = resumed.take() {
                    return Ok((stream, Some(history)));
                }
                let stream = match frontends {
                    Source::Listener(waiting) => waiting.next(ops),
                    Source::Connected(stream) => {
                        stream.take().ok_or_else(|| io::ErrorKind::NotConnected.into())
                    }
                };
                stream.map(|stream| (stream, None))
            };
            let started = match self.session_ended.try_clone() {
                Ok(ended) => Session::start(accept, ended, &self.state),
                Err(error) => Err(SessionError::Resources(error)),
            };
            match started {
                Ok(session) => {
                    self.session = Some(session);
                    self.owner.notify(&[service::SERVING]);
                }
                // The next daemon has another try.
                Err(error) if resumes => {
                    report("cannot go on with the frontend", &error);
                    return Err(Failure::Behind);
                }
                Err(error) if matches!(self.frontends, Source::Connected(None)) => {
                    return Err(Failure::Frontend(error));
                }
                Err(error) => self.try_later(&error),
            }
        }
        if let (Some(_), Source::Listener(waiting)) = (&self.session, &mut self.frontends) {
            waiting.tell();
        }
        Ok(())
    }

    fn try_later(&mut self, error: &dyn std::error::Error) {
        self.limit.run(|| report("cannot serve a frontend, trying again", error));
        if let Err(error) = self.retry.reset(RETRY_AFTER, None) {
            warn!("cannot set a timer, no frontend will be served again: {error}");
        }
    }

    /// An event of the listener, or of a connection that waits.
    fn connection(&mut self, event: Events, ops: &mut EventOps) -> Result<(), Failure> {
        let Source::Listener(waiting) = &mut self.frontends else { return Ok(()) };
        if event.data() != CONNECTION {
            waiting.look(event, ops);
            return self.serve(ops);
        }
        if let Err(error) = waiting.accept(ops) {
            // It waits still, and would wake this loop again at once.
            waiting.rest(ops)?;
            self.try_later(&SessionError::Resources(error));
        }
        Ok(())
    }

    /// Looks for frontends, and serves one that there is.
    fn next_frontend(&mut self, ops: &mut EventOps) -> Result<(), Failure> {
        if let Source::Listener(waiting) = &mut self.frontends {
            waiting.listen(ops)?;
        }
        self.serve(ops)
    }

    fn try_again(&mut self, ops: &mut EventOps) -> Result<(), Failure> {
        if let Err(error) = self.retry.wait() {
            warn!("cannot read a timer: {error}");
        }
        if self.ending {
            self.let_go();
            return Ok(());
        }
        self.next_frontend(ops)
    }

    fn session_over(&mut self, ops: &mut EventOps) -> Result<(), Failure> {
        let _ = self.session_ended.read();
        self.owner.notify(&[service::WAITING]);
        // Nothing of it is waited for, or closed: its thread has seen to that, and signalled last.
        let session = self.session.take();
        if !self.ending && session.as_ref().is_some_and(Session::is_behind) {
            self.ended = Some(Err(Failure::Behind));
            return Ok(());
        }
        let failed = session.is_some_and(|session| session.has_failed());
        if failed && !self.ending && matches!(self.frontends, Source::Connected(None)) {
            self.ended = Some(Err(Failure::Session));
            return Ok(());
        }
        if self.ending || matches!(self.frontends, Source::Connected(None)) {
            self.ended = Some(Ok(()));
            return Ok(());
        }
        // The next one's time begins with it.
        self.keep_time();
        self.serve(ops)
    }

    /// Sets the timers for statistics and for the lease to what holds at present.
    pub(super) fn keep_time(&mut self) {
        self.keep_lease();
        let interval = match &self.session {
            Some(_) => self.state.balloon.statistics_interval(),
            None => Duration::ZERO,
        };
        if interval == self.statistics_every {
            return;
        }
        let set = match interval.is_zero() {
            true => self.statistics.clear(),
            false => self.statistics.reset(interval, Some(interval)),
        };
        if let Err(error) = set {
            warn!("cannot set the timer for statistics: {error}");
        }
        self.statistics_every = interval;
    }

    fn ask_for_statistics(&mut self) {
        if let Err(error) = self.statistics.wait() {
            warn!("cannot read a timer: {error}");
        }
        if let Some(frontend) = self.state.frontend()
            && let Err(error) = frontend.poll_statistics()
        {
            self.statistics_limit.run(|| warn!("cannot ask for statistics: {error}"));
        }
    }
}

impl MutEventSubscriber for Daemon {
    fn init(&mut self, ops: &mut EventOps) {
        let added = [
            Events::with_data_raw(self.end.as_fd().as_raw_fd(), END, EventSet::IN),
            Events::with_data(&self.session_ended, SESSION_ENDED, EventSet::IN),
            Events::with_data(&self.retry, RETRY, EventSet::IN),
            Events::with_data(&self.statistics, STATISTICS, EventSet::IN),
            Events::with_data(&self.interval_changed, INTERVAL_CHANGED, EventSet::IN),
            Events::with_data(&self.lease, LEASE, EventSet::IN),
        ]
        .into_iter()
        .try_for_each(|events| ops.add(events))
        .map_err(Failure::EventLoop)
        .and_then(|()| self.next_frontend(ops));
        if let Err(error) = added {
            self.ended = Some(Err(error));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let done = match events.data() {
            CONNECTION.. => self.connection(events, ops),
            SESSION_ENDED => self.session_over(ops),
            RETRY => self.try_again(ops),
            STATISTICS => {
                self.ask_for_statistics();
                Ok(())
            }
            LEASE => {
                self.lease_over();
                Ok(())
            }
            INTERVAL_CHANGED => {
                // The timer is set before the loop waits again.
                let _ = self.interval_changed.read();
                Ok(())
            }
            END => {
                self.end();
                Ok(())
            }
        };
        if let Err(error) = done {
            self.ended = Some(Err(error));
        }
    }
}
