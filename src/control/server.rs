//! Listens for control clients and serves them, in the event loop of the main thread.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use log::warn;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::api::{self, Access};
use super::connection::{Connection, Step, Stream};
use crate::log_limit::LogLimit;
use crate::state::State;

/// The most connections at a time. Who comes when there are as many waits in the backlog until one
/// of them ends, which takes no longer than their patience.
pub const MOST_CONNECTIONS: usize = 16;

/// How long nobody is let in after the kernel could not, for lack of descriptors.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is listened on.
#[derive(Debug)]
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(stream))
            }
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Unix(listener) => listener.as_raw_fd(),
            Self::Tcp(listener) => listener.as_raw_fd(),
        }
    }
}

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
    /// Fires when somebody's patience ends.
    timer: TimerFd,
    limit: LogLimit,
}

/// What an event is about: a connection's place, or one of these.
const CONNECTION: u32 = 1000;
const TIMER: u32 = 1001;

impl Server {
    /// Lets whoever connects to `listener` see and set everything.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn control(listener: UnixListener, state: Arc<State>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::new(Listener::Unix(listener), Access::Everything, state)
    }

    /// Lets whoever connects to `listener` see the metrics.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn metrics(listener: TcpListener, state: Arc<State>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::new(Listener::Tcp(listener), Access::Metrics, state)
    }

    fn new(listener: Listener, access: Access, state: Arc<State>) -> io::Result<Self> {
        Ok(Self {
            listener,
            access,
            state,
            connections: Default::default(),
            accepting: false,
            not_before: None,
            timer: TimerFd::new()?,
            limit: LogLimit::default(),
        })
    }

    /// Lets one client in, if one waits and there is room.
    fn accept(&mut self, now: Instant, ops: &mut EventOps) {
        let Some(place) = self.connections.iter().position(Option::is_none) else { return };
        let stream = match self.listener.accept() {
            Ok(stream) => stream,
            Err(error) => {
                use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
                // Who has gone again is no event. Anything else would come again at once.
                if !matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted) {
                    self.limit.run(|| warn!("cannot let a control client in: {error}"));
                    self.not_before = Some(now + RETRY_AFTER);
                }
                return;
            }
        };
        let connection = Connection::new(stream, now);
        match ops.add(events(&connection, place, EventSet::IN)) {
            Ok(()) => self.connections[place] = Some(connection),
            Err(error) => self.limit.run(|| warn!("cannot watch a control client: {error}")),
        }
    }

    fn go_on(&mut self, place: usize, now: Instant, ops: &mut EventOps) {
        let Some(Some(connection)) = self.connections.get_mut(place) else { return };
        let (state, access) = (&self.state, self.access);
        match connection.advance(now, |request| api::answer(request, access, state)) {
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
        for place in 0..self.connections.len() {
            if self.connections[place].as_ref().is_some_and(|one| one.deadline() <= now) {
                self.close(place, ops);
            }
        }
        if self.not_before.is_some_and(|until| until <= now) {
            self.not_before = None;
        }
    }

    /// Looks at the listener if somebody could be let in, and sets the timer for what is due next.
    fn keep_up(&mut self, now: Instant, ops: &mut EventOps) {
        let accepting = self.not_before.is_none() && self.connections.iter().any(Option::is_none);
        if accepting != self.accepting {
            let events = Events::with_data(&self.listener, CONNECTION, EventSet::IN);
            let changed = if accepting { ops.add(events) } else { ops.remove(events) };
            match changed {
                Ok(()) => self.accepting = accepting,
                Err(error) => self.limit.run(|| warn!("cannot watch for clients: {error}")),
            }
        }
        let deadlines = self.connections.iter().flatten().map(Connection::deadline);
        // Setting the timer also makes it unreadable. It is never read: it might have been set anew
        // since it fired, and a read would wait for it.
        let set = match deadlines.chain(self.not_before).min() {
            // A duration of zero would stop it.
            Some(next) => self.timer.reset((next - now).max(Duration::from_millis(1)), None),
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
        if let Err(error) = ops.add(Events::with_data(&self.timer, TIMER, EventSet::IN)) {
            warn!("cannot watch the timer of control clients: {error}");
        }
        self.keep_up(Instant::now(), ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let now = Instant::now();
        match events.data() {
            CONNECTION => self.accept(now, ops),
            TIMER => self.close_overdue(now, ops),
            place => self.go_on(usize::try_from(place).unwrap_or(usize::MAX), now, ops),
        }
        self.keep_up(now, ops);
    }
}
