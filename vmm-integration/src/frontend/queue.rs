// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Starting and stopping queues, and the notifications between driver and device.

use super::{
    Attachment,
    line::{Line, LineEnd},
};
use crate::guest_memory::Ram;
use anyhow::{Context, Result, ensure};
use guest_driver::{
    ram::{GpaRange, GuestRam},
    virtio::{
        layout::RingLayout,
        ring::{Buffer, DriverRing, Used},
    },
};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use vhost::{
    VhostBackend, VringConfigData,
    vhost_user::{VhostUserFrontend, message::VhostUserVirtioFeatures},
};

/// A ring with its notifications. Both outlive the connection that they were made for.
pub(super) struct Queue {
    pub(super) layout: RingLayout,
    /// None after it was taken.
    ring: Option<DriverRing<Ram>>,
    pub(super) line: LineEnd,
}

impl Queue {
    fn new(ring: DriverRing<Ram>) -> Result<Self> {
        Ok(Self { layout: *ring.layout(), ring: Some(ring), line: LineEnd::new()? })
    }
}

impl Attachment {
    /// Starts a queue for each of `places`, the one that is there already or a fresh one.
    pub(super) fn start_all(
        &mut self,
        places: &[(u16, RingLayout)],
        mut queues: BTreeMap<u16, Queue>,
    ) -> Result<()> {
        let mut resumed = Vec::new();
        for (index, layout) in places {
            let (queue, base) = match queues.remove(index) {
                // What the device returned is done, what it had only taken it is to take again.
                Some(queue) => {
                    resumed.push(*index);
                    let base = self.ram.load_u16(queue.layout.used_idx(), Ordering::Acquire)?;
                    (queue, base)
                }
                None => {
                    let ring = DriverRing::new(self.ram.clone(), *layout, self.event_idx())?;
                    (Queue::new(ring)?, 0)
                }
            };
            self.queues.insert(*index, queue);
            self.start_queue(*index, base)?;
        }
        for (index, _) in places {
            self.enable_queue(*index, true)?;
        }
        // A ring is started by a kick, and that for a chain that waits may have gone to the
        // backend before. QEMU kicks then, too (`virtio_device_start_ioeventfd_impl`).
        resumed.into_iter().try_for_each(|index| self.kick(index))
    }

    /// Hands a queue out, to be used on any thread: the driver's half of its ring, and its
    /// notifications. They stay valid when the frontend reconnects.
    ///
    /// # Errors
    /// When the queue was not set up or was taken before.
    pub fn take_queue(&mut self, index: u16) -> Result<(DriverRing<Ram>, Line)> {
        let queue = self.queue(index)?;
        let ring = queue.ring.take();
        let ring = ring.with_context(|| format!("queue {index} was taken before"))?;
        Ok((ring, queue.line.line()))
    }

    /// The queues that were set up.
    pub fn queue_indices_in_use(&self) -> Vec<u16> {
        self.queues.keys().copied().collect()
    }

    pub(super) fn queue(&mut self, index: u16) -> Result<&mut Queue> {
        self.queues.get_mut(&index).with_context(|| format!("queue {index} was not set up"))
    }

    /// The driver's half of a queue's ring.
    ///
    /// # Errors
    /// When the queue was not set up or was taken.
    pub fn ring(&mut self, index: u16) -> Result<&mut DriverRing<Ram>> {
        let ring = self.queue(index)?.ring.as_mut();
        ring.with_context(|| format!("queue {index} was taken"))
    }

    /// Replaces a stopped queue's ring by a fresh one in the same place, as a guest that resets
    /// the device does.
    ///
    /// # Errors
    /// When the queue was not set up or was taken.
    pub fn reset_ring(&mut self, index: u16) -> Result<()> {
        let (ram, event_idx) = (self.ram.clone(), self.event_idx());
        let ring = self.ring(index)?;
        *ring = DriverRing::new(ram, *ring.layout(), event_idx)?;
        Ok(())
    }

