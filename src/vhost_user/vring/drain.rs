// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The worker's part of a queue: it takes chains and returns them.

use std::mem;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use vhost_user_backend::{VringState, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use super::{Memory, RingError, Vring, runs};
use crate::device::chain::{ChainHead, Outcome};
use crate::discard::GuestMemory;

/// How long the worker looks for another chain before it goes to sleep; about as long as it takes
/// to wake it.
const LINGER: Duration = Duration::from_micros(if cfg!(fuzzing) { 0 } else { 50 });

/// How long the control thread must have left a queue alone before its next chain is taken. The
/// framework takes the lock up to three times for one message, and a message that met a chain of
/// several gigabytes each time would wait as often.
const GRACE: Duration = Duration::from_micros(if cfg!(fuzzing) { 0 } else { 500 });

/// The worker's way through the chains of one kick.
#[derive(Debug)]
pub(crate) struct Pass {
    /// No chain was looked for yet.
    first: bool,
    /// The last look found the ring empty, and then not.
    was_empty: bool,
}

impl Default for Pass {
    fn default() -> Self {
        Self { first: true, was_empty: false }
    }
}

/// A chain that the worker has taken. The queue is locked until it is finished or dropped: once the
/// frontend has the answer to `GET_VRING_BASE`, no chain is in progress and nothing is written to
/// the rings.
pub(crate) struct Taken<'a, S> {
    queue: &'a Vring,
    /// The guest's memory as it is seen for this chain. Dropped before the queue is unlocked.
    pub snapshot: S,
    vring: MutexGuard<'a, VringState<Memory>>,
    /// Where the chain begins.
    pub head: ChainHead,
}

impl<S: AsRef<GuestMemory>> Taken<'_, S> {
    /// Returns the chain, or keeps it until the next one comes or
    /// [`Vring::return_kept`] is called.
    ///
    /// # Errors
    /// [`RingError::Used`]: no chain is served until the queue is started again.
    pub(crate) fn finish(mut self, outcome: Outcome) -> Result<(), RingError> {
        let memory = self.snapshot.as_ref();
        // A driver has one such buffer out; with a second it takes the first back, and chains stay
        // in order.
        let before = self.queue.progress().kept.take();
        let returned = before
            .map_or(Ok(()), |before| self.queue.add_used(&mut self.vring, memory, before, 0))
            .and_then(|()| match outcome {
                Outcome::Return => self.queue.add_used(&mut self.vring, memory, self.head.index, 0),
                Outcome::Written(len) => {
                    self.queue.add_used(&mut self.vring, memory, self.head.index, len)
                }
                Outcome::Keep => {
                    self.queue.progress().kept = Some(self.head.index);
                    Ok(())
                }
            });
        returned.map_err(|error| self.queue.give_up(&mut self.vring, memory, error))
    }
}

/// The result of one look at the available ring.
enum Step {
    /// A chain that waits.
    Chain(ChainHead),
    /// There was no chain, and soon there was.
    Filled,
    /// There is no chain, and the driver will kick for the next.
    Empty,
    /// There was no chain, and then there was.
    NotEmptyAfterAll,
}

impl Vring {
    /// The lock, once no call of the control thread waits for it or is likely to.
    fn worker_lock(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.shared.turns.worker(|| thread::sleep(GRACE));
        self.inner.get_mut()
    }

    /// Whether chains may be taken.
    fn serves(&self, vring: &VringState<Memory>) -> bool {
        runs(vring) && !self.progress().broken
    }

