//! Guest memory as the host sees it: ranges, what backs them, and the discarding of both.
//!
//! Nothing here knows a queue or a feature bit, and nothing outside makes a discarding system call.

mod backing;
mod collected;
mod discard;
mod dump;
mod inhibit;
mod kept;
mod log_bitmap;
mod options;
mod peek;
mod ranges;
mod regions;
mod writers_first;

use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

pub use backing::Backing;
pub use discard::{Discarded, Fallocate, PunchHole, Reclaimer, Snapshot};
pub use dump::leave_out_of_dumps;
pub use inhibit::{Cause, Inhibit, MOST_PINS, Pin, PinError, Ticket};
pub use kept::InUse;
pub use log_bitmap::{DirtyLog, LogBitmap, LogTooSmall, RegionLog};
pub use options::MemoryOptions;
pub use peek::peek;
pub use ranges::{GuestRange, Leading, Piece, RangeError, leading, merge, round_inward, split};
pub use regions::{Region, RegionError, RegionTable};

/// One region of guest memory, mapped.
pub type GuestRegion = GuestRegionMmap<LogBitmap>;
/// All guest memory, mapped.
pub type GuestMemory = GuestMemoryMmap<LogBitmap>;
