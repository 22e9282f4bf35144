// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reasons not to discard, and the kernel's errors.

use strum::{EnumCount, IntoStaticStr, VariantArray};

/// Why reported memory was not discarded. Its name in metrics, summaries and the status is the
/// variant's in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum SkipReason {
    /// A range of no bytes.
    Empty,
    /// A range that passes the end of the address space.
    Wraps,
    /// A descriptor that the device may not write: no report (virtio 1.3, 5.5.6.7).
    NotWritable,
    /// Guest physical addresses that are not guest memory.
    OutsideMemory,
    /// The parts of a range that do not fill a page of what backs it.
    Unaligned,
    /// Bytes that the same chain had named already.
    Overlap,
    /// The guest poisons its free pages with a value other than zero (virtio 1.3, 5.5.6.5).
    Poisoned,
    /// A descriptor chain that violates the specification: none of it is used.
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
    /// Memory of hugetlbfs, which is not discarded unless an option allows it.
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
    /// Hinted pages outside a round of hinting.
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
    /// Memory of a tmpfs with a size limit, which is not discarded unless an option allows it.
    LimitedTmpfs,
    /// What backs the memory supports no discarding call.
    CannotPunch,
    /// Pages of the balloon whose larger page of the host is not all in it yet.
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

    /// A reason that is documented nowhere, or a row for none.
    #[test]
    fn every_reason_is_documented() {
        let page = include_str!("../../docs/user/control.md");
        let table = page.split_once("| Reason |").expect("the table of reasons").1;
        let rows = table.lines().skip(2).take_while(|line| line.starts_with("| `"));
        let documented: Vec<_> = rows.filter_map(|row| row.split('`').nth(1)).collect();
        let names: Vec<_> = SkipReason::VARIANTS.iter().map(|reason| reason.name()).collect();
        assert_eq!(documented, names);
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
