// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Answers requests: HTTP/1.1 on a Unix socket and over TCP.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time;

/// Connections that are served at a time; one more closes the oldest.
const MOST_CONNECTIONS: usize = 32;

/// How long a client may take for the head of a request, and between two.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// How long a connection is served: a client that takes no answer has no place without end.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);

/// Between two attempts to accept a client while there are no descriptors left.
const BREATHER: Duration = Duration::from_millis(100);

/// What a client may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everything: on the Unix socket.
    Everything,
    /// `/metrics` and nothing else: over TCP, where every user of this machine comes.
    Metrics,
}

/// An answer.
pub(crate) type Answer = Response<Full<Bytes>>;

/// What is answered.
pub(crate) trait Answers: Clone + Send + Sync + 'static {
    /// Returns the answer to a `GET` (or a `HEAD`, which gets the same without its body).
    fn get(self, access: Access, request: Request<Incoming>)
    -> impl Future<Output = Answer> + Send;
}

/// An answer with this status.
pub(crate) fn text(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let fields = answer.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    match serde_json::to_string(body) {
        Ok(body) => text(status, "application/json", body + "\n"),
        Err(error) => self::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// An answer that says what was expected.
pub(crate) fn error(status: StatusCode, expected: &str) -> Answer {
    text(status, "application/json", json!({ "error": expected }).to_string() + "\n")
}

/// Serves clients of both listeners, for as long as it is polled.
pub(crate) async fn serve<A: Answers>(unix: UnixListener, tcp: Option<TcpListener>, answers: A) {
    let mut clients = Clients { connections: JoinSet::new(), oldest: VecDeque::new() };
    loop {
        let over_tcp = async {
            match &tcp {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        let failed = tokio::select! {
            accepted = unix.accept() => accepted
                .map(|(stream, _)| clients.add(stream, Access::Everything, answers.clone())),
            accepted = over_tcp => accepted
                .map(|(stream, _)| clients.add(stream, Access::Metrics, answers.clone())),
            Some(_) = clients.connections.join_next() => Ok(()),
        };
        if failed.is_err() {
            time::sleep(BREATHER).await;
        }
    }
}

/// The clients that are connected.
struct Clients {
    connections: JoinSet<()>,
    oldest: VecDeque<AbortHandle>,
}

impl Clients {
    fn add<A: Answers>(
        &mut self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        access: Access,
        answers: A,
    ) {
        self.oldest.retain(|connection| !connection.is_finished());
        if self.oldest.len() >= MOST_CONNECTIONS
            && let Some(oldest) = self.oldest.pop_front()
        {
            oldest.abort();
        }
        self.oldest.push_back(self.connections.spawn(connection(stream, access, answers)));
    }
}

async fn connection<A: Answers>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    access: Access,
    answers: A,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let answers = answers.clone();
        async move {
            if request.method() == Method::GET || request.method() == Method::HEAD {
                return Ok::<_, Infallible>(answers.get(access, request).await);
            }
            let mut answer =
                error(StatusCode::METHOD_NOT_ALLOWED, "expected the method GET or HEAD");
            let allowed = HeaderValue::from_static("GET, HEAD");
            answer.headers_mut().insert(ALLOW, allowed);
            Ok(answer)
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    // A client that breaks the connection concerns nothing else.
    let _ = time::timeout(CONNECTION_LIMIT, served).await;
}
