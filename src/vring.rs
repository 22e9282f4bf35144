//! One virtqueue of the device: takes chains off the available ring, has them served, returns them.
//!
//! [`Vring`] is the framework's `VringMutex` with what a frontend or a guest could do harm with
//! taken out: a kick that blocks or fails stalls or ends the framework's worker in silence, a kick
//! that is replaced is never watched, and a worker that always has work keeps the control thread
//! from a lock that is not fair.
//!
//! Chains are served and returned in the order in which they came, so the used ring says how far the
//! device is: a queue that is started goes on there. A chain that was taken and not returned is seen
//! again, whether it was kept when the queue was stopped or a daemon was killed over it. (After a
//! chain that cannot be returned the used ring is behind for good, and chains after it are served
//! again: whoever began a chain past the end of the table has that coming.)

mod running;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use log::warn;
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic};

use crate::device::chain::{ChainHead, Outcome};
use crate::memory::GuestMemory;

pub use running::Rings;

/// Guest memory, replaced as a whole when the frontend changes the memory table.
pub type Memory = GuestMemoryAtomic<GuestMemory>;

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

/// How long the worker looks for another chain before it goes to sleep; about as long as it takes
/// to wake it.
const LINGER: Duration = Duration::from_micros(50);

/// The most kicks that a frontend may have replaced on a running queue.
const MOST_RETIRED: usize = 16;

/// A virtqueue that the frontend has configured.
#[derive(Clone)]
pub struct Vring {
    inner: VringMutex<Memory>,
    /// Where the rings lie.
    memory: Memory,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// How many calls of the control thread wait for the lock.
    waiting: AtomicUsize,
    /// Chains were returned and the driver has not been told. Touched under the queue's lock.
    unsignalled: AtomicBool,
    /// The queue was started, and its used ring says that nothing was ever returned on it.
    fresh: AtomicBool,
    /// The same ring showed no trace of use when it was started.
    untouched: AtomicBool,
    /// The chain that the device keeps ([`Outcome::Keep`]). Touched under the queue's lock.
    kept: Mutex<Option<u16>>,
    /// Kicks that were replaced while the queue ran. The framework's epoll set watches them still,
    /// so they have to be read still.
    retired: Mutex<Vec<OwnedFd>>,
    attached: OnceLock<Attached>,
}

/// What a queue learns once the framework has made it.
#[derive(Debug)]
struct Attached {
    /// Index of the queue.
    index: usize,
    rings: Arc<Rings>,
    /// The epoll instance in which the framework watches the kick.
    #[allow(dead_code)] // until kicks are taken out of it
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

    /// Reports whether the queue, which is locked, runs.
    fn note(&self, vring: &VringState<Memory>) {
        if let Some(attached) = self.shared.attached.get() {
            attached.rings.note(attached.index, runs(vring).then(|| vring.get_queue()));
        }
    }

    /// Runs `call` of the control thread before the worker takes its next chain.
    fn control<'a, T>(&'a self, call: impl FnOnce(&'a VringMutex<Memory>) -> T) -> T {
        self.shared.waiting.fetch_add(1, Ordering::AcqRel);
        let result = call(&self.inner);
        self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
        result
    }

    /// Whether a message of the frontend waits for the queue. Then what is left of the chain that is
    /// being served is to be skipped.
    pub fn control_waits(&self) -> bool {
        self.shared.waiting.load(Ordering::Acquire) > 0
    }

