//! One connection of a control client: bytes in, bytes out, and nothing that blocks.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::http::{self, Request, Response};

/// How long a client may take to send a request, and again to take the answer. A connection on
/// which nothing is asked ends after this, too.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer that ends a connection may wait to be read.
const LINGER: Duration = Duration::from_secs(1);
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

    fn end_output(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
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
    /// Answers one.
    Answering { keep_alive: bool },
    /// Has answered the last one and waits for the client to hang up: a connection that is closed
    /// with unread bytes may take the answer with it.
    Lingering,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Goes on when this happens.
    Wait(EventSet),
    /// Is over.
    Close,
}

/// A connection, from accept to hang-up.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    phase: Phase,
    /// What was read and not answered yet: a request, and what came along with its end.
    input: Vec<u8>,
    /// There may be a request in `input` that nobody has looked at.
    untried: bool,
    /// The answer, and how much of it is gone.
    output: Vec<u8>,
    sent: usize,
    deadline: Instant,
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
            input: Vec::new(),
            untried: false,
            output: Vec::new(),
            sent: 0,
            deadline: now + PATIENCE,
        }
    }

    /// When it is to be closed, whatever it is doing then.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Goes on as far as it can without waiting, and by no more than one request, so that others
    /// have their turn. `answer` is asked what to say.
    pub(super) fn advance(
        &mut self,
        now: Instant,
        answer: impl FnOnce(&Request<'_>) -> Response,
    ) -> Step {
        let step = match self.phase {
            Phase::Asking => self.ask(now, answer),
            Phase::Answering { keep_alive } => self.answer(now, keep_alive),
            Phase::Lingering => self.linger(),
        };
        match step {
            Ok(step) => step,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Step::Wait(match self.phase {
                    Phase::Answering { .. } => EventSet::OUT,
                    Phase::Asking | Phase::Lingering => EventSet::IN,
                })
            }
            // A client that has gone is no event.
            Err(_) => Step::Close,
        }
    }

    fn ask(
        &mut self,
        now: Instant,
        answer: impl FnOnce(&Request<'_>) -> Response,
    ) -> io::Result<Step> {
        if !self.untried {
            let mut chunk = [0; CHUNK];
            let len = self.stream.read(&mut chunk)?;
            if len == 0 {
                return Ok(Step::Close);
            }
            self.input.extend_from_slice(&chunk[..len]);
        }
        self.untried = false;
        let (response, keep_alive) = match http::parse(&self.input) {
            Ok(None) => return Ok(Step::Wait(EventSet::IN)),
            Ok(Some((request, len))) => {
                let said = (answer(&request), request.keep_alive);
                self.input.drain(..len);
                said
            }
            Err(response) => (response, false),
        };
        self.output = response.to_bytes(keep_alive);
        self.sent = 0;
        self.phase = Phase::Answering { keep_alive };
        self.deadline = now + PATIENCE;
        self.answer(now, keep_alive)
    }

    fn answer(&mut self, now: Instant, keep_alive: bool) -> io::Result<Step> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..])? {
                0 => return Ok(Step::Close),
                len => self.sent += len,
            }
        }
        // Memory is for who is being answered.
        self.output = Vec::new();
        if !keep_alive {
            self.input = Vec::new();
            self.stream.end_output()?;
            self.phase = Phase::Lingering;
            self.deadline = now + LINGER;
            return Ok(Step::Wait(EventSet::IN));
        }
        self.input.shrink_to_fit();
        self.untried = !self.input.is_empty();
        self.phase = Phase::Asking;
        self.deadline = now + PATIENCE;
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
            Response::json(&request.path)
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
        let step = connection.advance(now, |_| Response::json(&long));
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
}
