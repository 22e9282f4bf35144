// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an operator can see and set: HTTP/1.1 over a Unix socket, and metrics for Prometheus.
//!
//! HTTP because the tools are there already: cloud-hypervisor and Firecracker are controlled the
//! same way, `curl --unix-socket` speaks it, Prometheus scrapes it, and one protocol does for
//! control and metrics. [`api`] says what there is to ask for.
//!
//! | file | what it knows |
//! |---|---|
//! | [`server`] | listeners, connections and deadlines, in the main thread's event loop |
//! | `connection` | one connection: bytes in, bytes out, never blocking |
//! | `stream` | listeners and streams, Unix or TCP |
//! | `room` | which connection makes room for a newcomer |
//! | [`http`] | requests and answers as bytes |
//! | [`reply`] | an answer that is there, or waits for an event |
//! | [`api`] | what each path and method means for the device |
//! | [`exposition`] | the metrics, in the format of Prometheus |
//! | [`target`] | how much the balloon takes or leaves |
//! | `negotiate`, `plain_text` | which format of metrics is asked for, and the older one |
//! | [`views`] | the shape of what is shown |
//! | [`client`] | a client for the other end |

pub mod api;
pub mod client;
mod connection;
pub mod exposition;
pub mod http;
mod negotiate;
mod plain_text;
pub mod reply;
mod room;
pub mod server;
mod stream;
pub mod target;
pub mod views;
