// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a frontend does to migrate its guest: a log of dirty pages, and the backend's own state.

use super::Attachment;
use crate::guest_memory::Ram;
use anyhow::{Context, Result, ensure};
use guest_driver::ram::Gpa;
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    pipe::{PipeFlags, pipe_with},
};
use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
};
use vhost::{
    VhostBackend, VhostUserDirtyLogRegion,
    vhost_user::{
        VhostUserFrontend,
        message::{VhostTransferStateDirection, VhostTransferStatePhase, VhostUserVirtioFeatures},
    },
};

/// What one bit of the log stands for, in bytes.
const LOG_PAGE: u64 = 4096;

/// The log of dirty pages that a frontend shares with its backend, a bit for each 4 KiB.
#[derive(Debug)]
pub struct DirtyLog {
    file: File,
    bytes: u64,
}

impl DirtyLog {
    /// A clean log for the addresses below `end`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(end: Gpa) -> Result<Self> {
        let file = memfd_create("dirty-log", MemfdFlags::CLOEXEC).context("dirty log")?;
        let bytes = end.0.div_ceil(LOG_PAGE * u64::from(u8::BITS)).max(1);
        ftruncate(&file, bytes).context("dirty log")?;
        Ok(Self { file: file.into(), bytes })
    }

    /// The pages that are dirty, which are clean from now on.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn take(&self) -> Result<Vec<Gpa>> {
        let mut bits = vec![0; usize::try_from(self.bytes)?];
        self.file.read_exact_at(&mut bits, 0)?;
        self.file.write_all_at(&vec![0; bits.len()], 0)?;
        let mut dirty = Vec::new();
        for (at, byte) in bits.into_iter().enumerate() {
            let first = u64::try_from(at)? * u64::from(u8::BITS);
            let set = (0..u64::from(u8::BITS)).filter(|bit| byte >> bit & 1 == 1);
            dirty.extend(set.map(|bit| Gpa((first + bit) * LOG_PAGE)));
        }
        Ok(dirty)
    }
}

impl Attachment {
    /// Goes on at the backend behind `socket`, which loads `state` before the queues start, in `ram`: a copy of
    /// the memory that was made when the queues had stopped. Chains that were not returned stay available.
    ///
    /// # Errors
    /// See [`Attachment::reconnect`]; also where the state is refused.
    pub fn migrate(mut self, socket: &Path, ram: &Ram, state: &[u8]) -> Result<Self> {
        for index in self.queue_indices_in_use() {
            self.ring(index)?.move_to(ram.clone());
        }
        self.go_on(socket, ram.clone(), Some(state))
    }

    /// Shares a log of dirty pages (VHOST_USER_SET_LOG_BASE).
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn set_log(&mut self, log: &DirtyLog) -> Result<()> {
        let region = VhostUserDirtyLogRegion {
            mmap_size: log.bytes,
            mmap_offset: 0,
            mmap_handle: log.file.as_raw_fd(),
        };
        self.control("set log base", |frontend| frontend.set_log_base(0, Some(region)))
    }

    /// Starts or stops logging (`VHOST_F_LOG_ALL`). The driver's features stay what they are.
    ///
    /// # Errors
    /// When the backend refuses, or does not offer it.
    pub fn set_logging(&mut self, on: bool) -> Result<()> {
        let log_all = VhostUserVirtioFeatures::LOG_ALL.bits();
        ensure!(self.offered & log_all != 0, "VHOST_F_LOG_ALL is not offered");
        let features = if on { self.features | log_all } else { self.features };
        self.control("set features", |frontend| frontend.set_features(features))
    }

    /// Has the backend write its state into `pipe` (VHOST_USER_SET_DEVICE_STATE_FD).
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn start_save(&mut self, pipe: OwnedFd) -> Result<()> {
        self.start_transfer(VhostTransferStateDirection::SAVE, pipe)
    }

    /// Has the backend read its state from `pipe` (VHOST_USER_SET_DEVICE_STATE_FD).
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn start_load(&mut self, pipe: OwnedFd) -> Result<()> {
        self.start_transfer(VhostTransferStateDirection::LOAD, pipe)
    }

    fn start_transfer(
        &mut self,
        direction: VhostTransferStateDirection,
        pipe: OwnedFd,
    ) -> Result<()> {
        let phase = VhostTransferStatePhase::STOPPED;
        self.control("set device state fd", |frontend| {
            frontend.set_device_state_fd(direction, phase, pipe).map(|_| ())
        })
    }

    /// Asks whether the transfer went well (VHOST_USER_CHECK_DEVICE_STATE).
    ///
    /// # Errors
    /// When it did not.
    pub fn check_state(&mut self) -> Result<()> {
        self.control("check device state", |frontend| frontend.check_device_state())
    }

    /// The backend's state, of queues that are stopped.
    ///
    /// # Errors
    /// When the backend refuses or fails.
    pub fn save_state(&mut self) -> Result<Vec<u8>> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        self.start_save(write)?;
        let mut state = Vec::new();
        File::from(read).read_to_end(&mut state).context("device state")?;
        self.check_state()?;
        Ok(state)
    }

    /// Loads a saved state into the backend.
    ///
    /// # Errors
    /// When the backend refuses or fails.
    pub fn load_state(&mut self, state: &[u8]) -> Result<()> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        self.start_load(read)?;
        // A backend that has seen enough closes its end.
        let written = File::from(write).write_all(state);
        self.check_state()?;
        written.context("device state")
    }
}
