//! Guest memory as the host sees it: ranges, what backs them, and the discarding of both.
//!
//! Nothing here knows a queue or a feature bit, and nothing outside makes a discarding system call.

mod discard;
mod inhibit;
mod options;
mod ranges;
mod regions;
mod writers_first;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

pub use discard::{Discarded, Fallocate, PunchHole, Reclaimer, Snapshot};
pub use inhibit::{Cause, Inhibit, MOST_PINS, Pin, PinError};
pub use options::MemoryOptions;
pub use ranges::{GuestRange, Leading, Piece, RangeError, leading, merge, round_inward, split};
pub use regions::{Region, RegionError, RegionTable};

/// Which pages were written since the frontend asked to know, for live migration.
pub type LogBitmap = BitmapMmapRegion;
/// One region of guest memory, mapped.
pub type GuestRegion = GuestRegionMmap<LogBitmap>;
/// All guest memory, mapped.
pub type GuestMemory = GuestMemoryMmap<LogBitmap>;
