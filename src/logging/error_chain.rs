// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An error with its causes, as one line.

use std::error::Error;
use std::panic::Location;

use log::{Level, Record};

/// Returns `error` and its causes, parted by colons.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Logs `error` with its causes as a message of the caller.
#[track_caller]
pub(crate) fn report(what: &str, error: &dyn Error) {
    if log::max_level() < Level::Error {
        return;
    }
    let caller = Location::caller();
    let mut record = Record::builder();
    record.level(Level::Error).target(module_path!()).line(Some(caller.line()));
    let text = error_chain(error);
    record.file_static(Some(caller.file()));
    log::logger().log(&record.args(format_args!("{what}: {text}")).build());
}
