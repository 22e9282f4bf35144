// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory regions that the backend knows.

use anyhow::Result;
use vhost::VhostBackend as _;
use vhost::vhost_user::VhostUserFrontend as _;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::{Attachment, MemoryHandover};

impl Attachment {
    /// Announces the regions as the options and the negotiated features have it.
    pub(super) fn announce(&mut self, regions: &[usize]) -> Result<()> {
        let slots = self.protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);
        match self.options.memory {
            MemoryHandover::Negotiated if !slots => self.set_mem_table(regions),
            MemoryHandover::Table => self.set_mem_table(regions),
            MemoryHandover::Negotiated | MemoryHandover::Slots => {
                regions.iter().try_for_each(|region| self.add_region(*region))
            }
        }
    }

    /// Makes `regions`, by index, all that the backend knows of (VHOST_USER_SET_MEM_TABLE).
    ///
    /// # Errors
    /// When the backend refuses, or for more than the message holds.
    pub fn set_mem_table(&mut self, regions: &[usize]) -> Result<()> {
        let infos: Result<Vec<_>> = regions.iter().map(|r| self.ram.region_info(*r)).collect();
        let infos = infos?;
        self.control("set mem table", |frontend| frontend.set_mem_table(&infos).map(|_| ()))?;
        self.announced = regions.to_vec();
        Ok(())
    }

    /// Announces another region (VHOST_USER_ADD_MEM_REG).
    ///
    /// # Errors
    /// When the backend refuses or VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS was not negotiated.
    pub fn add_region(&mut self, region: usize) -> Result<()> {
        let info = self.ram.region_info(region)?;
        self.control("add memory region", |frontend| frontend.add_mem_region(&info).map(|_| ()))?;
        // By address, as a table has to be.
        self.announced.push(region);
        self.announced.sort_unstable();
        Ok(())
    }

    /// Takes a region back (VHOST_USER_REM_MEM_REG). It stays RAM to the guest.
    ///
    /// # Errors
    /// See [`Attachment::add_region`].
    pub fn remove_region(&mut self, region: usize) -> Result<()> {
        let info = self.ram.region_info(region)?;
        self.control("remove memory region", |frontend| frontend.remove_mem_region(&info))?;
        self.announced.retain(|announced| *announced != region);
        Ok(())
    }
}
