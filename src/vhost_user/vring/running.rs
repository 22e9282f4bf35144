// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which queues run, where their rings lie, and which the VMM has.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use log::warn;
use virtio_queue::{Queue, QueueT};

use crate::device::features::NUM_QUEUES;
use crate::discard::{GuestRange, InUse};
use crate::lock::lock;
use crate::wake::Wake;

/// The three parts of one split virtqueue in guest memory.
type Places = [Option<GuestRange>; 3];

/// Tells the rest of the daemon which queues run, for every frontend alike.
///
/// A queue runs while it is started (`VHOST_USER_SET_VRING_KICK` until `VHOST_USER_GET_VRING_BASE`)
/// and enabled. A frontend enables queues by `VHOST_USER_SET_VRING_ENABLE`, or all at once by
/// features without `VHOST_USER_F_PROTOCOL_FEATURES`, as user-mode Linux does.
#[derive(Debug, Default)]
pub(crate) struct Rings {
    running: Mutex<[Option<Places>; NUM_QUEUES]>,
    version: AtomicU64,
    /// A bit for each queue that has had a call descriptor.
    called: AtomicU8,
    on_start: Mutex<Vec<Arc<Wake>>>,
}

impl Rings {
    fn running_queues(&self) -> MutexGuard<'_, [Option<Places>; NUM_QUEUES]> {
        lock(&self.running)
    }

    /// Whether any queue runs.
    pub(crate) fn any_running(&self) -> bool {
        self.running_queues().iter().any(Option::is_some)
    }

    /// Which queues run, by queue index.
    pub(crate) fn running(&self) -> [bool; NUM_QUEUES] {
        self.running_queues().map(|places| places.is_some())
    }

    /// Grows whenever the answer of [`Rings::places`] changes.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Descriptor table, available ring and used ring of each queue that runs, as guest physical
    /// unchecked addresses.
    pub(crate) fn places(&self) -> Vec<GuestRange> {
        self.running_queues().iter().flatten().flatten().flatten().copied().collect()
    }

    /// Signals `wake` from now on whenever a queue starts to run.
    pub(crate) fn on_start(&self, wake: Arc<Wake>) {
        lock(&self.on_start).push(wake);
    }

    /// Takes note that the VMM has sent a call descriptor for a queue.
    pub(crate) fn note_call(&self, index: usize) {
        const { assert!(NUM_QUEUES <= u8::BITS as usize, "a bit for each queue") };
        if index < NUM_QUEUES {
            self.called.fetch_or(1 << index, Ordering::Relaxed);
        }
    }

    /// How many queues have had a call descriptor in this session. QEMU sends one for each that its
    /// device has, before the guest boots.
    pub(crate) fn called(&self) -> usize {
        let called = self.called.load(Ordering::Relaxed);
        (0..NUM_QUEUES).filter(|index| called >> index & 1 == 1).count()
    }

    /// Takes note that no queue runs: the frontend has gone.
    pub(crate) fn clear(&self) {
        self.called.store(0, Ordering::Relaxed);
        for index in 0..NUM_QUEUES {
            self.set(index, None);
        }
    }

    /// Takes note of a queue that runs (`Some`) or does not.
    pub(crate) fn note(&self, index: usize, queue: Option<&Queue>) {
        self.set(index, queue.map(places));
    }

    fn set(&self, index: usize, places: Option<Places>) {
        let mut running = self.running_queues();
        let Some(slot) = running.get_mut(index) else { return };
        if *slot == places {
            return;
        }
        let starts = slot.is_none();
        *slot = places;
        self.version.fetch_add(1, Ordering::AcqRel);
        drop(running);
        if starts {
            for wake in lock(&self.on_start).iter() {
                if let Err(error) = wake.signal() {
                    warn!("cannot signal that a queue runs: {error}");
                }
            }
        }
    }
}

/// What holds a ring is never discarded: the device would write it again, and where the pages that
/// it gave back are gone by then, the kernel ends it.
impl InUse for Rings {
    fn version(&self) -> u64 {
        self.version()
    }

    fn ranges(&self) -> Vec<GuestRange> {
        self.places()
    }
}

/// Sizes as in virtio 1.3, section 2.7: 16 bytes a descriptor, 2 bytes an available entry, 8 bytes
/// a used entry, and 6 bytes of flags, index and event beside the entries. A part that would wrap
/// can never be accessed and has no place.
fn places(queue: &Queue) -> Places {
    let size = u64::from(queue.size());
    [
        (queue.desc_table(), 16 * size),
        (queue.avail_ring(), 6 + 2 * size),
        (queue.used_ring(), 6 + 8 * size),
    ]
    .map(|(start, len)| GuestRange::new(start, len).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use vm_memory::GuestAddress;

    fn queue(table: u64) -> Queue {
        let mut queue = Queue::new(256).unwrap();
        queue.set_size(4);
        queue.try_set_desc_table_address(GuestAddress(table)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(0x2000)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(u64::MAX - 3)).unwrap();
        queue
    }

    fn is_signalled(wake: &Wake) -> bool {
        let mut fds = [PollFd::new(wake, PollFlags::IN)];
        let signalled = poll(&mut fds, Some(&Timespec::default())).unwrap() > 0;
        wake.clear();
        signalled
    }

    #[test]
    fn a_start_is_signalled_and_a_change_of_place_is_not() {
        let (rings, wake) = (Rings::default(), Arc::new(Wake::new().unwrap()));
        rings.note_call(1);
        rings.note_call(NUM_QUEUES);
        assert_eq!(rings.called(), 1);
        rings.on_start(Arc::clone(&wake));
        let version = rings.version();
        rings.note(2, Some(&queue(0x1000)));
        assert!(is_signalled(&wake) && rings.any_running());
        assert_eq!(rings.running(), [false, false, true, false, false]);
        assert!(rings.version() > version);
        let version = rings.version();
        rings.note(2, Some(&queue(0x1000)));
        assert_eq!(rings.version(), version, "nothing has changed");
        rings.note(2, Some(&queue(0x3000)));
        assert!(!is_signalled(&wake) && rings.version() > version);
        // The used ring would wrap.
        let range = |start, len| GuestRange::new(start, len).unwrap();
        assert_eq!(rings.places(), [range(0x3000, 64), range(0x2000, 14)]);
        rings.clear();
        assert!(!rings.any_running() && rings.places().is_empty() && !is_signalled(&wake));
        assert_eq!(rings.called(), 0);
    }
}
