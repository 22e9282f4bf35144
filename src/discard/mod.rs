// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory as the host sees it: ranges, what backs them, and the discarding of both.
//!
//! Nothing here knows a queue or a feature bit, and nothing outside makes a discarding system call.

mod backing;
mod collected;
mod dirty_log;
mod discarder;
mod dump;
#[cfg(test)]
mod exhaustive;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod inhibit;
mod kept;
mod log_pages;
mod options;
mod peek;
mod pins;
mod poke;
mod ranges;
#[cfg(fuzzing)]
pub(crate) mod recorded;
mod regions;
mod survey;
mod writers_first;
mod zeroed;

use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

pub use backing::Backing;
pub(crate) use backing::Shown;
pub(crate) use dirty_log::{DirtyLog, LogBitmap};
#[cfg(any(test, fuzzing))]
pub(crate) use discarder::PunchHole;
pub(crate) use discarder::{Fallocate, Reclaimer, Snapshot};
pub(crate) use dump::leave_out_of_dumps;
pub(crate) use inhibit::{Cause, Inhibit, Ticket};
pub(crate) use kept::InUse;
pub(crate) use options::MemoryOptions;
pub(crate) use peek::peek;
pub(crate) use pins::{Pin, PinError};
pub(crate) use poke::poke;
pub(crate) use ranges::{GuestRange, RangeError};
pub(crate) use regions::{Region, RegionTable};
pub(crate) use survey::{Look, MOST_WAIT as MOST_LOOK, Survey};
pub(crate) use zeroed::Zeroed;

/// One region of guest memory, mapped.
pub(crate) type GuestRegion = GuestRegionMmap<LogBitmap>;
/// All guest memory, mapped.
pub(crate) type GuestMemory = GuestMemoryMmap<LogBitmap>;
