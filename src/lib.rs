// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vhost-user backend for the virtio-balloon device, built around free page reporting.
//!
//! A guest tells the host which of its pages are free; this daemon gives them back to the host at
//! once. The library is what the `vhost-device-balloon` program is made of, room by room:
//!
//! | room | contents |
//! |---|---|
//! | `cli` | the command line, as one checked [`Config`] |
//! | [`program`] | the `vhost-device-balloon` program |
//! | `daemon` | the process: event loop, listener, signals, watchdog |
//! | [`state`] | the device and its options, which outlive a connection |
//! | [`vhost_user`] | one frontend connection: admission, messages, virtqueues, device state |
//! | [`device`] | features, configuration space, the meaning of each queue |
//! | [`discard`] | range arithmetic, the backing of guest memory, discarding |
//! | [`metrics`] | counters |
//! | [`logging`] | the log on standard error, which never blocks a thread |
//! | `values` | sizes and intervals as operators write them |
//! | `control` | the control socket (HTTP) and the metrics for Prometheus |
//! | `ctl` | the operator's client |

mod cli;
mod control;
mod ctl;
mod daemon;
pub mod device;
pub mod discard;
mod lock;
pub mod logging;
pub mod metrics;
pub mod program;
pub mod state;
mod values;
pub mod vhost_user;
mod wake;

pub use cli::{Config, ConfigError};
pub use daemon::{DaemonError, run};
