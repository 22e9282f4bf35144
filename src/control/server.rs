// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Listens for control clients and serves them, in the event loop of the main thread.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use log::warn;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::api::{self, Access};
use super::connection::{Connection, Step};
use super::room::{self, Activity, Room};
use super::stream::Listener;
use crate::logging::rate_limit::LogLimit;
use crate::state::State;
use crate::wake::Wake;

/// The most connections at a time. When there are as many, one makes room for a newcomer: see
/// `room`.
pub(crate) const MOST_CONNECTIONS: usize = 32;

/// A connection that has sent fewer requests is not the one that keeps others out.
const FEW_REQUESTS: u32 = 16;

/// How long no client is accepted after the kernel could not, for lack of descriptors.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Serves the clients of one listening socket.
pub(crate) struct Server {
    listener: Listener,
    access: Access,
    state: Arc<State>,
    connections: [Option<Connection>; MOST_CONNECTIONS],
    /// Whether the event loop looks at the listener.
    accepting: bool,
    /// Until when it must not.
    not_before: Option<Instant>,
    /// Fires when a deadline comes.
    timer: TimerFd,
    /// Signalled when an answer that a client waits for may be there.
    answers: Arc<Wake>,
    limit: LogLimit,
}

/// What an event is about: a connection's place, or one of these.
const CONNECTION: u32 = 1000;
const TIMER: u32 = 1001;
const ANSWERS: u32 = 1002;

