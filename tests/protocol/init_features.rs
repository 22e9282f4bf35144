// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device says of the pages that it has discarded (DEVICE_INIT_REPORTED,
//! DEVICE_INIT_ON_INFLATE): only what is true, over a real socket with real memory.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange, GuestRam};
use guest_driver::virtio::balloon::feature;
use guest_driver::virtio::ring::Buffer;
use rustix::fs::{SealFlags, fcntl_add_seals};
use serde_json::json;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment, DirtyLog};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::hugetlb::Pool;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const INFLATE: u16 = 0;
const REPORTING: u16 = 2;
const TIMEOUT: Duration = Duration::from_secs(20);
const BOTH: [&str; 2] = ["--experimental-init-reported", "--experimental-init-on-inflate"];
/// Where the list and the bitmap lie in the scratch area, in bytes.
const LIST: u64 = 0;
const BITMAP: u64 = 0x8000;
/// What a bitmap and the bytes behind it hold before.
const UNTOUCHED: u8 = 0xee;

fn start(more: &[&str]) -> (DaemonProcess, ControlSocket) {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let daemon = DaemonProcess::spawn_controlled(binary, [&BOTH, more].concat()).unwrap();
    let control = ControlSocket::new(&daemon.control_socket(), TIMEOUT);
    (daemon, control)
}

fn ram() -> Ram {
    Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap()
}

