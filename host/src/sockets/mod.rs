// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemons of this host: where their control sockets are, and what they answer.
//!
//! A daemon is not trusted: a guest may have taken it over. None can stall the others, whatever it
//! answers: each request has a limit of time, each answer a limit of bytes, and at most 64 daemons are
//! asked at a time.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use vhost_device_balloon_host::sockets::{self, Daemon, Watch};
//!
//! let dirs = [sockets::DEFAULT_DIR.into()];
//! let mut watch = Watch::new(&dirs)?;
//! loop {
//!     let daemons = sockets::find(&dirs)?.into_iter().map(Daemon::new).collect();
//!     let asked = sockets::each(daemons, |daemon| async move { daemon.status().await });
//!     for (daemon, status) in asked.await {
//!         println!("{}: {}", daemon.path().display(), status.is_ok());
//!     }
//!     watch.changed().await?;
//! }
//! # }
//! ```

mod connect;
mod daemon;
mod find;
mod many;
mod names;
mod pattern;
mod watch;

pub use daemon::{AskError, Daemon, LIMIT, MOST_BYTES};
pub use find::{DEFAULT_DIR, find, stem};
pub use many::each;
pub(crate) use many::each_with;
pub use names::names;
pub use watch::Watch;
