//! One virtqueue of the device: takes chains off the available ring, has them served, returns them.
//!
//! [`Vring`] is the framework's `VringMutex` with what a frontend or a guest could do harm with
//! taken out: a kick that blocks or fails ends the framework's worker in silence, and a worker
//! that always has work keeps the control thread from a lock that is not fair.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};

use log::warn;
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::device::chain::ChainHead;

/// Guest memory, replaced as a whole when the frontend changes the memory table.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;

/// What is wrong with a queue. The driver's fault in every case.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The rings lie outside guest memory, or their indices make no sense.
    #[error("the rings cannot be used")]
    Broken(#[source] QueueError),
    /// The driver says that there are chains, but none can be taken.
    #[error("the available ring cannot be read")]
    Stuck,
    /// A chain that begins past the end of the descriptor table cannot even be returned.
    #[error("a chain begins at descriptor {0}, past the end of the table, and is passed over")]
    Head(u16),
    /// The driver's eventfd cannot be signalled.
    #[error("cannot signal the driver")]
    Signal(#[source] io::Error),
}

/// A virtqueue that the frontend has configured.
#[derive(Clone)]
pub struct Vring {
    inner: VringMutex<Memory>,
    /// How many calls of the control thread wait for the lock.
    waiting: Arc<AtomicUsize>,
}

impl Vring {
    /// Runs `call` of the control thread before the worker takes its next chain.
    fn control<'a, T>(&'a self, call: impl FnOnce(&'a VringMutex<Memory>) -> T) -> T {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let result = call(&self.inner);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        result
    }

    /// Serves every chain on the available ring with `serve` and returns each with used length 0,
    /// until the ring is empty or the frontend stops it. A chain that begins past the end of the
    /// descriptor table has no place in the used ring and is passed over.
    ///
    /// The lock is held while a chain is served and let go between chains: when the frontend has
    /// its answer to `GET_VRING_BASE`, nothing of the queue is under way. The driver is notified
    /// once, at the end.
    ///
    /// # Errors
    /// [`RingError`]; unless it is [`RingError::Head`], chains may be left on the ring, to be looked
    /// at with the next kick.
    pub fn drain(
        &self,
        memory: &Memory,
        mut serve: impl FnMut(&GuestMemoryMmap<()>, ChainHead),
    ) -> Result<(), RingError> {
        let drained = self.drain_ring(memory, &mut serve);
        if drained.is_err() {
            // Or the driver would think that it need not kick again.
            let _ = self.worker_lock().enable_notification();
        }
        drained
    }

    fn drain_ring(
        &self,
        memory: &Memory,
        serve: &mut impl FnMut(&GuestMemoryMmap<()>, ChainHead),
    ) -> Result<(), RingError> {
        // With EVENT_IDX this does nothing; without, it spares the driver kicks.
        self.worker_lock().disable_notification().map_err(RingError::Broken)?;
        let mut unsignalled = false;
        let mut was_empty = false;
        let mut result = Ok(());
        loop {
            let mut vring = self.worker_lock();
            if !vring.is_enabled() || !vring.get_queue().ready() {
                signal(&mut vring, unsignalled)?;
                return result;
            }
            let memory = memory.memory();
            match next_chain(&mut vring, &memory)? {
                Some(head) if head.index >= head.queue_size => {
                    result = Err(RingError::Head(head.index));
                }
                Some(head) => {
                    serve(&memory, head);
                    vring.add_used(head.index, 0).map_err(RingError::Broken)?;
                    unsignalled = true;
                    was_empty = false;
                }
                None => {
                    signal(&mut vring, std::mem::take(&mut unsignalled))?;
                    if !vring.enable_notification().map_err(RingError::Broken)? {
                        return result;
                    }
                    // A chain came in between; twice in a row means that it cannot be read.
                    if std::mem::replace(&mut was_empty, true) {
                        return Err(RingError::Stuck);
                    }
                }
            }
        }
    }

    /// The lock, once no call of the control thread waits for it.
    fn worker_lock(&self) -> MutexGuard<'_, VringState<Memory>> {
        while self.waiting.load(Ordering::Acquire) > 0 {
            std::thread::yield_now();
        }
        self.inner.get_mut()
    }
}

fn next_chain(
    vring: &mut VringState<Memory>,
    memory: &GuestMemoryMmap<()>,
) -> Result<Option<ChainHead>, RingError> {
    let queue = vring.get_queue_mut();
    let (table, queue_size) = (GuestAddress(queue.desc_table()), queue.size());
    let mut available = queue.iter(memory).map_err(RingError::Broken)?;
    Ok(available.next().map(|chain| ChainHead { table, queue_size, index: chain.head_index() }))
}

/// Tells the driver about returned chains, if there are any and it wants to know.
fn signal(vring: &mut VringState<Memory>, unsignalled: bool) -> Result<(), RingError> {
    if unsignalled && vring.needs_notification().map_err(RingError::Broken)? {
        match vring.signal_used_queue() {
            // The counter of the eventfd is full: the driver has been told, and does not listen.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => result.map_err(RingError::Signal)?,
        }
    }
    Ok(())
}

/// Makes an eventfd of the frontend non-blocking, so that reading or writing it cannot stall the
/// worker. The flag belongs to the eventfd, which is the frontend's too; every VMM sets it anyway.
fn never_block(file: Option<File>) -> Option<File> {
    if let Some(file) = &file {
        // SAFETY: fcntl on an open descriptor, without pointers.
        let done = unsafe {
            let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
            flags >= 0
                && libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) == 0
        };
        if !done {
            warn!("cannot make an eventfd non-blocking: {}", io::Error::last_os_error());
        }
    }
    file
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
        Ok(Self {
            inner: VringMutex::new(memory, max_queue_size)?,
            waiting: Arc::new(AtomicUsize::new(0)),
        })
    }

    /// # Errors
    /// Never. A kick that cannot be read (two queues may share an eventfd, and the first to wake
    /// takes it) is as good as one that can: the ring says whether there is work.
    fn read_kick(&self) -> io::Result<bool> {
        let vring = self.inner.get_ref();
        if let Some(kick) = vring.get_kick() {
            let _ = kick.consume();
        }
        Ok(vring.is_enabled())
    }

    fn set_kick(&self, file: Option<File>) {
        self.control(|vring| vring.set_kick(never_block(file)));
    }

    fn set_call(&self, file: Option<File>) {
        self.control(|vring| vring.set_call(never_block(file)));
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
        self.control(VringT::signal_used_queue)
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

    fn set_enabled(&self, enabled: bool) {
        self.control(|vring| vring.set_enabled(enabled));
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), QueueError> {
        self.control(|vring| vring.set_queue_info(desc_table, avail_ring, used_ring))
    }

    fn queue_next_avail(&self) -> u16 {
        self.control(VringT::queue_next_avail)
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.control(|vring| vring.set_queue_next_avail(base));
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.control(|vring| vring.set_queue_next_used(idx));
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.control(VringT::queue_used_idx)
    }

    fn set_queue_size(&self, num: u16) {
        self.control(|vring| vring.set_queue_size(num));
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.control(|vring| vring.set_queue_event_idx(enabled));
    }

    fn set_queue_ready(&self, ready: bool) {
        self.control(|vring| vring.set_queue_ready(ready));
    }
}
