// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory files that refuse.

use super::*;

fn sealable(pages: u64) -> File {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"sealable".as_ptr(), flags) };
    assert!(fd >= 0);
    // SAFETY: a new descriptor that nothing else owns.
    let file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    file.write_all_at(&vec![7; usize::try_from(pages * PAGE).unwrap()], 0).unwrap();
    file
}

fn seal(file: &File, seals: libc::c_int) {
    use std::os::fd::AsRawFd;
    // SAFETY: fcntl on an open descriptor, without pointers.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// All of `file`, mapped at guest address 0 for reading, and for writing if `write` says so.
fn map(file: &File, write: bool) -> Arc<GuestMemory> {
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let protection = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
    let backing = FileOffset::new(file.try_clone().unwrap(), 0);
    let region = MmapRegion::build(Some(backing), len, protection, libc::MAP_SHARED).unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    Arc::new(GuestMemory::from_regions(vec![region]).unwrap())
}

/// What becomes of a report of eight pages of this memory.
fn give_back(memory: Arc<GuestMemory>) -> (Discarded, crate::metrics::Snapshot) {
    let counters = Arc::<Counters>::default();
    let options = MemoryOptions::default();
    let reclaimer = Reclaimer::new(Fallocate, options, Arc::default(), Arc::clone(&counters));
    reclaimer.set_memory(memory).unwrap();
    (reclaimer.snapshot().discard(&mut ranges(&[(0, 8 * PAGE)])), counters.snapshot())
}

#[test]
fn read_only_memory_is_skipped_without_a_call() {
    for seals in [libc::F_SEAL_WRITE, libc::F_SEAL_FUTURE_WRITE] {
        let file = sealable(8);
        seal(&file, seals);
        let (done, counted) = give_back(map(&file, false));
        assert_eq!(done, Discarded::default());
        assert_eq!(counted.skipped_bytes(SkipReason::ReadOnly), 8 * PAGE);
    }
    let writable = tempfile::NamedTempFile::new().unwrap();
    writable.as_file().set_len(8 * PAGE).unwrap();
    let (done, counted) = give_back(map(&File::open(writable.path()).unwrap(), false));
    assert_eq!(done, Discarded::default());
    assert_eq!(counted.skipped_bytes(SkipReason::ReadOnly), 8 * PAGE);
}

/// As crosvm and QEMU seal theirs.
#[test]
fn memory_of_a_sealed_size_is_given_back() {
    let file = sealable(8);
    seal(&file, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL);
    let (done, _) = give_back(map(&file, true));
    assert_eq!(done, Discarded { bytes: 8 * PAGE, calls: 1 });
    assert_eq!(file.metadata().unwrap().blocks(), 0);
}

#[test]
fn seal_added_later_is_detected_by_the_first_call() {
    let file = sealable(8);
    let counters = Arc::<Counters>::default();
    let options = MemoryOptions::default();
    let reclaimer = Reclaimer::new(Fallocate, options, Arc::default(), Arc::clone(&counters));
    reclaimer.set_memory(map(&file, true)).unwrap();
    // A mapping that is there may go on writing.
    seal(&file, libc::F_SEAL_FUTURE_WRITE);
    for _ in 0..3 {
        reclaimer.snapshot().discard(&mut ranges(&[(0, PAGE)]));
    }
    let counted = counters.snapshot();
    assert_eq!((counted.discard_calls, counted.bytes_discarded), (1, 0));
    assert_eq!(counted.errors().find(|(name, _)| *name == "EPERM"), Some(("EPERM", 1)));
    assert_eq!(counted.skipped_bytes(SkipReason::ReadOnly), 2 * PAGE);
}

/// A file system without holes: what it says once holds for good.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn what_cannot_be_punched_costs_one_call() {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let file = (|| {
        let context = rustix::mount::fsopen("ramfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(&context)?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let mount = rustix::mount::fsmount(&context, flags, MountAttrFlags::empty())?;
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR;
        rustix::fs::openat(&mount, "memory", flags, rustix::fs::Mode::RWXU)
    })();
    let file = File::from(file.unwrap());
    file.set_len(8 * PAGE).unwrap();
    let counters = Arc::<Counters>::default();
    let options = MemoryOptions::default();
    let reclaimer = Reclaimer::new(Fallocate, options, Arc::default(), Arc::clone(&counters));
    let table = reclaimer.set_memory(map(&file, true)).unwrap();
    assert_eq!(table.regions()[0].kept(), None);
    for _ in 0..3 {
        reclaimer.snapshot().discard(&mut ranges(&[(0, PAGE), (4 * PAGE, PAGE)]));
    }
    let counted = counters.snapshot();
    assert_eq!((counted.discard_calls, counted.bytes_discarded), (1, 0));
    assert_eq!(counted.skipped_bytes(SkipReason::Failed), PAGE);
    assert_eq!(counted.skipped_bytes(SkipReason::CannotPunch), 5 * PAGE);
    assert_eq!(table.regions()[0].kept(), Some(SkipReason::CannotPunch));
}
