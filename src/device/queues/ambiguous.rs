// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Queue 3 of a driver that negotiated hints and reporting but no statistics: hints in the
//! specification's numbering, reports in Linux's. The device cannot tell, so it discards nothing.

use super::contents::Contents;
use super::{Action, QueueHandler};
use crate::device::balloon::Balloon;
use crate::device::chain::ChainHead;
use crate::discard::GuestMemory;
use crate::metrics::SkipReason;

pub(super) struct Ambiguous;

impl QueueHandler for Ambiguous {
    fn collect(
        &self,
        balloon: &Balloon,
        head: ChainHead,
        memory: &GuestMemory,
        _contents: &mut Contents,
    ) -> Action {
        let mut bytes = 0;
        // Whether the chain is broken does not matter: nothing of it is used.
        let _ = head.walk(memory, |descriptor| bytes += u64::from(descriptor.len()));
        balloon.counters.skip(SkipReason::AmbiguousQueue, bytes);
        balloon.log.ambiguous_queue(true);
        Action::Nothing
    }
}
