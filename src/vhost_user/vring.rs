// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One virtqueue of the device: takes chains off the available ring, has them served, returns them.
//!
//! [`Vring`] is the framework's `VringMutex` without what a frontend or a guest could do harm with:
//! a kick that blocks, fails or is never read stalls, ends or spins the framework's worker, a kick
//! that is replaced is never watched, a call that is full blocks it, and a worker that always has
//! work keeps the control thread from a lock that is not fair.
//!
//! Chains are served and returned in the order in which they came, so the used ring says how far the
//! device is: a queue that is started goes on there. A chain that was taken and not returned is seen
//! again, whether it was kept when the queue was stopped or a daemon was killed over it. After a
//! chain that cannot be returned the used ring would be behind, and chains after it would be served
//! twice: the queue stands still until it is stopped, or the device is reset, and started again.
//!
//! The driver is owed a notification from the moment a chain is returned until a call descriptor was
//! signalled or it said that it wants none. The debt survives what ends a worker's round: it is paid
//! on every way out, when a queue stops, when a call arrives, and when a queue starts on a used
//! index other than 0, because nothing says whether the daemon before this one had paid.

mod call;
mod drain;
mod error;
mod kick;
mod owed;
mod ring_log;
mod running;
mod turns;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use log::warn;
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic};

use crate::discard::GuestMemory;
use crate::lock::lock;
use call::Call;
use owed::Owed;
use turns::Turns;

pub(crate) use drain::{Pass, Taken};
pub(crate) use error::RingError;
pub(crate) use ring_log::RingLog;
pub(crate) use running::Rings;

/// Guest memory, replaced as a whole when the frontend changes the memory table.
pub(crate) type Memory = GuestMemoryAtomic<GuestMemory>;

/// A virtqueue that the frontend has configured.
#[derive(Clone)]
pub(crate) struct Vring {
    inner: VringMutex<Memory>,
    /// Where the rings lie.
    memory: Memory,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    turns: Turns,
    /// The queue was started, and its used ring says that nothing was ever returned on it.
    fresh: AtomicBool,
    /// The same ring showed no trace of use when it was started.
    untouched: AtomicBool,
    /// Locked after the queue, and for moments.
    progress: Mutex<Progress>,
    attached: OnceLock<Attached>,
}

/// How far the device is with a queue.
#[derive(Default)]
struct Progress {
    /// The chain that the device keeps (`Outcome::Keep`).
    kept: Option<u16>,
    owed: Owed<Call>,
    /// A chain could not be returned, and no other may be served.
    broken: bool,
    /// The kick is watched for edges, and need not be read.
    watches_edges: bool,
}

/// What a queue learns once the framework has made it.
#[derive(Debug)]
struct Attached {
    /// Index of the queue.
    index: usize,
    rings: Arc<Rings>,
    /// The epoll instance in which the framework watches the kick.
    epoll: Arc<OwnedFd>,
}

impl Vring {
    /// Tells the queue its `index`, and the `epoll` instance in which the framework watches its
    /// kick. It reports to `rings` from now on whether it runs. Once, before the frontend's first
    /// message.
    pub(crate) fn attach(&self, index: usize, rings: &Arc<Rings>, epoll: &Arc<OwnedFd>) {
        let (rings, epoll) = (Arc::clone(rings), Arc::clone(epoll));
        if self.shared.attached.set(Attached { index, rings, epoll }).is_err() {
            warn!("queue {index} was attached before");
        }
    }

    /// Reports whether the queue runs, and pays what its driver is owed if it does. For the control
    /// thread, when it has changed the queue, which is locked.
    fn settle(&self, vring: &mut VringState<Memory>) {
        let running = runs(vring);
        if let Some(attached) = self.shared.attached.get() {
            attached.rings.note(attached.index, running.then(|| vring.get_queue()));
        }
        if running {
            self.notify_or_warn(vring);
        }
    }

    /// Runs `call` of the control thread before the worker takes its next chain.
    fn control<'a, T>(&'a self, call: impl FnOnce(&'a VringMutex<Memory>) -> T) -> T {
        self.shared.turns.control(|| call(&self.inner))
    }

    /// Whether a message of the frontend waits for the queue. Then what is left of the chain that is
    /// being served is skipped.
    pub(crate) fn control_waits(&self) -> bool {
        self.shared.turns.control_waits()
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        lock(&self.shared.progress)
    }

