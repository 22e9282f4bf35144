//! Guest memory as the host sees it: ranges, what backs them, and the discarding of both.
//!
//! Nothing here knows a queue or a feature bit, and nothing outside makes a discarding system call.

mod discard;
mod ranges;
mod regions;

pub use discard::{Discarded, Fallocate, PunchHole, Reclaimer, Snapshot};
pub use ranges::{GuestRange, Piece, RangeError, merge, round_inward, split};
pub use regions::{Region, RegionError, RegionTable};
