// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of control clients: any bytes as HTTP, cut anywhere, and any request on a device.
//!
//! What was read of a part is what is read of the whole. A request that is answered with an error has changed
//! nothing, and every answer is HTTP with JSON or metrics in it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arbitrary::Arbitrary;
use virtio_queue::{Queue, QueueT};

use crate::control::api::{Access, answer};
use crate::control::http::{Request, parse};
use crate::control::peer::Peer;
use crate::control::reply::Reply;
use crate::device::{DeviceOptions, SavedBalloon, Target};
use crate::discard::{Cause, MemoryOptions};
use crate::state::{Frontend, State};

/// What clients send.
#[derive(Arbitrary, Debug)]
pub(crate) struct Input {
    options: u8,
    acked: Option<u8>,
    memory: u32,
    /// A driver runs, and is told of this many changes before its channel is full.
    told: Option<u8>,
    requests: Vec<Sent>,
}

#[derive(Arbitrary, Debug)]
enum Sent {
    Raw { bytes: Vec<u8>, cut: u16 },
    Request(Asked),
}

#[derive(Arbitrary, Debug)]
struct Asked {
    method: Method,
    path: u8,
    other_path: Option<String>,
    body: Body,
    metrics_only: bool,
    openmetrics: bool,
    fields: Vec<Field>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Method {
    Get,
    Head,
    Put,
    Post,
    Delete,
    Other,
}

#[derive(Arbitrary, Debug)]
enum Body {
    Empty,
    Bytes(Vec<u8>),
    Number(Name, u64),
    Target(u32, bool, Option<u32>),
    Range(u64, u64),
    Level(u8),
    Reclaim(Option<u64>, Option<u32>),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Name {
    Bytes,
    LeaveBytes,
    Seconds,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Field {
    Close,
    KeepAlive,
    SecondLength,
    Chunked,
    SecondHost,
    NoHost,
    Long(u16),
}

const PATHS: [&str; 20] = [
    "/v1/status",
    "/v1/statistics",
    "/v1/statistics/refresh",
    "/v1/statistics-interval",
    "/v1/target",
    "/v1/reclaim",
    "/v1/park",
    "/v1/unpark",
    "/v1/pause",
    "/v1/resume",
    "/v1/pins",
    "/v1/hinting/start",
    "/v1/hinting/stop",
    "/v1/upgrade",
    "/v1/counters",
    "/v1/counters/reset",
    "/v1/log-level",
    "/metrics",
    "/metrics?name=a",
    "/v1/status?",
];

impl Body {
    fn text(&self) -> Vec<u8> {
        let levels = ["error", "warn", "info", "debug", "trace", "off", ""];
        match self {
            Self::Empty => Vec::new(),
            Self::Bytes(bytes) => bytes.clone(),
            Self::Number(name, number) => {
                let name = match name {
                    Name::Bytes => "bytes",
                    Name::LeaveBytes => "leave_bytes",
                    Name::Seconds => "seconds",
                };
                format!("{{\"{name}\":{number}}}").into_bytes()
            }
            Self::Target(pages, force, lease) => {
                let bytes = u64::from(*pages) << 12;
                let lease = lease.map_or(String::new(), |s| format!(",\"lease_seconds\":{s}"));
                format!("{{\"bytes\":{bytes},\"force\":{force}{lease}}}").into_bytes()
            }
            Self::Range(address, bytes) => {
                format!("{{\"address\":{address},\"bytes\":{bytes}}}").into_bytes()
            }
            Self::Level(level) => {
                let level = levels[usize::from(*level) % levels.len()];
                format!("{{\"level\":\"{level}\"}}").into_bytes()
            }
            Self::Reclaim(keep, timeout) => {
                let keep = keep.map(|keep| format!("\"keep_bytes\":{keep}"));
                let timeout = timeout.map(|seconds| format!("\"timeout_seconds\":{seconds}"));
                let fields: Vec<_> = keep.into_iter().chain(timeout).collect();
                format!("{{{}}}", fields.join(",")).into_bytes()
            }
        }
    }
}

impl Asked {
    fn bytes(&self) -> Vec<u8> {
        let method = match self.method {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Put => "PUT",
            Method::Post => "POST",
            Method::Delete => "DELETE",
            Method::Other => "PATCH",
        };
        let path = PATHS[usize::from(self.path) % PATHS.len()];
        let path = self.other_path.as_deref().unwrap_or(path);
        let body = self.body.text();
        let mut head = format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n", body.len());
        if !self.fields.iter().any(|field| matches!(field, Field::NoHost)) {
            head.push_str("Host: localhost\r\n");
        }
        if self.openmetrics {
            head.push_str("Accept: application/openmetrics-text;version=1.0.0\r\n");
        }
        for field in self.fields.iter().take(70) {
            match field {
                Field::Close => head.push_str("Connection: close\r\n"),
                Field::KeepAlive => head.push_str("Connection: x, keep-alive\r\n"),
                Field::SecondLength => head.push_str("content-length: 0\r\n"),
                Field::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
                Field::SecondHost => head.push_str("Host: b\r\n"),
                Field::NoHost => {}
                Field::Long(len) => {
                    head.push_str("X: ");
                    head.extend((0..len % 9000).map(|_| 'x'));
                    head.push_str("\r\n");
                }
            }
        }
        head.push_str("\r\n");
        [head.as_bytes(), &body].concat()
    }
}

/// The channel of a frontend that takes so many messages.
struct Channel(AtomicU8);

impl Frontend for Channel {
    fn config_changed(&self) -> io::Result<()> {
        let take = |left: u8| left.checked_sub(1);
        let told = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        told.map(drop).map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    fn poll_statistics(&self) -> io::Result<()> {
        self.config_changed()
    }
}

pub(crate) fn run(input: Input) {
    let has = |bit: u8| input.options >> bit & 1 == 1;
    let options = DeviceOptions {
        statistics: has(0),
        free_page_hints: has(0) && has(1),
        reporting: has(2),
        ..DeviceOptions::default()
    };
    let state = Arc::new(State::new(options, MemoryOptions::default()));
    if let Some(acked) = input.acked {
        state.balloon.set_acked_features(u64::from(acked));
        state.balloon.set_memory_bytes(u64::from(input.memory) << 12);
    }
    if let Some(told) = input.told {
        state.set_frontend(Some(Arc::new(Channel(AtomicU8::new(told % 3)))));
        state.balloon.set_acked_features(u64::from(input.acked.unwrap_or(0)));
        state.balloon.set_memory_bytes(u64::from(input.memory) << 12);
        state.rings.note(0, Some(&Queue::new(2).expect("a queue")));
    }
    for sent in input.requests.iter().take(8) {
        let (bytes, cut, access) = match sent {
            Sent::Raw { bytes, cut } => (bytes.clone(), usize::from(*cut), Access::Everything),
            Sent::Request(asked) => {
                let bytes = asked.bytes();
                let access = if asked.metrics_only { Access::Metrics } else { Access::Everything };
                let cut = bytes.len() / 2;
                (bytes, cut, access)
            }
        };
        if let Some(request) = read(&bytes, cut) {
            serve(&state, &request, access);
        }
    }
}

/// Reads a request of the whole and of a part.
fn read(bytes: &[u8], cut: usize) -> Option<Request<'_>> {
    let whole = parse(bytes);
    let part = parse(&bytes[..cut.min(bytes.len())]);
    match (&part, &whole) {
        // The rest may still make an error of it, or a request.
        (Ok(None), _) => {}
        (part, whole) => assert_eq!(part, whole, "a part is read in another way than the whole"),
    }
    let (request, len) = whole.ok().flatten()?;
    assert!(len <= bytes.len() && request.body.len() < len);
    assert!(request.body.len() <= crate::control::http::MAX_BODY);
    assert!(len - request.body.len() <= crate::control::http::MAX_HEAD);
    assert_eq!(&bytes[len - request.body.len()..len], request.body);
    let head = &bytes[..len - request.body.len()];
    assert!(head.ends_with(b"\n"), "a head that does not end");
    Some(request)
}

/// What a client may change: the device, its target, what forbids discards, and pins.
type Settings = (SavedBalloon, Target, [bool; 2], Vec<(u64, u64, u32)>);

fn settings(state: &State) -> Settings {
    let holds = |cause| state.inhibit.holds(cause);
    let pins = state.inhibit.pins().into_iter();
    (
        state.balloon.save(),
        state.balloon.target(),
        [holds(Cause::Operator), holds(Cause::Parked)],
        pins.map(|pin| (pin.range.start(), pin.range.len(), pin.count)).collect(),
    )
}

fn serve(state: &Arc<State>, request: &Request<'_>, access: Access) {
    let mut before = settings(state);
    let reads = matches!(request.method, "GET" | "HEAD");
    let Reply::Ready(response) = answer(request, access, state, Peer::Unknown) else {
        assert!(!reads && access == Access::Everything, "{} has to wait", request.path);
        return;
    };
    // A driver that could not be told may have seen a command: its number does not come again, and the answer
    // says what became of the round.
    if response.status == 503 && request.path.starts_with("/v1/hinting/") {
        let SavedBalloon { free_page_hint_cmd_id, next_hint_cmd_id, .. } = settings(state).0;
        before.0 = SavedBalloon { free_page_hint_cmd_id, next_hint_cmd_id, ..before.0 };
    }
    if reads || access == Access::Metrics || response.status >= 400 {
        assert_eq!(
            settings(state),
            before,
            "{request:?} is answered {} and changes",
            response.status
        );
    }
    for (keep_alive, head) in [(true, false), (false, true)] {
        let bytes = response.to_bytes(keep_alive, head);
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(len)) = parsed.parse(&bytes) else {
            panic!("an answer that is no HTTP: {}", String::from_utf8_lossy(&bytes))
        };
        assert_eq!(parsed.code, Some(response.status));
        assert!(parsed.reason.is_some_and(|reason| !reason.is_empty()));
        let length = parsed.headers.iter().find(|field| field.name == "Content-Length");
        let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok());
        assert_eq!(length, Some(response.body.len()));
        assert_eq!(bytes.len() - len, if head { 0 } else { response.body.len() });
    }
    if response.content_type == "application/json" {
        let body: serde_json::Value = serde_json::from_str(&response.body).expect("JSON");
        assert_eq!(body.get("error").is_some(), response.status >= 400, "{}", response.body);
    }
}
