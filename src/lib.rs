// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vhost-user backend for the virtio-balloon device, built around free page reporting.
//!
//! A guest driver reports which guest pages are free, and this daemon discards them on the host. The
//! interface is a checked [`Config`] and [`Embedded`], a daemon inside another program; [`program`] is the
//! command line program, with what packages derive from it (completions, man pages); [`operator`] has the
//! answers of the control socket, for clients in Rust.
//!
//! The rooms in layers, the lowest first. A room imports its own layer and those below, never above:
//!
//! | layer | room | contents |
//! |---|---|---|
//! | 1 | `lock`, `wake`, `own_proc` | mutexes that a panic does not poison, eventfds, `/proc/self` |
//! | 2 | `logging` | the log on standard error, which never blocks a thread |
//! | 3 | `metrics` | counters |
//! | 4 | `discard` | range arithmetic, the backing of guest memory, discarding |
//! | 5 | `device` | features, configuration space, the meaning of each queue |
//! | 6 | `hand_over` | what the next daemon goes on from, in the descriptor store |
//! | 6 | `vhost_user` | one frontend connection: admission, messages, virtqueues, device state |
//! | 6 | `state` | the device and its options, which outlive a connection |
//! | 2 | `sandbox` | what the process can no longer do once it serves |
//! | 7 | `sibling` | the program of a whole host, which this process becomes for `ctl top` |
//! | 7 | `values` | sizes and intervals as operators write them |
//! | 7 | `control` | the control socket (HTTP) and the metrics for Prometheus |
//! | 8 | [`operator`] | the answers of the control socket, as clients in Rust read them |
//! | 8 | `cli`, `ctl` | the command line as one checked [`Config`], and the operator's client |
//! | 9 | `daemon` | the process: event loop, sockets, signals, watchdog |
//! | 9 | `keeper` | the process that starts daemons one after another and holds what they hand over |
//! | 10 | [`program`] | what `main` runs |

mod cli;
mod control;
mod ctl;
mod daemon;
mod device;
mod discard;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod hand_over;
mod keeper;
mod lock;
mod logging;
mod metrics;
pub mod operator;
mod own_proc;
pub mod program;
mod sandbox;
mod sibling;
mod state;
#[cfg(test)]
mod tests;
mod values;
mod vhost_user;
mod wake;

pub use cli::{Config, ConfigError};
pub use daemon::{DaemonError, Embedded, StopHandle};
#[doc(hidden)]
pub use device::{SimulatedDevice, SimulatedStatistics};
