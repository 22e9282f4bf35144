// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The messages for which a VMM stops its guest or its monitor until they are answered.

use super::Attachment;
use anyhow::Result;
use std::sync::Arc;
use vhost::{VhostBackend, VringConfigData, vhost_user::VhostUserFrontend};

/// A message that needs a queue's lock or the memory table of a backend that serves a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlMessage {
    /// VHOST_USER_GET_VRING_BASE: stops the queue.
    GetVringBase,
    /// VHOST_USER_SET_VRING_ENABLE: disables the queue.
    SetVringEnable,
    /// VHOST_USER_SET_VRING_NUM, with the size that the queue has.
    SetVringNum,
    /// VHOST_USER_SET_VRING_ADDR, as QEMU sends it again when it begins to log.
    SetVringAddr,
    /// VHOST_USER_SET_VRING_KICK, with the same eventfd.
    SetVringKick,
    /// VHOST_USER_SET_VRING_CALL, as when a guest masks an interrupt.
    SetVringCall,
    /// VHOST_USER_SET_FEATURES, with the same features.
    SetFeatures,
    /// VHOST_USER_SET_FEATURES with VHOST_F_LOG_ALL: a migration begins.
    SetLogAll,
    /// VHOST_USER_ADD_MEM_REG: memory is plugged in.
    AddMemReg,
    /// VHOST_USER_REM_MEM_REG: memory is unplugged.
    RemMemReg,
    /// VHOST_USER_SET_MEM_TABLE.
    SetMemTable,
    /// VHOST_USER_RESET_DEVICE: the guest reboots.
    ResetDevice,
}

impl ControlMessage {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::GetVringBase,
        Self::SetVringEnable,
        Self::SetVringNum,
        Self::SetVringAddr,
        Self::SetVringKick,
        Self::SetVringCall,
        Self::SetFeatures,
        Self::SetLogAll,
        Self::AddMemReg,
        Self::RemMemReg,
        Self::SetMemTable,
        Self::ResetDevice,
    ];

    /// Makes it possible: sent while the queue is idle. `spare` is the index of a region that holds
    /// no ring and is not announced.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn prepare(self, guest: &mut Attachment, spare: usize) -> Result<()> {
        match self {
            Self::RemMemReg => guest.add_region(spare),
            _ => Ok(()),
        }
    }

    /// Sends it for the queue with this index, and waits for the answer.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn send(self, guest: &mut Attachment, queue: u16, spare: usize) -> Result<()> {
        let number = usize::from(queue);
        match self {
            Self::GetVringBase => guest.stop_queue(queue).map(drop),
            Self::SetVringEnable => guest.enable_queue(queue, false),
            Self::SetVringNum => {
                let size = guest.queue(queue)?.layout.size();
                guest.control("set vring num", |frontend| frontend.set_vring_num(number, size))
            }
            Self::SetVringAddr => {
                let layout = guest.queue(queue)?.layout;
                let addresses = VringConfigData {
                    queue_max_size: layout.size(),
                    queue_size: layout.size(),
                    flags: 0,
                    desc_table_addr: guest.ram.user_addr(layout.desc())?,
                    used_ring_addr: guest.ram.user_addr(layout.used())?,
                    avail_ring_addr: guest.ram.user_addr(layout.avail())?,
                    log_addr: None,
                };
                guest.control("set vring addr", |f| f.set_vring_addr(number, &addresses))
            }
            Self::SetVringKick => {
                let kick = Arc::clone(&guest.queue(queue)?.line.line().kick);
                guest.control("set vring kick", |frontend| frontend.set_vring_kick(number, &kick))
            }
            Self::SetVringCall => {
                let call = Arc::clone(&guest.queue(queue)?.line.line().call);
                guest.control("set vring call", |frontend| frontend.set_vring_call(number, &call))
            }
            Self::SetFeatures => guest.set_features(guest.features()),
            Self::SetLogAll => guest.set_logging(true),
            Self::AddMemReg => guest.add_region(spare),
            Self::RemMemReg => guest.remove_region(spare),
            Self::SetMemTable => guest.set_mem_table(&guest.announced.clone()),
            Self::ResetDevice => guest.control("reset device", |frontend| frontend.reset_device()),
        }
    }

    /// Has the queue run again as before.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn undo(self, guest: &mut Attachment, queue: u16, spare: usize) -> Result<()> {
        match self {
            // The backend knows from the used ring where to go on.
            Self::GetVringBase => guest.start_queue(queue, 0)?,
            Self::SetVringEnable => guest.enable_queue(queue, true)?,
            Self::SetLogAll => guest.set_logging(false)?,
            Self::AddMemReg => guest.remove_region(spare)?,
            Self::ResetDevice => {
                guest.set_features(guest.features())?;
                for index in guest.queue_indices_in_use() {
                    guest.enable_queue(index, true)?;
                }
            }
            _ => {}
        }
        guest.kick(queue)
    }
}
