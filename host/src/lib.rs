// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All balloon daemons of a host: what no daemon can do alone.
//!
//! Each VM has a daemon of its own, and none knows another. This program finds their control sockets
//! and asks them over HTTP, as any other operator's tool does. The rooms in layers, the lowest first:
//!
//! | room | contents |
//! |---|---|
//! | [`sockets`] | finds the daemons of a host and asks them, each for a limited time |
//! | [`views`] | what hostd shows |
//! | `memory` | the host's memory and its pressure |
//! | `metrics` | the metrics of all daemons on one page |
//! | `http` | the other side: answers requests |
//! | `hostd` | the process |
//! | `status` | shows what hostd knows |
//! | `args` | the command line |
//! | `top` | all guests of a host on one screen |
//! | [`program`] | what `main` runs |

mod args;
mod exit;
mod hostd;
mod http;
mod log;
mod memory;
mod metrics;
pub mod program;
pub mod sockets;
mod status;
mod top;
pub mod views;
