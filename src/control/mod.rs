// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Control and monitoring: HTTP/1.1 over a Unix socket, and metrics for Prometheus.
//!
//! One protocol serves control and metrics, and the tools exist: cloud-hypervisor and Firecracker are
//! controlled over HTTP too, `curl --unix-socket` speaks it, and Prometheus scrapes it. [`api`] lists
//! the requests.
//!
//! | file | what it knows |
//! |---|---|
//! | [`server`] | listeners, connections and deadlines, in the main thread's event loop |
//! | `connection` | one connection: bytes in, bytes out, never blocking |
//! | `stream` | listeners and streams, Unix or TCP |
//! | `peer` | the process at the other end, for the log |
//! | `room` | which connection makes room for a newcomer |
//! | [`http`] | requests and answers as bytes |
//! | [`reply`] | an answer that is there, or waits for an event |
//! | [`api`] | what each path and method means for the device |
//! | [`reclaim`] | a reclaim on demand, for as long as its client waits |
//! | [`exposition`] | the metrics, in the format of Prometheus |
//! | `negotiate`, `plain_text` | which format of metrics is asked for, and the older one |
//! | [`views`], `counters` | the shape of what is shown |
//! | [`client`] | a client for the other end |

pub(crate) mod api;
pub(crate) mod client;
mod connection;
pub(crate) mod counters;
pub(crate) mod exposition;
pub(crate) mod http;
pub(crate) mod negotiate;
pub(crate) mod peer;
pub(crate) mod plain_text;
pub(crate) mod reclaim;
pub(crate) mod reply;
mod room;
pub(crate) mod server;
mod stream;
pub(crate) mod views;