fn attach(daemon: &DaemonProcess, ram: &Ram, options: AttachOptions) -> Attachment {
    Attachment::connect(&daemon.socket(), ram, options).unwrap()
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

/// Reports these ranges as one chain, all filled; returns its used length.
///
/// A report that is called zero has to be zero.
fn report(guest: &mut Attachment, ranges: &[(u64, u64)]) -> u32 {
    let ram = guest.ram().clone();
    let ranges: Vec<GpaRange> = ranges.iter().map(|&(start, len)| range(start, len)).collect();
    for page in ranges.iter().flat_map(|range| ram.whole_pages(*range)) {
        ram.write_pattern(page, 1).unwrap();
    }
    let buffer =
        |range: &GpaRange| Buffer::writable(range.start(), u32::try_from(range.len()).unwrap());
    let buffers: Vec<Buffer> = ranges.iter().map(buffer).collect();
    let used = guest.submit_and_wait(REPORTING, &buffers).unwrap();
    if used.len > 0 {
        assert!(ranges.iter().all(|range| ram.is_zero(*range).unwrap()), "a wrong claim");
        assert_eq!(u64::from(used.len), ranges.iter().map(|range| range.len()).sum::<u64>());
    }
    used.len
}

/// Inflates these pages, all filled, with a bitmap of `room` bytes; returns the bytes of it that were
/// written.
fn inflate(guest: &mut Attachment, pages: &[u64], room: u32) -> Vec<u8> {
    let ram = guest.ram().clone();
    // The rings lie below, and must stay as they are.
    let own = guest.scratch().start().0;
    let fills = |page: &&u64| **page >= own && ram.contains(range(**page, PAGE));
    for page in pages.iter().filter(fills) {
        ram.write_pattern(range(*page, PAGE), 1).unwrap();
    }
    let at = Gpa(guest.scratch().start().0 + BITMAP);
    let before = [UNTOUCHED; 64];
    ram.write(at, &before).unwrap();
    let used = send(guest, pages, &[Buffer::writable(at, room)]);
    let mut bitmap = before;
    ram.read(at, &mut bitmap).unwrap();
    let (written, rest) = bitmap.split_at(usize::try_from(used).unwrap());
    assert!(rest.iter().all(|byte| *byte == UNTOUCHED), "{bitmap:x?}");
    for (number, page) in pages.iter().enumerate() {
        let bit = written.get(number / 8).is_some_and(|byte| byte >> (number % 8) & 1 == 1);
        assert!(!bit || ram.is_zero(range(*page, PAGE)).unwrap(), "a wrong claim of {page:#x}");
    }
    written.to_vec()
}

/// Inflates these pages with these buffers behind the list; returns the used length.
fn send(guest: &mut Attachment, pages: &[u64], behind: &[Buffer]) -> u32 {
    let pfn = |page: &u64| u32::try_from(page / PAGE).unwrap().to_le_bytes();
    let list: Vec<u8> = pages.iter().flat_map(pfn).collect();
    let at = Gpa(guest.scratch().start().0 + LIST);
    guest.ram().write(at, &list).unwrap();
    let list = Buffer::readable(at, u32::try_from(list.len()).unwrap());
    guest.submit_and_wait(INFLATE, &[&[list], behind].concat()).unwrap().len
}

#[test]
fn report_discarded_whole_has_its_length_as_used() {
    let (daemon, _) = start(&[]);
    let mut guest = attach(&daemon, &ram(), AttachOptions::default());
    assert_eq!(report(&mut guest, &[(8 * MIB, MIB)]), 1 << 20);
    assert_eq!(report(&mut guest, &[(10 * MIB, MIB), (9 * MIB, MIB), (12 * MIB, PAGE)]), 0x20_1000);
    // Over the border of two regions of two files: both parts are discarded.
    assert_eq!(report(&mut guest, &[(15 * MIB, 2 * MIB)]), 2 << 20);
    // What was zero before is zero.
    let again = [Buffer::writable(Gpa(8 * MIB), 1 << 20)];
    assert_eq!(guest.submit_and_wait(REPORTING, &again).unwrap().len, 1 << 20);
    assert_eq!(guest.submit_and_wait(REPORTING, &again).unwrap().len, 1 << 20);
}

#[test]
fn report_of_which_a_byte_stays_is_not_claimed() {
    let (daemon, control) = start(&[]);
    let ram = ram();
    let mut guest = attach(&daemon, &ram, AttachOptions::default());
    let good = (8 * MIB, MIB);
    for bad in [
        // Less than a page on either side; less than a page at all.
        (10 * MIB + 1, MIB - 1),
        (10 * MIB, MIB - 1),
        (10 * MIB + 16, 64),
        // The same page twice; what lies in a hole, in part and as a whole.
        (9 * MIB - PAGE, PAGE),
        (23 * MIB, 2 * MIB),
        (26 * MIB, MIB),
    ] {
        assert_eq!(report(&mut guest, &[good, bad]), 0, "{bad:x?}");
    }
    // A buffer that is no report: only readable, empty, past the end of the address space.
    for odd in [
        Buffer::readable(Gpa(10 * MIB), 4096),
        Buffer::writable(Gpa(10 * MIB), 0),
        Buffer::writable(Gpa(u64::MAX), 4096),
    ] {
        let buffers = [Buffer::writable(Gpa(8 * MIB), 1 << 20), odd];
        let buffers = if odd.addr == Gpa(10 * MIB) && odd.len > 0 {
            [buffers[1], buffers[0]]
        } else {
            buffers
        };
        assert_eq!(guest.submit_and_wait(REPORTING, &buffers).unwrap().len, 0, "{odd:?}");
    }
    // The ring itself.
    assert_eq!(report_ring(&mut guest), 0);

    let pin = json!({"address": 8 * MIB + 5 * PAGE, "bytes": 1}).to_string();
    control.done("PUT", "/v1/pins", &pin).unwrap();
    assert_eq!(report(&mut guest, &[good]), 0);
    assert_eq!(report(&mut guest, &[(9 * MIB, MIB)]), 1 << 20);
    control.done("DELETE", "/v1/pins", &pin).unwrap();
    assert_eq!(report(&mut guest, &[good]), 1 << 20);

    control.done("POST", "/v1/pause", "").unwrap();
    assert_eq!(report(&mut guest, &[good]), 0);
    control.done("POST", "/v1/resume", "").unwrap();
    assert_eq!(report(&mut guest, &[good]), 1 << 20);

    guest.set_log(&DirtyLog::new(Gpa(64 * MIB)).unwrap()).unwrap();
    guest.set_logging(true).unwrap();
    assert_eq!(report(&mut guest, &[good]), 0);
    guest.set_logging(false).unwrap();
    assert_eq!(report(&mut guest, &[good]), 1 << 20);

    // From now on every call fails for the second file.
    fcntl_add_seals(ram.file(1), SealFlags::FUTURE_WRITE).unwrap();
    assert_eq!(report(&mut guest, &[(15 * MIB, 2 * MIB)]), 0);
    assert_eq!(report(&mut guest, &[(15 * MIB, MIB)]), 1 << 20);
}

/// Reports the memory around the rings, which the device uses.
fn report_ring(guest: &mut Attachment) -> u32 {
    let rings = guest.scratch().start().0 - PAGE;
    let buffers = [Buffer::writable(Gpa(rings), 4096)];
    guest.submit_and_wait(REPORTING, &buffers).unwrap().len
}

#[test]
fn claims_need_a_feature_and_zero_as_the_poison() {
    let (daemon, _) = start(&[]);
    let known = AttachOptions::KNOWN_FEATURES;
    let default = AttachOptions::default();
    let neither = known & !feature::DEVICE_INIT_REPORTED & !feature::DEVICE_INIT_ON_INFLATE;
    let unpoisoned = known & !feature::PAGE_POISON;
    for (options, length, bits) in [
        (AttachOptions { features: neither, ..default.clone() }, 0, &[][..]),
        (AttachOptions { features: unpoisoned, poison: None, ..default.clone() }, 4096, &[1]),
        (default.clone(), 4096, &[1]),
        // Zero is not what such a guest takes for initialized.
        (AttachOptions { poison: Some(0xaaaa_aaaa), ..default.clone() }, 0, &[0]),
    ] {
        let mut guest = attach(&daemon, &ram(), options);
        assert_eq!(report(&mut guest, &[(8 * MIB, PAGE)]), length);
        assert_eq!(inflate(&mut guest, &[9 * MIB], 16), bits);
    }
    // A driver that told its poison to another daemon.
    let (fresh, _) = start(&[]);
    let mut guest = attach(&fresh, &ram(), AttachOptions { poison: None, ..default });
    assert_eq!(report(&mut guest, &[(8 * MIB, PAGE)]), 0);
    assert_eq!(inflate(&mut guest, &[9 * MIB], 16), [0]);
}

#[test]
fn memory_on_a_disk_is_discarded_and_not_claimed() {
    let (daemon, _) = start(&["--allow-file-memory"]);
    let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::File)).unwrap();
    let mut guest = attach(&daemon, &ram, AttachOptions::default());
    assert_eq!(report(&mut guest, &[(8 * MIB, MIB)]), 0);
    assert_eq!(inflate(&mut guest, &[9 * MIB], 16), [0]);
}

