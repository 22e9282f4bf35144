// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::device::chain::{ChainHead, Outcome};
use std::cell::RefCell;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const SIZE: u16 = 4;

impl Vring {
    /// Serves every chain on the available ring with `serve`, as the backend does.
    fn drain<S: AsRef<GuestMemory>>(
        &self,
        keep_on: impl Fn() -> bool,
        snapshot: impl Fn() -> S,
        mut serve: impl FnMut(&S, ChainHead) -> Outcome,
    ) -> Result<(), RingError> {
        let mut pass = Pass::default();
        while let Some(taken) = self.take(&mut pass, &keep_on, &snapshot)? {
            let outcome = serve(&taken.snapshot, taken.head);
            taken.finish(outcome)?;
        }
        Ok(())
    }
}

/// A driver that writes a ring of four descriptors by hand.
struct Driver {
    memory: Memory,
    vring: Vring,
    call: EventFd,
}

impl Driver {
    fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let memory = Memory::new(memory);
        let vring = Vring::new(memory.clone(), 256).unwrap();
        let call = EventFd::new(EFD_NONBLOCK).unwrap();
        let driver = Self { memory, vring, call };
        for index in 0..u64::from(SIZE) {
            driver.write(TABLE + 16 * index, Descriptor::new(0x4000, 16, 0, 0));
        }
        driver.start(USED, 0);
        // The table has traces of use, and a driver that has every chain back is notified.
        let _ = driver.call.read();
        driver
    }

    /// What a frontend does with a queue that is to go on at `base`.
    fn start(&self, used_ring: u64, base: u16) {
        self.vring.set_queue_size(SIZE);
        self.vring.set_queue_next_avail(base);
        self.vring.set_queue_info(TABLE, AVAIL, used_ring).unwrap();
        let used = self.vring.queue_used_idx().unwrap();
        self.vring.set_queue_next_used(used);
        // SAFETY: the descriptor is new, and nobody else's.
        let call = unsafe {
            use std::os::fd::{FromRawFd, IntoRawFd};
            File::from_raw_fd(self.call.try_clone().unwrap().into_raw_fd())
        };
        self.vring.set_call(Some(call));
        self.vring.set_queue_ready(true);
        self.vring.set_enabled(true);
    }

    fn write<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.memory().write_obj(value, GuestAddress(at)).unwrap();
    }

    /// Makes the chain that begins at `head` available.
    fn add(&self, head: u16) {
        let index: u16 = self.memory.memory().read_obj(GuestAddress(AVAIL + 2)).unwrap();
        self.write(AVAIL + 4 + 2 * u64::from(index % SIZE), head);
        self.write(AVAIL + 2, index.wrapping_add(1));
    }

    /// The heads of the chains that came back, all of length 0.
    fn returned(&self) -> Vec<u32> {
        let memory = self.memory.memory();
        let count: u16 = memory.read_obj(GuestAddress(USED + 2)).unwrap();
        (0..u64::from(count))
            .map(|i| {
                let entry: [u32; 2] =
                    memory.read_obj(GuestAddress(USED + 4 + 8 * (i % 4))).unwrap();
                assert_eq!(entry[1], 0);
                entry[0]
            })
            .collect()
    }

    fn return_kept(&self) -> bool {
        self.vring.return_kept(|| self.snapshot()).unwrap()
    }

    fn snapshot(&self) -> Arc<GuestMemory> {
        Arc::new(GuestMemory::clone(&self.memory.memory()))
    }

    /// The heads that are served with this outcome.
    fn serve(&self, outcome: Outcome) -> Vec<u16> {
        let served = RefCell::new(Vec::new());
        self.vring
            .drain(
                || true,
                || self.snapshot(),
                |_, head| {
                    served.borrow_mut().push(head.index);
                    outcome
                },
            )
            .unwrap();
        served.into_inner()
    }
}

