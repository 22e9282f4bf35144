// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of control clients, and their effect: the routes, and a file for what each is about.
//!
//! | method and path | body | what |
//! |---|---|---|
//! | `GET /v1/status` | | the state of daemon, VMM and guest driver |
//! | `GET /v1/statistics` | | the last memory statistics of the guest |
//! | `POST /v1/statistics/refresh` | | polls the guest; the answer does not wait for it |
//! | `GET`, `PUT /v1/statistics-interval` | `{"seconds": n}` | interval between two polls; 0 for never |
//! | `GET`, `PUT /v1/target` | `{"bytes": n}` or `{"leave_bytes": n}` | memory that the balloon takes, or leaves, `"lease_seconds": n` for a time |
//! | `DELETE /v1/target` | | end the lease: the base target holds again |
//! | `DELETE /v1/reclaim` | | have the reclaim or the park in progress let go now |
//! | `POST /v1/reclaim`, `POST /v1/park` | `{"keep_bytes": n, "timeout_seconds": n}` or none | squeeze available memory out, let go, and pause if parked |
//! | `POST /v1/unpark` | | resume discarding after a `park` |
//! | `POST /v1/pause`, `POST /v1/resume` | | stop or resume discarding |
//! | `GET`, `PUT`, `DELETE /v1/pins` | `{"address": n, "bytes": n}` | memory that is never discarded |
//! | `POST /v1/hinting/start`, `/stop` | | a round of free page hinting |
//! | `POST /v1/upgrade` | | has the program at the daemon's path go on with the VM |
//! | `GET /v1/counters` | | counters since the last reset |
//! | `POST /v1/counters/reset` | | reset the counters; metrics continue |
//! | `GET`, `PUT /v1/log-level` | `{"level": "info"}` | least important level that is logged |
//! | `GET /metrics` | | metrics for Prometheus, since the daemon started |
//!
//! A body is for `PUT`, `POST` and `DELETE`. `HEAD` does for every `GET`. A query is for `/metrics` alone, and ignored there.
//!
//! Numbers are bytes, never pages. A request that fails is answered with a status and
//! `{"error": "..."}`, which says why. It has changed nothing, unless the text says so.

mod context;
mod counters;
mod hinting;
pub(crate) mod log_level;
#[cfg(test)]
mod openapi;
mod pause;
mod pins;
mod reclaim;
mod show;
pub(crate) mod statistics;
pub(crate) mod target;
mod upgrade;
mod waits;

use std::sync::Arc;

use super::http::{Request, Response};
use super::peer::Peer;
use super::reply::Reply;
use crate::state::State;
use context::{Answer, Context};

/// The requests that a client may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Every request.
    Everything,
    /// `GET /metrics` and nothing else.
    Metrics,
}

struct Route {
    method: &'static str,
    path: &'static str,
    act: fn(&Context<'_>) -> Answer,
}

const METRICS: Route = Route { method: "GET", path: "/metrics", act: show::metrics };

const ROUTES: [Route; 25] = [
    Route { method: "GET", path: "/v1/status", act: show::status },
    Route { method: "GET", path: "/v1/statistics", act: statistics::show },
    Route { method: "POST", path: "/v1/statistics/refresh", act: statistics::refresh },
    Route { method: "GET", path: "/v1/statistics-interval", act: statistics::show_interval },
    Route { method: "PUT", path: "/v1/statistics-interval", act: statistics::set_interval },
    Route { method: "GET", path: "/v1/target", act: target::show },
    Route { method: "PUT", path: "/v1/target", act: target::set },
    Route { method: "DELETE", path: "/v1/target", act: target::end_lease },
    Route { method: "POST", path: "/v1/reclaim", act: reclaim::reclaim },
    Route { method: "DELETE", path: "/v1/reclaim", act: reclaim::interrupt },
    Route { method: "POST", path: "/v1/park", act: reclaim::park },
    Route { method: "POST", path: "/v1/unpark", act: reclaim::unpark },
    Route { method: "POST", path: "/v1/pause", act: pause::pause },
    Route { method: "POST", path: "/v1/resume", act: pause::resume },
    Route { method: "GET", path: "/v1/pins", act: pins::show },
    Route { method: "PUT", path: "/v1/pins", act: pins::pin },
    Route { method: "DELETE", path: "/v1/pins", act: pins::unpin },
    Route { method: "POST", path: "/v1/hinting/start", act: hinting::start },
    Route { method: "POST", path: "/v1/hinting/stop", act: hinting::stop },
    Route { method: "POST", path: "/v1/upgrade", act: upgrade::upgrade },
    Route { method: "GET", path: "/v1/counters", act: counters::show },
    Route { method: "POST", path: "/v1/counters/reset", act: counters::reset },
    Route { method: "GET", path: "/v1/log-level", act: log_level::show },
    Route { method: "PUT", path: "/v1/log-level", act: log_level::set },
    METRICS,
];

/// Serves `request` of `peer` if `access` allows it.
pub(crate) fn answer(
    request: &Request<'_>,
    access: Access,
    state: &Arc<State>,
    peer: Peer,
) -> Reply {
    let routes = match access {
        Access::Everything => &ROUTES[..],
        Access::Metrics => &[METRICS],
    };
    let reply = route(routes, request)
        .and_then(|route| (route.act)(&Context { state, request, peer }))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_that_is_set_can_be_read() {
        for route in ROUTES.iter().filter(|route| route.method == "PUT") {
            let reads = |other: &&Route| (other.method, other.path) == ("GET", route.path);
            assert_eq!(ROUTES.iter().filter(reads).count(), 1, "{}", route.path);
        }
    }

    #[test]
    fn route_has_its_row_in_the_page() {
        let rows = include_str!("../../../docs/user/control.md").lines();
        let rows: Vec<_> = rows.filter(|line| line.starts_with("| ")).collect();
        for route in &ROUTES {
            let row = |row: &&&str| {
                let asks = row.split('|').nth(2).unwrap_or_default();
                asks.contains(&format!(" {}`", route.path)) && asks.contains(route.method)
            };
            assert!(rows.iter().any(|line| row(&line)), "{} {}", route.method, route.path);
        }
    }
}
