// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Its API: HTTP over a Unix socket.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Fields of a head at most.
const MOST_FIELDS: usize = 16;

/// The API of one VMM.
#[derive(Clone)]
pub(super) struct Api {
    path: PathBuf,
    timeout: Duration,
}

impl Api {
    /// A socket at `path`, and the listener for the VMM. It listens from now on, so a caller may
    /// connect before the VMM runs. An answer may take `timeout`.
    ///
    /// # Errors
    /// When there can be no such socket.
    pub(super) fn new(path: &Path, timeout: Duration) -> Result<(Self, OwnedFd)> {
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot bind {}", path.display()))?;
        Ok((Self { path: path.to_owned(), timeout }, listener.into()))
    }

    /// Has the VMM do something, and waits until it is done.
    ///
    /// # Errors
    /// What the VMM says, if it refuses; or there is no answer in time.
    pub(super) fn put(&self, action: &str, body: Option<&Value>) -> Result<()> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "PUT /api/v1/{action} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let ask = || -> Result<(u16, String)> {
            let mut stream = UnixStream::connect(&self.path).context("cannot connect")?;
            stream.set_read_timeout(Some(self.timeout))?;
            stream.write_all(request.as_bytes())?;
            answer(&mut stream)
        };
        let (status, body) = ask().with_context(|| format!("{action}: no answer"))?;
        ensure!((200..300).contains(&status), "{action}: {}", words(&body));
        Ok(())
    }
}

/// Status and body of the answer that comes on `stream`, which stays open behind it.
fn answer(stream: &mut impl Read) -> Result<(u16, String)> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(answer) = parse(&bytes)? {
            return Ok(answer);
        }
        match stream.read(&mut chunk)? {
            0 => bail!("the connection ended in the middle"),
            count => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

/// None while something is missing.
fn parse(bytes: &[u8]) -> Result<Option<(u16, String)>> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(body_at) = head.parse(bytes)? else { return Ok(None) };
    let length =
        head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = match length {
        Some(field) => std::str::from_utf8(field.value)?.trim().parse().context("its length")?,
        None => 0,
    };
    let Some(body) = bytes.get(body_at..).and_then(|rest| rest.get(..length)) else {
        return Ok(None);
    };
    let status = head.code.context("no status")?;
    Ok(Some((status, String::from_utf8_lossy(body).into_owned())))
}

/// An error is a list of causes.
fn words(body: &str) -> String {
    match serde_json::from_str::<Vec<String>>(body) {
        Ok(causes) => causes.join(": "),
        Err(_) => body.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_comes_with_or_without_a_body() {
        let empty =
            b"HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(answer(&mut &empty[..]).unwrap(), (204, String::new()));
        let body = b"HTTP/1.1 500 \r\nContent-Length: 12\r\n\r\n[\"a\", \"bcd\"]more";
        let (status, text) = answer(&mut &body[..]).unwrap();
        assert_eq!((status, words(&text).as_str()), (500, "a: bcd"));
        let error = answer(&mut &body[..48]).unwrap_err().to_string();
        assert_eq!(error, "the connection ended in the middle");
        assert!(answer(&mut &b"SSH-2.0\r\n\r\n"[..]).is_err());
        assert_eq!(words("no list"), "no list");
    }
}
