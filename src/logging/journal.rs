// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lines for systemd's journal, which wants the priority of a line in front of it and has a time of
//! its own.

use std::env;
use std::sync::atomic::{AtomicBool, Ordering};

use log::Level;
use rustix::fs::fstat;
use rustix::stdio::stderr;

/// Set once, before the first line. A static, because a signal handler writes lines, too.
static JOURNAL: AtomicBool = AtomicBool::new(false);

/// Finds out whether standard error goes to the journal: `JOURNAL_STREAM` names the device and inode
/// of the journal's socket (systemd.exec(5)), and a process can inherit the variable with another
/// standard error.
pub(crate) fn detect() {
    let is_journal = env::var("JOURNAL_STREAM").is_ok_and(|named| {
        fstat(stderr()).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
    });
    JOURNAL.store(is_journal, Ordering::Relaxed);
}

/// Whether lines go to the journal.
pub(crate) fn is_journal() -> bool {
    JOURNAL.load(Ordering::Relaxed)
}

/// What a line of this level begins with (sd-daemon(3)): a priority of syslog(3) for the journal, and
/// nothing for others.
pub(crate) fn mark(level: Level) -> &'static str {
    if !is_journal() {
        return "";
    }
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}
