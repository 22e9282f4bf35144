// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of control clients, and their effect.
//!
//! | method and path | body | what |
//! |---|---|---|
//! | `GET /v1/status` | | the state of daemon, VMM and guest driver |
//! | `GET /v1/statistics` | | the last memory statistics of the guest |
//! | `POST /v1/statistics/refresh` | | polls the guest; the answer does not wait for it |
//! | `PUT /v1/statistics-interval` | `{"seconds": n}` | interval between two polls; 0 for never |
//! | `PUT /v1/target` | `{"bytes": n}` or `{"leave_bytes": n}` | memory that the balloon takes, or leaves |
//! | `POST /v1/reclaim`, `POST /v1/park` | `{"keep_bytes": n, "timeout_seconds": n}` or none | squeeze available memory out, let go, and pause if parked |
//! | `POST /v1/unpark` | | resume discarding after a `park` |
//! | `POST /v1/pause`, `POST /v1/resume` | | stop or resume discarding |
//! | `PUT /v1/pins`, `DELETE /v1/pins` | `{"address": n, "bytes": n}` | memory that is never discarded |
//! | `POST /v1/hinting/start`, `/stop` | | a round of free page hinting |
//! | `POST /v1/upgrade` | | has the program at the daemon's path go on with the VM |
//! | `GET /v1/counters` | | counters since the last reset |
//! | `POST /v1/counters/reset` | | reset the counters; metrics continue |
//! | `PUT /v1/log-level` | `{"level": "info"}` | least important level that is logged |
//! | `GET /metrics` | | metrics for Prometheus, since the daemon started |
//!
//! `HEAD` does for every `GET`. A query is for `/metrics` alone, and ignored there.
//!
//! Numbers are bytes, never pages. A request that fails is answered with a status and
//! `{"error": "..."}`, which says why, and has changed nothing.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{LevelFilter, info};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::http::{Request, Response};
use super::reclaim::{ReclaimRequest, Running};
use super::reply::{Later, Reply};
use super::target::{self, TargetRequest, TargetView};
use super::upgrade::upgrade;
use super::views::{HintingView, PausedView, StatisticsView, StatusView};
use super::{exposition, plain_text, reclaim};
use crate::device::IntervalError;
use crate::discard::{Cause, GuestRange, MOST_LOOK, PinError, Ticket};
use crate::logging::LogLevel;
use crate::state::{Frontend, State};

/// The requests that a client may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Every request.
    Everything,
    /// `GET /metrics` and nothing else.
    Metrics,
}

/// The answer, or the refusal.
type Answer = Result<Response, Response>;