impl Server {
    /// Lets clients of `listener` see and set everything.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn control(listener: UnixListener, state: Arc<State>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::new(Listener::Unix(listener), Access::Everything, state)
    }

    /// Lets clients of `listener` see the metrics.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn metrics(listener: TcpListener, state: Arc<State>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::new(Listener::Tcp(listener), Access::Metrics, state)
    }

    fn new(listener: Listener, access: Access, state: Arc<State>) -> io::Result<Self> {
        let answers = Arc::new(Wake::new()?);
        state.operators.add(Arc::clone(&answers));
        Ok(Self {
            listener,
            access,
            state,
            connections: Default::default(),
            accepting: false,
            not_before: None,
            timer: TimerFd::new()?,
            answers,
            limit: LogLimit::default(),
        })
    }

    /// Lets those in that wait, as far as others make room: as many as there are places, since all
    /// places have had their turn when the listener has.
    fn accept_waiting(&mut self, now: Instant, ops: &mut EventOps) {
        for _ in 0..MOST_CONNECTIONS {
            // Nothing makes room for a client that is not there.
            if !self.listener.has_newcomer() || self.accept(now, ops).is_none() {
                return;
            }
        }
    }

    /// Lets one client in; `None` if there is none, or no room.
    fn accept(&mut self, now: Instant, ops: &mut EventOps) -> Option<()> {
        let place = self.make_room(now, ops)?;
        let stream = match self.listener.accept() {
            Ok(stream) => stream,
            Err(error) => {
                use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
                // Who has gone again is no event. Anything else would come again at once.
                if !matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted) {
                    self.limit.run(|| warn!("cannot let a control client in: {error}"));
                    self.not_before = Some(now + RETRY_AFTER);
                }
                return None;
            }
        };
        let connection = Connection::new(stream, now);
        match ops.add(events(&connection, place, EventSet::IN)) {
            Ok(()) => self.connections[place] = Some(connection),
            Err(error) => {
                self.limit.run(|| warn!("cannot watch a control client: {error}"));
                return None;
            }
        }
        // Its request is likely to be there already.
        self.go_on(place, now, ops);
        Some(())
    }

    /// A free place, or one that becomes free now.
    fn make_room(&mut self, now: Instant, ops: &mut EventOps) -> Option<usize> {
        for _ in 0..MOST_CONNECTIONS {
            let Room::Of(place) = self.room(now) else { return None };
            let about = |connection: &Connection| connection.activity();
            let before = self.connections[place].as_ref().map(about);
            // What has come in the meantime counts, but no room in a buffer that the client leaves
            // full: an answer more would only be written into it.
            if self.connections[place].as_ref().is_some_and(Connection::client_moves) {
                self.go_on(place, now, ops);
            }
            if self.connections[place].as_ref().map(about) == before {
                self.close(place, ops);
            }
            if self.connections[place].is_none() {
                return Some(place);
            }
        }
        None
    }

    /// Where a newcomer would find room.
    fn room(&self, now: Instant) -> Room {
        match self.connections.iter().position(Option::is_none) {
            Some(free) => Room::Of(free),
            None => {
                let taken = self.connections.iter().enumerate();
                let taken = taken.filter_map(|(place, connection)| {
                    let (activity, since) = connection.as_ref()?.activity();
                    Some((place, activity, since))
                });
                room::find(now, taken).unwrap_or(Room::NotBefore(now))
            }
        }
    }

    /// Where every connection is busy, the one that has asked most has one more answer.
    fn end_the_busiest(&mut self) {
        if self.connections.iter().flatten().any(Connection::ends) {
            return;
        }
        let asks = |one: &&mut Connection| {
            one.requests() >= FEW_REQUESTS && one.activity().0 != Activity::Waiting
        };
        let all = self.connections.iter_mut().flatten();
        if let Some(busiest) = all.filter(asks).max_by_key(|one| one.requests()) {
            busiest.end_soon();
        }
    }

    fn go_on(&mut self, place: usize, now: Instant, ops: &mut EventOps) {
        let Some(Some(connection)) = self.connections.get_mut(place) else { return };
        let (state, access, peer) = (&self.state, self.access, connection.peer());
        let step = connection.advance(now, |request| api::answer(request, access, state, peer));
        self.take(place, step, ops);
    }

    /// Goes on with those that wait for an answer, if theirs is there.
    fn poll(&mut self, now: Instant, ops: &mut EventOps) {
        for place in 0..self.connections.len() {
            let Some(connection) = &mut self.connections[place] else { continue };
            if let Some(step) = connection.poll(now, &self.state) {
                self.take(place, step, ops);
            }
        }
    }

    fn take(&mut self, place: usize, step: Step, ops: &mut EventOps) {
        let Some(Some(connection)) = self.connections.get(place) else { return };
        match step {
            Step::Wait(set) => {
                if let Err(error) = ops.modify(events(connection, place, set)) {
                    self.limit.run(|| warn!("cannot watch a control client: {error}"));
                    self.close(place, ops);
                }
            }
            Step::Close => self.close(place, ops),
        }
    }

    fn close(&mut self, place: usize, ops: &mut EventOps) {
        if let Some(connection) = self.connections[place].take()
            && let Err(error) = ops.remove(events(&connection, place, EventSet::empty()))
        {
            self.limit.run(|| warn!("cannot forget a control client: {error}"));
        }
    }

    fn close_overdue(&mut self, now: Instant, ops: &mut EventOps) {
        // An answer that is not ready by its deadline says so.
        self.poll(now, ops);
        for place in 0..self.connections.len() {
            if self.connections[place].as_ref().is_some_and(|one| one.deadline() <= now) {
                self.close(place, ops);
            }
        }
        if self.not_before.is_some_and(|until| until <= now) {
            self.not_before = None;
        }
    }

    /// Looks at the listener if a client could be let in, and sets the timer for what is due next.
    fn keep_up(&mut self, now: Instant, ops: &mut EventOps) {
        let room = match (self.not_before, self.room(now)) {
            (Some(not_before), _) | (None, Room::NotBefore(not_before)) => Some(not_before),
            (None, Room::Of(_)) => None,
        };
        let accepting = room.is_none();
        if !accepting {
            self.end_the_busiest();
        }
        if accepting != self.accepting {
            let events = Events::with_data(&self.listener, CONNECTION, EventSet::IN);
            let changed = if accepting { ops.add(events) } else { ops.remove(events) };
            match changed {
                Ok(()) => self.accepting = accepting,
                Err(error) => self.limit.run(|| warn!("cannot watch for clients: {error}")),
            }
        }
        let deadlines = self.connections.iter().flatten().map(Connection::deadline);
        // Setting the timer also makes it unreadable. It is never read: it might have been set again
        // since it fired, and a read would wait for it.
        let set = match deadlines.chain(room).min() {
            // A duration of zero would stop it.
            Some(next) => {
                let left = next.saturating_duration_since(now);
                self.timer.reset(left.max(Duration::from_millis(1)), None)
            }
            None => self.timer.clear(),
        };
        if let Err(error) = set {
            self.limit.run(|| warn!("cannot set the timer of control clients: {error}"));
        }
    }
}

fn events(connection: &Connection, place: usize, set: EventSet) -> Events {
    // There are few places.
    Events::with_data(connection, u32::try_from(place).unwrap_or(u32::MAX), set)
}

impl MutEventSubscriber for Server {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops
            .add(Events::with_data(&self.timer, TIMER, EventSet::IN))
            .and_then(|()| ops.add(Events::with_data(&*self.answers, ANSWERS, EventSet::IN)))
        {
            warn!("cannot watch for what control clients wait for: {error}");
        }
        self.keep_up(Instant::now(), ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let now = Instant::now();
        match events.data() {
            CONNECTION => self.accept_waiting(now, ops),
            TIMER => self.close_overdue(now, ops),
            ANSWERS => {
                self.answers.clear();
                self.poll(now, ops);
            }
            place => self.go_on(usize::try_from(place).unwrap_or(usize::MAX), now, ops),
        }
        self.keep_up(now, ops);
    }
}
