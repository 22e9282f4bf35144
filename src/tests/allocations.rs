// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A report costs no heap allocation once the device has seen a few.
//!
//! The daemon's parts are put together in this process as `backend.rs` does it, over a real ring in
//! real memory, so that an allocator can count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::device::features::QueueRole;
use crate::device::{Action, Balloon, Contents, DeviceOptions};
use crate::discard::{
    Fallocate, GuestMemory, GuestRange, GuestRegion, Inhibit, MemoryOptions, Reclaimer,
};
use crate::metrics::{Counters, Named};
use crate::vhost_user::vring::{Pass, Vring};
use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::layout::RingLayout;
use guest_driver::virtio::ring::{Buffer, DriverRing};
use rustix::event::{EventfdFlags, eventfd};
use vhost_user_backend::VringT;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryAtomic, MmapRegion};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
const QUEUE_SIZE: u16 = 128;
const WARM_UP: u32 = 100;
const CHAINS: u32 = 10_000;

/// The system's allocator, which counts for each thread how often it is asked.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends may have lost it already; nobody asks that one.
    let _ = ALLOCATIONS.try_with(|counter| counter.set(counter.get() + 1));
}

// SAFETY: everything is passed on to the system's allocator as it came; counting touches a cell of
// the thread's own that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often this thread allocates in `run`.
fn allocations(run: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    run();
    ALLOCATIONS.get() - before
}

/// The daemon's own mapping of the guest's memory.
fn daemons_view(ram: &Ram) -> GuestMemory {
    let file = File::from(ram.file(0).try_clone_to_owned().unwrap());
    let len = usize::try_from(SIZE).unwrap();
    let mapped = MmapRegion::from_file(FileOffset::new(file, 0), len).unwrap();
    GuestMemory::from_regions(vec![GuestRegion::new(mapped, GuestAddress(0)).unwrap()]).unwrap()
}

/// Reports of 32 ranges each as a guest makes them: adjacent ones from high to low, scattered ones,
/// and some that do not fill their pages.
fn reports() -> [Vec<Buffer>; 3] {
    let report = |step: u64, offset: u64, len: u32| {
        let at = |i| Gpa(16 * MIB + i * step + offset);
        (0..32).rev().map(|i| Buffer::writable(at(i), len)).collect()
    };
    [report(1 << 16, 0, 1 << 16), report(1 << 17, 0, 1 << 16), report(1 << 17, 512, 1 << 16)]
}

#[test]
fn a_report_costs_no_allocation() {
    let ram = Ram::new(&RamLayout::flat(SIZE, Backing::Memfd)).unwrap();
    let layout = RingLayout::contiguous(Gpa(0), QUEUE_SIZE).unwrap();
    let mut ring = DriverRing::new(ram.clone(), layout, true).unwrap();

    let counters = Arc::<Counters>::default();
    let inhibit = Arc::<Inhibit>::default();
    // One that is in the way, and as many others as to make a search.
    for i in 0..100 {
        let _ = inhibit.pin(GuestRange::new(17 * MIB + i * MIB, 4096).unwrap()).unwrap();
    }
    let device = DeviceOptions { init_reported: true, ..DeviceOptions::default() };
    let balloon = Balloon::new(device, Arc::clone(&counters));
    balloon.set_acked_features(balloon.offered());
    balloon.write_config(12, &[0; 4], false);
    let options = MemoryOptions::default();
    let reclaimer = Reclaimer::new(Fallocate, options, inhibit, Arc::clone(&counters));
    reclaimer.set_memory(Arc::new(daemons_view(&ram))).unwrap();

    let vring = Vring::new(GuestMemoryAtomic::new(daemons_view(&ram)), QUEUE_SIZE).unwrap();
    let [desc, avail, used] = [layout.desc(), layout.avail(), layout.used()].map(|at| at.0);
    vring.set_queue_size(QUEUE_SIZE);
    vring.set_queue_info(desc, avail, used).unwrap();
    vring.set_queue_event_idx(true);
    let call: OwnedFd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    vring.set_call(Some(File::from(call)));
    vring.set_queue_ready(true);
    vring.set_enabled(true);

    let reports = reports();
    let mut worst = 0;
    for turn in 0..WARM_UP + CHAINS {
        let report = &reports[turn as usize % reports.len()];
        for buffer in report {
            let page = Gpa(buffer.addr.0.next_multiple_of(4096));
            ram.write_pattern(GpaRange::new(page, 4096).unwrap(), 1).unwrap();
        }
        ring.add_chain(report).unwrap();
        ring.publish().unwrap();
        let allocated = allocations(|| {
            let mut pass = Pass::default();
            while let Some(taken) = vring.take(&mut pass, || true, || reclaimer.snapshot()).unwrap()
            {
                let start = Instant::now();
                let memory = taken.snapshot.as_ref();
                let mut request = balloon.collect(QueueRole::Reporting, taken.head, memory);
                assert_eq!(request.action, Action::Discard);
                let Contents { ranges, zeroed, claim } = &mut *request.contents;
                taken.snapshot.discard_while(ranges, zeroed, || true);
                taken.snapshot.will_write(claim.buffers(), zeroed);
                let outcome = balloon.finish(request, memory);
                counters.served(start.elapsed());
                taken.finish(outcome).unwrap();
            }
        });
        assert!(ring.pop_used().unwrap().is_some());
        if turn >= WARM_UP {
            worst = worst.max(allocated);
        }
    }
    assert_eq!(worst, 0, "allocations for one chain");

    // It did all that: the count is of something.
    let counted = counters.snapshot();
    assert_eq!(counted.queue(Named::Reporting).chains, u64::from(WARM_UP + CHAINS));
    assert_eq!(counted.chain_time.count(), u64::from(WARM_UP + CHAINS));
    let skipped = counted.all_skipped_bytes();
    assert_eq!(counted.queue(Named::Reporting).bytes, counted.bytes_discarded + skipped);
    assert!(counted.skipped().filter(|(_, skips)| skips.bytes > 0).count() == 2, "{counted}");
    assert!(allocations(|| drop(Box::new(0))) == 1, "allocations are counted");
}
