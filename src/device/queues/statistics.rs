// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The statistics queue (virtio 1.3, section 5.5.6.3): the device keeps the driver's buffer, and
//! returns it to ask for the next.

use super::contents::Contents;
use super::{Action, QueueHandler};
use crate::device::balloon::Balloon;
use crate::device::chain::{ChainHead, Outcome};
use crate::device::statistics::{Sample, read};
use crate::discard::GuestMemory;
use crate::lock::lock;

pub(super) struct StatisticsQueue;

impl QueueHandler for StatisticsQueue {
    fn collect(
        &self,
        balloon: &Balloon,
        head: ChainHead,
        memory: &GuestMemory,
        _contents: &mut Contents,
    ) -> Action {
        if let Some(sample) = read(head, memory, &balloon.counters, &balloon.log) {
            let balloon_bytes = balloon.actual_bytes();
            lock(&balloon.statistics).sample = Some(Sample { balloon_bytes, ..sample });
        }
        Action::Nothing
    }

    fn finish(&self, _balloon: &Balloon, _memory: &GuestMemory, _contents: &Contents) -> Outcome {
        Outcome::Keep
    }

    fn begins(&self, balloon: &Balloon, _untouched: bool) {
        lock(&balloon.statistics).sample = None;
    }
}