    /// Starts a queue that has never run or was stopped: its size, `base` as the index of the
    /// first chain to take, its addresses and its notifications. Enabling it is apart.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn start_queue(&mut self, index: u16, base: u16) -> Result<()> {
        let layout = self.queue(index)?.layout;
        let number = usize::from(index);
        let addresses = VringConfigData {
            queue_max_size: layout.size(),
            queue_size: layout.size(),
            flags: 0,
            desc_table_addr: self.ram.user_addr(layout.desc())?,
            used_ring_addr: self.ram.user_addr(layout.used())?,
            avail_ring_addr: self.ram.user_addr(layout.avail())?,
            log_addr: None,
        };
        let line = self.queue(index)?.line.line();
        let (kick, call) = (Arc::clone(&line.kick), Arc::clone(&line.call));
        let size = layout.size();
        self.control("set vring num", |frontend| frontend.set_vring_num(number, size))?;
        self.control("set vring base", |frontend| frontend.set_vring_base(number, base))?;
        self.control("set vring addr", |frontend| frontend.set_vring_addr(number, &addresses))?;
        // Ahead of the kick, which starts the ring: the first chain's notification needs it.
        self.control("set vring call", |frontend| frontend.set_vring_call(number, &call))?;
        self.control("set vring kick", |frontend| frontend.set_vring_kick(number, &kick))
    }

    /// Enables or disables a queue. Without VHOST_USER_F_PROTOCOL_FEATURES there is no such
    /// message, and a queue is enabled from the start.
    ///
    /// # Errors
    /// When the backend refuses, or for disabling without that message.
    pub fn enable_queue(&mut self, index: u16, enable: bool) -> Result<()> {
        if self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 && enable {
            return Ok(());
        }
        self.control("set vring enable", |frontend| {
            frontend.set_vring_enable(usize::from(index), enable)
        })
    }

    /// Stops a queue (VHOST_USER_GET_VRING_BASE) and returns the index of the first chain that
    /// the backend has not taken. Once it has answered, it leaves the guest's memory alone.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn stop_queue(&mut self, index: u16) -> Result<u16> {
        let base =
            self.control("get vring base", |frontend| frontend.get_vring_base(usize::from(index)))?;
        u16::try_from(base).with_context(|| format!("{base} is no index of a split ring"))
    }

    /// Stops every queue and returns each with its base.
    ///
    /// # Errors
    /// See [`Attachment::stop_queue`].
    pub fn stop(&mut self) -> Result<Vec<(u16, u16)>> {
        let indices = self.queue_indices_in_use();
        indices.into_iter().map(|index| Ok((index, self.stop_queue(index)?))).collect()
    }

    /// Kicks a queue, whether or not the device asked for it.
    ///
    /// # Errors
    /// When the queue was not set up.
    pub fn kick(&mut self, index: u16) -> Result<()> {
        self.queue(index)?.line.line().send_kick()
    }

    /// Makes visible what was added to a queue and kicks it where the device wants that; says
    /// whether it did.
    ///
    /// # Errors
    /// When the queue was not set up.
    pub fn publish(&mut self, index: u16) -> Result<bool> {
        let ring = self.ring(index)?;
        ring.publish()?;
        let kick = ring.kick_needed()?;
        if kick {
            self.kick(index)?;
        }
        Ok(kick)
    }

    /// Waits for the device's notification of a queue and takes it; says whether one came.
    ///
    /// # Errors
    /// When the queue was not set up.
    pub fn wait_call(&mut self, index: u16, timeout: Duration) -> Result<bool> {
        self.queue(index)?.line.line().wait_call(Some(timeout))
    }

    /// Waits, by notification alone, for the next chain that comes back; `None` where none does
    /// in time. Needs used notifications that were not put off.
    ///
    /// # Errors
    /// When the device returned what it was not given.
    pub fn wait_used(&mut self, index: u16, timeout: Duration) -> Result<Option<Used>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(used) = self.ring(index)?.pop_used()? {
                return Ok(Some(used));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.wait_call(index, left)? {
                // The last chance: it may have come while the time ran out.
                return Ok(self.ring(index)?.pop_used()?);
            }
        }
    }

    /// Reports `range` with a pattern in it, and returns whether it was discarded. What was not has to
    /// be as it was.
    ///
    /// # Errors
    /// See [`Attachment::submit_and_wait`]; also where there is no reporting queue or the memory is
    /// neither zero nor whole.
    pub fn given_back(&mut self, range: GpaRange) -> Result<bool> {
        self.ram.write_pattern(range, 1)?;
        let queue = self.reporting_queue().context("reporting was not acked")?;
        let len = u32::try_from(range.len())?;
        self.submit_and_wait(queue, &[Buffer::writable(range.start(), len)])?;
        let gone = self.ram.is_zero(range)?;
        if !gone {
            self.ram.verify_pattern(range, 1)?;
        }
        Ok(gone)
    }

    /// Submits `buffers` as one chain and waits until it comes back.
    ///
    /// # Errors
    /// When the ring is full, the chain does not come back in time, or another one does.
    pub fn submit_and_wait(&mut self, index: u16, buffers: &[Buffer]) -> Result<Used> {
        let head = self.ring(index)?.add_chain(buffers)?;
        self.publish(index)?;
        let timeout = self.options.timeout;
        let used = self
            .wait_used(index, timeout)?
            .with_context(|| format!("queue {index}: chain not returned within {timeout:?}"))?;
        ensure!(used.id == head, "queue {index}: chain {} returned instead of {head}", used.id);
        Ok(used)
    }
}
