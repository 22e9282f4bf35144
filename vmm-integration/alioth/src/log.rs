// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What alioth says goes to standard error, from warnings on.

use log::{LevelFilter, Log, Metadata, Record};

/// What alioth says at each pause of a guest that uses no clock of KVM, as the bare guest does.
const NO_CLOCK: &str = "Failed to control kvmclock";

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        if !text.starts_with(NO_CLOCK) {
            eprintln!("{}: {text}", record.target());
        }
    }

    fn flush(&self) {}
}

/// Starts to log.
pub(crate) fn start() {
    // Fails only if it was called before.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(LevelFilter::Warn);
}