#[test]
#[ignore = "needs huge pages: cargo xtask test"]
fn hugetlb_report_is_claimed_in_whole_pages_only() {
    const HUGE: u64 = 2 * MIB;
    let _pool = Pool::with_free(HUGE, 4 * HUGE).unwrap();
    let mut layout = RamLayout::default();
    let (lists, huge) =
        (layout.file(Backing::Memfd), layout.file(Backing::Hugetlb { page_bytes: HUGE }));
    let layout = layout.region(Gpa(0), MIB, lists, 0).region(Gpa(64 * MIB), 8 * MIB, huge, 0);
    let ram = Ram::new(&layout).unwrap();
    let (daemon, _) = start(&["--hugetlb"]);
    let mut guest = attach(&daemon, &ram, AttachOptions::default());
    assert_eq!(report(&mut guest, &[(64 * MIB, 2 * HUGE)]), 4 << 20);
    assert_eq!(report(&mut guest, &[(64 * MIB, HUGE + MIB)]), 0);
    // Pages of the balloon are collected to huge ones: only the list that fills one is told so.
    let pages: Vec<u64> = (0..512).map(|page| 66 * MIB + page * PAGE).collect();
    assert_eq!(inflate(&mut guest, &pages[..256], 32), [0; 32]);
    assert_eq!(inflate(&mut guest, &pages[256..], 32), [0xff; 32]);
}