#[test]
fn a_chain_is_kept_until_it_is_asked_for() {
    let driver = Driver::new();
    assert!(!driver.return_kept());
    driver.add(2);
    assert_eq!(driver.serve(Outcome::Keep), [2]);
    assert_eq!(driver.returned(), [0_u32; 0]);
    assert_eq!(driver.serve(Outcome::Keep), [0_u16; 0]);
    assert!(driver.call.read().is_err(), "there is nothing to say");
    assert!(driver.return_kept());
    assert_eq!(driver.returned(), [2]);
    assert_eq!(driver.call.read().unwrap(), 1);
    assert!(!driver.return_kept());
}

#[test]
fn one_chain_is_kept_and_the_order_stays() {
    let driver = Driver::new();
    for head in [3, 0, 1] {
        driver.add(head);
    }
    assert_eq!(driver.serve(Outcome::Keep), [3, 0, 1]);
    assert_eq!(driver.returned(), [3, 0]);
    driver.add(2);
    assert_eq!(driver.serve(Outcome::Return), [2]);
    assert_eq!(driver.returned(), [3, 0, 1, 2]);
    assert!(!driver.return_kept());
}

#[test]
fn kept_chain_is_available_after_a_queue_restart() {
    let driver = Driver::new();
    driver.add(1);
    driver.serve(Outcome::Return);
    driver.add(2);
    driver.serve(Outcome::Keep);
    driver.vring.set_queue_ready(false);
    assert!(!driver.return_kept(), "nothing is written to a queue that stands");
    // The chain counts as not taken, for whoever goes on with this queue.
    assert_eq!(driver.vring.queue_next_avail(), 1);
    // cloud-hypervisor's base is what the driver has made available.
    driver.start(USED, 2);
    assert!(!driver.return_kept());
    assert_eq!(driver.serve(Outcome::Keep), [2]);
    assert!(driver.return_kept());
    assert_eq!(driver.returned(), [1, 2]);
}

#[test]
fn what_a_dead_daemon_had_taken_is_seen_again() {
    let driver = Driver::new();
    driver.add(1);
    driver.serve(Outcome::Return);
    driver.add(2);
    driver.add(3);
    driver.serve(Outcome::Keep);
    assert_eq!(driver.returned(), [1, 2]);
    let again = Driver { vring: Vring::new(driver.memory.clone(), 256).unwrap(), ..driver };
    again.start(USED, 3);
    assert_eq!(again.serve(Outcome::Return), [3]);
    assert_eq!(again.returned(), [1, 2, 3]);
}

#[test]
fn a_disabled_queue_puts_its_chain_back() {
    let driver = Driver::new();
    driver.add(1);
    driver.serve(Outcome::Keep);
    driver.vring.set_enabled(false);
    assert!(!driver.return_kept());
    driver.vring.set_enabled(true);
    assert!(!driver.return_kept());
    assert_eq!(driver.serve(Outcome::Keep), [1]);
    assert!(driver.return_kept());
}

/// A driver that is reset starts its rings again, and may well put them where they were.
#[test]
fn a_queue_that_is_enabled_again_is_looked_at_again() {
    let driver = Driver::new();
    for head in [0, 1, 2] {
        driver.add(head);
    }
    assert_eq!(driver.serve(Outcome::Return), [0, 1, 2]);
    driver.vring.set_enabled(false);
    driver.write(AVAIL + 2, 0_u16);
    driver.write(USED + 2, 0_u16);
    driver.vring.set_queue_info(TABLE, AVAIL, USED).unwrap();
    driver.vring.set_enabled(true);
    driver.add(3);
    assert_eq!(driver.serve(Outcome::Return), [3]);
    assert_eq!(driver.returned(), [3]);
}

/// Dirty logging begins with the addresses of queues that run.
#[test]
fn only_changed_addresses_are_another_ring() {
    let driver = Driver::new();
    driver.add(1);
    driver.serve(Outcome::Keep);
    driver.vring.set_queue_info(TABLE, AVAIL, USED).unwrap();
    // What the framework read before the worker returned a chain.
    driver.vring.set_queue_next_used(7);
    assert!(driver.return_kept());
    assert_eq!(driver.returned(), [1]);
    driver.add(2);
    driver.serve(Outcome::Keep);
    driver.vring.set_queue_info(TABLE, AVAIL, USED + 0x1000).unwrap();
    assert!(!driver.return_kept(), "the chain is not the new ring's");
    assert_eq!(driver.serve(Outcome::Return), [1, 2]);
}

