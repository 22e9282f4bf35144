// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The inflate and the deflate queue over a real socket with real memory.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use guest_driver::{
    ram::{Gpa, GpaRange, GuestRam},
    virtio::ring::Buffer,
};

use std::{path::Path, time::Duration};

use vmm_integration::{
    daemon::{DaemonOptions, DaemonProcess},
    frontend::{AttachOptions, Attachment},
    guest_memory::{Backing, Ram, RamLayout},
};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const TIMEOUT: Duration = Duration::from_secs(20);

fn start() -> DaemonProcess {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    DaemonProcess::spawn(binary, &DaemonOptions::default()).unwrap()
}

fn ram() -> Ram {
    Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap()
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

/// Has the device read `bytes` as one chain of `queue` and return it.
fn send(guest: &mut Attachment, queue: u16, bytes: &[u8]) {
    let buffer = write(guest, 0, bytes);
    let used = guest.submit_and_wait(queue, &[buffer]).unwrap();
    assert_eq!(used.len, 0);
}

/// Writes `bytes` to the scratch area, `offset` bytes from its start.
fn write(guest: &Attachment, offset: u64, bytes: &[u8]) -> Buffer {
    let at = Gpa(guest.scratch().start().0 + offset);
    guest.ram().write(at, bytes).unwrap();
    Buffer::readable(at, u32::try_from(bytes.len()).unwrap())
}

/// The page frame numbers of `pages`, as a list.
fn pfns(pages: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let pfn = |page: u64| u32::try_from(page / PAGE).unwrap().to_le_bytes();
    pages.into_iter().flat_map(pfn).collect()
}

/// Every page of a mebibyte, the last one first.
fn descending(start: u64) -> impl Iterator<Item = u64> {
    (0..MIB / PAGE).rev().map(move |i| start + i * PAGE)
}

#[test]
fn inflated_memory_is_discarded_and_refilled_on_touch() {
    let daemon = start();
    let ram = ram();
    // The balloon's pages may go whatever the guest fills its pages with: only reports may not.
    let options = AttachOptions { poison: Some(0xaaaa_aaaa), ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
    ram.write_pattern(range(8 * MIB, 3 * MIB), 1).unwrap();
    // The lists take memory, too.
    write(&guest, 0, &[0]);
    let before = ram.resident_bytes().unwrap();

    send(&mut guest, INFLATE, &pfns(descending(9 * MIB)));
    assert_eq!(before - ram.resident_bytes().unwrap(), MIB);
    assert!(ram.is_zero(range(9 * MIB, MIB)).unwrap());
    ram.verify_pattern(range(8 * MIB, MIB), 1).unwrap();
    ram.verify_pattern(range(10 * MIB, MIB), 1).unwrap();

    send(&mut guest, DEFLATE, &pfns(descending(9 * MIB)));
    assert_eq!(before - ram.resident_bytes().unwrap(), MIB, "nothing comes back untouched");
    ram.write_pattern(range(9 * MIB, MIB), 2).unwrap();
    ram.verify_pattern(range(9 * MIB, MIB), 2).unwrap();
    assert_eq!(ram.resident_bytes().unwrap(), before);

    drop(guest);
    let summary = daemon.session_summary(TIMEOUT).unwrap();
    assert_eq!((summary.chains, summary.bytes_discarded), (0, MIB));
    // All 256 pages of the list are one range, and one call.
    assert_eq!(summary.discard_calls, 1);
}

/// As Linux does: the driver says what is in the balloon, and the device shows it to nobody else.
#[test]
fn the_balloon_has_the_size_that_the_driver_writes() {
    let daemon = start();
    let ram = ram();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    assert_eq!(guest.get_config().unwrap().num_pages, 0);
    guest.use_balloon().unwrap();
    // QEMU passes the whole space on, the device's own fields included.
    let written = [7_u32, 300, 9, 0].map(u32::to_le_bytes).concat();
    guest.write_config(0, &written).unwrap();
    let config = guest.get_config().unwrap();
    assert_eq!((config.num_pages, config.actual, config.free_page_hint_cmd_id), (0, 300, 0));
}

#[test]
fn hostile_page_lists_lose_only_the_pages_they_name() {
    let daemon = start();
    let ram = ram();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    let kept = range(8 * MIB, 2 * MIB);
    ram.write_pattern(kept, 1).unwrap();
    let lists = pfns(descending(8 * MIB));
    let list = write(&guest, 0, &lists);
    let nowhere = write(&guest, 4096, &u32::MAX.to_le_bytes());
    for queue in [INFLATE, DEFLATE] {
        for buffers in [
            // Not readable, empty, less than a number, not memory, past the end of memory.
            vec![Buffer::writable(list.addr, list.len)],
            vec![Buffer::readable(list.addr, 0)],
            vec![Buffer::readable(list.addr, 3)],
            vec![Buffer::readable(Gpa(1 << 44), u32::MAX)],
            vec![Buffer::readable(Gpa(u64::MAX), u32::MAX)],
            vec![nowhere; 100],
        ] {
            guest.submit_and_wait(queue, &buffers).unwrap();
        }
    }
    ram.verify_pattern(kept, 1).unwrap();
    send(&mut guest, INFLATE, &pfns([8 * MIB]));
    assert!(ram.is_zero(range(8 * MIB, PAGE)).unwrap());
}
