// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whatever backs the guest's memory: what of it is given back over a real socket, and what is not.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::balloon_driver::Notify;
use guest_driver::virtio::ring::Buffer;
use rustix::fs::{SealFlags, fcntl_add_seals};
use vmm_integration::daemon::{DaemonOptions, DaemonProcess, Summary};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;
use vmm_integration::measure::hugetlb::Pool;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const REPORTING: u16 = 2;
const TIMEOUT: Duration = Duration::from_secs(20);

fn start(args: &[&str]) -> DaemonProcess {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let args = args.iter().map(Into::into).collect();
    DaemonProcess::spawn(binary, &DaemonOptions { args, ..DaemonOptions::default() }).unwrap()
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

fn report(range: GpaRange) -> Buffer {
    Buffer::writable(range.start(), u32::try_from(range.len()).unwrap())
}

fn attach(daemon: &DaemonProcess, ram: &Ram) -> Attachment {
    Attachment::connect(&daemon.socket(), ram, AttachOptions::default()).unwrap()
}

fn summary(daemon: &DaemonProcess, guest: Attachment) -> Summary {
    drop(guest);
    daemon.session_summary(TIMEOUT).unwrap()
}

/// In two regions of one file, the second at an offset: fills memory around a border of pages of
/// `page` bytes, reports the middle, and looks at what is left of it. Returns what was given back
/// of how much.
fn give_back(args: &[&str], backing: Backing) -> (u64, u64, Summary) {
    let page = backing.page_bytes().max(MIB);
    let mut layout = RamLayout::default();
    let file = layout.file(backing);
    // Rings in the first page.
    let layout = layout.region(Gpa(0), page, file, 0).region(Gpa(8 * GIB), 4 * page, file, page);
    let ram = Ram::new(&layout).unwrap();
    let daemon = start(args);
    let mut guest = attach(&daemon, &ram);
    let all = range(8 * GIB, 4 * page);
    ram.write_pattern(all, 1).unwrap();
    let before = ram.resident_bytes().unwrap();
    // Half a page too much on either side.
    let half = backing.page_bytes() / 2;
    let middle = range(8 * GIB + page - half, 2 * page + 2 * half);
    guest.submit_and_wait(REPORTING, &[report(middle)]).unwrap();
    let given = before - ram.resident_bytes().unwrap();
    for kept in [range(8 * GIB, page), range(8 * GIB + 3 * page, page)] {
        ram.verify_pattern(kept, 1).unwrap();
    }
    let middle = range(8 * GIB + page, 2 * page);
    if given == 0 {
        ram.verify_pattern(middle, 1).unwrap();
    } else {
        assert!(ram.is_zero(middle).unwrap());
    }
    (given, 2 * page, summary(&daemon, guest))
}

#[test]
fn memory_files_and_regular_files_are_given_back() {
    for (backing, args) in [(Backing::Memfd, vec![]), (Backing::File, vec!["--allow-file-memory"])]
    {
        let (given, all, summary) = give_back(&args, backing);
        assert_eq!((given, summary.discard_calls), (all, 1), "{backing:?}");
        assert_eq!(summary.skipped_bytes["unaligned"], 4096);
    }
}

/// Whole huge pages and parts of them alike: the kernel splits those.
#[test]
#[ignore = "needs transparent huge pages: cargo xtask test"]
fn transparent_huge_pages_are_given_back_in_any_size() {
    let ram = Ram::new(&RamLayout::flat(64 * MIB, Backing::Transparent)).unwrap();
    let daemon = start(&[]);
    let mut guest = attach(&daemon, &ram);
    ram.write_pattern(range(16 * MIB, 16 * MIB), 1).unwrap();
    let before = ram.resident_bytes().unwrap();
    let (whole, part) = (range(18 * MIB, 4 * MIB), range(24 * MIB + 4096, 8192));
    guest.submit_and_wait(REPORTING, &[report(whole), report(part)]).unwrap();
    for given in [whole, part] {
        assert!(ram.is_zero(given).unwrap());
    }
    for (from, to) in [(16 * MIB, 18 * MIB), (22 * MIB, 24 * MIB + 4096)] {
        ram.verify_pattern(range(from, to - from), 1).unwrap();
    }
    let rest = part.end().unwrap().0;
    ram.verify_pattern(range(rest, 32 * MIB - rest), 1).unwrap();
    // A huge page that cannot be split at once goes back when it can be; its part is zero anyway.
    let given = before - ram.resident_bytes().unwrap();
    assert!(given >= whole.len(), "{given} bytes given back");
    assert_eq!(summary(&daemon, guest).bytes_discarded, whole.len() + part.len());
}

fn give_back_hugetlb(page_bytes: u64) {
    let _pool = Pool::with_free(page_bytes, 5 * page_bytes).unwrap();
    let backing = Backing::Hugetlb { page_bytes };
    let (given, all, summary) = give_back(&["--hugetlb"], backing);
    assert_eq!((given, summary.bytes_discarded), (all, all));
    assert_eq!(summary.skipped_bytes["unaligned"], page_bytes);
    let (given, all, summary) = give_back(&[], backing);
    assert_eq!((given, summary.discard_calls), (0, 0));
    assert_eq!(summary.skipped_bytes["hugetlb"], all + page_bytes);
}

#[test]
#[ignore = "needs huge pages: cargo xtask test"]
fn hugetlb_is_discarded_in_whole_pages_if_allowed() {
    give_back_hugetlb(2 * MIB);
}

#[test]
#[ignore = "needs huge pages of 1 GiB: cargo xtask test"]
fn hugetlb_of_1_gib_is_discarded_if_allowed() {
    give_back_hugetlb(GIB);
}

/// A seal that leaves the mappings alone can come when the frontend has attached.
#[test]
fn memory_that_is_sealed_later_is_kept() {
    let ram = Ram::new(&RamLayout::flat(32 * MIB, Backing::Memfd)).unwrap();
    let daemon = start(&[]);
    let mut guest = attach(&daemon, &ram);
    fcntl_add_seals(ram.file(0), SealFlags::FUTURE_WRITE).unwrap();
    let kept = range(16 * MIB, MIB);
    ram.write_pattern(kept, 1).unwrap();
    for _ in 0..3 {
        guest.submit_and_wait(REPORTING, &[report(kept)]).unwrap();
    }
    ram.verify_pattern(kept, 1).unwrap();
    let summary = summary(&daemon, guest);
    assert_eq!((summary.discard_calls, summary.bytes_discarded), (1, 0));
    assert_eq!(summary.skipped_bytes["read_only"], 2 * MIB);
}

/// The frontend takes regions away and gives them back while the guest reports all its memory
/// without a pause. What is gone is kept from the answer on; what is back is given back.
#[test]
fn memory_comes_and_goes_while_chains_are_in_flight() {
    const TURNS: u16 = 100;
    let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
    let daemon = start(&[]);
    let mut guest = attach(&daemon, &ram);
    let (mut ring, mut line) = guest.take_queue(REPORTING).unwrap();
    // One in each region, with a neighbour that is never reported; the first two meet at the seam.
    let reported =
        [range(15 * MIB, MIB), range(16 * MIB, MIB), range(33 * MIB, MIB), range(40 * MIB, MIB)];
    let neighbours = [range(14 * MIB, MIB), range(17 * MIB, MIB), range(34 * MIB, MIB)];
    neighbours.iter().for_each(|range| ram.write_pattern(*range, 1).unwrap());

    let (stop, returned) = (AtomicBool::new(false), AtomicU64::new(0));
    let chain = reported.map(report);
    thread::scope(|scope| {
        // Also when an assertion fails.
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                ring.add_chain(&chain).unwrap();
                ring.publish().unwrap();
                if ring.kick_needed().unwrap() {
                    line.kick();
                }
                while ring.pop_used().unwrap().is_none() {
                    assert!(line.wait(Some(TIMEOUT)), "a chain was not returned");
                }
                returned.fetch_add(1, Ordering::Release);
            }
        });
        // Chains that were begun from here on, and have come back.
        let chains = |more: u64| {
            let until = returned.load(Ordering::Acquire) + more + 1;
            wait_until(TIMEOUT, Duration::from_micros(50), || {
                let now = returned.load(Ordering::Acquire);
                if now >= until { Ok(()) } else { Err(format!("{now} of {until} chains")) }
            })
            .unwrap();
        };
        for turn in 1..=TURNS {
            // The second shares a file with the memory that stays.
            let region = 1 + usize::from(turn % 2);
            let inside = reported[region];
            guest.remove_region(region).unwrap();
            ram.write_pattern(inside, turn).unwrap();
            chains(2);
            ram.verify_pattern(inside, turn).unwrap();
            guest.add_region(region).unwrap();
            chains(2);
            assert!(ram.is_zero(inside).unwrap(), "turn {turn}");
        }
    });
    neighbours.iter().for_each(|range| ram.verify_pattern(*range, 1).unwrap());
    let summary = summary(&daemon, guest);
    assert!(summary.chains >= u64::from(TURNS) * 6);
    assert!(summary.skipped_bytes["outside_memory"] >= u64::from(TURNS) * 2 * MIB);
}

/// Stops the reporting thread at the end of a scope.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
