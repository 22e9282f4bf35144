// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lines on standard error. systemd's journal adds the time and takes the number in front as the level.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};

/// How bad it is, with the numbers of syslog.
#[derive(Clone, Copy, Debug)]
enum Level {
    Error = 3,
    Warning = 4,
    Info = 6,
}

/// Says that something failed.
pub(crate) fn error(text: impl Display) {
    say(Level::Error, &text);
}

/// Says that something is not as it should be.
pub(crate) fn warning(text: impl Display) {
    say(Level::Warning, &text);
}

/// Says what happened.
pub(crate) fn info(text: impl Display) {
    say(Level::Info, &text);
}

fn say(level: Level, text: &dyn Display) {
    let text = text.to_string().replace(char::is_control, " ");
    // Set by systemd for what it passes to the journal.
    let line = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => format!("<{}>{text}\n", level as u8),
        None => format!("vhost-device-balloon-host: {text}\n"),
    };
    // Without standard error there is nobody to tell.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// An error with its causes in a line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
