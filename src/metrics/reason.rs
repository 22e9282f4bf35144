// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reasons not to discard, and the kernel's errors.

use strum::{EnumCount, IntoStaticStr, VariantArray};

/// Why memory was not discarded: what each stands for, as `docs/user/metrics.md` has it. Its name in metrics, summaries and the status is the
/// variant's in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[cfg_attr(test, derive(strum::EnumMessage))]
#[strum(serialize_all = "snake_case")]
pub enum SkipReason {
    /// A range of zero bytes.
    Empty,
    /// A range that ends beyond the 64-bit address space.
    Wraps,
    /// A descriptor of a report that is not device-writable (virtio 1.3, 5.5.6.7).
    NotWritable,
    /// Guest physical addresses outside the guest's memory.
    OutsideMemory,
    /// The parts of a range that fill no page of what backs the memory.
    Unaligned,
    /// Bytes that the same chain names twice.
    Overlap,
    /// Reports of a guest that fills its free pages with a value other than zero (virtio 1.3,
    /// 5.5.6.5).
    Poisoned,
    /// A descriptor chain that violates the specification: none of it is used.
    BrokenChain,
    /// Reports of a driver that has not negotiated free page reporting.
    NotNegotiated,
    /// The kernel refused; `balloon_errors_total` counts by errno.
    Failed,
    /// The session was ending.
    Stopping,
    /// The operator has paused discarding, or parked the guest.
    Paused,
    /// A live migration is in progress: a page discarded now could be wrong at the destination.
    Migrating,
    /// A postcopy migration is in progress.
    Postcopy,
    /// The operator has pinned the memory.
    Pinned,
    /// Hugetlbfs memory, without `--hugetlb`.
    Hugetlb,
    /// The memory file is read-only.
    ReadOnly,
    /// Queue 3 of a driver that negotiated hints and reporting but no statistics: it carries
    /// either.
    AmbiguousQueue,
    /// A device-writable descriptor where the device reads.
    NotReadable,
    /// A buffer, or the rest of one, that is not what its queue carries.
    Malformed,
    /// Page frame numbers or statistics beyond what the device reads of one chain.
    TooMany,
    /// Hinted pages outside a round of hinting.
    NotHinting,
    /// Reports of a guest that poisons its free pages with a value that this daemon does not know:
    /// the driver is older than the daemon.
    PoisonNotTold,
    /// The rest of a chain, because a message of the frontend was waiting.
    Yielded,
    /// A list or table that the memory file does not let the daemon read.
    Unreadable,
    /// Pages that hold a virtqueue.
    Ring,
    /// Memory of a tmpfs with a size limit, without `--allow-limited-tmpfs`.
    LimitedTmpfs,
    /// Memory that no call can discard.
    CannotPunch,
    /// Pages of the balloon, while the rest of their huge page is not in the balloon.
    Collecting,
}

impl SkipReason {
    /// Its name in summaries, metrics and the status.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// What fallocate(2) may answer and file systems add to it, with the names in metrics. The last
/// stands for every other.
pub(super) const ERRORS: [(i32, &str); 20] = [
    (libc::EPERM, "EPERM"),
    (libc::EINTR, "EINTR"),
    (libc::EIO, "EIO"),
    (libc::ENXIO, "ENXIO"),
    (libc::EBADF, "EBADF"),
    (libc::EAGAIN, "EAGAIN"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EACCES, "EACCES"),
    (libc::EBUSY, "EBUSY"),
    (libc::ENODEV, "ENODEV"),
    (libc::EINVAL, "EINVAL"),
    (libc::ETXTBSY, "ETXTBSY"),
    (libc::EFBIG, "EFBIG"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::ESPIPE, "ESPIPE"),
    (libc::EROFS, "EROFS"),
    (libc::ENOSYS, "ENOSYS"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::EDQUOT, "EDQUOT"),
    (0, "other"),
];

/// The place of an error in [`ERRORS`].
pub(super) fn error_place(error: &std::io::Error) -> usize {
    let errno = error.raw_os_error();
    ERRORS.iter().position(|(known, _)| Some(*known) == errno).unwrap_or(ERRORS.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_error_is_another() {
        let name = |errno| ERRORS[error_place(&std::io::Error::from_raw_os_error(errno))].1;
        assert_eq!(name(libc::EOPNOTSUPP), "EOPNOTSUPP");
        assert_eq!(name(libc::EXDEV), "other");
        assert_eq!(name(-1), "other");
        assert_eq!(ERRORS[error_place(&std::io::Error::other("no number"))].1, "other");
    }
}
