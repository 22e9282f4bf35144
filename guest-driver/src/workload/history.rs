// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Recent events, for the report of a failure.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use crate::page_alloc::{Pfn, PfnRange};

/// So many events are kept.
const KEPT: usize = 1 << 16;

/// Something that happened to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was allocated and written.
    Allocated {
        /// By which CPU.
        cpu: usize,
        /// Its first page.
        pfn: Pfn,
        /// Its size.
        order: u8,
        /// What was written.
        generation: u16,
    },
    /// It was checked and freed.
    Freed {
        /// By which CPU.
        cpu: usize,
        /// Its first page.
        pfn: Pfn,
        /// Its size.
        order: u8,
    },
}

impl Event {
    fn range(self) -> PfnRange {
        match self {
            Self::Allocated { pfn, order, .. } | Self::Freed { pfn, order, .. } => {
                PfnRange::block(pfn, order)
            }
        }
    }
}

/// The last events of all CPUs.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<VecDeque<Event>>);

impl History {
    pub(super) fn add(&self, event: Event) {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// The events that touch `range`, oldest first.
    pub(super) fn of(&self, range: PfnRange) -> Vec<Event> {
        let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let touches = |event: &&Event| {
            let other = event.range();
            other.start < range.end && range.start < other.end
        };
        events.iter().filter(touches).copied().collect()
    }
}
