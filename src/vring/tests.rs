use super::*;
use std::cell::RefCell;
use virtio_queue::desc::split::Descriptor;
use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const SIZE: u16 = 4;

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

    /// The heads that are served with this outcome.
    fn serve(&self, outcome: Outcome) -> Vec<u16> {
        let served = RefCell::new(Vec::new());
        let memory = Arc::new(GuestMemory::clone(&self.memory.memory()));
        self.vring
            .drain(
                || true,
                || Arc::clone(&memory),
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
    assert!(!driver.vring.return_kept().unwrap());
    driver.add(2);
    assert_eq!(driver.serve(Outcome::Keep), [2]);
    assert_eq!(driver.returned(), [0_u32; 0]);
    assert_eq!(driver.serve(Outcome::Keep), [0_u16; 0]);
    assert!(driver.call.read().is_err(), "there is nothing to say");
    assert!(driver.vring.return_kept().unwrap());
    assert_eq!(driver.returned(), [2]);
    assert_eq!(driver.call.read().unwrap(), 1);
    assert!(!driver.vring.return_kept().unwrap());
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
    assert!(!driver.vring.return_kept().unwrap());
}

#[test]
fn a_kept_chain_is_seen_again_when_the_queue_starts_again() {
    let driver = Driver::new();
    driver.add(1);
    driver.serve(Outcome::Return);
    driver.add(2);
    driver.serve(Outcome::Keep);
    driver.vring.set_queue_ready(false);
    assert!(!driver.vring.return_kept().unwrap(), "nothing is written to a queue that stands");
    // The chain counts as not taken, for whoever goes on with this queue.
    assert_eq!(driver.vring.queue_next_avail(), 1);
    // cloud-hypervisor's base is what the driver has made available.
    driver.start(USED, 2);
    assert!(!driver.vring.return_kept().unwrap());
    assert_eq!(driver.serve(Outcome::Keep), [2]);
    assert!(driver.vring.return_kept().unwrap());
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
    assert!(!driver.vring.return_kept().unwrap());
    driver.vring.set_enabled(true);
    assert!(!driver.vring.return_kept().unwrap());
    assert_eq!(driver.serve(Outcome::Keep), [1]);
    assert!(driver.vring.return_kept().unwrap());
}

/// A driver that is reset starts its rings anew, and may well put them where they were.
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

/// Each reset of the device brings a new kick, and nobody watches the one before.
#[test]
fn a_kick_that_is_replaced_while_the_queue_is_disabled_is_let_go() {
    let driver = Driver::new();
    let kick = || {
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        Some(File::from(fd))
    };
    let retired = || driver.vring.shared.retired.lock().unwrap().len();
    driver.vring.set_kick(kick());
    driver.vring.set_queue_ready(true);
    driver.vring.set_kick(kick());
    assert_eq!(retired(), 1, "the queue ran");
    driver.vring.set_queue_ready(true);
    driver.vring.set_enabled(false);
    driver.vring.set_kick(kick());
    assert_eq!(retired(), 1);
    assert!(!driver.vring.get_ref().get_queue().ready(), "it is to be started again");
}

/// Dirty logging begins with the addresses of queues that run.
#[test]
fn addresses_that_come_again_change_nothing_and_others_are_another_ring() {
    let driver = Driver::new();
    driver.add(1);
    driver.serve(Outcome::Keep);
    driver.vring.set_queue_info(TABLE, AVAIL, USED).unwrap();
    // What the framework read before the worker returned a chain.
    driver.vring.set_queue_next_used(7);
    assert!(driver.vring.return_kept().unwrap());
    assert_eq!(driver.returned(), [1]);
    driver.add(2);
    driver.serve(Outcome::Keep);
    driver.vring.set_queue_info(TABLE, AVAIL, USED + 0x1000).unwrap();
    assert!(!driver.vring.return_kept().unwrap(), "the chain is not the new ring's");
    assert_eq!(driver.serve(Outcome::Return), [1, 2]);
}
