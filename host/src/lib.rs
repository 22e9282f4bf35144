// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All balloon daemons of a host: what no daemon can do alone.
//!
//! Each VM has a daemon of its own, and none knows another. This program finds their control sockets
//! and asks them over HTTP, as any other operator's tool does. The rooms in layers, the lowest first:
//!
//! | room | contents |
//! |---|---|
//! | [`sockets`] | finds the daemons of a host and asks them, each for a limited time |
//! | `args` | the command line |
//! | [`program`] | what `main` runs |

mod args;
mod exit;
pub mod program;
pub mod sockets;
