// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The worker's part of a queue: it takes chains, has them served and returns them.

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
const LINGER: Duration = Duration::from_micros(50);

/// How long the control thread must have left a queue alone before its next chain is taken. The
/// framework takes the lock up to three times for one message, and a message that met a chain of
/// several gigabytes each time would wait as often.
const GRACE: Duration = Duration::from_micros(500);

/// What one look at the available ring came to.
enum Step {
    /// A chain was served and returned.
    Served,
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
        loop {
            while self.control_waits() {
                thread::yield_now();
            }
            if !self.shared.control_came.swap(false, Ordering::AcqRel) {
                return self.inner.get_mut();
            }
            thread::sleep(GRACE);
        }
    }

    /// Whether chains may be taken.
    fn serves(&self, vring: &VringState<Memory>) -> bool {
        runs(vring) && !self.progress().broken
    }

    /// Serves every chain on the available ring with `serve` and returns each with used length 0,
    /// until the ring is empty, the frontend stops it, or `keep_on` says no.
    ///
    /// One chain is kept if `serve` says so, until the next one comes or [`Vring::return_kept`] is
    /// called.
    ///
    /// `snapshot` gives the guest's memory as it is to be seen for one chain; the rings are touched
    /// only while one is held. The lock is held while a chain is served and let go between chains:
    /// when the frontend has its answer to `GET_VRING_BASE`, nothing of the queue is under way and
    /// nothing is written to its rings. The driver is notified at the end, whatever ended it.
    ///
    /// # Errors
    /// [`RingError`]. Chains may be left on the ring: after [`RingError::Head`] and
    /// [`RingError::Used`] until the queue is started again, else to be looked at with the next
    /// kick.
    pub fn drain<S: AsRef<GuestMemory>>(
        &self,
        keep_on: impl Fn() -> bool,
        snapshot: impl Fn() -> S,
        mut serve: impl FnMut(&S, ChainHead) -> Outcome,
    ) -> Result<(), RingError> {
        let mut first = true;
        let mut was_empty = false;
        loop {
            let mut vring = self.worker_lock();
            if !self.serves(&vring) {
                // What stopped or broke it has notified the driver.
                return Ok(());
            }
            let snapshot = snapshot();
            if !keep_on() {
                return self.notify(&mut vring, snapshot.as_ref());
            }
            match self.step(&mut vring, std::mem::take(&mut first), &snapshot, &mut serve) {
                Ok(Step::Served) => was_empty = false,
                Ok(Step::Filled) => {}
                Ok(Step::Empty) => return Ok(()),
                // A chain came in between; twice in a row means that it cannot be read.
                Ok(Step::NotEmptyAfterAll) if !was_empty => was_empty = true,
                failed => {
                    // Or the driver would think that it need not kick again.
                    let _ = vring.get_queue_mut().enable_notification(snapshot.as_ref());
                    let _ = self.notify(&mut vring, snapshot.as_ref());
                    return Err(failed.err().unwrap_or(RingError::Stuck));
                }
            }
        }
    }

    /// Takes one chain, or finds that there is none. The queue runs and is locked.
    fn step<S: AsRef<GuestMemory>>(
        &self,
        vring: &mut VringState<Memory>,
        first: bool,
        snapshot: &S,
        serve: &mut impl FnMut(&S, ChainHead) -> Outcome,
    ) -> Result<Step, RingError> {
        let memory = snapshot.as_ref();
        if first {
            // With EVENT_IDX this does nothing; without, it spares the driver kicks.
            vring.get_queue_mut().disable_notification(memory).map_err(RingError::Broken)?;
        }
        if let Some(head) = next_chain(vring, memory)? {
            if head.index >= head.queue_size {
                return Err(self.breaks(vring, RingError::Head(head.index)));
            }
            let outcome = serve(snapshot, head);
            // A driver has one such buffer out; with a second it takes the first back, and chains
            // stay in order.
            let before = self.progress().kept.take();
            if let Some(before) = before {
                self.add_used(vring, memory, before)?;
            }
            match outcome {
                Outcome::Return => self.add_used(vring, memory, head.index)?,
                Outcome::Keep => self.progress().kept = Some(head.index),
            }
            return Ok(Step::Served);
        }
        if self.progress().unnotified > 0 {
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
    /// [`Vring::drain`], and with the same `snapshot`.
    ///
    /// # Errors
    /// [`RingError`]; the chain is not kept any more.
    pub fn return_kept<S: AsRef<GuestMemory>>(
        &self,
        snapshot: impl FnOnce() -> S,
    ) -> Result<bool, RingError> {
        let mut vring = self.worker_lock();
        if !self.serves(&vring) {
            return Ok(false);
        }
        let Some(head) = self.progress().kept.take() else { return Ok(false) };
        let snapshot = snapshot();
        self.add_used(&mut vring, snapshot.as_ref(), head)?;
        self.notify(&mut vring, snapshot.as_ref())?;
        Ok(true)
    }

    /// Returns the chain that begins at `head` with used length 0.
    fn add_used(
        &self,
        vring: &mut VringState<Memory>,
        memory: &GuestMemory,
        head: u16,
    ) -> Result<(), RingError> {
        match vring.get_queue_mut().add_used(memory, head, 0) {
            Ok(()) => {
                let mut progress = self.progress();
                progress.unnotified = progress.unnotified.saturating_add(1);
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
