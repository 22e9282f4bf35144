// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--keeper`: what systemd is to a unit, for one daemon where there is no systemd. It holds what
//! the daemon puts in its descriptor store, starts the next one when it ends, and does nothing else.
//!
//! | file | idea |
//! |---|---|
//! | `check` | a program that is asked whether it could go on |
//! | `child` | a daemon as a child process |
//! | `notices` | what it says and puts in the store |
//! | `watch` | when to start another, and when to end |

mod check;
mod child;
mod notices;
mod watch;

pub(crate) use watch::run;