    /// The lock, once no call of the control thread waits for it.
    fn worker_lock(&self) -> MutexGuard<'_, VringState<Memory>> {
        while self.control_waits() {
            std::thread::yield_now();
        }
        self.inner.get_mut()
    }

    fn kept(&self) -> MutexGuard<'_, Option<u16>> {
        self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on behind what the used ring says was returned. The queue does not run, or is locked.
    fn resume(&self, vring: &mut VringState<Memory>) {
        *self.kept() = None;
        let memory = self.memory.memory();
        let queue = vring.get_queue_mut();
        // Where the ring cannot be read the queue will say so, if it is ever used.
        if let Ok(used) = queue.used_idx(&*memory, Ordering::Acquire) {
            queue.set_next_used(used.0);
            queue.set_next_avail(used.0);
            let untouched = used.0 == 0 && is_untouched(queue, &memory);
            self.shared.untouched.store(untouched, Ordering::Relaxed);
            self.shared.fresh.store(used.0 == 0, Ordering::Relaxed);
        }
    }

    /// Puts the chain that is kept back, as if it had not been taken. The queue is locked.
    fn put_back(&self, vring: &mut VringState<Memory>) {
        if self.kept().take().is_some() {
            let queue = vring.get_queue_mut();
            queue.set_next_avail(queue.next_avail().wrapping_sub(1));
        }
    }

    /// Whether the queue was started since this was asked last, with a ring on which nothing was ever
    /// returned, as that of a driver that begins.
    pub fn take_fresh(&self) -> bool {
        self.shared.fresh.swap(false, Ordering::Relaxed)
    }

    /// Whether the ring that was started last showed no trace of use then.
    pub fn was_untouched(&self) -> bool {
        self.shared.untouched.load(Ordering::Relaxed)
    }

    /// Serves every chain on the available ring with `serve` and returns each with used length 0,
    /// until the ring is empty, the frontend stops it, or `keep_on` says no. A chain that begins
    /// past the end of the descriptor table has no place in the used ring and is passed over.
    ///
    /// One chain is kept if `serve` says so, until the next one comes or [`Vring::return_kept`] is
    /// called.
    ///
    /// `snapshot` gives the guest's memory as it is to be seen for one chain. The lock is held
    /// while a chain is served and let go between chains: when the frontend has its answer to
    /// `GET_VRING_BASE`, nothing of the queue is under way and nothing is written to its rings. The
    /// driver is notified once, at the end.
    ///
    /// # Errors
    /// [`RingError`]; unless it is [`RingError::Head`], chains may be left on the ring, to be looked
    /// at with the next kick.
    pub fn drain<S: AsRef<GuestMemory>>(
        &self,
        keep_on: impl Fn() -> bool,
        snapshot: impl Fn() -> S,
        mut serve: impl FnMut(&S, ChainHead) -> Outcome,
    ) -> Result<(), RingError> {
        let mut first = true;
        let mut was_empty = false;
        let mut result = Ok(());
        while keep_on() {
            let mut vring = self.worker_lock();
            if !runs(&vring) {
                break;
            }
            match self.step(&mut vring, std::mem::take(&mut first), &snapshot, &mut serve) {
                Ok(Step::Served) => was_empty = false,
                Ok(Step::Filled) => {}
                Ok(Step::PassedOver(head)) => result = Err(RingError::Head(head)),
                Ok(Step::Empty) => return result,
                // A chain came in between; twice in a row means that it cannot be read.
                Ok(Step::NotEmptyAfterAll) if !was_empty => was_empty = true,
                failed => {
                    // Or the driver would think that it need not kick again.
                    let _ = vring.enable_notification();
                    let _ = self.signal(&mut vring);
                    return Err(failed.err().unwrap_or(RingError::Stuck));
                }
            }
        }
        result
    }

    /// Takes one chain, or finds that there is none. The queue runs and is locked.
    fn step<S: AsRef<GuestMemory>>(
        &self,
        vring: &mut VringState<Memory>,
        first: bool,
        snapshot: &impl Fn() -> S,
        serve: &mut impl FnMut(&S, ChainHead) -> Outcome,
    ) -> Result<Step, RingError> {
        if first {
            // With EVENT_IDX this does nothing; without, it spares the driver kicks.
            vring.disable_notification().map_err(RingError::Broken)?;
        }
        let snapshot = snapshot();
        if let Some(head) = next_chain(vring, snapshot.as_ref())? {
            if head.index >= head.queue_size {
                return Ok(Step::PassedOver(head.index));
            }
            let outcome = serve(&snapshot, head);
            let mut kept = self.kept();
            // A driver has one such buffer out; with a second it takes the first back, and chains
            // stay in order.
            if let Some(before) = kept.take() {
                self.add_used(vring, before)?;
            }
            match outcome {
                Outcome::Return => self.add_used(vring, head.index)?,
                Outcome::Keep => *kept = Some(head.index),
            }
            return Ok(Step::Served);
        }
        if self.shared.unsignalled.load(Ordering::Relaxed) {
            self.signal(vring)?;
            if self.fills_soon(vring, snapshot.as_ref())? {
                return Ok(Step::Filled);
            }
        }
        let more = vring.enable_notification().map_err(RingError::Broken)?;
        Ok(if more { Step::NotEmptyAfterAll } else { Step::Empty })
    }

    /// Whether a chain comes within [`LINGER`], looked for without letting the processor go. A
    /// driver that reports memory sends the next chain when it has the last one back, and is spared
    /// the kick.
    fn fills_soon(
        &self,
        vring: &VringState<Memory>,
        memory: &GuestMemory,
    ) -> Result<bool, RingError> {
        let queue = vring.get_queue();
        let end = Instant::now() + LINGER;
        while Instant::now() < end && !self.control_waits() {
            let available =
                queue.avail_idx(memory, Ordering::Acquire).map_err(RingError::Broken)?;
            if available.0 != queue.next_avail() {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        Ok(false)
    }

    /// Returns the chain that the device keeps, with used length 0, and tells the driver: it is to
    /// send another. Says whether there was one, and the queue runs. For the worker, like
    /// [`Vring::drain`].
    ///
    /// # Errors
    /// [`RingError`]; the chain is not kept any more.
    pub fn return_kept(&self) -> Result<bool, RingError> {
        let mut vring = self.worker_lock();
        if !runs(&vring) {
            return Ok(false);
        }
        let Some(head) = self.kept().take() else { return Ok(false) };
        self.add_used(&mut vring, head)?;
        self.signal(&mut vring)?;
        Ok(true)
    }

    /// Returns the chain that begins at `head` with used length 0.
    fn add_used(&self, vring: &mut VringState<Memory>, head: u16) -> Result<(), RingError> {
        vring.add_used(head, 0).map_err(RingError::Broken)?;
        self.shared.unsignalled.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Tells the driver about returned chains, if there are any and it wants to know.
    fn signal(&self, vring: &mut VringState<Memory>) -> Result<(), RingError> {
        if self.shared.unsignalled.swap(false, Ordering::Relaxed)
            && vring.needs_notification().map_err(RingError::Broken)?
        {
            match vring.signal_used_queue() {
                // The counter of the eventfd is full: the driver has been told, and does not
                // listen.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => result.map_err(RingError::Signal)?,
            }
        }
        Ok(())
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

/// What one look at the available ring came to.
enum Step {
    /// A chain was served and returned.
    Served,
    /// The chain at this descriptor cannot be returned.
    PassedOver(u16),
    /// There was no chain, and soon there was.
    Filled,
    /// There is no chain, and the driver will kick for the next.
    Empty,
    /// There was no chain, and then there was.
    NotEmptyAfterAll,
}

/// Whether the queue may be touched: it is started and enabled.
fn runs(vring: &VringState<Memory>) -> bool {
    vring.is_enabled() && vring.get_queue().ready()
}

fn next_chain(
    vring: &mut VringState<Memory>,
    memory: &GuestMemory,
) -> Result<Option<ChainHead>, RingError> {
    let queue = vring.get_queue_mut();
    let (table, queue_size) = (GuestAddress(queue.desc_table()), queue.size());
    let mut available = queue.iter(memory).map_err(RingError::Broken)?;
    Ok(available.next().map(|chain| ChainHead { table, queue_size, index: chain.head_index() }))
}

/// The file, if it is an eventfd, as the protocol says. Anything else could block the worker or
/// keep it awake for ever.
fn eventfd_only(file: Option<File>) -> Option<File> {
    file.filter(|file| {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        // Without /proc there is nobody to ask.
        let good = link.map_or(true, |link| link.as_os_str() == "anon_inode:[eventfd]");
        if !good {
            warn!("the frontend sent a descriptor that is no eventfd for a queue; not used");
        }
        good
    })
}

/// Makes an eventfd non-blocking, so that signalling it cannot stall the worker. The flag belongs
/// to the eventfd, which is the frontend's too; every VMM sets it anyway.
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

/// Takes what is in an eventfd. Never waits, whatever its flags: queues may share one, and the
/// frontend may read it, too.
fn read_without_waiting(eventfd: RawFd) {
    let mut count = 0_u64;
    let into = libc::iovec { iov_base: (&raw mut count).cast(), iov_len: size_of::<u64>() };
    // SAFETY: one buffer of eight bytes that outlives the call. Whether it succeeds does not
    // matter: the ring says whether there is work.
    unsafe { libc::preadv2(eventfd, &raw const into, 1, -1, libc::RWF_NOWAIT) };
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

    /// # Errors
    /// Never. A kick that cannot be read is as good as one that can: the ring says whether there is
    /// work.
    fn read_kick(&self) -> io::Result<bool> {
        let vring = self.inner.get_ref();
        if let Some(kick) = vring.get_kick() {
            read_without_waiting(kick.as_raw_fd());
        }
        for kick in self.shared.retired.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            read_without_waiting(kick.as_raw_fd());
        }
        Ok(runs(&vring))
    }

    /// The framework starts a queue with its first kick and forgets to watch a second; a queue that
    /// is not ready it starts, and watches, again.
    fn set_kick(&self, file: Option<File>) {
        let file = eventfd_only(file);
        self.control(|vring| {
            let mut state = vring.get_mut();
            // A queue that is disabled is not watched.
            if runs(&state) {
                let old = state.get_kick().as_ref().map(|kick| {
                    // SAFETY: the queue keeps the descriptor open while it is locked.
                    unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) }.try_clone_to_owned()
                });
                let mut retired =
                    self.shared.retired.lock().unwrap_or_else(PoisonError::into_inner);
                match old {
                    Some(Ok(old)) if retired.len() < MOST_RETIRED => retired.push(old),
                    Some(_) => warn!("the frontend replaces a kick too often"),
                    None => {}
                }
            }
            state.get_queue_mut().set_ready(false);
            self.note(&state);
            drop(state);
            vring.set_kick(file);
        });
    }

    fn set_call(&self, file: Option<File>) {
        let file = never_block(eventfd_only(file));
        self.control(|vring| vring.set_call(file));
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

    /// Disabling is also what becomes of a queue when the frontend resets the device. Then another
    /// driver may have begun it anew, in the same place.
    fn set_enabled(&self, enabled: bool) {
        self.control(|vring| {
            let mut state = vring.get_mut();
            if !enabled {
                self.put_back(&mut state);
            } else if state.get_queue().ready() && !state.is_enabled() {
                self.resume(&mut state);
            }
            state.set_enabled(enabled);
            self.note(&state);
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
            self.note(&state);
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
            self.note(&state);
        });
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.control(|vring| vring.set_queue_event_idx(enabled));
    }

    /// A queue that starts goes on where the used ring says.
    fn set_queue_ready(&self, ready: bool) {
        self.control(|vring| {
            let mut state = vring.get_mut();
            if ready {
                self.resume(&mut state);
            } else {
                if let Err(error) = self.signal(&mut state) {
                    // The last chance: a driver that waits would wait for ever.
                    warn!("cannot notify the driver of a queue that stops: {error}");
                }
                self.put_back(&mut state);
            }
            state.get_queue_mut().set_ready(ready);
            self.note(&state);
        });
    }
}

#[cfg(test)]
mod tests;
