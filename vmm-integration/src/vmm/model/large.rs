// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long a guest with a large and mostly empty address space takes to start.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use guest_driver::page_alloc::geometry::PAGE_BYTES;
use guest_driver::page_alloc::{Geometry, Layout, ZoneLayout, ZoneType};
use serde::Serialize;

use super::{GuestMemory, ModelConfig, ModelVm};
use crate::daemon::{DaemonOptions, DaemonProcess};

/// 1 TiB of address space in sections of 128 MiB, of which 8 GiB are there, scattered.
const SECTIONS: usize = 8192;
const POPULATED: usize = 64;

/// What starting it took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LargeStart {
    /// Address space in bytes.
    pub address_bytes: u64,
    /// Memory that is there, in bytes.
    pub populated_bytes: u64,
    /// From nothing to a guest attached to a running daemon, in seconds.
    pub seconds: f64,
    /// The model's metadata for a page that is there, in bytes.
    pub metadata_bytes_per_page: f64,
}

/// Such a guest's memory: 1 TiB of address space in one region, 64 sections of it online.
pub fn large_memory() -> GuestMemory {
    let every = SECTIONS / POPULATED;
    let sections = (0..POPULATED).map(|n| n * every..n * every + 1).collect();
    let layout = Layout {
        sections: SECTIONS,
        zones: vec![ZoneLayout { node: 0, kind: ZoneType::Movable, sections }],
        ..Layout::flat(Geometry::LINUX, 2, 0)
    };
    let whole = 0..SECTIONS;
    GuestMemory { regions: Some(Vec::from_iter([whole])), ..GuestMemory::new(layout) }
}

/// Starts a guest of 1 TiB with 8 GiB of sections.
///
/// # Errors
/// When the daemon or the guest does not start.
pub fn large_start(daemon: &Path) -> Result<LargeStart> {
    let mut daemon = DaemonProcess::spawn(daemon, &DaemonOptions::default())?;
    let started = Instant::now();
    let vm = ModelVm::start(&daemon.socket(), ModelConfig::new(large_memory()))?;
    let seconds = started.elapsed().as_secs_f64();
    let populated_bytes = vm.managed_bytes();
    let metadata = vm.mm().metadata_bytes();
    drop(vm);
    daemon.terminate(Duration::from_secs(20))?;
    #[allow(clippy::cast_precision_loss)] // a figure for people
    Ok(LargeStart {
        address_bytes: u64::try_from(SECTIONS)? << 27,
        populated_bytes,
        seconds,
        metadata_bytes_per_page: metadata as f64 / (populated_bytes / PAGE_BYTES) as f64,
    })
}
