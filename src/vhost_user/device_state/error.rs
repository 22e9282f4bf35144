// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a state is not saved or loaded.

use std::io;
use std::time::Duration;

use serde_json::error::Category;

use crate::device::RestoreError;

/// The version of the state that this daemon writes, and the only one that it reads.
pub(crate) const VERSION: u32 = 1;

pub(super) const FORMAT: &str = "vhost-device-balloon";

/// The longest state that is read, in bytes. Ours is some hundred bytes long; a frontend must not
/// fill this process.
pub(super) const MOST_BYTES: usize = 64 << 10;

/// How long a frontend that asks whether its state has arrived may take to end it. It should have
/// closed its end before.
pub(super) const END_WITHIN: Duration = Duration::from_secs(5);

/// How long a transfer that was broken off may take to see it. Nothing but its pipe can keep it.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(1);

/// Why a state could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// The frontend's descriptor is of another kind.
    #[error("the device state comes by {0}, expected a pipe or a Unix stream socket")]
    NotAPipe(String),
    /// The one before cannot be ended.
    #[error("the transfer before has not ended {STUCK_AFTER:?} after it was broken off")]
    Stuck,
    /// Nothing was transferred.
    #[error("there is no transfer of the device state to check")]
    NoTransfer,
    /// The kernel.
    #[error("the transfer of the device state failed")]
    Transfer(#[source] io::Error),
    /// The session ended first, or another transfer began.
    #[error("the transfer of the device state was broken off")]
    BrokenOff,
    /// The frontend did not close its end.
    #[error("the device state has not come to its end {END_WITHIN:?} after it should have")]
    Endless,
    /// More than any state has.
    #[error("the device state is longer than {MOST_BYTES} bytes")]
    TooLong,
    /// It is not of this program, or damaged.
    #[error("the device state is not that of a vhost-device-balloon")]
    Unreadable(#[source] Broken),
    /// JSON of another program.
    #[error("the device state is of another format, expected {FORMAT:?}")]
    Format,
    /// Another version of this program wrote it.
    #[error("the device state has version {0}, this daemon knows version {VERSION}")]
    Version(u32),
    /// This device is another one.
    #[error("the device state does not fit this device")]
    Device(#[from] RestoreError),
}

/// Where a state cannot be read, and not what is there: that is the text of the sender.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("it {what} at line {line}, column {column}")]
pub(crate) struct Broken {
    what: &'static str,
    line: usize,
    column: usize,
}

impl From<serde_json::Error> for Broken {
    fn from(error: serde_json::Error) -> Self {
        let what = match error.classify() {
            Category::Io | Category::Eof => "breaks off",
            Category::Syntax => "is no JSON",
            Category::Data => "holds a value that does not belong there",
        };
        Self { what, line: error.line(), column: error.column() }
    }
}

pub(super) fn unreadable(error: serde_json::Error) -> StateError {
    StateError::Unreadable(error.into())
}
