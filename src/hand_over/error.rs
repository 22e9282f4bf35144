// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a daemon cannot go on from what another one left.

use std::io;

use crate::device::RestoreError;
use crate::discard::PinError;

/// Of the record and the journal together.
pub(crate) const VERSION: u32 = 1;

/// See the module. Everything stays in the store as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandOverError {
    /// The text cannot be read.
    #[error("the state of the daemon before this one is damaged")]
    Unreadable(#[source] serde_json::Error),
    /// It is not ours.
    #[error("the state of the daemon before this one is that of another program")]
    Format,
    /// It is of another version.
    #[error(
        "the daemon before this one left a state of version {0}, and this one takes version {VERSION}"
    )]
    Version(u32),
    /// The device does not take it.
    #[error("the state of the daemon before this one does not fit")]
    Balloon(#[from] RestoreError),
    /// A pin does not fit.
    #[error("a pin of the daemon before this one does not fit")]
    Pin(#[source] PinError),
    /// A range is none.
    #[error("a pin of the daemon before this one is no range of memory")]
    Range,
    /// A descriptor cannot be read.
    #[error("cannot {0} what the daemon before this one left")]
    Io(&'static str, #[source] io::Error),
    /// Something is missing.
    #[error("of what the daemon before this one left, {0} is missing")]
    Missing(&'static str),
}
