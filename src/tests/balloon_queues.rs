// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Statistics, hints and the queue layouts over a real socket with real memory, with the daemon's
//! session in this process, where what the operator does can be done.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange, GuestRam};
use guest_driver::virtio::balloon::{self, BalloonQueue, QueueNumbering};
use guest_driver::virtio::ring::Buffer;
use tempfile::TempDir;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, FileOffset, GuestAddress, MmapRegion};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;
use vmm_sys_util::eventfd::EventFd;

use crate::device::chain::ChainHead;
use crate::device::{Balloon, DeviceOptions, HintingState, QueueRole, Sample};
use crate::discard::{GuestMemory, GuestRegion, MemoryOptions, PunchHole, Reclaimer};
use crate::metrics::SkipReason;
use crate::state::State;
use crate::vhost_user::Session;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const TIMEOUT: Duration = Duration::from_secs(20);

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

/// Writes down what would be punched.
#[derive(Default)]
struct Recorder(Mutex<Vec<(u64, u64)>>);

impl PunchHole for &Recorder {
    fn punch_hole(&self, _file: &File, offset: u64, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().push((offset, len));
        Ok(())
    }
}

/// No huge page has to be free: none is touched.
#[test]
fn huge_page_named_whole_by_one_chain_is_discarded() {
    const HUGE: u64 = 2 * MIB;
    const LISTS: u64 = 1 << 30;
    let map = |name: &std::ffi::CStr, flags| {
        // SAFETY: the name is a C string, and the descriptor is new and owned by nobody else.
        let file = unsafe {
            File::from_raw_fd(libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | flags))
        };
        file.set_len(2 * HUGE).unwrap();
        MmapRegion::from_file(FileOffset::new(file, 0), 2 * 2048 * 1024).unwrap()
    };
    let flags = libc::MFD_HUGETLB | 21 << libc::MFD_HUGE_SHIFT;
    let regions = [(0, map(c"huge", flags)), (LISTS, map(c"lists", 0))]
        .map(|(start, mapped)| GuestRegion::new(mapped, GuestAddress(start)).unwrap());
    let memory = Arc::new(GuestMemory::from_regions(regions.into()).unwrap());

    let (recorder, counters) = (Recorder::default(), Arc::default());
    let options = MemoryOptions { hugetlb: true, ..MemoryOptions::default() };
    let reclaimer = Reclaimer::new(&recorder, options, Arc::default(), Arc::clone(&counters));
    reclaimer.set_memory(Arc::clone(&memory)).unwrap();
    let balloon = Balloon::new(DeviceOptions::default(), Arc::clone(&counters));
    let inflate = |pages: Vec<u64>| {
        memory.write_slice(&pfns(pages.iter().copied()), GuestAddress(LISTS + PAGE)).unwrap();
        let len = u32::try_from(4 * pages.len()).unwrap();
        let list = Descriptor::new(LISTS + PAGE, len, 0, 0);
        memory.write_obj(list, GuestAddress(LISTS)).unwrap();
        let head = ChainHead { table: GuestAddress(LISTS), queue_size: 1, index: 0 };
        let snapshot = reclaimer.snapshot();
        let mut request = balloon.collect(QueueRole::Inflate, head, &memory);
        snapshot.discard(&mut request.contents.ranges);
        balloon.finish(request, &memory);
    };
    let page: Vec<u64> = (0..HUGE / PAGE).map(|i| HUGE + (i * 31 % 512) * PAGE).collect();
    let (first, second) = page.split_at(256);
    inflate(first.to_vec());
    inflate(second.to_vec());
    assert_eq!(*recorder.0.lock().unwrap(), [], "the device keeps no pages from chain to chain");
    assert_eq!(counters.snapshot().skipped_bytes(SkipReason::Unaligned), HUGE);
    inflate(page.clone());
    assert_eq!(*recorder.0.lock().unwrap(), [(HUGE, HUGE)]);
    assert_eq!(counters.snapshot().bytes_discarded, HUGE);
}

/// A device in this process, for one frontend.
struct Device {
    state: Arc<State>,
    dir: TempDir,
}

impl Device {
    fn new(options: DeviceOptions) -> Self {
        options.check().unwrap();
        let state = Arc::new(State::new(options, MemoryOptions::default()));
        Self { state, dir: TempDir::new().unwrap() }
    }

    /// With everything that it can offer.
    fn complete() -> Self {
        Self::new(DeviceOptions {
            statistics: true,
            free_page_hints: true,
            deflate_on_oom: true,
            must_tell_host: true,
            ..DeviceOptions::default()
        })
    }

