//! Why memory was left alone, and which errors the kernel gave.

/// Why reported memory was not discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// A range of no bytes.
    Empty,
    /// A range that passes the end of the address space.
    Wraps,
    /// A descriptor that the device may not write: no report (virtio 1.3, 5.5.6.7).
    NotWritable,
    /// Guest physical addresses that are not guest memory.
    OutOfMemory,
    /// The parts of a range that do not fill a page of what backs it.
    Unaligned,
    /// Bytes that the same chain had named already.
    Overlap,
    /// The guest poisons its free pages with a value other than zero (virtio 1.3, 5.5.6.5).
    Poisoned,
    /// A descriptor chain that breaks off or breaks the rules: none of it is trusted.
    BrokenChain,
    /// The guest has not negotiated free page reporting.
    NotNegotiated,
    /// The kernel refused.
    Failed,
    /// The session was ending.
    Stopping,
    /// The operator has paused discarding.
    Paused,
    /// The guest is being migrated: what is discarded now could be missed at the destination.
    Migrating,
    /// A postcopy migration is under way.
    Postcopy,
    /// The operator has pinned the memory.
    Pinned,
    /// Memory of hugetlbfs, which is not given back unless an option says so.
    Hugetlb,
    /// What backs the memory may not be written, and so not punched.
    ReadOnly,
    /// A queue of which the acked features do not say whether it reports or hints.
    AmbiguousQueue,
    /// A descriptor that the device may only write, where it was to read.
    NotReadable,
    /// A buffer, or what is left of one, that is not what its queue carries.
    Malformed,
    /// More page frame numbers or statistics than are read of one chain.
    TooMany,
    /// Hinted pages that nobody has asked for, or not any more.
    NotHinting,
    /// The guest poisons its free pages and has not told this daemon with what: its driver has
    /// outlived another one.
    PoisonNotTold,
    /// A control message of the frontend came first: none waits for more than one discarding call.
    Yielded,
    /// Bytes of a list or table that could not be read from the memory file.
    Unreadable,
    /// Pages that hold a ring: the device uses them.
    Ring,
}

/// Every [`SkipReason`] with the name it has in summaries and metrics.
pub(super) const REASONS: [(SkipReason, &str); 26] = [
    (SkipReason::Empty, "empty"),
    (SkipReason::Wraps, "wraps"),
    (SkipReason::NotWritable, "not_writable"),
    (SkipReason::OutOfMemory, "out_of_memory"),
    (SkipReason::Unaligned, "unaligned"),
    (SkipReason::Overlap, "overlap"),
    (SkipReason::Poisoned, "poisoned"),
    (SkipReason::BrokenChain, "broken_chain"),
    (SkipReason::NotNegotiated, "not_negotiated"),
    (SkipReason::Failed, "failed"),
    (SkipReason::Stopping, "stopping"),
    (SkipReason::Paused, "paused"),
    (SkipReason::Migrating, "migrating"),
    (SkipReason::Postcopy, "postcopy"),
    (SkipReason::Pinned, "pinned"),
    (SkipReason::Hugetlb, "hugetlb"),
    (SkipReason::ReadOnly, "read_only"),
    (SkipReason::AmbiguousQueue, "ambiguous_queue"),
    (SkipReason::NotReadable, "not_readable"),
    (SkipReason::Malformed, "malformed"),
    (SkipReason::TooMany, "too_many"),
    (SkipReason::NotHinting, "not_hinting"),
    (SkipReason::PoisonNotTold, "poison_not_told"),
    (SkipReason::Yielded, "yielded"),
    (SkipReason::Unreadable, "unreadable"),
    (SkipReason::Ring, "ring"),
];

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
    fn every_reason_has_its_own_place() {
        for (place, (reason, _)) in REASONS.iter().enumerate() {
            assert_eq!(*reason as usize, place);
        }
    }

    #[test]
    fn an_unknown_error_is_another() {
        let name = |errno| ERRORS[error_place(&std::io::Error::from_raw_os_error(errno))].1;
        assert_eq!(name(libc::EOPNOTSUPP), "EOPNOTSUPP");
        assert_eq!(name(libc::EXDEV), "other");
        assert_eq!(name(-1), "other");
        assert_eq!(ERRORS[error_place(&std::io::Error::other("no number"))].1, "other");
    }
}