#[test]
fn inflated_pages_have_a_bit_each() {
    let (daemon, control) = start(&[]);
    let mut guest = attach(&daemon, &ram(), AttachOptions::default());
    let page = |number: u64| 8 * MIB + number * PAGE;
    // Not memory, and the ring.
    let mut pages: Vec<u64> = (0..20).rev().map(page).collect();
    pages[3] = 26 * MIB;
    pages[9] = guest.scratch().start().0 - PAGE;
    pages[10] = page(3);
    assert_eq!(inflate(&mut guest, &pages, 16), [0b1111_0111, 0b1111_1101, 0b0000_1111]);
    // No more than fits, and no more than is needed.
    assert_eq!(inflate(&mut guest, &pages, 1), [0b1111_0111]);
    assert_eq!(inflate(&mut guest, &pages[..8], 16), [0b1111_0111]);
    let pin = json!({"address": page(1), "bytes": 1}).to_string();
    control.done("PUT", "/v1/pins", &pin).unwrap();
    assert_eq!(inflate(&mut guest, &[page(0), page(1), page(2)], 16), [0b101]);
    control.done("POST", "/v1/pause", "").unwrap();
    assert_eq!(inflate(&mut guest, &[page(0), page(1), page(2)], 16), [0]);
    control.done("POST", "/v1/resume", "").unwrap();
    // The bitmap of a report's chain is a report.
    assert_eq!(report(&mut guest, &[(10 * MIB, PAGE)]), 4096);
}

#[test]
fn hostile_bitmap_is_not_written_past_its_end() {
    let (daemon, _) = start(&[]);
    let ram = ram();
    let mut guest = attach(&daemon, &ram, AttachOptions::default());
    let scratch = guest.scratch().start().0;
    let pages: Vec<u64> = (0..16).map(|page| 8 * MIB + page * PAGE).collect();
    let guard = range(9 * MIB, MIB);
    ram.write_pattern(guard, 1).unwrap();
    let before = ram.resident_bytes().unwrap();
    let list = Buffer::readable(Gpa(scratch), 64);
    let good = Gpa(scratch + BITMAP);
    ram.write(good, &[UNTOUCHED; 8]).unwrap();
    for behind in [
        // None; empty; no memory; past the end of memory and of the address space; not writable.
        vec![],
        vec![Buffer::writable(good, 0)],
        vec![Buffer::writable(Gpa(26 * MIB), 8)],
        vec![Buffer::writable(Gpa(24 * MIB - 1), 8)],
        vec![Buffer::writable(Gpa(u64::MAX), 8)],
        vec![Buffer::readable(good, 8)],
        // Never touched: the daemon's memory cgroup would be charged.
        vec![Buffer::writable(Gpa(11 * MIB), 8)],
        // Within a page of this very list, which is a hole by then.
        vec![Buffer::writable(Gpa(8 * MIB + 2 * PAGE), 8)],
        // Behind it another list.
        vec![Buffer::writable(good, 8), list],
    ] {
        let used = send(&mut guest, &pages, &behind);
        assert_eq!(used, 0, "{behind:?}");
        let mut bitmap = [0; 8];
        ram.read(good, &mut bitmap).unwrap();
        assert_eq!(bitmap, [UNTOUCHED; 8], "{behind:?}");
    }
    // Over the list itself, which was read before.
    assert_eq!(send(&mut guest, &pages, &[Buffer::writable(Gpa(scratch), 2)]), 2);
    // One byte at a time.
    let bytes = [Buffer::writable(good, 1), Buffer::writable(Gpa(good.0 + 4), u32::MAX)];
    assert_eq!(send(&mut guest, &pages, &bytes), 2);
    let mut bitmap = [0; 8];
    ram.read(good, &mut bitmap).unwrap();
    assert_eq!(bitmap, [0xff, UNTOUCHED, UNTOUCHED, UNTOUCHED, 0xff, 0xee, 0xee, 0xee]);
    ram.verify_pattern(guard, 1).unwrap();
    assert!(ram.resident_bytes().unwrap() <= before + 2 * 16 * PAGE, "holes were filled");
    assert_eq!(inflate(&mut guest, &pages, 16), [0xff, 0xff]);
}