    /// Serves the frontend that `attach` makes of the socket's path, once the session `before` is
    /// over: there is one at a time.
    fn serve<T>(&self, before: Option<Session>, attach: impl FnOnce(&Path) -> T) -> (T, Session) {
        let path = self.dir.path().join("socket");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let ended = EventFd::new(libc::EFD_CLOEXEC).unwrap();
        thread::scope(|scope| {
            let accept = move || {
                let stream = listener.accept()?.0;
                before.into_iter().for_each(Session::join);
                Ok((stream, None))
            };
            let session = scope.spawn(|| Session::start(accept, ended, &self.state));
            let guest = attach(&path);
            (guest, session.join().unwrap().unwrap())
        })
    }

    fn attach(&self, ram: &Ram, options: AttachOptions) -> (Attachment, Session) {
        self.serve(None, |path| Attachment::connect(path, ram, options).unwrap())
    }

    /// Waits until a sample is there that is not `before`.
    fn sample(&self, before: Option<&Sample>) -> Sample {
        wait_until(TIMEOUT, Duration::from_millis(1), || match self.state.balloon.statistics() {
            Some(sample) if before.is_none_or(|before| before.at != sample.at) => Ok(sample),
            other => Err(format!("{other:?}")),
        })
        .unwrap()
    }
}

/// A statistics buffer that says how much memory is free.
fn statistics(free_bytes: u64) -> Vec<u8> {
    [&4_u16.to_le_bytes()[..], &free_bytes.to_le_bytes()].concat()
}

/// Adds a statistics buffer, and waits for nothing.
fn tell(guest: &mut Attachment, queue: u16, offset: u64, free_bytes: u64) -> u16 {
    let buffer = write(guest, offset, &statistics(free_bytes));
    let head = guest.ring(queue).unwrap().add_chain(&[buffer]).unwrap();
    guest.publish(queue).unwrap();
    head
}

#[test]
fn statistics_buffer_survives_stop_and_new_backend() {
    let (device, ram) = (Device::complete(), ram());
    let (mut guest, session) = device.attach(&ram, AttachOptions::default());
    let queue = guest.index(BalloonQueue::Stats).unwrap();
    let head = tell(&mut guest, queue, 0, 77);
    let first = device.sample(None);
    assert_eq!(first.values.free_bytes, Some(77));

    // What was kept counts as not taken; cloud-hypervisor's base is what was made available.
    assert_eq!(guest.stop_queue(queue).unwrap(), 0);
    guest.start_queue(queue, 1).unwrap();
    let second = device.sample(Some(&first));
    assert_eq!(second.values.free_bytes, Some(77));
    assert_eq!(guest.ring(queue).unwrap().pop_used().unwrap(), None);

    // The VMM connects again, under the same driver.
    let (mut guest, session) = device.serve(Some(session), |path| guest.reconnect(path).unwrap());
    let third = device.sample(Some(&second));
    assert_eq!(third.values.free_bytes, Some(77));
    assert_eq!(guest.ring(queue).unwrap().pop_used().unwrap(), None);

    // Asked for another, the device gives it back.
    device.state.frontend().unwrap().poll_statistics().unwrap();
    let used = guest.wait_used(queue, TIMEOUT).unwrap().unwrap();
    assert_eq!((used.id, used.len), (head, 0));
    let head = tell(&mut guest, queue, 0, 78);
    let third = device.sample(Some(&third));
    assert_eq!(third.values.free_bytes, Some(78));

    // A driver that sends another without being asked takes the first one back.
    tell(&mut guest, queue, 64, 88);
    let used = guest.wait_used(queue, TIMEOUT).unwrap();
    let used = used.expect("the first buffer is still with the device");
    assert_eq!((used.id, used.len), (head, 0));
    assert_eq!(device.sample(Some(&third)).values.free_bytes, Some(88));
    drop(guest);
    session.join();
}

/// Sends a hint of a mebibyte at `start`; says whether it was discarded.
fn hint(guest: &mut Attachment, queue: u16, start: u64) -> bool {
    let ram = guest.ram().clone();
    ram.write_pattern(range(start, MIB), 1).unwrap();
    let hint = Buffer::writable(Gpa(start), 1 << 20);
    guest.submit_and_wait(queue, &[hint]).unwrap();
    ram.is_zero(range(start, MIB)).unwrap()
}