    /// Takes the next chain of the available ring; `None` when the ring is empty, the frontend has
    /// stopped the queue, or `keep_on` says no. The driver is notified on each way out.
    ///
    /// `snapshot` gives the guest's memory as it is seen for one chain; the rings are touched only
    /// while one is held.
    ///
    /// # Errors
    /// [`RingError`]. Chains may be left on the ring: after [`RingError::Head`] until the queue is
    /// started again, else until the next kick.
    pub(crate) fn take<'a, S: AsRef<GuestMemory>>(
        &'a self,
        pass: &mut Pass,
        keep_on: impl Fn() -> bool,
        snapshot: impl Fn() -> S,
    ) -> Result<Option<Taken<'a, S>>, RingError> {
        loop {
            let mut vring = self.worker_lock();
            if !self.serves(&vring) {
                // The driver was notified when the queue stopped or broke.
                return Ok(None);
            }
            let snapshot = snapshot();
            let memory = snapshot.as_ref();
            if !keep_on() {
                return self.notify(&mut vring, memory).map(|()| None);
            }
            match self.look(&mut vring, mem::take(&mut pass.first), memory) {
                Ok(Step::Chain(head)) => {
                    pass.was_empty = false;
                    return Ok(Some(Taken { queue: self, snapshot, vring, head }));
                }
                Ok(Step::Filled) => {}
                Ok(Step::Empty) => return Ok(None),
                // A chain came in between; twice in a row means that it cannot be read.
                Ok(Step::NotEmptyAfterAll) if !pass.was_empty => pass.was_empty = true,
                failed => {
                    let error = failed.err().unwrap_or(RingError::Stuck);
                    return Err(self.give_up(&mut vring, memory, error));
                }
            }
        }
    }

    /// Ends a pass over an error: the driver is notified, and kicks again. The queue is locked.
    fn give_up(
        &self,
        vring: &mut VringState<Memory>,
        memory: &GuestMemory,
        error: RingError,
    ) -> RingError {
        let _ = vring.get_queue_mut().enable_notification(memory);
        let _ = self.notify(vring, memory);
        error
    }

    /// Finds one chain, or that there is none. The queue runs and is locked.
    fn look(
        &self,
        vring: &mut VringState<Memory>,
        first: bool,
        memory: &GuestMemory,
    ) -> Result<Step, RingError> {
        if first {
            // With EVENT_IDX this does nothing; without, it spares the driver kicks.
            vring.get_queue_mut().disable_notification(memory).map_err(RingError::Broken)?;
        }
        if let Some(head) = next_chain(vring, memory)? {
            if head.index >= head.queue_size {
                return Err(self.breaks(vring, RingError::Head(head.index)));
            }
            return Ok(Step::Chain(head));
        }
        if self.progress().owed.is_owed() {
            self.notify(vring, memory)?;
            if self.fills_soon(vring, memory)? {
                return Ok(Step::Filled);
            }
        }
        let more = vring.get_queue_mut().enable_notification(memory).map_err(RingError::Broken)?;
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
    /// [`Vring::take`], and with the same `snapshot`.
    ///
    /// # Errors
    /// [`RingError`]; the chain is not kept any more.
    pub(crate) fn return_kept<S: AsRef<GuestMemory>>(
        &self,
        snapshot: impl FnOnce() -> S,
    ) -> Result<bool, RingError> {
        let mut vring = self.worker_lock();
        if !self.serves(&vring) {
            return Ok(false);
        }
        let Some(head) = self.progress().kept.take() else { return Ok(false) };
        let snapshot = snapshot();
        self.add_used(&mut vring, snapshot.as_ref(), head, 0)?;
        self.notify(&mut vring, snapshot.as_ref())?;
        Ok(true)
    }

    /// Returns the chain that begins at `head` with used length `len`.
    fn add_used(
        &self,
        vring: &mut VringState<Memory>,
        memory: &GuestMemory,
        head: u16,
        len: u32,
    ) -> Result<(), RingError> {
        match vring.get_queue_mut().add_used(memory, head, len) {
            Ok(()) => {
                self.progress().owed.returned();
                Ok(())
            }
            Err(error) => Err(self.breaks(vring, RingError::Used(error))),
        }
    }

    /// Stops the queue over a chain that cannot be returned, until it is started again: then it goes
    /// on with the first chain that was not returned.
    fn breaks(&self, vring: &mut VringState<Memory>, error: RingError) -> RingError {
        let mut progress = self.progress();
        progress.broken = true;
        progress.kept = None;
        let queue = vring.get_queue_mut();
        queue.set_next_avail(queue.next_used());
        error
    }
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
