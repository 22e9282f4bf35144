// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device that pins what it maps (`FOLL_LONGTERM`).

use alloc::vec::Vec;

use super::setup::Setup;
use crate::address_space::{AddressSpace, Again, Invalidation, Notifier, PageId, Step};
use crate::sync::Plain;
use crate::waits::Party;

/// A device that pins: it cannot drop a page while it uses it, and has a reference instead.
///
/// Nothing of the range can be freed while it is pinned. The notifier's second step is to say so without a
/// wait: the reaper unmaps the range at once and does not come back for it, and the last unpin frees the
/// pages. A notifier that fails would cost the reaper all its attempts.
#[derive(Debug)]
pub struct Pinning {
    setup: Setup,
    /// It takes no reference: a mistake.
    is_flawed: bool,
    pinned: Plain<Vec<PageId>>,
}

impl Pinning {
    /// A device that has pinned nothing yet. With `is_flawed` it takes no references.
    pub fn new(setup: Setup, is_flawed: bool) -> Self {
        Self { setup, is_flawed, pinned: Plain::new(Vec::new()) }
    }

    /// Pins a page of `mm`.
    pub fn pin(&self, party: Party, mm: &AddressSpace, at: u64) {
        let Some(page) = mm.get_page(party, at) else { return };
        self.setup.pages.map_secondary(page, self.setup.subscription);
        self.pinned.lock().push(page);
        if self.is_flawed {
            self.setup.pages.put(page);
        }
    }

    /// Ends its use of all pages.
    pub fn unpin(&self) {
        let pinned = core::mem::take(&mut *self.pinned.lock());
        for page in pinned {
            self.setup.pages.unmap_secondary(page, self.setup.subscription);
            if !self.is_flawed {
                self.setup.pages.put(page);
            }
        }
    }
}

impl Notifier for Pinning {
    fn start(&self, invalidation: &Invalidation<'_>) -> Result<(), Again> {
        let is_asked = !invalidation.tests_range || self.setup.is_interested(&invalidation.range);
        match invalidation.step {
            Step::Bail if is_asked => Err(Again),
            _ => Ok(()),
        }
    }

    fn end(&self, _: &Invalidation<'_>) {}
}
