// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Direct reclaim that wins nothing.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, Weak};

use guest_driver::page_alloc::{AllocRequest, Mm, NodeMask, Reclaim, ZoneId};
use guest_driver::placement::{Placement, TaskId};

/// Others dirty pages of a node as fast as reclaim frees them, so that it always makes progress there. Of a
/// node that is full all pages stay.
pub(super) struct Endless {
    /// The nodes that are not full.
    pub(super) roomy: NodeMask,
}

impl Reclaim for Endless {
    fn reclaim(&self, _: &Mm, _: usize, _: AllocRequest, allowed: &dyn Fn(u8) -> bool) -> u64 {
        u64::from(self.roomy.iter().any(allowed))
    }

    fn reclaimable(&self, _: ZoneId) -> u64 {
        0
    }
}

/// Allocates a page for the task that waits for memory. There is one such task, on the CPU of its number.
#[derive(Default)]
pub(super) struct Allocating {
    /// The tasks, once they are there.
    pub(super) tasks: OnceLock<Weak<Placement>>,
    /// It reclaims already: no reclaim is within another (`PF_MEMALLOC`).
    reclaims: AtomicBool,
}

impl Reclaim for Allocating {
    fn reclaim(&self, mm: &Mm, cpu: usize, request: AllocRequest, _: &dyn Fn(u8) -> bool) -> u64 {
        let Some(tasks) = self.tasks.get().and_then(Weak::upgrade) else { return 0 };
        if !self.reclaims.swap(true, Ordering::Relaxed) {
            if let Ok(page) = tasks.alloc(TaskId(cpu), None, cpu, request) {
                mm.free(cpu, page);
            }
            self.reclaims.store(false, Ordering::Relaxed);
        }
        0
    }

    fn reclaimable(&self, _: ZoneId) -> u64 {
        0
    }
}
