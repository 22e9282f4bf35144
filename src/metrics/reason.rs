// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why memory was left alone, and which errors the kernel gave.

/// Declares each reason with its name in summaries and metrics, so that none is without.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $reason:ident = $name:literal,)+) => {
        /// Why reported memory was not discarded.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum SkipReason {
            $($(#[doc = $doc])+ $reason,)+
        }

        /// The name of each [`SkipReason`], at the place that it has as a number.
        pub(super) const REASONS: [&str; [$($name),+].len()] = [$($name),+];
    };
}

reasons! {
    /// A range of no bytes.
    Empty = "empty",
    /// A range that passes the end of the address space.
    Wraps = "wraps",
    /// A descriptor that the device may not write: no report (virtio 1.3, 5.5.6.7).
    NotWritable = "not_writable",
    /// Guest physical addresses that are not guest memory.
    OutOfMemory = "out_of_memory",
    /// The parts of a range that do not fill a page of what backs it.
    Unaligned = "unaligned",
    /// Bytes that the same chain had named already.
    Overlap = "overlap",
    /// The guest poisons its free pages with a value other than zero (virtio 1.3, 5.5.6.5).
    Poisoned = "poisoned",
    /// A descriptor chain that breaks off or breaks the rules: none of it is trusted.
    BrokenChain = "broken_chain",
    /// The guest has not negotiated free page reporting.
    NotNegotiated = "not_negotiated",
    /// The kernel refused.
    Failed = "failed",
    /// The session was ending.
    Stopping = "stopping",
    /// The operator has paused discarding.
    Paused = "paused",
    /// The guest is being migrated: what is discarded now could be missed at the destination.
    Migrating = "migrating",
    /// A postcopy migration is under way.
    Postcopy = "postcopy",
    /// The operator has pinned the memory.
    Pinned = "pinned",
    /// Memory of hugetlbfs, which is not given back unless an option says so.
    Hugetlb = "hugetlb",
    /// What backs the memory may not be written, and so not punched.
    ReadOnly = "read_only",
    /// A queue of which the acked features do not say whether it reports or hints.
    AmbiguousQueue = "ambiguous_queue",
    /// A descriptor that the device may only write, where it was to read.
    NotReadable = "not_readable",
    /// A buffer, or what is left of one, that is not what its queue carries.
    Malformed = "malformed",
    /// More page frame numbers or statistics than are read of one chain.
    TooMany = "too_many",
    /// Hinted pages that nobody has asked for, or not any more.
    NotHinting = "not_hinting",
    /// The guest poisons its free pages and has not told this daemon with what: its driver has
    /// outlived another one.
    PoisonNotTold = "poison_not_told",
    /// A control message of the frontend came first: none waits for more than one discarding call.
    Yielded = "yielded",
    /// Bytes of a list or table that could not be read from the memory file.
    Unreadable = "unreadable",
    /// Pages that hold a ring: the device uses them.
    Ring = "ring",
    /// Memory of a tmpfs with a size limit, which is not given back unless an option says so.
    LimitedTmpfs = "limited_tmpfs",
    /// What backs the memory cannot give pages back at all.
    CannotPunch = "cannot_punch",
    /// Pages of the balloon whose larger page of the host is not all in it yet.
    Collecting = "collecting",
}

impl SkipReason {
    /// Its name in summaries, metrics and the status.
    pub fn name(self) -> &'static str {
        REASONS[self as usize]
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
    fn reason_has_the_place_of_its_name() {
        assert_eq!(REASONS[SkipReason::Empty as usize], "empty");
        assert_eq!(REASONS[SkipReason::PoisonNotTold as usize], "poison_not_told");
        let names: std::collections::BTreeSet<_> = REASONS.into_iter().collect();
        assert_eq!(names.len(), REASONS.len(), "each name is there once");
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