#[derive(Clone, Copy)]
enum Act {
    /// Answers at once.
    Now(fn(&State, &[u8]) -> Answer),
    /// Waits for something.
    Later(fn(&State, &Request<'_>) -> Result<Reply, Response>),
    /// Works for as long as its client waits.
    Work(fn(&Arc<State>, &[u8]) -> Result<Reply, Response>),
}

struct Route {
    method: &'static str,
    path: &'static str,
    act: Act,
}

const METRICS: Route = Route { method: "GET", path: "/metrics", act: Act::Later(metrics) };

/// How long a request waits for a discarding call under way. Less than `ctl` waits for an answer.
const MOST_WAIT: Duration = Duration::from_secs(3);

const ROUTES: [Route; 19] = [
    Route { method: "GET", path: "/v1/status", act: Act::Later(status) },
    Route { method: "GET", path: "/v1/statistics", act: Act::Now(statistics) },
    Route { method: "POST", path: "/v1/statistics/refresh", act: Act::Now(refresh_statistics) },
    Route {
        method: "PUT",
        path: "/v1/statistics-interval",
        act: Act::Now(set_statistics_interval),
    },
    Route { method: "PUT", path: "/v1/target", act: Act::Now(set_target) },
    Route { method: "POST", path: "/v1/reclaim", act: Act::Work(start_reclaim) },
    Route { method: "POST", path: "/v1/park", act: Act::Work(park) },
    Route { method: "POST", path: "/v1/unpark", act: Act::Now(unpark) },
    Route { method: "POST", path: "/v1/pause", act: Act::Later(pause) },
    Route { method: "POST", path: "/v1/resume", act: Act::Now(resume) },
    Route { method: "PUT", path: "/v1/pins", act: Act::Later(pin) },
    Route { method: "DELETE", path: "/v1/pins", act: Act::Now(unpin) },
    Route { method: "POST", path: "/v1/hinting/start", act: Act::Now(start_hinting) },
    Route { method: "POST", path: "/v1/hinting/stop", act: Act::Now(stop_hinting) },
    Route { method: "POST", path: "/v1/upgrade", act: Act::Later(upgrade) },
    Route { method: "GET", path: "/v1/counters", act: Act::Now(counters) },
    Route { method: "POST", path: "/v1/counters/reset", act: Act::Now(reset_counters) },
    Route { method: "PUT", path: "/v1/log-level", act: Act::Now(set_log_level) },
    METRICS,
];

/// Serves `request` if `access` allows it.
pub(crate) fn answer(request: &Request<'_>, access: Access, state: &Arc<State>) -> Reply {
    let routes = match access {
        Access::Everything => &ROUTES[..],
        Access::Metrics => &[METRICS],
    };
    let reply = route(routes, request)
        .and_then(|route| match route.act {
            Act::Now(act) => act(state, request.body).map(Reply::Ready),
            Act::Later(act) => act(state, request),
            Act::Work(act) => act(state, request.body),
        })
        .unwrap_or_else(Reply::Ready);
    // Before the client is answered.
    state.keep();
    reply
}

fn route<'a>(routes: &'a [Route], request: &Request<'_>) -> Result<&'a Route, Response> {
    // A scraper adds what its configuration says; anything else would expect it to matter.
    let known = |route: &&Route| request.query.is_none() || route.path == METRICS.path;
    let here = || routes.iter().filter(|route| route.path == request.path).filter(known);
    // Without its body, which the connection leaves out (RFC 9110, 9.3.2).
    let method = if request.method == "HEAD" { "GET" } else { request.method };
    if let Some(route) = here().find(|route| route.method == method) {
        return Ok(route);
    }
    let list = |items: Vec<&str>| items.join(", ");
    let methods = here().flat_map(|route| match route.method {
        "GET" => &["GET", "HEAD"][..],
        _ => std::slice::from_ref(&route.method),
    });
    let methods: Vec<_> = methods.copied().collect();
    if methods.is_empty() {
        let mut paths: Vec<_> = routes.iter().map(|route| route.path).collect();
        paths.dedup();
        return Err(Response::error(404, format!("expected one of the paths {}", list(paths))));
    }
    let allow = list(methods);
    let error = Response::error(405, format!("expected one of the methods {allow}"));
    Err(Response { allow: Some(allow), ..error })
}

/// Reads a body of the form of `example`.
fn body<T: DeserializeOwned>(bytes: &[u8], example: &str) -> Result<T, Response> {
    // A list of the fields' values would do for serde.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(Response::error(400, format!("expected a body such as {example}")));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        Response::error(400, format!("expected a body such as {example}: {error}"))
    })
}

fn no_body(bytes: &[u8]) -> Result<(), Response> {
    match bytes {
        [] => Ok(()),
        _ => Err(Response::error(400, "expected no body")),
    }
}

/// Refuses a well-formed request that the present state does not allow.
fn conflict(error: impl std::fmt::Display) -> Response {
    Response::error(409, error.to_string())
}

fn unavailable(what: &str, error: &io::Error) -> Response {
    Response::error(503, format!("{what}: {error}"))
}

/// `VIRTIO_BALLOON_F_STATS_VQ`.
const STATS_VQ: u32 = 1;

const NO_FRONTEND: &str = "no VMM is connected";

const NO_DRIVER: &str = "no balloon driver runs in the guest: the guest is paused or resets the device, or \
                         its driver is not loaded";

fn status(state: &State, request: &Request<'_>) -> Result<Reply, Response> {
    no_body(request.body)?;
    Ok(with_resident_bytes(state, |state, bytes| Response::json(&StatusView::of(state, bytes))))
}

/// An answer with how much of the guest's memory is there, which another thread finds out.
fn with_resident_bytes(
    state: &State,
    answer: impl FnOnce(&State, Option<u64>) -> Response + 'static,
) -> Reply {
    let now = Instant::now();
    let Some(look) = state.backings().and_then(|_| state.survey.ask(now)) else {
        return Reply::Ready(answer(state, None));
    };
    Reply::Later(Later::new(
        now + MOST_LOOK,
        move |state| state.survey.is_taken(look),
        |state, seen| answer(state, state.survey.resident_bytes().filter(|_| seen)),
    ))
}