    /// Goes on behind what the used ring says was returned. The queue does not run, or is locked.
    fn resume(&self, vring: &mut VringState<Memory>) {
        let mut progress = self.progress();
        progress.kept = None;
        progress.broken = false;
        let memory = self.memory.memory();
        let queue = vring.get_queue_mut();
        // Where the ring cannot be read the queue will say so, if it is ever used.
        if let Ok(used) = queue.used_idx(&*memory, Ordering::Acquire) {
            queue.set_next_used(used.0);
            queue.set_next_avail(used.0);
            let untouched = used.0 == 0 && is_untouched(queue, &memory);
            self.shared.untouched.store(untouched, Ordering::Relaxed);
            self.shared.fresh.store(used.0 == 0, Ordering::Relaxed);
            // Nothing says whether what returned a chain has notified the driver of it.
            let owed = used.0 != 0 || (!untouched && nothing_is_out(queue, &memory));
            progress.owed.begin(owed);
        }
    }

    /// Ends what the device has begun on a queue that stops. The queue is locked.
    fn wind_up(&self, vring: &mut VringState<Memory>) {
        self.notify_or_warn(vring);
        if self.progress().kept.take().is_some() {
            // It counts as not taken.
            let queue = vring.get_queue_mut();
            queue.set_next_avail(queue.next_used());
        }
    }

    /// Notifies the driver of returned chains, if there are any, there is a call descriptor, and it
    /// wants to know. The queue is locked.
    fn notify(
        &self,
        vring: &mut VringState<Memory>,
        memory: &GuestMemory,
    ) -> Result<(), RingError> {
        // Where the driver's wish cannot be read an interrupt too many does no harm.
        let wanted = || vring.get_queue_mut().needs_notification(memory).unwrap_or(true);
        self.progress().owed.pay(wanted, Call::signal).map_err(RingError::Signal)
    }

    /// The same for the control thread, which is the one that changes the memory table.
    fn notify_or_warn(&self, vring: &mut VringState<Memory>) {
        if let Err(error) = self.notify(vring, &self.memory.memory()) {
            let source = std::error::Error::source(&error);
            let source = source.map(|source| format!(": {source}")).unwrap_or_default();
            warn!("{error}{source}");
        }
    }

    /// Whether the queue was started since this was asked last, with a ring on which nothing was ever
    /// returned, as that of a driver that begins.
    pub(crate) fn take_fresh(&self) -> bool {
        self.shared.fresh.swap(false, Ordering::Relaxed)
    }

    /// Whether the ring that was started last showed no trace of use then.
    pub(crate) fn was_untouched(&self) -> bool {
        self.shared.untouched.load(Ordering::Relaxed)
    }
}

/// Whether nothing was ever put on this ring, of which the used index is 0: drivers begin with a
/// ring of zeros, and leave addresses in the table when a chain has come back. An index alone
/// comes round after 65536 chains.
fn is_untouched(queue: &Queue, memory: &GuestMemory) -> bool {
    const LOOKED_AT: u64 = 16;
    const DESCRIPTOR_SIZE: u64 = 16;
    let unused = |i: u64| {
        let at = queue.desc_table().checked_add(i * DESCRIPTOR_SIZE);
        at.is_some_and(|at| memory.read_obj::<u64>(GuestAddress(at)).is_ok_and(|addr| addr == 0))
    };
    queue.avail_idx(memory, Ordering::Acquire).is_ok_and(|available| available.0 == 0)
        && (0..LOOKED_AT.min(queue.size().into())).all(unused)
}

/// Whether the driver has every chain back, of a ring of which the used index is 0.
fn nothing_is_out(queue: &Queue, memory: &GuestMemory) -> bool {
    queue.avail_idx(memory, Ordering::Acquire).is_ok_and(|available| available.0 == 0)
}

