// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An operator of the daemon, without the daemon's own client: plain HTTP over its control socket.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

/// A daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 200 and the like.
    pub status: u16,
    /// The header fields, as they came.
    pub head: String,
    /// What is behind them.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {self:?}"))
    }

    /// What the daemon says is wrong.
    ///
    /// # Errors
    /// When it says nothing of the kind.
    pub fn error(&self) -> Result<String> {
        let json = self.json()?;
        Ok(json["error"].as_str().with_context(|| format!("no error: {json}"))?.to_owned())
    }

    /// The answer that this text is, to its end.
    ///
    /// # Errors
    /// When it is none, or not whole.
    pub fn parse(text: &str) -> Result<Self> {
        let (head, body) = text.split_once("\r\n\r\n").context("no end of the header fields")?;
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status = status.with_context(|| format!("no answer: {head:?}"))?.parse()?;
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length.context("no Content-Length")?.parse()?;
        ensure!(length == body.len(), "{} bytes instead of {length}", body.len());
        Ok(Self { status, head: head.to_owned(), body: body.to_owned() })
    }
}

/// A daemon's control socket.
#[derive(Clone, Debug)]
pub struct ControlSocket {
    path: PathBuf,
    timeout: Duration,
}

impl ControlSocket {
    /// The socket at `path`, where an answer may take `timeout`.
    pub fn new(path: &Path, timeout: Duration) -> Self {
        Self { path: path.to_owned(), timeout }
    }

    /// A connection on which nothing was said.
    ///
    /// # Errors
    /// When no daemon listens.
    pub fn connect(&self) -> Result<UnixStream> {
        let stream = UnixStream::connect(&self.path)
            .with_context(|| format!("cannot connect to {}", self.path.display()))?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(stream)
    }

    /// Asks on a connection of its own; an empty body is none.
    ///
    /// # Errors
    /// When there is no answer in time, or none that can be understood.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        self.ask_with(method, path, "", body)
    }

    /// Asks with further header fields, each with its line end; see [`ControlSocket::ask`].
    ///
    /// # Errors
    /// When there is no answer in time, or none that can be understood.
    pub fn ask_with(&self, method: &str, path: &str, fields: &str, body: &str) -> Result<Answer> {
        let mut stream = self.connect()?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: \
             {length}\r\n{fields}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).context("cannot ask")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).with_context(|| format!("{method} {path}: no answer"))?;
        Answer::parse(&text)
    }

    /// What a `GET` of this path answers.
    ///
    /// # Errors
    /// When it is refused, or see [`ControlSocket::ask`].
    pub fn get(&self, path: &str) -> Result<Value> {
        self.done("GET", path, "")
    }

    /// What a request answers that must be possible.
    ///
    /// # Errors
    /// When it is refused, or see [`ControlSocket::ask`].
    pub fn done(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let answer = self.ask(method, path, body)?;
        if answer.status != 200 {
            bail!("{method} {path} {body}: {} {}", answer.status, answer.body);
        }
        answer.json()
    }
}
