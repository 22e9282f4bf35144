// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asks one daemon over its control socket.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time;
use vhost_device_balloon::operator::{OPENMETRICS, StatusView};

use super::connect::connect;
use super::find::stem;
use super::names::is_name;

/// How long a daemon may take for an answer, unless [`Daemon::within`] says otherwise. A daemon of its
/// own answers within a millisecond; one may wait for a second until it knows how much is resident.
pub const LIMIT: Duration = Duration::from_secs(2);

/// Most bytes of an answer; a status with all pins and regions takes some 100 KiB.
pub const MOST_BYTES: usize = 512 << 10;

/// Most bytes of the header fields of an answer. hyper takes no less than 8 KiB.
const MOST_HEAD_BYTES: usize = 16 << 10;

/// Most characters of an error of a daemon that are passed on.
const MOST_SAID: usize = 500;

/// Why there is no answer, or a bad one.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nothing listens.
    #[error("no daemon answers")]
    NoDaemon(#[source] io::Error),
    /// It is connected, or its backlog is full, and it does not answer.
    #[error("the daemon did not answer within {0:?}")]
    Timeout(Duration),
    /// The daemon answers, and the guest does not.
    #[error("the guest did not send its statistics within {0:?}")]
    Silent(Duration),
    /// The connection broke, or what came is no answer.
    #[error("expected an answer of vhost-device-balloon")]
    NotAnAnswer(#[source] Box<dyn Error + Send + Sync>),
    /// It does not end.
    #[error("the answer has more than {MOST_BYTES} bytes")]
    TooLong,
    /// The daemon says no.
    #[error("{text}")]
    Refused {
        /// 400 or more.
        status: u16,
        /// What the daemon expected.
        text: String,
    },
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
}

/// A daemon at its control socket. Each request has a connection of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Daemon {
    path: PathBuf,
    limit: Duration,
}

impl Daemon {
    /// The daemon that listens at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), limit: LIMIT }
    }

    /// The same with another limit of time for an answer.
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Its control socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the VM's name: that of its status, or else of the socket's file.
    pub fn name(&self, status: &StatusView) -> String {
        status.name.clone().filter(|name| is_name(name)).unwrap_or_else(|| stem(&self.path))
    }

    /// Returns the status of daemon, VMM and guest driver.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn status(&self) -> Result<StatusView, AskError> {
        self.get("/v1/status").await
    }

    /// Returns the metrics of the daemon, in OpenMetrics.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn metrics(&self) -> Result<String, AskError> {
        let page = self.ask("GET", "/metrics", None).await?;
        String::from_utf8(page.into()).map_err(|error| AskError::NotAnAnswer(error.into()))
    }

    /// Returns what `GET path` answers, which is JSON.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.json("GET", path, None).await
    }

    /// Asks, and returns the answer, which is JSON.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn json<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, AskError> {
        let answer = self.ask(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(|error| AskError::NotAnAnswer(error.into()))
    }

    /// Asks, and returns the body of the answer.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Bytes, AskError> {
        let answer = time::timeout(self.limit, self.answer(method, path, body));
        answer.await.unwrap_or(Err(AskError::Timeout(self.limit)))
    }

    async fn answer(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Bytes, AskError> {
        let not = |error: hyper::Error| AskError::NotAnAnswer(error.into());
        let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        request = request.header(ACCEPT, OPENMETRICS);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| AskError::NotAnAnswer(error.into()))?;
        let stream = connect(&self.path).await.map_err(|error| match error.kind() {
            // Its backlog is full.
            ErrorKind::WouldBlock => AskError::Timeout(self.limit),
            _ => AskError::NoDaemon(error),
        })?;
        let mut builder = http1::Builder::new();
        let handshake = builder.max_buf_size(MOST_HEAD_BYTES).handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(not)?;
        let asked = async {
            let (head, body) = sender.send_request(request).await.map_err(not)?.into_parts();
            let body = Limited::new(body, MOST_BYTES).collect().await.map_err(|error| {
                match error.is::<LengthLimitError>() {
                    true => AskError::TooLong,
                    false => AskError::NotAnAnswer(error),
                }
            })?;
            Ok((head.status, body.to_bytes()))
        };
        let mut asked = std::pin::pin!(asked);
        let answered = tokio::select! {
            biased;
            answered = &mut asked => answered,
            // What it had to say was said, or will never be.
            _ = connection => asked.await,
        };
        let (status, body) = answered?;
        if status == StatusCode::OK {
            return Ok(body);
        }
        let said = serde_json::from_slice::<ErrorBody>(&body).map(|body| body.error);
        Err(AskError::Refused {
            status: status.as_u16(),
            text: said.map_or_else(|_| format!("status {status}"), |said| harmless(&said)),
        })
    }
}

/// What a daemon says of an error, for a log and a terminal: the daemon's own errors are shorter.
fn harmless(said: &str) -> String {
    said.chars().take(MOST_SAID).map(|each| if each.is_control() { ' ' } else { each }).collect()
}

#[cfg(test)]
mod tests;
