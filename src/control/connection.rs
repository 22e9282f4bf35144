// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One connection of a control client: bytes in, bytes out, and nothing that blocks.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::epoll::EventSet;

use super::http::{self, Request, Response};
use super::peer::Peer;
use super::reply::{Later, Reply};
use super::room::Activity;
use super::stream::Stream;
use crate::state::State;

/// How long a client may take to send a request, and again to take the answer. A connection on
/// which nothing is asked ends after this, too.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer that ends a connection may wait to be read.
const LINGER: Duration = Duration::from_secs(1);
/// The most requests that a connection may send. The answer to the last says that it is.
pub(super) const MOST_REQUESTS: u32 = 1024;
/// The most bytes that are read at once, so that no other client waits for long.
const CHUNK: usize = 16 << 10;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waits for a request, or for the rest of one.
    Asking,
    /// Waits for the answer to one that was read.
    Waiting(Manner),
    /// Answers one.
    Answering(Manner),
    /// Has answered the last one and waits for the client to hang up: a connection that is closed
    /// with unread bytes may take the answer with it.
    Lingering,
}

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Manner {
    keep_alive: bool,
    /// `HEAD`: no body.
    head: bool,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Goes on when this happens. An empty set is for a connection that waits for its answer, and
    /// goes on when the operators' event is signalled or its client hangs up.
    Wait(EventSet),
    /// Is over.
    Close,
}

