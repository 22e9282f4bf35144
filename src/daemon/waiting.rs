// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections that are not served yet.
//!
//! Any program may connect and say nothing: another daemon that looks whether the socket is in use,
//! a port scanner, a VMM that hangs. So a session begins with a first message, not with a
//! connection, and every connection is accepted: the kernel's queue of them is not the place to
//! wait, because no operator sees a connection there, and a silent one cannot be passed.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use event_manager::{EventOps, Events};
use log::warn;
use rustix::io::ioctl_fionread;
use vmm_sys_util::epoll::EventSet;

use crate::logging::rate_limit::LogLimit;
use crate::state::State;

/// Connections that are kept. Each takes a descriptor.
const MOST: usize = 8;

/// The header of a vhost-user message.
const HEADER: u64 = 12;

/// Who connected and is not served yet.
pub(crate) struct Waiting {
    listener: UnixListener,
    /// What an event of the listener carries.
    listener_data: u32,
    /// Whether the listener is watched: not for a while after it failed.
    listens: bool,
    /// In the order in which they came.
    connections: Vec<Connection>,
    /// What the events of the next connection carry.
    next_data: u32,
    state: Arc<State>,
    more: LogLimit,
    full: LogLimit,
}

struct Connection {
    stream: UnixStream,
    data: u32,
    /// Whether its first message has begun to come.
    speaks: bool,
    /// Whether the log tells that it waits.
    is_told: bool,
}

impl Connection {
    /// Edge-triggered: what it sends stays where it is until it is served.
    fn events(&self) -> Events {
        let set = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        Events::with_data(&self.stream, self.data, set)
    }

    fn has_message(&self) -> bool {
        ioctl_fionread(&self.stream).is_ok_and(|bytes| bytes >= HEADER)
    }
}

impl Waiting {
    /// Events of `listener` carry `listener_data`, those of connections a greater number.
    pub(crate) fn new(listener: UnixListener, listener_data: u32, state: Arc<State>) -> Self {
        Self {
            listener,
            listener_data,
            listens: false,
            connections: Vec::new(),
            next_data: listener_data,
            state,
            more: LogLimit::default(),
            full: LogLimit::default(),
        }
    }

    fn listening(&self) -> Events {
        Events::with_data(&self.listener, self.listener_data, EventSet::IN)
    }

    /// Looks for connections.
    pub(crate) fn listen(&mut self, ops: &mut EventOps) -> Result<(), event_manager::Error> {
        if !self.listens {
            ops.add(self.listening())?;
            self.listens = true;
        }
        Ok(())
    }

    /// Looks for no further connection until [`Waiting::listen`]. Those that there are stay.
    pub(crate) fn rest(&mut self, ops: &mut EventOps) -> Result<(), event_manager::Error> {
        if self.listens {
            ops.remove(self.listening())?;
            self.listens = false;
        }
        Ok(())
    }

    /// A program connects.
    ///
    /// # Errors
    /// What the kernel says; the connection waits in its queue, and the listener is still ready.
    pub(crate) fn accept(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            // It is gone, or another process was faster to take it.
            Err(error) if is_passing(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        if self.connections.len() >= MOST && !self.make_room(ops) {
            self.full.run(|| {
                warn!("hung up on a VMM: {MOST} others wait for this socket already");
            });
            return Ok(());
        }
        let connection =
            Connection { stream, data: self.new_data(), speaks: false, is_told: false };
        ops.add(connection.events()).map_err(|error| io::Error::other(format!("{error:?}")))?;
        self.connections.push(connection);
        Ok(())
    }

    /// Hangs up on the connection that has been silent for longest, if one is.
    fn make_room(&mut self, ops: &mut EventOps) -> bool {
        let silent = self.connections.iter().position(|connection| {
            // It may have spoken in the same moment.
            !connection.speaks && !connection.has_message()
        });
        if let Some(index) = silent {
            drop(self.remove(index, ops));
        }
        silent.is_some()
    }

    /// Never that of another connection.
    fn new_data(&mut self) -> u32 {
        loop {
            self.next_data = self.next_data.checked_add(1).unwrap_or(self.listener_data + 1);
            let data = self.next_data;
            if self.connections.iter().all(|connection| connection.data != data) {
                return data;
            }
        }
    }

    /// An event of a connection: it has sent something, or has hung up. One that is not there any
    /// more is passed over.
    pub(crate) fn look(&mut self, event: Events, ops: &mut EventOps) {
        let data = event.data();
        let Some(index) = self.connections.iter().position(|one| one.data == data) else { return };
        let set = event.event_set();
        let connection = &mut self.connections[index];
        connection.speaks |= connection.has_message();
        // A frontend that has ended its part only is served: it may want the answer.
        let is_gone = set.intersects(EventSet::HANG_UP | EventSet::ERROR)
            || (set.contains(EventSet::READ_HANG_UP) && !connection.speaks);
        if is_gone {
            drop(self.remove(index, ops));
        }
        self.count();
    }

    /// Whether a frontend waits for a session.
    pub(crate) fn has_next(&self) -> bool {
        self.connections.iter().any(|connection| connection.speaks)
    }

    /// The frontend that waits for longest.
    pub(crate) fn next(&mut self, ops: &mut EventOps) -> io::Result<UnixStream> {
        let next = self.connections.iter().position(|connection| connection.speaks);
        let stream = next.map(|index| self.remove(index, ops));
        self.count();
        stream.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Says of each frontend that waits that it does, once.
    pub(crate) fn tell(&mut self) {
        for connection in self.connections.iter_mut().filter(|one| one.speaks && !one.is_told) {
            connection.is_told = true;
            self.more.run(|| {
                warn!(
                    "another VMM waits for this socket: one daemon serves one guest, and that of \
                     the VMM that is connected is served until it hangs up. Start a daemon for \
                     each VM, with a socket of its own"
                );
            });
        }
    }

    fn remove(&mut self, index: usize, ops: &mut EventOps) -> UnixStream {
        let connection = self.connections.remove(index);
        if let Err(error) = ops.remove(connection.events()) {
            warn!("cannot stop watching a connection: {error:?}");
        }
        connection.stream
    }

    fn count(&self) {
        let waiting = self.connections.iter().filter(|connection| connection.speaks).count();
        self.state.set_waiting(waiting);
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::WouldBlock | K::ConnectionAborted | K::Interrupted)
}