/// Whether the queue may be touched: it is started and enabled.
fn runs(vring: &VringState<Memory>) -> bool {
    vring.is_enabled() && vring.get_queue().ready()
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

/// Every one of these is called by the control thread, but for [`VringT::read_kick`].
impl VringT<Memory> for Vring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        let inner = VringMutex::new(memory.clone(), max_queue_size)?;
        Ok(Self { inner, memory, shared: Arc::default() })
    }

    /// Does not read it: the kick is watched for edges, and the ring says whether there is work.
    ///
    /// # Errors
    /// Never.
    fn read_kick(&self) -> io::Result<bool> {
        let vring = self.inner.get_ref();
        self.watch_edges(&vring);
        Ok(runs(&vring))
    }

    /// The framework starts a queue with its first kick and forgets to watch a second; a queue that
    /// is not ready it starts, and watches, again.
    fn set_kick(&self, file: Option<File>) {
        let file = kick::eventfd_only(file);
        self.control(|vring| {
            let mut state = vring.get_mut();
            self.unwatch(&state);
            self.wind_up(&mut state);
            state.get_queue_mut().set_ready(false);
            self.settle(&mut state);
            drop(state);
            vring.set_kick(file);
        });
    }

    /// What is owed to the driver, the new call is told at once: the old one may have been signalled
    /// when nothing listened to it any more.
    fn set_call(&self, file: Option<File>) {
        if let Some(attached) = self.shared.attached.get().filter(|_| file.is_some()) {
            attached.rings.note_call(attached.index);
        }
        let call = file
            .and_then(|file| Call::new(file).inspect_err(|error| warn!("{error}; not used")).ok());
        self.control(|vring| {
            let mut state = vring.get_mut();
            self.progress().owed.replace_call(call, runs(&state));
            self.notify_or_warn(&mut state);
        });
    }

    fn set_err(&self, file: Option<File>) {
        self.control(|vring| vring.set_err(file));
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.control(VringMutex::get_ref)
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.control(VringMutex::get_mut)
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.control(|vring| vring.add_used(desc_index, len))
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.control(|_| self.progress().owed.call().map_or(Ok(()), Call::signal))
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.control(VringT::enable_notification)
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.control(VringT::disable_notification)
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.control(VringT::needs_notification)
    }

    /// Disabling is also what becomes of a queue when the frontend resets the device. Then another
    /// driver may have begun it again, in the same place.
    fn set_enabled(&self, enabled: bool) {
        self.control(|vring| {
            let mut state = vring.get_mut();
            self.progress().watches_edges = false;
            if !enabled {
                self.wind_up(&mut state);
            } else if state.get_queue().ready() && !state.is_enabled() {
                self.resume(&mut state);
            }
            state.set_enabled(enabled);
            self.settle(&mut state);
        });
    }

    /// QEMU sets the addresses of running queues again when it begins to log dirty pages. Where
    /// they are others than before it is another ring.
    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), QueueError> {
        self.control(|vring| {
            let mut state = vring.get_mut();
            let place = |queue: &Queue| (queue.desc_table(), queue.avail_ring(), queue.used_ring());
            let before = place(state.get_queue());
            let result = state.set_queue_info(desc_table, avail_ring, used_ring);
            if state.get_queue().ready() && place(state.get_queue()) != before {
                self.resume(&mut state);
            }
            self.settle(&mut state);
            result
        })
    }

    fn queue_next_avail(&self) -> u16 {
        self.control(VringT::queue_next_avail)
    }

    /// A queue that runs knows better, and another base would have chains served twice.
    fn set_queue_next_avail(&self, base: u16) {
        self.control(|vring| {
            let mut state = vring.get_mut();
            if !state.get_queue().ready() {
                state.get_queue_mut().set_next_avail(base);
            }
        });
    }

    /// The framework reads the index from guest memory and sets it afterwards, without the lock in
    /// between. A queue that runs knows better.
    fn set_queue_next_used(&self, idx: u16) {
        self.control(|vring| {
            let mut state = vring.get_mut();
            if !state.get_queue().ready() {
                state.get_queue_mut().set_next_used(idx);
            }
        });
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.control(VringT::queue_used_idx)
    }

    fn set_queue_size(&self, num: u16) {
        self.control(|vring| {
            let mut state = vring.get_mut();
            state.get_queue_mut().set_size(num);
            self.settle(&mut state);
        });
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.control(|vring| vring.set_queue_event_idx(enabled));
    }

    /// A queue that starts goes on where the used ring says.
    fn set_queue_ready(&self, ready: bool) {
        self.control(|vring| {
            let mut state = vring.get_mut();
            self.progress().watches_edges = false;
            if ready {
                self.resume(&mut state);
            } else {
                self.wind_up(&mut state);
            }
            state.get_queue_mut().set_ready(ready);
            self.settle(&mut state);
        });
    }
}

/// Signals `file` as a call descriptor, if it can be one.
#[cfg(test)]
pub(crate) fn signal_once(file: File) -> Option<io::Result<()>> {
    Call::new(file).ok().map(|call| call.signal())
}

#[cfg(test)]
mod tests;
