// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The other end: asks a daemon, and waits for the answer no longer than it may.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::Deserialize;

/// The largest answer that is read, in bytes; status with all pins and regions takes some 100 KiB.
const MOST_BYTES: usize = 4 << 20;

/// Why there is no answer, or a bad one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody is there.
    #[error("no daemon answers at {}; expected one started with --control-socket", path.display())]
    NoDaemon {
        /// Where it was looked for.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The peer is connected and does not answer.
    #[error("the daemon did not answer within {0:?}")]
    Timeout(Duration),
    /// The guest does not say anything.
    #[error("the guest did not tell its statistics within {0:?}")]
    Silent(Duration),
    /// The connection broke.
    #[error("the connection to the daemon broke")]
    Broken(#[source] io::Error),
    /// What came is no answer of this daemon.
    #[error("expected an answer of vhost-device-balloon: {0}")]
    NotAnAnswer(String),
    /// The daemon says no.
    #[error("{0}")]
    Refused(String),
}

impl ClientError {
    /// Whether there is a daemon that gave an answer.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
}

/// Asks one daemon.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    path: PathBuf,
    timeout: Duration,
}

impl Client {
    /// For the daemon with its control socket at `path`. An answer may take `timeout`.
    pub(crate) fn new(path: &Path, timeout: Duration) -> Self {
        Self { path: path.to_owned(), timeout }
    }

    /// Asks with an empty body if there is none, and returns the body of the answer.
    ///
    /// # Errors
    /// [`ClientError`]
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<String, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = self.connect(deadline)?;
        let broken = |error| self.broken(error);
        // Longer than that nothing here takes: the request fits the socket's buffer.
        stream.set_write_timeout(Some(self.timeout)).map_err(broken)?;
        match stream.write_all(request.as_bytes()) {
            // It may have answered before it hung up.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            sent => sent.map_err(broken)?,
        }
        let mut answer = Vec::new();
        let mut chunk = [0; 16 << 10];
        loop {
            if let Some((status, body)) = parse(&answer)? {
                return read(status, body);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ClientError::Timeout(self.timeout));
            }
            stream.set_read_timeout(Some(left)).map_err(broken)?;
            let len = match stream.read(&mut chunk) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read.map_err(broken)?,
            };
            if len == 0 {
                return Err(self.broken(ErrorKind::UnexpectedEof.into()));
            }
            answer.extend_from_slice(&chunk[..len]);
        }
    }

    /// A daemon that accepts no client has a full backlog, and then connecting waits, too.
    fn connect(&self, deadline: Instant) -> Result<UnixStream, ClientError> {
        let connected = || -> io::Result<UnixStream> {
            let address = SocketAddrUnix::new(&self.path)?;
            let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
            let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
            let left = deadline.saturating_duration_since(Instant::now());
            set_socket_timeout(&socket, Timeout::Send, Some(left.max(Duration::from_millis(1))))?;
            connect(&socket, &address)?;
            Ok(socket.into())
        };
        connected().map_err(|source| match source.kind() {
            ErrorKind::WouldBlock => ClientError::Timeout(self.timeout),
            _ => ClientError::NoDaemon { path: self.path.clone(), source },
        })
    }

    fn broken(&self, error: io::Error) -> ClientError {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::Timeout(self.timeout),
            _ => ClientError::Broken(error),
        }
    }
}

/// The status and the body of an answer; none if more must come.
fn parse(bytes: &[u8]) -> Result<Option<(u16, &[u8])>, ClientError> {
    let no_answer = |text: String| Err(ClientError::NotAnAnswer(text));
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut answer = httparse::Response::new(&mut fields);
    let head_len = match answer.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < MOST_BYTES => return Ok(None),
        Ok(httparse::Status::Partial) => return no_answer("it does not end".to_owned()),
        Err(error) => return no_answer(error.to_string()),
    };
    let len = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let len = len.and_then(|field| std::str::from_utf8(field.value).ok());
    let (Some(Ok(len)), Some(status)) = (len.map(str::parse::<usize>), answer.code) else {
        return no_answer("it has no length".to_owned());
    };
    if len > MOST_BYTES {
        return no_answer(format!("it has {len} bytes, more than {MOST_BYTES}"));
    }
    let body = &bytes[head_len..];
    Ok(body.get(..len).map(|body| (status, body)))
}

fn read(status: u16, body: &[u8]) -> Result<String, ClientError> {
    let body =
        std::str::from_utf8(body).map_err(|error| ClientError::NotAnAnswer(error.to_string()))?;
    if status == 200 {
        return Ok(body.to_owned());
    }
    let said = serde_json::from_str::<ErrorBody>(body).map(|body| body.error);
    Err(ClientError::Refused(said.unwrap_or_else(|_| format!("status {status}: {body}"))))
}

#[cfg(test)]
mod tests {
    use super::super::http::Response;
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn an_answer_is_read_when_all_of_it_has_come() {
        let bytes = Response::json(&7).to_bytes(true, false);
        for len in 0..bytes.len() {
            assert!(parse(&bytes[..len]).unwrap().is_none());
        }
        assert_eq!(parse(&bytes).unwrap(), Some((200, &b"7\n"[..])));
        for bad in [&b"SSH-2.0\r\n"[..], b"HTTP/1.1 200 OK\r\n\r\n", b"\0"] {
            assert!(matches!(parse(bad), Err(ClientError::NotAnAnswer(_))));
        }
        let long = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", u32::MAX);
        assert!(matches!(parse(long.as_bytes()), Err(ClientError::NotAnAnswer(_))));
        let error = read(409, &b"{\"error\":\"no\"}"[..]).unwrap_err();
        assert_eq!((error.to_string(), error.is_refusal()), ("no".to_owned(), true));
    }

    #[test]
    fn silence_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let client = Client::new(&path, Duration::from_millis(20));
        let ask = || client.ask("GET", "/", None).unwrap_err();
        assert!(matches!(ask(), ClientError::NoDaemon { .. }));
        // Its backlog takes what is asked, and no thread reads it.
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(ask(), ClientError::Timeout(_)));
        drop(listener);
        assert!(matches!(ask(), ClientError::NoDaemon { .. }));
    }
}
