// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device that does whatever the framework's parser lets through, and takes note that it was asked.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use vhost::vhost_user::message::*;
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandler};

#[derive(Default)]
pub(super) struct Accepting {
    asked: AtomicBool,
}

impl Accepting {
    /// Whether the framework has called since this was asked last.
    pub(super) fn take_asked(&self) -> bool {
        self.asked.swap(false, Ordering::Relaxed)
    }

    fn done<T>(&self, answer: T) -> Result<T> {
        self.asked.store(true, Ordering::Relaxed);
        Ok(answer)
    }

    /// A message that this device has no answer for.
    fn reached<T>(&self) -> Result<T> {
        self.asked.store(true, Ordering::Relaxed);
        Err(Error::ReqHandlerError(io::ErrorKind::Unsupported.into()))
    }
}

impl VhostUserBackendReqHandler for Accepting {
    fn set_owner(&self) -> Result<()> {
        self.done(())
    }

    fn reset_owner(&self) -> Result<()> {
        self.done(())
    }

    fn reset_device(&self) -> Result<()> {
        self.done(())
    }

    fn get_features(&self) -> Result<u64> {
        self.done(u64::MAX)
    }

    fn set_features(&self, _features: u64) -> Result<()> {
        self.done(())
    }

    fn set_mem_table(
        &self,
        _regions: &[VhostUserMemoryRegion],
        _files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.done(None)
    }

    fn set_vring_num(&self, _index: u32, _num: u32) -> Result<()> {
        self.done(())
    }

    fn set_vring_addr(
        &self,
        _index: u32,
        _flags: VhostUserVringAddrFlags,
        _descriptor: u64,
        _used: u64,
        _available: u64,
        _log: u64,
    ) -> Result<()> {
        self.done(())
    }

    fn set_vring_base(&self, _index: u32, _base: u32) -> Result<()> {
        self.done(())
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        self.done(VhostUserVringState::new(index, 0))
    }

    fn set_vring_kick(&self, _index: u8, _fd: Option<File>) -> Result<()> {
        self.done(())
    }

    fn set_vring_call(&self, _index: u8, _fd: Option<File>) -> Result<()> {
        self.done(())
    }

    fn set_vring_err(&self, _index: u8, _fd: Option<File>) -> Result<()> {
        self.done(())
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        self.done(VhostUserProtocolFeatures::all())
    }

    fn set_protocol_features(&self, _features: u64) -> Result<()> {
        self.done(())
    }

    fn get_queue_num(&self) -> Result<u64> {
        self.done(5)
    }

    fn set_vring_enable(&self, _index: u32, _enable: bool) -> Result<()> {
        self.done(())
    }

    fn get_config(&self, _offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.done(vec![0; size as usize])
    }

    fn set_config(&self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.done(())
    }

    fn set_backend_req_fd(&self, _backend: Backend) {
        self.asked.store(true, Ordering::Relaxed);
    }

    fn set_gpu_socket(&self, _backend: GpuBackend) -> Result<()> {
        self.done(())
    }

    fn get_shared_object(&self, _uuid: VhostUserSharedMsg) -> Result<File> {
        self.reached()
    }

    fn get_inflight_fd(&self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        self.reached()
    }

    fn set_inflight_fd(&self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        self.done(())
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        self.done(32)
    }

    fn add_mem_region(
        &self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        self.done(None)
    }

    fn remove_mem_region(&self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.done(())
    }

    fn set_device_state_fd(
        &self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        self.done(None)
    }

    fn check_device_state(&self) -> Result<()> {
        self.done(())
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        self.reached()
    }

    fn set_log_base(&self, _log: &VhostUserLog, _file: File) -> Result<()> {
        self.done(())
    }
}