/// Sends a command ID.
fn command(guest: &mut Attachment, queue: u16, id: u32) {
    send(guest, queue, &id.to_le_bytes());
}

#[test]
fn hinting_round_discards_memory_and_ends_with_done() {
    let (device, ram) = (Device::complete(), ram());
    let (mut guest, session) = device.attach(&ram, AttachOptions::default());
    let queue = guest.index(BalloonQueue::FreePage).unwrap();
    let balloon = &device.state.balloon;
    assert!(!hint(&mut guest, queue, 8 * MIB), "nobody asked");
    for _ in 0..2 {
        balloon.start_hinting().unwrap();
        let id = guest.get_config().unwrap().free_page_hint_cmd_id;
        assert!(!hint(&mut guest, queue, 8 * MIB), "not of this round");
        command(&mut guest, queue, id);
        let before = ram.resident_bytes().unwrap();
        assert!(hint(&mut guest, queue, 8 * MIB));
        assert!(hint(&mut guest, queue, 9 * MIB));
        assert!(ram.resident_bytes().unwrap() <= before - MIB);
        command(&mut guest, queue, 0);
        // The main thread tells the driver, after a while; there is none here.
        wait_until(TIMEOUT, Duration::from_millis(5), || {
            device.state.tell_driver().map_err(|error| error.to_string())?;
            let told = guest.wait_config_change(Duration::ZERO);
            told.is_ok_and(|told| told).then_some(()).ok_or_else(|| "not told".to_owned())
        })
        .unwrap();
        assert_eq!(guest.get_config().unwrap().free_page_hint_cmd_id, 1);
        let status = balloon.hinting();
        assert_eq!((status.state, status.bytes), (HintingState::Done, 2 * MIB));
        assert!(!hint(&mut guest, queue, 9 * MIB), "the driver has its pages again");
    }
    balloon.start_hinting().unwrap();
    let id = guest.get_config().unwrap().free_page_hint_cmd_id;
    command(&mut guest, queue, id);
    balloon.stop_hinting().unwrap();
    assert_eq!(guest.get_config().unwrap().free_page_hint_cmd_id, 1);
    assert!(!hint(&mut guest, queue, 9 * MIB), "stopped");
    drop(guest);
    session.join();
}

/// Sends a report of a mebibyte at `start`; says whether it was discarded.
fn report(guest: &mut Attachment, queue: u16, start: u64) -> bool {
    hint(guest, queue, start)
}

#[test]
fn queue_combinations_are_served_in_both_numberings() {
    let optional =
        [balloon::feature::STATS_VQ, balloon::feature::FREE_PAGE_HINT, balloon::feature::REPORTING];
    for combination in 0..8_usize {
        let left_out: u64 =
            (0..3).filter(|bit| combination >> bit & 1 == 0).map(|bit| optional[bit]).sum();
        for numbering in [QueueNumbering::Linux, QueueNumbering::Specification] {
            let device = Device::complete();
            let features = AttachOptions::KNOWN_FEATURES & !left_out;
            let options = AttachOptions { features, numbering, ..AttachOptions::default() };
            let (mut guest, session) = device.attach(&ram(), options);
            let name = format!("combination {combination:#b}, {numbering:?}");
            // Hints without statistics, and reports: queue 3 is either's.
            let ambiguous = |index: u16| combination == 0b110 && index == 3;

            send(&mut guest, INFLATE, &pfns([8 * MIB]));
            send(&mut guest, DEFLATE, &pfns([8 * MIB]));
            if let Some(index) = guest.index(BalloonQueue::Stats) {
                tell(&mut guest, index, 0, 5);
                assert_eq!(device.sample(None).values.free_bytes, Some(5), "{name}");
            }
            if let Some(index) = guest.index(BalloonQueue::FreePage) {
                device.state.balloon.start_hinting().unwrap();
                let id = guest.get_config().unwrap().free_page_hint_cmd_id;
                command(&mut guest, index, id);
                assert_eq!(hint(&mut guest, index, 8 * MIB), !ambiguous(index), "{name}");
            }
            if let Some(index) = guest.index(BalloonQueue::Reporting) {
                assert_eq!(report(&mut guest, index, 9 * MIB), !ambiguous(index), "{name}");
            }
            let counted = device.state.counters.snapshot();
            assert_eq!(
                counted.skipped_bytes(SkipReason::AmbiguousQueue) > 0,
                combination == 0b110,
                "{name}: {counted}"
            );
            drop(guest);
            session.join();
        }
    }
}
