// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queue of free page hints (virtio 1.3, section 5.5.6.5); [`crate::device::hinting::Hinting`] keeps its rounds.

use std::sync::atomic::Ordering;

use super::contents::Contents;
use super::{Action, QueueHandler};
use crate::device::balloon::Balloon;
use crate::device::chain::{ChainHead, Outcome};
use crate::device::log::DeviceLog;
use crate::discard::{GuestMemory, GuestRange};
use crate::lock::lock;
use crate::metrics::Named;

pub(super) struct HintingQueue;

impl QueueHandler for HintingQueue {
    fn collect(
        &self,
        balloon: &Balloon,
        head: ChainHead,
        memory: &GuestMemory,
        contents: &mut Contents,
    ) -> Action {
        let ranges = &mut contents.ranges;
        let mut chain = lock(&balloon.hinting).begin();
        if let Err(error) = chain.collect(head, memory, ranges, &balloon.counters) {
            DeviceLog::broken(&balloon.log.broken_hints, "a chain of hints", error);
        }
        let (count, bytes) = (ranges.len() as u64, ranges.iter().map(GuestRange::len).sum());
        balloon.counters.named(Named::Hinting, count, bytes);
        lock(&balloon.hinting).collected(chain, count, bytes);
        if count > 0 { Action::Discard } else { Action::Nothing }
    }

    /// `DONE` comes only when the pages of the chain are no longer touched.
    fn finish(&self, balloon: &Balloon, _memory: &GuestMemory, _contents: &Contents) -> Outcome {
        let mut hinting = lock(&balloon.hinting);
        if hinting.finish() {
            balloon.config().set_free_page_hint_cmd_id(hinting.command_id());
            balloon.config_changed.store(true, Ordering::Relaxed);
            balloon.changed_by_chain.store(true, Ordering::Relaxed);
        }
        Outcome::Return
    }
}
