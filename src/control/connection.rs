// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One connection of a control client: bytes in, bytes out, and nothing that blocks.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::epoll::EventSet;

use super::http::{self, Request, Response};
use super::reply::{Later, Reply};
use super::room::Activity;
use crate::state::State;

/// How long a client may take to send a request, and again to take the answer. A connection on
/// which nothing is asked ends after this, too.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer that ends a connection may wait to be read.
const LINGER: Duration = Duration::from_secs(1);
/// The most requests that a connection may send. The answer to the last says that it is.
pub(super) const MOST_REQUESTS: u32 = 1024;
/// The most bytes that are read at once, so that nobody else waits for long.
const CHUNK: usize = 16 << 10;

/// A stream of either kind of socket, not blocking.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(std::net::TcpStream),
}

impl Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(into),
            Self::Tcp(stream) => stream.read(into),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    /// Whether both ways are closed. A client that only ended its part still reads.
    fn has_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(self, PollFlags::empty())];
        let looked = poll(&mut polled, Some(&Timespec::default()));
        looked.is_ok() && polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    fn end_output(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Unix(stream) => stream.as_raw_fd(),
            Self::Tcp(stream) => stream.as_raw_fd(),
        }
    }
}

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

/// How a request is to be answered.
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
    phase: Phase,
    /// Since when.
    since: Instant,
    /// When the client last did what moved it on: came, began a request, took an answer.
    moved: Instant,
    /// What was read and not answered yet: a request, and what came along with its end.
    input: Vec<u8>,
    /// There may be a request in `input` that nobody has looked at.
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

    /// When it is to be closed, whatever it is doing then; or, if it waits for an answer, polled.
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
        // SAFETY: the stream is open as long as `self` is borrowed.
        let stream = unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) };
        let mut fds = [PollFd::new(&stream, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
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
mod tests {
    use super::*;
    use crate::device::DeviceOptions;
    use crate::discard::{Cause, MemoryOptions};

    fn pair() -> (UnixStream, Connection, Instant) {
        let (client, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        let now = Instant::now();
        (client, Connection::new(Stream::Unix(stream), now), now)
    }

    /// Goes on with `connection`; answers with the path that was asked for.
    fn go_on(connection: &mut Connection, now: Instant) -> (Step, Option<String>) {
        let mut asked = None;
        let step = connection.advance(now, |request| {
            asked = Some(request.path.to_owned());
            Response::json(&request.path).into()
        });
        (step, asked)
    }

    fn received(client: &mut UnixStream) -> String {
        let mut text = String::new();
        let _ = client.read_to_string(&mut text);
        text
    }

    const WAIT: Step = Step::Wait(EventSet::IN);

    #[test]
    fn a_request_may_come_byte_by_byte_and_the_clock_runs() {
        let (mut client, mut connection, now) = pair();
        for byte in b"GET /a HTTP/1.1\r\nHost: x\r\n\r" {
            client.write_all(&[*byte]).unwrap();
            assert_eq!(go_on(&mut connection, now + LINGER), (WAIT, None));
            assert_eq!(connection.deadline(), now + PATIENCE);
        }
        // Woken for nothing.
        assert_eq!(go_on(&mut connection, now), (WAIT, None));
        client.write_all(b"\n").unwrap();
        let later = now + LINGER;
        assert_eq!(go_on(&mut connection, later), (WAIT, Some("/a".to_owned())));
        assert_eq!(connection.deadline(), later + PATIENCE);
        assert!(received(&mut client).ends_with("\r\n\r\n\"/a\"\n"));
    }

    #[test]
    fn of_many_requests_at_once_each_waits_for_its_turn() {
        let (mut client, mut connection, now) = pair();
        for path in ["/1", "/2", "/3"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            client.write_all(request.as_bytes()).unwrap();
        }
        // What ends its part has not hung up.
        client.shutdown(Shutdown::Write).unwrap();
        let again = Step::Wait(EventSet::OUT);
        for (path, step) in [("/1", again), ("/2", again), ("/3", WAIT)] {
            assert_eq!(go_on(&mut connection, now), (step, Some(path.to_owned())));
        }
        assert_eq!(go_on(&mut connection, now), (Step::Close, None));
        assert_eq!(received(&mut client).matches("200 OK").count(), 3);
    }

    #[test]
    fn what_is_no_request_is_answered_and_the_rest_of_it_dropped() {
        let (mut client, mut connection, now) = pair();
        client.write_all(b"\0\0\0").unwrap();
        assert_eq!(go_on(&mut connection, now), (WAIT, None));
        assert_eq!(connection.deadline(), now + LINGER);
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(go_on(&mut connection, now), (WAIT, None));
        let text = received(&mut client);
        assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("Connection: close"), "{text}");
        drop(client);
        assert_eq!(go_on(&mut connection, now), (Step::Close, None));
    }

    #[test]
    fn an_answer_waits_for_a_client_that_does_not_read() {
        let (mut client, mut connection, now) = pair();
        client.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let long = "x".repeat(1 << 20);
        let step = connection.advance(now, |_| Response::json(&long).into());
        assert_eq!(step, Step::Wait(EventSet::OUT));
        // Nobody is asked a second time.
        assert_eq!(go_on(&mut connection, now), (Step::Wait(EventSet::OUT), None));
        let mut text = String::new();
        while connection.phase != Phase::Asking {
            text += &received(&mut client);
            go_on(&mut connection, now);
        }
        text += &received(&mut client);
        assert!(text.contains(&long));
        drop(client);
        assert_eq!(go_on(&mut connection, now), (Step::Close, None));
    }

    #[test]
    fn a_client_that_goes_in_the_middle_is_gone() {
        let (mut client, mut connection, now) = pair();
        client.write_all(b"GET /a HT").unwrap();
        assert_eq!(go_on(&mut connection, now), (WAIT, None));
        drop(client);
        assert_eq!(go_on(&mut connection, now), (Step::Close, None));
    }

    fn state() -> State {
        State::new(DeviceOptions::default(), MemoryOptions::default())
    }

    /// Asks for what is answered when nothing is paused, or after a second.
    fn wait_for_resume(connection: &mut Connection, now: Instant) -> Step {
        connection.advance(now, |_| {
            Reply::Later(Later::new(
                now + LINGER,
                |state| !state.inhibit.holds(Cause::Operator),
                |_, resumed| Response::json(&resumed),
            ))
        })
    }

    const NOTHING: Step = Step::Wait(EventSet::empty());

    #[test]
    fn later_answer_holds_pipelined_requests_back() {
        let ((mut client, mut connection, now), state) = (pair(), state());
        let _ = state.inhibit.forbid(Cause::Operator);
        client.write_all(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(wait_for_resume(&mut connection, now), NOTHING);
        client.write_all(b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        // What ends its part has not hung up.
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(go_on(&mut connection, now), (NOTHING, None));
        assert_eq!(connection.poll(now, &state), Some(NOTHING));
        assert_eq!(connection.activity().0, Activity::Waiting);
        state.inhibit.lift(Cause::Operator);
        assert_eq!(connection.poll(now, &state), Some(WAIT));
        assert_eq!(connection.poll(now, &state), None);
        assert_eq!(go_on(&mut connection, now), (WAIT, Some("/2".to_owned())));
        let text = received(&mut client);
        assert!(text.find("true\n").unwrap() < text.find("\"/2\"").unwrap(), "{text}");
    }

    #[test]
    fn later_answer_comes_at_its_deadline() {
        let ((mut client, mut connection, now), state) = (pair(), state());
        let _ = state.inhibit.forbid(Cause::Operator);
        client.write_all(b"HEAD /1 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(wait_for_resume(&mut connection, now), NOTHING);
        assert_eq!(connection.deadline(), now + LINGER);
        assert_eq!(connection.poll(now + LINGER, &state), Some(WAIT));
        let text = received(&mut client);
        let length = format!("Content-Length: {}\r\n", "false\n".len());
        assert!(text.contains(&length) && text.ends_with("\r\n\r\n"), "{text}");
    }

    #[test]
    fn client_that_hangs_up_is_not_waited_for() {
        let ((mut client, mut connection, now), state) = (pair(), state());
        let _ = state.inhibit.forbid(Cause::Operator);
        client.write_all(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(wait_for_resume(&mut connection, now), NOTHING);
        drop(client);
        assert_eq!(go_on(&mut connection, now), (Step::Close, None));
        assert_eq!(connection.poll(now, &state), Some(Step::Close));
    }

    #[test]
    fn last_request_of_a_connection_is_answered_so() {
        let (mut client, mut connection, now) = pair();
        for request in 1..=MOST_REQUESTS {
            assert_eq!(
                connection.activity().0,
                [Activity::Idle, Activity::Fresh][usize::from(request == 1)]
            );
            client.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            assert_eq!(go_on(&mut connection, now).1, Some("/a".to_owned()));
            let closes = received(&mut client).contains("Connection: close");
            assert_eq!(closes, request == MOST_REQUESTS);
        }
        assert_eq!(connection.activity().0, Activity::Lingering);
        let (mut client, mut connection, now) = pair();
        connection.end_soon();
        client.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        go_on(&mut connection, now);
        assert!(received(&mut client).contains("Connection: close"));
    }
}