/// An answer that holds once the discarding calls are over that `ticket` stands for. If they take
/// too long it says so, and that `done` is done.
fn once_over(
    state: &State,
    ticket: Ticket,
    done: &'static str,
    answer: impl FnOnce(&State) -> Response + 'static,
) -> Reply {
    if state.inhibit.is_over(ticket) {
        return Reply::Ready(answer(state));
    }
    Reply::Later(Later::new(
        Instant::now() + MOST_WAIT,
        move |state| state.inhibit.is_over(ticket),
        move |state, over| match over {
            true => answer(state),
            false => Response::error(
                504,
                format!(
                    "{done}, but a discarding system call that began before has not ended within \
                     {MOST_WAIT:?}: the memory file is busy, as while the VMM allocates it. The \
                     memory of that one call may still be discarded, and no other. To wait for \
                     its end, send the same request again"
                ),
            ),
        },
    ))
}

fn statistics(state: &State, bytes: &[u8]) -> Answer {
    no_body(bytes)?;
    Ok(Response::json(&StatisticsView::of(state)))
}

fn refresh_statistics(state: &State, bytes: &[u8]) -> Answer {
    no_body(bytes)?;
    let frontend = asked_for_statistics(state)?;
    frontend
        .poll_statistics()
        .map_err(|error| unavailable("cannot ask the guest for its statistics", &error))?;
    Ok(Response::json(&StatisticsView::of(state)))
}

/// The frontend, if its guest can be asked for statistics.
fn asked_for_statistics(state: &State) -> Result<Arc<dyn Frontend>, Response> {
    if !state.balloon.options().statistics {
        return Err(conflict(
            "statistics are not offered to the guest: start the daemon with --statistics",
        ));
    }
    let frontend = state.frontend().ok_or_else(|| conflict(NO_FRONTEND))?;
    if state.balloon.session_features().is_none_or(|acked| acked >> STATS_VQ & 1 == 0) {
        return Err(conflict(
            "the guest driver has not acked statistics (VIRTIO_BALLOON_F_STATS_VQ)",
        ));
    }
    if !state.driver().runs() {
        return Err(conflict(NO_DRIVER));
    }
    Ok(frontend)
}

fn start_reclaim(state: &Arc<State>, bytes: &[u8]) -> Result<Reply, Response> {
    reclaim_then(state, bytes, false)
}

fn park(state: &Arc<State>, bytes: &[u8]) -> Result<Reply, Response> {
    reclaim_then(state, bytes, true)
}

fn reclaim_then(state: &Arc<State>, bytes: &[u8], parks: bool) -> Result<Reply, Response> {
    let request = match bytes {
        [] => ReclaimRequest::default(),
        _ => body(bytes, reclaim::EXAMPLE)?,
    };
    asked_for_statistics(state)?;
    Ok(Reply::Later(Later::work(Running::start(state, request, parks)?)))
}

