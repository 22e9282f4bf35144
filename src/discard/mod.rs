// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory as the host sees it: ranges, what backs them, and the discarding of both.
//!
//! Nothing here knows a queue or a feature bit, and nothing outside makes a discarding system call.

mod backing;
mod collected;
mod dirty_log;
mod discarder;
mod dump;
mod inhibit;
mod kept;
mod options;
mod peek;
mod pins;
mod ranges;
mod regions;
mod survey;
mod writers_first;

use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

pub use backing::Backing;
pub use dirty_log::{DirtyLog, LogBitmap, LogTooSmall, RegionLog};
pub use discarder::{Fallocate, PunchHole, Reclaimer, Snapshot};
pub use dump::leave_out_of_dumps;
pub use inhibit::{Cause, Inhibit, Ticket};
pub use kept::InUse;
pub use options::MemoryOptions;
pub use peek::peek;
pub use pins::{MOST_PINS, Pin, PinError};
pub use ranges::{GuestRange, Leading, Piece, RangeError, leading, merge, round_inward, split};
pub use regions::{Region, RegionError, RegionTable};
pub(crate) use survey::{MOST_WAIT as MOST_LOOK, Survey};

/// One region of guest memory, mapped.
pub type GuestRegion = GuestRegionMmap<LogBitmap>;
/// All guest memory, mapped.
pub type GuestMemory = GuestMemoryMmap<LogBitmap>;
