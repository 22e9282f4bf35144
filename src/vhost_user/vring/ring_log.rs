// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is said of queues that go wrong, each kind and each queue at a rate of its own.

use std::error::Error;

use log::warn;

use super::RingError;
use crate::device::features::NUM_QUEUES;
use crate::logging::rate_limit::LogLimit;

/// Bounds what a guest can have logged of its queues.
#[derive(Debug, Default)]
pub(crate) struct RingLog {
    queues: [[LogLimit; KINDS]; NUM_QUEUES],
}

const KINDS: usize = 5;

/// One number below [`KINDS`] for each kind of error.
fn kind(error: &RingError) -> usize {
    match error {
        RingError::Broken(_) => 0,
        RingError::Stuck => 1,
        RingError::Head(_) => 2,
        RingError::Used(_) => 3,
        RingError::Signal(_) => 4,
    }
}

impl RingLog {
    /// Logs what is wrong with the queue of this index.
    pub(crate) fn report(&self, queue: usize, error: &RingError) {
        let Some(limit) = self.limit(queue, error) else { return };
        let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
        limit.run(|| warn!("queue {queue}: {error}{source}"));
    }

    fn limit(&self, queue: usize, error: &RingError) -> Option<&LogLimit> {
        self.queues.get(queue)?.get(kind(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::io::ErrorKind;

    #[test]
    fn every_kind_and_queue_has_a_limit_of_its_own() {
        let log = RingLog::default();
        let errors = [
            RingError::Broken(virtio_queue::Error::InvalidChain),
            RingError::Stuck,
            RingError::Head(1),
            RingError::Used(virtio_queue::Error::InvalidChain),
            RingError::Signal(ErrorKind::Other.into()),
        ];
        let limits: BTreeSet<*const LogLimit> = (0..NUM_QUEUES)
            .flat_map(|queue| errors.iter().map(move |error| (queue, error)))
            .map(|(queue, error)| std::ptr::from_ref(log.limit(queue, error).unwrap()))
            .collect();
        assert_eq!(limits.len(), KINDS * NUM_QUEUES);
        // The same kind of the same queue shares one, whatever it names.
        let at = |head| log.limit(0, &RingError::Head(head)).map(std::ptr::from_ref);
        assert_eq!(at(1), at(2));
        assert!(log.limit(NUM_QUEUES, &RingError::Stuck).is_none());
    }
}