/// A connection, from accept to hang-up.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    peer: Peer,
    phase: Phase,
    /// Since when.
    since: Instant,
    /// When the client last did what moved it on: came, began a request, took an answer.
    moved: Instant,
    /// What was read and not answered yet: a request, and what came along with its end.
    input: Vec<u8>,
    /// There may be a request in `input` that was not parsed yet.
    untried: bool,
    /// The answer that is not there yet.
    later: Option<Later>,
    /// The answer, and how much of it is gone.
    output: Vec<u8>,
    sent: usize,
    /// Requests that were read.
    requests: u32,
    /// The next answer is the last.
    ends: bool,
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl Connection {
    /// A connection on which nothing was said yet; it waits for input.
    pub(super) fn new(stream: Stream, now: Instant) -> Self {
        Self {
            peer: stream.peer(),
            stream,
            phase: Phase::Asking,
            since: now,
            moved: now,
            input: Vec::new(),
            untried: false,
            later: None,
            output: Vec::new(),
            sent: 0,
            requests: 0,
            ends: false,
        }
    }

    /// When it is closed, whatever it is doing then; or, if it waits for an answer, polled.
    pub(super) fn deadline(&self) -> Instant {
        match self.phase {
            Phase::Asking | Phase::Answering(_) => self.since + PATIENCE,
            Phase::Waiting(_) => self.later.as_ref().map_or(self.since, Later::deadline),
            Phase::Lingering => self.since + LINGER,
        }
    }

    /// What it is about, and since when.
    pub(super) fn activity(&self) -> (Activity, Instant) {
        let activity = match self.phase {
            Phase::Asking if !self.input.is_empty() => Activity::Asking,
            Phase::Asking if self.requests == 0 => Activity::Fresh,
            Phase::Asking => Activity::Idle,
            Phase::Waiting(_) => Activity::Waiting,
            Phase::Answering(_) => Activity::Answering,
            Phase::Lingering => Activity::Lingering,
        };
        (activity, self.moved)
    }

    /// Whether its client may have done something since it was looked at last. Of one that is to take
    /// an answer, or to have the next, the kernel says so only once it has taken most of what was written before.
    pub(super) fn client_moves(&self) -> bool {
        let writes = matches!(self.phase, Phase::Answering(_)) || self.untried;
        if !writes {
            return true;
        }
        let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// The process that sends its requests.
    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    /// How many requests it has sent that were answered or are to be.
    pub(super) fn requests(&self) -> u32 {
        self.requests
    }

    /// Whether its next answer is its last.
    pub(super) fn ends(&self) -> bool {
        self.ends || self.phase == Phase::Lingering
    }

    /// Answers no more than one further request.
    pub(super) fn end_soon(&mut self) {
        self.ends = true;
    }

    /// Goes on as far as it can without waiting, and by no more than one request, so that others
    /// have their turn. `answer` is asked what to say.
    pub(super) fn advance(
        &mut self,
        now: Instant,
        answer: impl FnOnce(&Request<'_>) -> Reply,
    ) -> Step {
        let step = match self.phase {
            Phase::Asking => self.ask(now, answer),
            Phase::Waiting(_) => Ok(self.keep_waiting()),
            Phase::Answering(manner) => self.answer(now, manner),
            Phase::Lingering => self.linger(),
        };
        self.or_wait(step)
    }

    /// Looks whether the answer is there that it waits for, and goes on with it; `None` if it waits
    /// for none.
    pub(super) fn poll(&mut self, now: Instant, state: &State) -> Option<Step> {
        let Phase::Waiting(manner) = self.phase else { return None };
        let step = match self.later.take()?.poll(now, state) {
            Reply::Ready(response) => self.begin_answer(now, &response, manner),
            Reply::Later(later) => {
                self.later = Some(later);
                Ok(self.keep_waiting())
            }
        };
        Some(self.or_wait(step))
    }

    fn or_wait(&self, step: io::Result<Step>) -> Step {
        match step {
            Ok(step) => step,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Step::Wait(match self.phase {
                    Phase::Waiting(_) => EventSet::empty(),
                    Phase::Answering(_) => EventSet::OUT,
                    Phase::Asking | Phase::Lingering => EventSet::IN,
                })
            }
            // A client that has gone is no event.
            Err(_) => Step::Close,
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        (self.phase, self.since, self.moved) = (phase, now, now);
    }

    fn ask(
        &mut self,
        now: Instant,
        answer: impl FnOnce(&Request<'_>) -> Reply,
    ) -> io::Result<Step> {
        if !self.untried {
            let mut chunk = [0; CHUNK];
            let len = self.stream.read(&mut chunk)?;
            if len == 0 {
                return Ok(Step::Close);
            }
            if self.input.is_empty() {
                self.moved = now;
            }
            self.input.extend_from_slice(&chunk[..len]);
        }
        self.untried = false;
        let (reply, manner) = match http::parse(&self.input) {
            Ok(None) => return Ok(Step::Wait(EventSet::IN)),
            Ok(Some((request, len))) => {
                self.requests = self.requests.saturating_add(1);
                let keep_alive = request.keep_alive && !self.ends && self.requests < MOST_REQUESTS;
                let manner = Manner { keep_alive, head: request.method == "HEAD" };
                let said = (answer(&request), manner);
                self.input.drain(..len);
                said
            }
            Err(response) => (response.into(), Manner { keep_alive: false, head: false }),
        };
        match reply {
            Reply::Ready(response) => self.begin_answer(now, &response, manner),
            Reply::Later(later) => {
                self.later = Some(later);
                self.enter(Phase::Waiting(manner), now);
                Ok(Step::Wait(EventSet::empty()))
            }
        }
    }

    /// Input stays where it is until the answer is there. With no event asked for, the kernel still
    /// tells when both ways of the connection are closed.
    fn keep_waiting(&self) -> Step {
        match self.stream.has_hung_up() {
            true => Step::Close,
            false => Step::Wait(EventSet::empty()),
        }
    }

    fn begin_answer(
        &mut self,
        now: Instant,
        response: &Response,
        manner: Manner,
    ) -> io::Result<Step> {
        let manner = Manner { keep_alive: manner.keep_alive && !self.ends, ..manner };
        self.output = response.to_bytes(manner.keep_alive, manner.head);
        self.sent = 0;
        self.enter(Phase::Answering(manner), now);
        self.answer(now, manner)
    }

    fn answer(&mut self, now: Instant, manner: Manner) -> io::Result<Step> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..])? {
                0 => return Ok(Step::Close),
                len => self.sent += len,
            }
        }
        // Memory is for who is being answered.
        self.output = Vec::new();
        if !manner.keep_alive {
            self.input = Vec::new();
            self.stream.end_output()?;
            self.enter(Phase::Lingering, now);
            return Ok(Step::Wait(EventSet::IN));
        }
        self.input.shrink_to_fit();
        self.untried = !self.input.is_empty();
        self.enter(Phase::Asking, now);
        // Room to write is there at once: then it is this connection's turn again.
        Ok(Step::Wait(if self.untried { EventSet::OUT } else { EventSet::IN }))
    }

    fn linger(&mut self) -> io::Result<Step> {
        let mut dropped = [0; CHUNK];
        let len = self.stream.read(&mut dropped)?;
        Ok(if len == 0 { Step::Close } else { Step::Wait(EventSet::IN) })
    }
}

#[cfg(test)]
mod tests;