fn unpark(state: &State, bytes: &[u8]) -> Answer {
    no_body(bytes)?;
    state.inhibit.lift(Cause::Parked);
    info!("unparked");
    Ok(Response::json(&PausedView::of(state)))
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Interval {
    seconds: u32,
}

fn set_statistics_interval(state: &State, bytes: &[u8]) -> Answer {
    let interval: Interval = body(bytes, r#"{"seconds": 10}"#)?;
    let duration = Duration::from_secs(interval.seconds.into());
    state.balloon.set_statistics_interval(duration).map_err(|error| match error {
        IntervalError::OutOfRange(_) => Response::error(400, error.to_string()),
        IntervalError::NotOffered => conflict(error),
    })?;
    info!("statistics interval {} s", interval.seconds);
    Ok(Response::json(&interval))
}

fn set_target(state: &State, bytes: &[u8]) -> Answer {
    let target: TargetRequest = body(bytes, target::EXAMPLE)?;
    let wanted = target.balloon_bytes(&state.balloon)?;
    let before = state.balloon.target_bytes();
    let set = |bytes| {
        let set = state.balloon.set_target(bytes, target.force);
        set.map_err(|error| Response::error(400, error.to_string()))
    };
    set(wanted)?;
    let told = match state.announce_change() {
        Ok(told) => told,
        Err(error) => {
            set(before)?;
            return Err(unavailable("cannot announce the new target to the guest", &error));
        }
    };
    let view = TargetView::of(&state.balloon, told);
    let forced = if target.force { ", forced" } else { "" };
    info!("target {wanted} bytes{forced}{}", if view.pending { ", no driver runs" } else { "" });
    Ok(Response::json(&view))
}

fn pause(state: &State, request: &Request<'_>) -> Result<Reply, Response> {
    no_body(request.body)?;
    let ticket = state.inhibit.forbid(Cause::Operator);
    info!("paused");
    Ok(once_over(state, ticket, "paused", |state| Response::json(&PausedView::of(state))))
}

fn resume(state: &State, bytes: &[u8]) -> Answer {
    no_body(bytes)?;
    state.inhibit.lift(Cause::Operator);
    info!("resumed");
    Ok(Response::json(&PausedView::of(state)))
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    address: u64,
    bytes: u64,
}

impl Memory {
    fn read(bytes: &[u8]) -> Result<(Self, GuestRange), Response> {
        let memory: Self = body(bytes, r#"{"address": 4294967296, "bytes": 1048576}"#)?;
        let range = GuestRange::new(memory.address, memory.bytes)
            .map_err(|error| Response::error(400, format!("expected memory, not {error}")))?;
        Ok((memory, range))
    }
}

fn pin(state: &State, request: &Request<'_>) -> Result<Reply, Response> {
    let (memory, range) = Memory::read(request.body)?;
    let ticket = state.inhibit.pin(range).map_err(conflict)?;
    info!("pinned {:#x}..{:#x}", range.start(), range.end());
    let done = "pinned once more";
    Ok(once_over(state, ticket, done, move |_| Response::json(&memory)))
}

fn unpin(state: &State, bytes: &[u8]) -> Answer {
    let (memory, range) = Memory::read(bytes)?;
    state.inhibit.unpin(range).map_err(|error| {
        let status = if matches!(error, PinError::NotPinned { .. }) { 404 } else { 409 };
        Response::error(status, error.to_string())
    })?;
    info!("unpinned {:#x}..{:#x}", range.start(), range.end());
    Ok(Response::json(&memory))
}

fn start_hinting(state: &State, bytes: &[u8]) -> Answer {
    no_body(bytes)?;
    state.frontend().ok_or_else(|| conflict(NO_FRONTEND))?;
    // A round that no driver begins would never end.
    let runs = state.driver().runs();
    state.balloon.check_hinting().map_err(conflict)?;
    if !runs {
        return Err(conflict(NO_DRIVER));
    }
    state.balloon.start_hinting().map_err(conflict)?;
    if let Err(error) = state.announce_change() {
        // The driver may have seen it even so; what it hints then is turned down.
        let _ = state.balloon.stop_hinting();
        return Err(unavailable("cannot ask the guest for hints", &error));
    }
    info!("hinting started");
    Ok(Response::json(&HintingView::of(state)))
}

fn stop_hinting(state: &State, bytes: &[u8]) -> Answer {
    no_body(bytes)?;
    state.balloon.stop_hinting().map_err(conflict)?;
    info!("hinting stopped");
    // Its pages are its own again, and it is to know as soon as it can be told.
    state.announce_change().map_err(|error| {
        unavailable("hints are ignored from now on, but the guest cannot be notified", &error)
    })?;
    Ok(Response::json(&HintingView::of(state)))
}

fn counters(state: &State, bytes: &[u8]) -> Answer {
    no_body(bytes)?;
    Ok(Response::json(&state.counters.since_reset()))
}

fn reset_counters(state: &State, bytes: &[u8]) -> Answer {
    no_body(bytes)?;
    state.counters.reset();
    Ok(Response::json(&state.counters.since_reset()))
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Level {
    level: LogLevel,
}

fn set_log_level(_state: &State, bytes: &[u8]) -> Answer {
    let level: Level = body(bytes, r#"{"level": "info"}"#)?;
    log::set_max_level(LevelFilter::from(level.level));
    info!("log level {}", LevelFilter::from(level.level));
    Ok(Response::json(&level))
}

fn metrics(state: &State, request: &Request<'_>) -> Result<Reply, Response> {
    no_body(request.body)?;
    let openmetrics = request.openmetrics;
    Ok(with_resident_bytes(state, move |state, bytes| {
        let text = match exposition::text(state, bytes) {
            Ok(text) => text,
            Err(error) => return Response::error(500, error.to_string()),
        };
        let (content_type, body) = match openmetrics {
            true => (exposition::CONTENT_TYPE, text),
            false => (plain_text::CONTENT_TYPE, plain_text::from_openmetrics(&text)),
        };
        Response { status: 200, content_type, allow: None, body }
    }))
}