/// After it the used ring would be behind, and later chains would be served twice.
#[test]
fn chain_past_the_table_stops_the_queue_until_restart() {
    let driver = Driver::new();
    let (served, snapshot) = (RefCell::new(Vec::new()), || driver.snapshot());
    let drain = || {
        driver.vring.drain(
            || true,
            snapshot,
            |_, head| {
                served.borrow_mut().push(head.index);
                Outcome::Return
            },
        )
    };
    for head in [1, SIZE, 2] {
        driver.add(head);
    }
    assert!(matches!(drain(), Err(RingError::Head(SIZE))));
    assert_eq!(driver.call.read().unwrap(), 1, "the chain before it is notified");
    driver.add(3);
    drain().unwrap();
    assert!(!driver.return_kept());
    assert_eq!((served.take(), driver.returned()), (vec![1], vec![1]));

    driver.vring.set_queue_ready(false);
    assert_eq!(driver.vring.queue_next_avail(), 1, "the chain that cannot be returned");
    driver.vring.set_queue_ready(true);
    assert!(matches!(drain(), Err(RingError::Head(SIZE))), "it is still there");
    // The driver mends its ring while the queue stands still, and is reset.
    driver.write(AVAIL + 4 + 2, 0_u16);
    driver.vring.set_enabled(false);
    driver.vring.set_enabled(true);
    drain().unwrap();
    assert_eq!((served.take(), driver.returned().len()), (vec![0, 2, 3], 4));
}

#[test]
fn chain_that_cannot_be_returned_stops_the_queue() {
    let driver = Driver::new();
    // Its index lies in memory, its entries do not.
    let used = 0x10000 - 4;
    driver.vring.set_queue_info(TABLE, AVAIL, used).unwrap();
    driver.add(1);
    driver.add(2);
    let served = RefCell::new(Vec::new());
    let drain = || {
        driver.vring.drain(
            || true,
            || driver.snapshot(),
            |_, head| {
                served.borrow_mut().push(head.index);
                Outcome::Return
            },
        )
    };
    assert!(matches!(drain(), Err(RingError::Used(_))));
    drain().unwrap();
    assert_eq!(*served.borrow(), [1]);
    driver.vring.set_queue_info(TABLE, AVAIL, USED).unwrap();
    drain().unwrap();
    assert_eq!(*served.borrow(), [1, 1, 2]);
    assert_eq!(driver.returned(), [1, 2]);
}

/// What the worker touches while a region is removed is what the answer waits for.
#[test]
fn rings_are_touched_through_the_snapshot_alone() {
    let driver = Driver::new();
    driver.add(1);
    driver.add(2);
    let snapshot = driver.snapshot();
    driver.memory.lock().unwrap().replace(GuestMemory::new());
    let outcomes = RefCell::new(vec![Outcome::Keep, Outcome::Return]);
    let next = |_: &_, _| outcomes.borrow_mut().pop().unwrap();
    driver.vring.drain(|| true, || Arc::clone(&snapshot), next).unwrap();
    assert!(driver.vring.return_kept(|| Arc::clone(&snapshot)).unwrap());
    let used: u16 = snapshot.read_obj(GuestAddress(USED + 2)).unwrap();
    assert_eq!(used, 2);
    assert!(driver.call.read().is_ok());
}

/// The library counts chains in 16 bits, and so would take 65536 of them for none.
#[test]
fn any_number_of_chains_is_notified() {
    let driver = Driver::new();
    driver.vring.set_queue_event_idx(true);
    // The driver wants to hear of the chain that comes next.
    driver.write(AVAIL + 4 + 2 * u64::from(SIZE), u16::MAX);
    let mut left = 1_u32 << 16;
    driver.add(1);
    let serve = |_: &_, _| {
        left -= 1;
        if left > 0 {
            driver.add(1);
        }
        Outcome::Return
    };
    driver.vring.drain(|| true, || driver.snapshot(), serve).unwrap();
    assert_eq!(driver.call.read().unwrap(), 1);
}
